//! A mount in the place of a dead one, with nothing bare in between.
//!
//! mount(2) puts a mount on top of what is there. To replace one it would have to be taken away first, and until the next one is there whoever works below the
//! path writes to the directory under it. From Linux 6.5 on a mount can be put *beneath* the one on top, by whoever may mount, and the one on top then goes:
//!
//! ```text
//!   directory < dead   -->   directory < new < dead   -->   directory < new
//! ```

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::fstatfs;

use crate::device::{self, SUBTYPE};
use crate::mount::MountOptions;

/// FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC.
const CLOSE_ON_EXEC: libc::c_uint = 1;
/// FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE.
const FLAG: libc::c_uint = 0;
const STRING: libc::c_uint = 1;
const CREATE: libc::c_uint = 6;
/// MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC.
const READ_ONLY: libc::c_uint = 1;
const NO_SUID: libc::c_uint = 2;
const NO_DEV: libc::c_uint = 4;
const NO_EXEC: libc::c_uint = 8;
/// MOVE_MOUNT_F_EMPTY_PATH.
const FROM_DESCRIPTOR: libc::c_uint = 0x4;
/// MOVE_MOUNT_BENEATH.
const BENEATH: libc::c_uint = 0x200;

/// Mounts in the place of the dead mount on `path`, with the device on which the kernel's requests are to arrive, and answers that. None where somebody has taken
/// the dead one away meanwhile, or put another one in its place: then nothing is mounted. After an error everything is as it was.
pub(crate) fn mount(path: &Path, options: &MountOptions, device: OwnedFd) -> io::Result<Option<OwnedFd>> {
    // By a descriptor the dead one is known whatever becomes of the path; opening it so asks it for nothing.
    let dead = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)?;
    // The path may be another mount's since it was looked at, and that one is nobody's to take away.
    if !matches!(fstatfs(&dead), Err(Errno::ENOTCONN | Errno::ECONNABORTED)) {
        return Ok(None);
    }
    let made = make(&device, options)?;
    put_beneath(&made, path)?;
    match take_away(&dead) {
        Ok(()) => Ok(Some(device)),
        Err(errno) => {
            let undone = take_away(&made);
            match (errno, undone) {
                // It isn't mounted any more.
                (Errno::EINVAL, Ok(())) => Ok(None),
                (_, Ok(())) => Err(errno.into()),
                (_, Err(undone)) => {
                    tracing::warn!(path = %path.display(), error = undone.desc(), "a mount that isn't served is left behind");
                    Err(errno.into())
                }
            }
        }
    }
}

/// A mount that is nowhere yet; it goes with its descriptor.
fn make(device: &OwnedFd, options: &MountOptions) -> io::Result<OwnedFd> {
    // SAFETY: the name is a string of C, of which the call keeps nothing.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), CLOSE_ON_EXEC) })?;
    for (key, value) in [
        (c"source", options.source.clone()),
        (c"subtype", SUBTYPE.to_owned()),
        (c"fd", device.as_raw_fd().to_string()),
        (c"rootmode", format!("{:o}", libc::S_IFDIR)),
        (c"user_id", nix::unistd::getuid().to_string()),
        (c"group_id", nix::unistd::getgid().to_string()),
    ] {
        let value = CString::new(value)?;
        configure(&context, STRING, Some(key), Some(&value))?;
    }
    for flag in device::kernel_options(options) {
        let flag = CString::new(flag)?;
        configure(&context, FLAG, Some(&flag), None)?;
    }
    if options.read_only {
        configure(&context, FLAG, Some(c"ro"), None)?;
    }
    configure(&context, CREATE, None, None)?;
    let mut attributes = 0;
    for (set, attribute) in [
        (options.read_only, READ_ONLY),
        (!options.suid, NO_SUID),
        (!options.dev, NO_DEV),
        (!options.exec, NO_EXEC),
    ] {
        attributes |= if set { attribute } else { 0 };
    }
    // SAFETY: all of its arguments are numbers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOSE_ON_EXEC, attributes) })
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let nothing: libc::c_int = 0;
    // SAFETY: key and value are strings of C that outlive the call, which keeps neither, or null where the command takes none.
    let answer = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), nothing)
    };
    outcome(answer).map(drop)
}

fn put_beneath(made: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both paths are strings of C that outlive the call, which keeps neither.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            made.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            FROM_DESCRIPTOR | BENEATH,
        )
    };
    outcome(answer).map(drop)
}

/// Takes that mount off the tree, and no other one.
fn take_away(mount: &impl AsRawFd) -> Result<(), Errno> {
    umount2(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), MntFlags::MNT_DETACH)
}

fn outcome(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(outcome(answer)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
