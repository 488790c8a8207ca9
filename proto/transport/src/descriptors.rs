//! Open files handed from one process to another on the same host, over a Unix socket (SCM_RIGHTS).
//!
//! The socket authenticates nobody: it hands out what a token names that was told on an authenticated connection, once. What it adds is
//! that no token reaches the wrong hands and no descriptor comes from them: its directory is open to its owner alone, and each end has the
//! system say who the other one is.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long whoever connects has to show a token and to take what it names.
const SERVED_WITHIN: Duration = Duration::from_secs(1);
/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// Permissions of the socket's directory.
const DIRECTORY_MODE: u32 = 0o700;
/// Comes with a descriptor.
const HERE: u8 = 1;
/// Comes alone: the token names nothing (any more).
const NOTHING: u8 = 0;

/// Names one descriptor, once. It is never printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub [u8; 32]);

impl Token {
    /// One that nobody can guess.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The id that this host's kernel took when it booted; none where it doesn't say.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// The user that this process runs as.
pub fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What a token names.
pub type Take = Arc<dyn Fn(&Token) -> Option<OwnedFd> + Send + Sync>;

/// A socket at which descriptors are fetched.
pub struct Counter {
    listener: UnixListener,
    path: PathBuf,
}

impl Counter {
    /// Listens at `path`, whose directory belongs to nobody else and is made where it is missing. A socket that is left from before is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let directory = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
        match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::set_permissions(directory, std::fs::Permissions::from_mode(DIRECTORY_MODE))?;
            }
            made => made?,
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self { listener: UnixListener::bind(path)?, path: path.to_owned() })
    }

    /// Hands out what `take` answers, until told to stop.
    pub async fn serve(self, take: Take, shutdown: CancellationToken) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // A place first: whoever finds none waits in the queue of the system, which is short.
            let accepted = async {
                let place = connections.clone().acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accepted => accepted,
            };
            match (place, accepted) {
                (Ok(place), Ok((stream, _))) => drop(tokio::spawn(hand_over(stream, take.clone(), place))),
                (_, Err(error)) => {
                    tracing::debug!(%error, "a connection for a descriptor couldn't be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (Err(_), Ok(_)) => break,
            }
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn hand_over(mut stream: UnixStream, take: Take, _place: OwnedSemaphorePermit) {
    let served = async {
        let uid = stream.peer_cred()?.uid();
        if uid != 0 && uid != our_uid() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {uid} has no business here"),
            ));
        }
        let mut shown = [0; 32];
        stream.read_exact(&mut shown).await?;
        match take(&Token(shown)) {
            Some(descriptor) => send(&stream, &[HERE], Some(descriptor.as_fd())).await,
            None => send(&stream, &[NOTHING], None).await,
        }
    };
    let failed = match timeout(SERVED_WITHIN, served).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it took too long".to_owned(),
    };
    tracing::debug!(failed, "a descriptor wasn't handed over");
}

async fn send(stream: &UnixStream, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("there is no room for a descriptor"));
        }
        Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
    });
    sent.await.map(drop)
}

/// Fetches the descriptor that a token names from the socket at `path`, which a process of user `uid` must serve.
pub async fn fetch(path: &Path, token: &Token, uid: u32, within: Duration) -> io::Result<OwnedFd> {
    let fetched = async {
        // Whoever names a path mustn't have us speak to whatever listens there.
        let directory = path.parent().map(std::fs::metadata).transpose()?;
        if !directory.is_some_and(|of| of.uid() == uid && of.mode() & 0o077 == 0) {
            let message = format!("the directory of {} isn't user {uid}'s alone", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let mut stream = UnixStream::connect(path).await?;
        let found = stream.peer_cred()?.uid();
        if found != uid {
            let message = format!("{} is served by user {found}, not {uid}", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        stream.write_all(&token.0).await?;
        let received = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut word = [NOTHING];
            let mut parts = [IoSliceMut::new(&mut word)];
            let got = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            // Each that isn't taken is closed.
            let descriptors = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            let descriptor = descriptors.fold(None, |first: Option<OwnedFd>, next| first.or(Some(next)));
            Ok((got.bytes, word[0], descriptor))
        });
        match received.await? {
            (1, HERE, Some(descriptor)) => Ok(descriptor),
            (1, NOTHING, _) => Err(io::Error::new(io::ErrorKind::NotFound, "the token names nothing there")),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came")),
        }
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no descriptor came in time");
    timeout(within, fetched).await.map_err(late)?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    fn counter(path: &Path, token: Token, file: &Path) -> CancellationToken {
        let held = Mutex::new(Some(OwnedFd::from(File::open(file).unwrap())));
        let take: Take =
            Arc::new(move |shown| if *shown == token { held.lock().unwrap().take() } else { None });
        let shutdown = CancellationToken::new();
        tokio::spawn(Counter::bind(path).unwrap().serve(take, shutdown.clone()));
        shutdown
    }

    #[tokio::test]
    async fn a_token_fetches_its_descriptor_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("lend/socket"), dir.path().join("file"));
        std::fs::write(&file, b"bytes").unwrap();
        let token = Token::random();
        let shutdown = counter(&path, token, &file);
        let mode = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, DIRECTORY_MODE);
        let wrong = fetch(&path, &Token::random(), our_uid(), WITHIN).await.unwrap_err();
        assert_eq!(wrong.kind(), io::ErrorKind::NotFound);
        let other = fetch(&path, &token, our_uid() + 1, WITHIN).await.unwrap_err();
        assert_eq!(
            other.kind(),
            io::ErrorKind::PermissionDenied,
            "served by somebody else, who isn't shown the token"
        );
        let mut text = String::new();
        File::from(fetch(&path, &token, our_uid(), WITHIN).await.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "bytes");
        let again = fetch(&path, &token, our_uid(), WITHIN).await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::NotFound);
        shutdown.cancel();
        let deadline = tokio::time::Instant::now() + WITHIN;
        while path.exists() {
            assert!(tokio::time::Instant::now() < deadline, "the socket stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn whoever_says_nothing_holds_nobody_up_and_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("lend/socket"), dir.path().join("file"));
        std::fs::write(&file, b"bytes").unwrap();
        drop(Counter::bind(&path).unwrap());
        assert!(path.exists());
        let token = Token::random();
        let _shutdown = counter(&path, token, &file);
        let _silent = UnixStream::connect(&path).await.unwrap();
        assert!(fetch(&path, &token, our_uid(), WITHIN).await.is_ok());
    }

    #[tokio::test]
    async fn a_peer_that_sends_no_descriptor_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lend/socket");
        std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[HERE]).await.unwrap();
        });
        let nothing = fetch(&path, &Token([0; 32]), our_uid(), WITHIN).await.unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::InvalidData);
        // Where others may put sockets, none is spoken to.
        std::fs::set_permissions(path.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = fetch(&path, &Token([0; 32]), our_uid(), WITHIN).await.unwrap_err();
        assert_eq!(open.kind(), io::ErrorKind::PermissionDenied);
        serving.await.unwrap();
        assert_eq!(format!("{:?}", Token([7; 32])), "Token(..)");
    }
}
