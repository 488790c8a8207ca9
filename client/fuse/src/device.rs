//! /dev/fuse, and mounting over it: mount(2) as root, fusermount3 otherwise.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::mount::MountOptions;

/// Shown behind `fuse.` in the table of mounts.
pub(crate) const SUBTYPE: &str = "mooseng";
/// Mounts for those who aren't root.
pub(crate) const FUSERMOUNT: &str = "fusermount3";
const DEVICE: &str = "/dev/fuse";

/// Why a mount can't be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place isn't fit.
    #[error("can't mount on {}: {reason}", .path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No FUSE in this kernel.
    #[error(
        "can't open {DEVICE}: {0}; load the kernel module with `modprobe fuse`, or give this container the device"
    )]
    Device(io::Error),
    /// The kernel refuses.
    #[error("the kernel refuses to mount on {}: {reason}", .path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Its words.
        reason: String,
    },
    /// fusermount3 refuses.
    #[error("{FUSERMOUNT} refuses to mount on {}: {words}{}", .path.display(), remedy(.words))]
    HelperRefused {
        /// Where.
        path: PathBuf,
        /// Its words.
        words: String,
    },
    /// Neither root nor fusermount3.
    #[error("mounting needs root or {FUSERMOUNT}: {0}; install the package fuse3, or run as root")]
    Helper(String),
    /// The kernel and we don't agree.
    #[error("the FUSE session can't start: {0}")]
    Session(io::Error),
    /// It stays mounted.
    #[error("can't unmount {}: {reason}", .path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nothing to unmount.
    #[error("{} isn't a MooseNG mount", .0.display())]
    NotMounted(PathBuf),
}

/// The directory to mount on, checked.
pub(crate) fn place(path: &Path) -> Result<(PathBuf, u32), MountError> {
    let unfit = |reason: String| MountError::Place { path: path.to_owned(), reason };
    let real = std::fs::canonicalize(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => {
            unfit("a mount there has lost its daemon; unmount it first: mooseng umount --lazy".into())
        }
        Some(libc::ENOENT) => unfit("it doesn't exist; create the directory first".into()),
        _ => unfit(e.to_string()),
    })?;
    let metadata = std::fs::metadata(&real).map_err(|e| unfit(e.to_string()))?;
    if !metadata.is_dir() {
        return Err(unfit("it isn't a directory".into()));
    }
    Ok((real, metadata.mode()))
}

/// Mounts on `path` and answers the descriptor on which the kernel's requests arrive.
pub(crate) fn mount_on(path: &Path, mode: u32, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if nix::unistd::geteuid().is_root() {
        match mount_directly(path, mode, options) {
            // Root without the capability, as in many containers.
            Err(MountError::Refused { reason, .. }) if reason == Errno::EPERM.desc() => {}
            outcome => return outcome,
        }
    }
    mount_by_helper(path, options)
}

/// The device on which a mount's requests arrive.
pub(crate) fn open() -> Result<OwnedFd, MountError> {
    let device =
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    device.map(OwnedFd::from).map_err(MountError::Device)
}

fn mount_directly(path: &Path, mode: u32, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = open()?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        mode & libc::S_IFMT,
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    for option in kernel_options(options) {
        data.push(',');
        data.push_str(option);
    }
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    flags.set(MsFlags::MS_NOEXEC, !options.exec);
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    let refused =
        |errno: Errno| MountError::Refused { path: path.to_owned(), reason: errno.desc().to_owned() };
    mount(
        Some(options.source.as_str()),
        path,
        Some(format!("fuse.{SUBTYPE}").as_str()),
        flags,
        Some(data.as_str()),
    )
    .map_err(refused)?;
    Ok(device)
}

pub(crate) fn kernel_options(options: &MountOptions) -> Vec<&'static str> {
    let mut list = vec!["default_permissions"];
    if options.allow_other {
        list.push("allow_other");
    }
    list
}

fn mount_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let helper = |reason: String| MountError::Helper(reason);
    let (ours, theirs) = UnixStream::pair().map_err(|e| helper(e.to_string()))?;
    // The helper finds its end by number: it must outlive exec. Nobody else is forked between here and the spawn that matters;
    // another child would only inherit a socket that it doesn't know.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| helper(e.desc().into()))?;
    let mut list = kernel_options(options);
    if !options.suid {
        list.push("nosuid");
    }
    if !options.dev {
        list.push("nodev");
    }
    if !options.exec {
        list.push("noexec");
    }
    if options.read_only {
        list.push("ro");
    }
    let list = format!(
        "fsname={},subtype={SUBTYPE},{}",
        options.source.replace('\\', "\\\\").replace(',', "\\,"),
        list.join(",")
    );
    let child = Command::new(FUSERMOUNT)
        .args(["-o", &list, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| helper(format!("{FUSERMOUNT} can't be run: {e}")))?;
    drop(theirs);
    let received = receive(&ours);
    let output = child.wait_with_output().map_err(|e| helper(e.to_string()))?;
    match received {
        Ok(device) => Ok(device),
        Err(error) => {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let words = if words.is_empty() { error.to_string() } else { words };
            let words = words.trim_start_matches(FUSERMOUNT).trim_start_matches(": ").to_owned();
            Err(MountError::HelperRefused { path: path.to_owned(), words })
        }
    }
}

/// What to do about fusermount3's words, where that is known.
fn remedy(words: &str) -> &'static str {
    // It opens the device with the rights of whoever called it.
    let device = words.contains(DEVICE);
    if device && words.contains("Permission denied") {
        "; whoever mounts without root must be allowed to read and write that device, as udev sets it up: \
         `chmod 0666 /dev/fuse` as root does it until the next start"
    } else if device {
        "; load the kernel module with `modprobe fuse`, or give this container the device"
    } else if words.contains("user_allow_other") {
        "; add the line user_allow_other there, or leave out the option"
    } else {
        ""
    }
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{FUSERMOUNT} sent no descriptor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_helper_refuses_comes_with_what_to_do() {
        let said =
            |words: &str| MountError::HelperRefused { path: "/m".into(), words: words.into() }.to_string();
        for (words, remedy) in [
            ("failed to open /dev/fuse: Permission denied", "chmod 0666 /dev/fuse"),
            ("fuse device not found, try 'modprobe fuse' first: /dev/fuse", "give this container the device"),
            (
                "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
                "add the line",
            ),
        ] {
            let text = said(words);
            assert!(
                text.starts_with("fusermount3 refuses to mount on /m: ") && text.contains(remedy),
                "{text}"
            );
        }
        assert_eq!(said("mountpoint is busy"), "fusermount3 refuses to mount on /m: mountpoint is busy");
    }
}
