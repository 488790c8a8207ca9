//! One data directory: whose it is, where chunks lie in it, how much room it has, and whether its disk can still be trusted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mooseng_ports::disk::{Disk, OpenMode, Space, read_all, write_atomically};
use mooseng_wire::ChunkId;
use mooseng_wire::founding::Founding;

use crate::files::lock;

/// The file that says whose data directory it is.
pub const IDENTITY_FILE: &str = "mooseng-disk";
/// The newest format of data directories that this build writes and reads.
pub const DIRECTORY_FORMAT: u32 = 1;
/// After so many failed writes and flushes, and chunks of which a read failed, a disk is dropped until the chunkserver is restarted.
pub const FAILURES_MAX: u32 = 3;
const CHUNKS: &str = "chunks";
const TRASH: &str = "trash";
const PROBE_FILE: &str = "probe";

/// What an identity file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The cluster.
    pub cluster: String,
    /// The chunkserver.
    pub chunkserver: String,
    /// The disk's own id.
    pub id: String,
    /// The directory's format.
    pub format: u32,
    /// The founding mark of the region that its chunks are of; none before the chunkserver has one.
    pub founding: Option<Founding>,
    /// How often the chunkserver had started when it last used the disk: it counts on from there where its state directory is lost. 0 if that isn't known.
    pub incarnation: u64,
}

/// Why a data directory isn't used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The disk failed.
    #[error("the data directory {} can't be used: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error("the data directory {} is disk {} of chunkserver {} in cluster {}, not of chunkserver {chunkserver} in cluster {cluster}: mount the right disk there", path.display(), found.id, found.chunkserver, found.cluster)]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Box<DiskIdentity>,
        /// We.
        chunkserver: String,
        /// Our cluster.
        cluster: String,
    },
    /// Another disk is expected there.
    #[error("the data directory {} should be disk {expected}, but {found}: mount the right disk; or, to give the old one up and begin anew with what is there, stop the chunkserver, remove the line \"disk {expected} {}\" from {}, make its last line \"checksum none\", and start it again", path.display(), path.display(), state_file.display())]
    WrongDisk {
        /// The directory.
        path: PathBuf,
        /// The id that was there before.
        expected: String,
        /// What is there now.
        found: String,
        /// Where the expectation is kept.
        state_file: PathBuf,
    },
    /// A newer version wrote it.
    #[error("the data directory {} has format {format}, this build reads up to {DIRECTORY_FORMAT}: upgrade the chunkserver", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It isn't empty, and has no identity.
    #[error("the data directory {} holds chunks, but its identity file {IDENTITY_FILE} is missing or unreadable: restore it, or use an empty directory", path.display())]
    NoIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// Its chunks are of another founding of the region.
    #[error("the data directory {} holds chunks of the region with the founding mark {found}, the chunkserver is of the one with the mark {ours}, which was made apart from it: put the right disk there, or an empty directory, and keep this one until nothing on it is needed", path.display())]
    OtherFounding {
        /// The directory.
        path: PathBuf,
        /// Its mark.
        found: Founding,
        /// The chunkserver's.
        ours: Founding,
    },
    /// Two directories are one disk.
    #[error("the data directory {} is disk {id}, which is configured as another data directory, too: name it once", path.display())]
    Twice {
        /// The directory.
        path: PathBuf,
        /// The disk's id.
        id: String,
    },
}

#[derive(Default)]
struct Health {
    failures: u32,
    /// Dropped until a restart.
    dropped: Option<String>,
    /// The last probe's failure: passes by itself.
    probe: Option<String>,
    /// What the disk said of its room last.
    space: Option<Space>,
}

/// One data directory.
pub(crate) struct Directory {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    pub(crate) id: String,
    identity: Mutex<DiskIdentity>,
    health: Mutex<Health>,
}

/// A directory's state, for the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryStatus {
    /// Where it is.
    pub path: PathBuf,
    /// The disk's id; empty where the directory isn't used.
    pub id: String,
    /// All bytes of its filesystem.
    pub bytes_total: u64,
    /// Free bytes above the reserve.
    pub bytes_free: u64,
    /// Bytes of our chunks.
    pub bytes_used: u64,
    /// Our chunks.
    pub chunks: u64,
    /// New chunks may go there.
    pub writable: bool,
    /// Why not.
    pub error: String,
    /// For how long the disk hasn't answered, where it hangs.
    pub hangs: Option<Duration>,
}

impl Directory {
    /// Opens a directory, or makes an empty one ours. `expected` is the disk id that lay there before.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        ours: &DiskIdentity,
        known: &BTreeMap<PathBuf, String>,
        state_file: &Path,
    ) -> Result<Self, DirectoryError> {
        let io = |source| DirectoryError::Io { path: path.to_owned(), source };
        disk.create_dir_all(path).map_err(io)?;
        let expected = known.get(path);
        let found = read_identity(&*disk, path).map_err(io)?;
        let wrong = |found: String| DirectoryError::WrongDisk {
            path: path.to_owned(),
            expected: expected.cloned().unwrap_or_default(),
            found,
            state_file: state_file.to_owned(),
        };
        let identity = match found {
            Found::Identity(found) if found.format > DIRECTORY_FORMAT => {
                return Err(DirectoryError::Newer { path: path.to_owned(), format: found.format });
            }
            Found::Identity(found)
                if found.cluster != ours.cluster || found.chunkserver != ours.chunkserver =>
            {
                return Err(DirectoryError::Foreign {
                    path: path.to_owned(),
                    found: Box::new(found),
                    chunkserver: ours.chunkserver.clone(),
                    cluster: ours.cluster.clone(),
                });
            }
            // Two of our disks that changed places are no harm: chunks are found where they are.
            Found::Identity(found)
                if expected.is_some_and(|e| *e != found.id) && !known.values().any(|k| *k == found.id) =>
            {
                return Err(wrong(format!("disk {} is there", found.id)));
            }
            Found::Identity(found) => {
                if let (Some(mark), Some(own)) = (found.founding, ours.founding)
                    && mark != own
                {
                    return Err(DirectoryError::OtherFounding {
                        path: path.to_owned(),
                        found: mark,
                        ours: own,
                    });
                }
                found
            }
            Found::Unreadable => return Err(DirectoryError::NoIdentity { path: path.to_owned() }),
            Found::Nothing if expected.is_some() => {
                return Err(wrong("an empty directory is there (is the disk mounted?)".into()));
            }
            Found::Nothing => {
                write_atomically(&*disk, &path.join(IDENTITY_FILE), encode(ours).as_bytes()).map_err(io)?;
                ours.clone()
            }
        };
        disk.create_dir_all(&path.join(CHUNKS)).map_err(io)?;
        let id = identity.id.clone();
        Ok(Self { disk, path: path.to_owned(), id, identity: Mutex::new(identity), health: Mutex::default() })
    }

    /// The founding mark that it carries.
    pub(crate) fn founding(&self) -> Option<Founding> {
        lock(&self.identity).founding
    }

    /// How often its chunkserver had started, as far as it knows.
    pub(crate) fn incarnation(&self) -> u64 {
        lock(&self.identity).incarnation
    }

    /// Has it carry the mark, unless it carries one already, and the count of starts, unless it knows of more: durably.
    pub(crate) fn carry(&self, founding: Option<Founding>, incarnation: u64) -> io::Result<()> {
        let mut identity = lock(&self.identity);
        let carrying = DiskIdentity {
            founding: identity.founding.or(founding),
            incarnation: identity.incarnation.max(incarnation),
            ..identity.clone()
        };
        if carrying != *identity {
            write_atomically(&*self.disk, &self.path.join(IDENTITY_FILE), encode(&carrying).as_bytes())?;
            *identity = carrying;
        }
        Ok(())
    }

    /// Where chunks with the same last two hex digits lie: 256 directories, none of them huge.
    pub(crate) fn shard_path(&self, chunk: ChunkId) -> PathBuf {
        self.path.join(CHUNKS).join(format!("{:02x}", chunk.0 & 0xff))
    }

    pub(crate) fn chunk_path(&self, chunk: ChunkId) -> PathBuf {
        self.shard_path(chunk).join(format!("{:016x}", chunk.0))
    }

    /// Where files of deleted chunks wait.
    pub(crate) fn trash(&self) -> PathBuf {
        self.path.join(TRASH)
    }

    /// The name of a chunk's file in the trash, with the second since the Unix epoch in which it came there.
    pub(crate) fn trash_path(&self, chunk: ChunkId, now_s: u64) -> PathBuf {
        self.trash().join(format!("{:016x}.{now_s}", chunk.0))
    }

    /// What lies in the trash, and since when.
    pub(crate) fn trashed(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let trash = self.trash();
        let names = match self.disk.list(&trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        let since = |name: &String| name.split_once('.')?.1.parse().ok();
        Ok(names.iter().filter_map(|name| Some((trash.join(name), since(name)?))).collect())
    }

    /// The directories that chunks lie in.
    pub(crate) fn shards(&self) -> io::Result<Vec<PathBuf>> {
        let chunks = self.path.join(CHUNKS);
        Ok(self.disk.list(&chunks)?.into_iter().filter(|n| n.len() == 2).map(|n| chunks.join(n)).collect())
    }

    pub(crate) fn space(&self) -> io::Result<Space> {
        let space = self.disk.space(&self.path)?;
        lock(&self.health).space = Some(space);
        Ok(space)
    }

    /// The same of a disk that may hang: then what it said last.
    pub(crate) fn space_at_once(&self) -> io::Result<Space> {
        if self.hangs().is_none() {
            return self.space();
        }
        lock(&self.health).space.ok_or_else(|| io::Error::other("the disk doesn't answer"))
    }

    /// For how long the disk hasn't answered, where it hangs.
    pub(crate) fn hangs(&self) -> Option<Duration> {
        self.disk.hangs(&self.path)
    }

    /// Why the disk was dropped.
    pub(crate) fn dropped(&self) -> Option<String> {
        lock(&self.health).dropped.clone()
    }

    /// Why nothing new should go there.
    pub(crate) fn unwritable(&self) -> Option<String> {
        let hangs = self.hangs().map(|since| format!("it hasn't answered for {} s", since.as_secs()));
        let health = lock(&self.health);
        health.dropped.clone().or_else(|| health.probe.clone()).or(hangs)
    }

    /// Counts a failed operation; too many drop the disk.
    pub(crate) fn count_failure(&self, reason: &str) {
        let mut health = lock(&self.health);
        health.failures += 1;
        if health.failures >= FAILURES_MAX && health.dropped.is_none() {
            let reason = format!(
                "dropped after {} failures, the last: {reason}; replace the disk, or restart to try again",
                health.failures
            );
            tracing::error!(path = %self.path.display(), disk = self.id, reason, "a disk was dropped");
            health.dropped = Some(reason);
        }
    }

    /// Writes and flushes a little, to see whether the disk still takes it.
    pub(crate) fn probe(&self) {
        let written = self.disk.open(&self.path.join(PROBE_FILE), OpenMode::Create).and_then(|file| {
            file.write_at(b"probe", 0)?;
            file.sync_data()
        });
        let failure = written.err().map(|e| format!("a probing write failed: {e}"));
        let mut health = lock(&self.health);
        match (&health.probe, &failure) {
            (None, Some(reason)) => {
                tracing::error!(path = %self.path.display(), disk = self.id, reason, "a disk takes no writes")
            }
            (Some(_), None) => {
                tracing::info!(path = %self.path.display(), disk = self.id, "a disk takes writes again")
            }
            _ => {}
        }
        health.probe = failure;
    }
}

enum Found {
    Identity(DiskIdentity),
    Unreadable,
    Nothing,
}

fn read_identity(disk: &dyn Disk, path: &Path) -> io::Result<Found> {
    match disk.open(&path.join(IDENTITY_FILE), OpenMode::ReadOnly) {
        Ok(file) => Ok(decode(&read_all(&*file)?).map_or(Found::Unreadable, Found::Identity)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let has_chunks = disk.list(path)?.iter().any(|n| n == CHUNKS);
            Ok(if has_chunks { Found::Unreadable } else { Found::Nothing })
        }
        Err(e) => Err(e),
    }
}

/// An identity as its file has it.
pub fn encode(identity: &DiskIdentity) -> String {
    let DiskIdentity { cluster, chunkserver, id, format, founding, incarnation } = identity;
    let founding = founding.map(|mark| format!("founding {mark}\n")).unwrap_or_default();
    // Earlier builds read over it.
    let incarnation = if *incarnation > 0 { format!("incarnation {incarnation}\n") } else { String::new() };
    format!(
        "format {format}\ncluster {cluster}\nchunkserver {chunkserver}\ndisk {id}\n{founding}{incarnation}"
    )
}

/// What a file says; none where it can't be read.
pub fn decode(bytes: &[u8]) -> Option<DiskIdentity> {
    let text = std::str::from_utf8(bytes).ok()?;
    let field =
        |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned));
    Some(DiskIdentity {
        format: field("format")?.parse().ok()?,
        cluster: field("cluster")?,
        chunkserver: field("chunkserver")?,
        id: field("disk")?,
        founding: match field("founding") {
            Some(mark) => Some(Founding::parse(&mark)?),
            None => None,
        },
        incarnation: match field("incarnation") {
            Some(count) => count.parse().ok()?,
            None => 0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip() {
        for (founding, incarnation) in [(None, 0), (None, 7), (Some(Founding([0xa7; 16])), 8)] {
            let (cluster, chunkserver, id) = ("c".into(), "cs-1".into(), "d-9".into());
            let identity = DiskIdentity { cluster, chunkserver, id, format: 1, founding, incarnation };
            assert_eq!(decode(encode(&identity).as_bytes()), Some(identity));
        }
        assert_eq!(decode(b"format 1\ncluster c\nchunkserver cs-1\ndisk d-9\nfounding x\n"), None);
        assert_eq!(decode(b"format x"), None);
        assert_eq!(decode(b"\xff"), None);
    }
}
