//! Why a filesystem operation failed, and the one table from these errors to error numbers.

use std::time::Duration;

/// A filesystem operation's failure.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FsError {
    /// The region ran the operation and answered with an error number.
    #[error("{}", text(*.0))]
    Answered(i32),
    /// No master answered in time. A change may or may not have happened.
    #[error("{what} wasn't answered within {} s; the region may have lost its quorum, and the mount recovers by itself once it is back. Last: {last}", .after.as_secs_f32())]
    Unanswered {
        /// Which operation.
        what: String,
        /// How long it was retried.
        after: Duration,
        /// The last obstacle.
        last: String,
    },
    /// The bytes couldn't be read or stored in time.
    #[error("data of inode {inode} couldn't be {what} within {} s; check the chunkservers with `mooseng status`. Last: {last}", .after.as_secs_f32())]
    Data {
        /// Whose data.
        inode: u64,
        /// Read or written.
        what: &'static str,
        /// How long it was retried.
        after: Duration,
        /// The last obstacle.
        last: String,
    },
    /// The file behind an open handle is gone: it was unlinked, and this session's lease lapsed meanwhile.
    #[error(
        "inode {0} no longer exists; it was removed while this host's session had lapsed, so open it again"
    )]
    Stale(u64),
    /// The peer refuses this host, or its certificate.
    #[error("the region refuses this host: {0}")]
    Denied(String),
    /// Part of a later release.
    #[error("not built yet: {0}")]
    NotBuilt(String),
    /// The handle isn't open, or not for this.
    #[error("handle {0} isn't open for this operation")]
    BadHandle(u64),
    /// A name or symlink target is longer than allowed.
    #[error("a name of {0} bytes is longer than allowed")]
    NameTooLong(usize),
    /// Beyond the largest file.
    #[error("the file would grow beyond 2^60 bytes")]
    FileTooLarge,
    /// The request contradicts itself.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A peer's answer can't be understood.
    #[error("a peer's answer makes no sense: {0}; compare the versions with `mooseng status`")]
    Malformed(String),
    /// The region failed inside.
    #[error("the region failed inside: {0}; its log says more")]
    Internal(String),
    /// The session is gone for good, so nobody knows the outcome of a change that was under way.
    #[error("the session was forgotten by the region while a change was under way, whose outcome is unknown")]
    SessionLost,
    /// Buffered bytes were given up: the lease lapsed, and another host changed the file before they were sent.
    #[error(
        "what this host had written to inode {0} and not fsynced is lost: its lease lapsed, and another host changed the file meanwhile"
    )]
    Overtaken(u64),
    /// The lease lapsed under a lock, or what became of one isn't known, or it couldn't be recorded.
    #[error(
        "a lock on inode {0} that was taken through this handle is lost, as the lease of this host had lapsed, or the region didn't answer, or didn't take what this mount had given (the mount's log says so then); unlock or close, and begin again"
    )]
    LockLost(u64),
    /// The masters are those of another founding of the region: there is nothing there of what was mounted.
    #[error(
        "the region behind this mount was made anew ({0}); start the old region's masters with their old disks, or unmount and mount again"
    )]
    MadeAnew(String),
    /// The session's lease lapsed before the change was done; in the next life it must be decided anew.
    #[error("this host's lease lapsed before the change was done")]
    Lapsed,
    /// There is no such volume any more.
    #[error("there is no volume {0} any more: it was deleted")]
    NoVolume(u16),
    /// A volume is joined at the directory, whose entries and attributes are that volume's: whoever has it looks its name up anew.
    #[error("another volume was joined at the directory: look its name up anew")]
    Joined,
    /// More volumes than one mount enters.
    #[error(
        "volume {volume} isn't entered: this mount is in {most} volumes besides the root already, and leaves none before it is unmounted"
    )]
    TooManyVolumes {
        /// Which one.
        volume: u16,
        /// How many there may be.
        most: usize,
    },
    /// The filesystem was closed.
    #[error("the filesystem is closed")]
    Closed,
}

fn text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

impl FsError {
    /// The error number that the application sees: the only place where these are chosen.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Answered(errno) => *errno,
            // What hard NFS mounts answer once they are told to stop waiting: the server may be back later.
            FsError::Unanswered { .. } => libc::ETIMEDOUT,
            // Applications treat EIO on data as "don't trust this file", ETIMEDOUT they often don't know at all.
            FsError::Data { .. } => libc::EIO,
            // A path walk that meets it is done again, with every name looked up anew: so it comes to where the names lead now.
            FsError::Stale(_) | FsError::NoVolume(_) | FsError::Joined => libc::ESTALE,
            FsError::TooManyVolumes { .. } => libc::ENFILE,
            FsError::Denied(_) => libc::EACCES,
            FsError::NotBuilt(_) => libc::EOPNOTSUPP,
            FsError::BadHandle(_) => libc::EBADF,
            FsError::NameTooLong(_) => libc::ENAMETOOLONG,
            FsError::FileTooLarge => libc::EFBIG,
            FsError::Invalid(_) => libc::EINVAL,
            FsError::Malformed(_)
            | FsError::Internal(_)
            | FsError::SessionLost
            | FsError::Overtaken(_)
            | FsError::LockLost(_)
            | FsError::MadeAnew(_)
            | FsError::Lapsed => libc::EIO,
            FsError::Closed => libc::ESHUTDOWN,
        }
    }

    /// On an open handle a missing inode means that it is gone under the application.
    pub(crate) fn on_handle(self, inode: u64) -> Self {
        if self == FsError::Answered(libc::ENOENT) { FsError::Stale(inode) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_number_and_a_sentence() {
        let all = [
            FsError::Answered(libc::ENOTEMPTY),
            FsError::Unanswered {
                what: "mkdir".into(),
                after: Duration::from_secs(60),
                last: "refused".into(),
            },
            FsError::Data { inode: 7, what: "read", after: Duration::from_secs(60), last: "refused".into() },
            FsError::Stale(7),
            FsError::Denied("revoked".into()),
            FsError::NotBuilt("locks".into()),
            FsError::BadHandle(1),
            FsError::NameTooLong(300),
            FsError::FileTooLarge,
            FsError::Invalid("x".into()),
            FsError::Malformed("x".into()),
            FsError::Internal("x".into()),
            FsError::SessionLost,
            FsError::Overtaken(7),
            FsError::LockLost(7),
            FsError::MadeAnew("m1 says so".into()),
            FsError::Lapsed,
            FsError::NoVolume(7),
            FsError::Joined,
            FsError::TooManyVolumes { volume: 7, most: 64 },
            FsError::Closed,
        ];
        for error in all {
            assert!(error.errno() > 0 && error.to_string().len() > 10, "{error:?}");
        }
        assert_eq!(FsError::Answered(libc::ENOENT).on_handle(9), FsError::Stale(9));
    }
}
