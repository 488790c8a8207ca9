//! Asks a daemon's /healthz and /readyz.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer has fewer bytes: metrics are some tens of kilobytes.
const ANSWER_MAX: u64 = 4 << 20;

/// What a health endpoint said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// 200.
    Ok,
    /// Anything else, with its text.
    NotReady(String),
    /// Nobody answered.
    Silent(String),
}

/// Asks `http://address/path`. `address` is host:port with a numeric host.
pub fn ask(address: &str, path: &str) -> Health {
    match get(address, path, Duration::from_secs(2)) {
        Ok((200, _)) => Health::Ok,
        Ok((status, body)) => Health::NotReady(format!("{status} {}", body.trim())),
        Err(e) => Health::Silent(e.to_string()),
    }
}

/// A GET by hand: loopback, one answer, no dependency.
pub fn get(address: &str, path: &str, timeout: Duration) -> std::io::Result<(u16, String)> {
    let socket: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&socket, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
    Ok((status.ok_or_else(|| std::io::Error::other("the answer isn't HTTP"))?, body))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn serve(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            // The whole request: closing with unread bytes would reset the connection.
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                peer.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            let _ = peer.write_all(answer.as_bytes());
        });
        address
    }

    #[test]
    fn answers_are_told_apart() {
        let ok = serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert_eq!(ask(&ok, "/readyz"), Health::Ok);
        let not = serve("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno quorum");
        assert_eq!(ask(&not, "/readyz"), Health::NotReady("503 no quorum".into()));
        assert!(matches!(ask("127.0.0.1:1", "/readyz"), Health::Silent(_)));
        assert!(matches!(ask("localhost", "/readyz"), Health::Silent(_)));
    }
}
