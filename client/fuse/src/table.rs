//! The kernel's table of mounts, and taking one down.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::device::{FUSERMOUNT, MountError, SUBTYPE};

/// A MooseNG mount on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Where.
    pub path: PathBuf,
    /// The device number as `major:minor`.
    pub device: String,
    /// What it calls itself.
    pub source: String,
}

/// The MooseNG mounts of this host, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&std::fs::read(TABLE)?))
}

const TABLE: &str = "/proc/self/mountinfo";

fn parse(table: &[u8]) -> Vec<MountPoint> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let kind = fields.get(dash + 1)?;
    if *kind != format!("fuse.{SUBTYPE}").as_bytes() {
        return None;
    }
    Some(MountPoint {
        path: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(),
    })
}

/// The kernel writes spaces, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// Takes a MooseNG mount down. With `lazy` it vanishes from the tree at once and ends when its last file is closed; without, a mount
/// in use is refused.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let failed = |reason: String| MountError::Unmount { path: path.to_owned(), reason };
    // Not canonicalized: a stat of a dead mount fails, and it is just such a one that must be taken down.
    let absolute = std::path::absolute(path).map_err(|e| failed(e.to_string()))?;
    let known = mounts().map_err(|e| failed(format!("{TABLE} can't be read: {e}")))?;
    let Some(mount) = known
        .iter()
        .rev()
        .find(|m| m.path == absolute || std::fs::canonicalize(&absolute).is_ok_and(|real| real == m.path))
    else {
        return Err(MountError::NotMounted(path.to_owned()));
    };
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() } | MntFlags::UMOUNT_NOFOLLOW;
    match umount2(&mount.path, flags) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => {
            let mut command = Command::new(FUSERMOUNT);
            command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(&mount.path);
            let output = command.output().map_err(|e| failed(format!("only root may unmount by itself, and {FUSERMOUNT} can't be run ({e}): install the package fuse3")))?;
            if output.status.success() {
                Ok(())
            } else {
                Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
            }
        }
        Err(nix::errno::Errno::EBUSY) => {
            Err(failed("it is in use: close what uses it (`fuser -vm` lists it), or unmount lazily".into()))
        }
        Err(errno) => Err(failed(errno.desc().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_understood() {
        let table = b"22 1 0:21 / /proc rw - proc proc rw\n\
            40 22 0:45 / /mnt/a\\040b rw,nosuid - fuse.mooseng dev rw,user_id=0\n\
            41 22 0:46 / /mnt/c rw shared:7 master:1 - fuse.mooseng moose\\011x rw\n\
            garbage\n";
        assert_eq!(
            parse(table),
            [
                MountPoint { path: "/mnt/a b".into(), device: "0:45".into(), source: "dev".into() },
                MountPoint { path: "/mnt/c".into(), device: "0:46".into(), source: "moose\tx".into() },
            ]
        );
        assert_eq!(unescape(b"\\9\\04"), b"\\9\\04");
    }

    #[test]
    fn what_isnt_mounted_is_said_so() {
        assert!(matches!(unmount(Path::new("/"), true), Err(MountError::NotMounted(_))));
    }
}
