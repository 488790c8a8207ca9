//! What is under way in a mount, and how long what was under way before took: as a mount tells it, and as it is shown.
//!
//! A mount tells it over a Unix socket in the runtime directory, to whoever mounted and to root alone: names of files are in it. Whoever connects is told at once, as
//! JSON, and the connection ends.
//!
//! A file's path isn't known to the mount. It is looked up here, among the files that the asking process has open: in /proc, where nothing waits for
//! the mount.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::output::Table;
use crate::runtime::{self, MountRecord};

/// Requests that a mount tells of at once.
pub const TOLD_MAX: usize = 64;
/// How long it may take.
pub const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// More than a mount tells.
const BYTES_MAX: usize = 4 << 20;
/// Open files that are looked at for all requests together.
const FILES_MAX: usize = 16_384;

/// What a mount tells. What another release doesn't tell is left out, here and below.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// Requests of the kernel that are under way, those first that have been for longest.
    pub requests: Vec<Request>,
    /// How many are under way besides.
    pub more: u64,
    /// How long operations took since the mount was made, by kind.
    pub latencies: BTreeMap<String, Latency>,
}

/// A request of the kernel that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// FUSE's word for what is asked.
    pub operation: String,
    /// The thread that asks; 0 where the kernel asks by itself.
    pub pid: u32,
    /// About which inode; with a name, the directory's.
    pub inode: u64,
    /// About which name in it.
    pub name: Option<String>,
    /// The path of that, where the process has the file, or the directory, open.
    pub path: Option<String>,
    /// For how long.
    pub age_us: u64,
    /// Its trace, as debug logs of all daemons have it.
    pub trace: Option<String>,
    /// What it waits for.
    pub waits_for: Option<Wait>,
}

/// What a request waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wait {
    /// The word for it: `master` and `chunkserver` where it is their answer.
    pub what: String,
    /// What they were asked for.
    pub call: Option<String>,
    /// And where.
    pub address: Option<String>,
    /// For how long already.
    pub us: u64,
}

/// How long the operations of one kind took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// The longest took so many microseconds.
    pub longest_us: u64,
    /// Buckets: they took so many microseconds at least, less than so many, and are so many.
    pub buckets: Vec<(u64, u64, u64)>,
}

/// Asks a mount.
pub fn ask(record: &MountRecord) -> io::Result<Live> {
    let text = told(&runtime::socket_of(record.process), TOLD_WITHIN)?;
    if text.is_empty() {
        return Err(io::Error::other("it tells only whoever mounted it, and root"));
    }
    let mut live: Live = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let mut looks = FILES_MAX;
    for request in &mut live.requests {
        request.path = path_of(request, &record.path, &mut looks).map(|path| path.display().to_string());
    }
    Ok(live)
}

/// All that a socket tells, which may take so long. Whoever tells it piece by piece, or takes no connection, keeps nobody waiting for longer.
fn told(socket: &Path, within: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + within;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&connected, &SocketAddrUnix::new(socket)?)?;
    let mut stream = UnixStream::from(connected);
    stream.set_nonblocking(false)?;
    let (mut text, mut piece) = (Vec::new(), [0; 8 << 10]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it doesn't tell it in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(text),
            Ok(more) if text.len() + more <= BYTES_MAX => text.extend_from_slice(&piece[..more]),
            Ok(_) => return Err(io::Error::other("it tells more than a mount does")),
            // That time is over, or a signal came.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The path of what a request is about, if its process has it open below the mount, or the directory; and if so many `looks` at open files find it.
fn path_of(request: &Request, mount: &Path, looks: &mut usize) -> Option<PathBuf> {
    let path = open_path(request.pid, request.inode, mount, looks)?;
    Some(request.name.iter().fold(path, |path, name| path.join(name)))
}

fn open_path(pid: u32, inode: u64, mount: &Path, looks: &mut usize) -> Option<PathBuf> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    for file in std::fs::read_dir(process.join("fd")).ok()?.flatten() {
        *looks = looks.checked_sub(1)?;
        // Neither asks the filesystem that the file is of.
        let path = std::fs::read_link(file.path()).ok().filter(|path| path.starts_with(mount));
        let info = || std::fs::read_to_string(process.join("fdinfo").join(file.file_name())).ok();
        if path.is_some() && info().and_then(|info| inode_in(&info)) == Some(inode) {
            return path;
        }
    }
    None
}

/// The inode in what the kernel tells of an open file; older ones than 5.14 don't tell it.
fn inode_in(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("ino:"))?.trim().parse().ok()
}

/// So many microseconds, for people.
pub fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// What is under way, `most` of it at most.
pub fn table(live: &Live, most: usize) -> Table {
    let mut table = Table::new(["UNDER WAY", "MS", "PID", "INODE", "PATH OR NAME", "WAITS FOR"]);
    for request in live.requests.iter().take(most) {
        let named = request.path.as_ref().or(request.name.as_ref());
        table.row([
            printable(&request.operation),
            (request.age_us / 1000).to_string(),
            request.pid.to_string(),
            request.inode.to_string(),
            named.map_or_else(|| "-".to_owned(), |named| printable(named)),
            request.waits_for.as_ref().map_or_else(|| "-".to_owned(), |wait| printable(&said(wait))),
        ]);
    }
    table
}

/// How many are under way that a table of `most` doesn't show.
pub fn left_out(live: &Live, most: usize) -> u64 {
    live.more.saturating_add(live.requests.len().saturating_sub(most) as u64)
}

fn said(wait: &Wait) -> String {
    let what = match wait.what.as_str() {
        "leader" => "a leading master",
        "earlier_changes" => "earlier changes of this mount",
        "unanswered_changes" => "answers to other changes",
        "room_for_data" => "room for written data",
        "sender" => "another flush of the file",
        "lag_max" => "other regions (lag_max)",
        "pause" => "its next attempt",
        "lock" => "a lock",
        "disk" => "this host's disk",
        "turn" => "its turn",
        other => other,
    };
    let mut text = what.to_owned();
    for more in [&wait.address, &wait.call].into_iter().flatten() {
        text.push(' ');
        text.push_str(more);
    }
    format!("{text}, {}", time(wait.us))
}

/// Text without what a terminal would take for commands, and what turns around the text beside it.
pub fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{061c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_open_files_path_is_found_by_its_inode() {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(dir.path()).unwrap();
        let (path, pid) = (base.join("open"), std::process::id());
        let file = std::fs::File::create(&path).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        let inode = inode_in(&info).unwrap();
        let mut request = Request { pid, inode, ..Request::default() };
        let find = |request: &Request, below: &Path| {
            let mut looks = FILES_MAX;
            path_of(request, below, &mut looks)
        };
        assert_eq!(find(&request, &base), Some(path.clone()));
        assert_eq!(find(&request, &base.join("elsewhere")), None);
        request.name = Some("name".into());
        assert_eq!(find(&request, &base), Some(path.join("name")));
        assert_eq!(path_of(&request, &base, &mut 0), None, "it isn't looked for");
        drop(file);
        assert_eq!(find(&request, &base), None);
        assert_eq!(open_path(u32::MAX, inode, &base, &mut 1), None);
        assert_eq!(inode_in("pos:\t0\nflags:\t02\nmnt_id:\t24\n"), None);
    }

    /// Found by review: whoever told a byte now and then kept who asked for ever.
    #[test]
    fn whoever_tells_it_slowly_is_waited_for_so_long_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let telling = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                // Until who asks has gone.
                while io::Write::write_all(&mut stream, b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, b"{}").unwrap();
        });
        for _ in 0..2 {
            let late = told(&path, Duration::from_millis(200)).unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(told(&path, Duration::from_secs(60)).unwrap(), b"{}");
        telling.join().unwrap();
        assert_eq!(told(&path, TOLD_WITHIN).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_another_release_doesnt_tell_is_left_out() {
        let told = r#"{ "requests": [{ "operation": "read", "new": 1 }], "latencies": { "read": {} } }"#;
        let live: Live = serde_json::from_str(told).unwrap();
        let request = Request { operation: "read".into(), ..Request::default() };
        let latencies = BTreeMap::from([("read".to_owned(), Latency::default())]);
        assert_eq!(live, Live { requests: vec![request], more: 0, latencies });
    }

    #[test]
    fn a_request_is_shown_with_what_it_waits_for() {
        let waits_for = Wait {
            what: "chunkserver".into(),
            call: Some("ChunkRead".into()),
            address: Some("10.0.0.4:7100".into()),
            us: 812_345,
        };
        let request = Request {
            operation: "read".into(),
            pid: 31,
            inode: 42,
            path: Some("/mnt/a\x1b[2J\u{202e}b".into()),
            age_us: 900_000,
            waits_for: Some(waits_for),
            ..Request::default()
        };
        let waits_for = Some(Wait { what: "lock".into(), us: 1, ..Wait::default() });
        let other = Request { operation: "setlk".into(), waits_for, ..Request::default() };
        let live = Live { requests: vec![request, other], more: 5, ..Live::default() };
        let shown = table(&live, 64).render();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].contains("900") && !shown.contains(['\x1b', '\u{202e}']), "{shown}");
        assert!(lines[1].ends_with("chunkserver 10.0.0.4:7100 ChunkRead, 812 ms"), "{shown}");
        assert!(lines[2].ends_with("a lock, 1 us"), "{shown}");
        assert_eq!((table(&live, 1).render().lines().count(), left_out(&live, 1)), (2, 6));
        assert_eq!(left_out(&live, 64), 5);
    }

    #[test]
    fn times_read_well() {
        assert_eq!(
            [time(0), time(9_999), time(10_000), time(9_999_999), time(61_500_000)],
            ["0 us", "9999 us", "10 ms", "9999 ms", "61.5 s"]
        );
    }
}
