//! What is mounted on this machine: the kernel's table, and a small file for each mount that says which configuration it uses
//! and which process serves it.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::Started;

/// A mount, as its process wrote it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Shape of this file.
    pub version: u32,
    /// Where it is mounted, absolute.
    pub path: PathBuf,
    /// Its configuration, absolute.
    pub config: PathBuf,
    /// Its region.
    pub region: String,
    /// The process that serves it.
    pub process: Started,
    /// Where /metrics, /healthz and /readyz are served, if they are.
    pub http: Option<String>,
}

/// Where records are kept: /run/mooseng for root, the user's runtime directory otherwise.
pub fn dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/mooseng".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("mooseng"),
        _ => std::env::temp_dir().join(format!("mooseng-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Makes the directory, for this user alone; refuses one that somebody else made.
pub fn make_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    if !is_ours(&std::fs::symlink_metadata(dir)?) {
        return Err(std::io::Error::other(format!("{} belongs to somebody else", dir.display())));
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}

/// Whether it is a directory of this user's: what somebody else has put there is nobody's word.
fn is_ours(metadata: &std::fs::Metadata) -> bool {
    metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw()
}

/// A path as a file name: slashes become dashes, everything else that isn't plain is in hexadecimal.
pub fn escape(path: &Path) -> String {
    let mut name = String::new();
    for byte in path.as_os_str().as_bytes().iter().skip_while(|b| **b == b'/') {
        match byte {
            b'/' => name.push('-'),
            b if b.is_ascii_alphanumeric() || b"._".contains(b) => name.push(char::from(*b)),
            b => name.push_str(&format!("%{b:02x}")),
        }
    }
    // A file name ends at 255 bytes; a long path keeps its tail, which tells more, and a hash of the whole.
    if name.len() > 180 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        name = format!("{hash:016x}-{}", &name[name.len() - 160..]);
    }
    if name.is_empty() { "root".into() } else { name }
}

fn record_path(path: &Path) -> PathBuf {
    dir().join(format!("{}.json", escape(path)))
}

/// Writes a mount's record.
pub fn write(record: &MountRecord) -> std::io::Result<()> {
    make_dir(&dir())?;
    let text = serde_json::to_vec_pretty(record).map_err(std::io::Error::other)?;
    crate::dev::write_atomically(&record_path(&record.path), &text)
}

/// The socket over which the process that serves a mount tells what is under way. Another process that gets its pid one day has another one.
pub fn socket_of(process: Started) -> PathBuf {
    dir().join(format!("mount-{}-{}.sock", process.pid, process.start_ticks))
}

/// The process whose socket has that file name.
fn process_of(socket: &str) -> Option<Started> {
    let (pid, start_ticks) = socket.strip_prefix("mount-")?.strip_suffix(".sock")?.split_once('-')?;
    Some(Started { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? })
}

/// Removes sockets of dead processes: who is killed leaves its own behind.
pub fn sweep_sockets() {
    let Ok(entries) = std::fs::read_dir(dir()) else { return };
    for file in entries.flatten() {
        let process = file.file_name().to_str().and_then(process_of);
        if process.is_some_and(|process| !process.is_alive()) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// Removes the record of a mount, if it is that process's, and its socket.
pub fn remove(path: &Path, process: Started) {
    let _ = std::fs::remove_file(socket_of(process));
    let file = record_path(path);
    if read(&file).is_some_and(|r| r.process == process) {
        let _ = std::fs::remove_file(file);
    }
}

fn read(file: &Path) -> Option<MountRecord> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// The records of mounts whose process lives; those of dead processes are removed.
pub fn live() -> Vec<MountRecord> {
    let dir = dir();
    if !std::fs::symlink_metadata(&dir).is_ok_and(|metadata| is_ours(&metadata)) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut records: Vec<MountRecord> = Vec::new();
    for file in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")) {
        match read(&file) {
            Some(record) if record.process.is_alive() => records.push(record),
            Some(_) => {
                let _ = std::fs::remove_file(file);
            }
            None => {}
        }
    }
    records.sort_by(|a, b| a.path.cmp(&b.path));
    records
}

/// The mount that `path` lies in: the longest mount point above it.
pub fn covering(path: &Path) -> Option<MountRecord> {
    live().into_iter().filter(|r| path.starts_with(&r.path)).max_by_key(|r| r.path.as_os_str().len())
}

/// Whether something of ours is mounted exactly there, as the kernel says: its process may be dead.
pub fn is_mounted(path: &Path) -> bool {
    mooseng_fuse::mounts().unwrap_or_default().iter().any(|m| m.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_distinct_file_names() {
        assert_eq!(escape(Path::new("/srv/a b")), "srv-a%20b");
        assert_eq!(escape(Path::new("/")), "root");
        let long = format!("/{}", "x/".repeat(400));
        assert!(escape(Path::new(&long)).len() <= 200);
    }

    /// Found by review: without a runtime directory of the user's own the place is one where anybody may make it first.
    #[test]
    fn a_directory_that_isnt_ours_has_no_mounts_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let is = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|metadata| is_ours(&metadata));
        assert!(is(dir.path()));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(!is(&link), "whoever has made it may turn it elsewhere");
    }

    #[test]
    fn a_socket_is_its_process_and_nothing_else_is_one() {
        let process = Started { pid: 31, start_ticks: 123_456 };
        let path = socket_of(process);
        assert_eq!(path.file_name().and_then(|name| name.to_str()).and_then(process_of), Some(process));
        for other in ["mount-31.sock", "mount-a-1.sock", "srv-31-1.json", "mount--1-1.sock"] {
            assert_eq!(process_of(other), None, "{other}");
        }
    }
}
