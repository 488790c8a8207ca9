//! What a chunkserver keeps durable about itself, in its state directory: who it is, how often it started, the founding mark of its region, the newest epoch of
//! each volume, and which disk belongs in which data directory. One small text file, replaced as a whole, that ends in a checksum of its lines: an epoch or a count
//! that reads lower than it was would have the chunkserver obey who is deposed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_wire::Epoch;
use mooseng_wire::founding::Founding;

/// The file's name in the state directory.
pub const STATE_FILE: &str = "chunkserver.state";
/// The format that is written, and the newest that is read. 2 has a founding mark: a build that would ignore that refuses the file. 3 ends in a checksum; a file
/// of an earlier one is read without. 4 says whose it is. A file of an earlier format is one of this format after the start.
const FORMAT: u32 = 4;
/// Files from this one on end in a checksum.
const FORMAT_CHECKED: u32 = 3;
/// What stands for the checksum in a file that somebody has changed, for nobody works one out by hand.
const BY_HAND: &str = "none";

/// Why a state file isn't believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// A newer release wrote it.
    #[error("its file {STATE_FILE} has format {0}, this build reads up to {FORMAT}: upgrade the chunkserver")]
    Newer(u32),
    /// It isn't what was written.
    #[error(
        "its file {STATE_FILE} is damaged: {0}. Where somebody has changed it by hand, correct that, make its last line \"checksum {BY_HAND}\", and start the chunkserver again. Otherwise see that all its disks are mounted, set the file aside, and start the chunkserver without it: the disks know whose they are, how often it had started, and their chunks' epochs"
    )]
    Damaged(String),
}

fn malformed(n: usize, line: &str) -> StateError {
    StateError::Damaged(format!("line {} is malformed: {line:?}", n + 1))
}

/// Whose a state directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: String,
    /// The chunkserver.
    pub chunkserver: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunkserver {} in cluster {}", self.chunkserver, self.cluster)
    }
}

/// The facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whose they are; none where an earlier release wrote them, and no disk has spoken for them yet.
    pub owner: Option<Owner>,
    /// Counts starts. Disks carry it, too, for masters take no lower one than they have heard.
    pub incarnation: u64,
    /// The founding mark of the region that the chunks are of; none before any leader has told one.
    pub founding: Option<Founding>,
    /// The newest epoch seen of each volume.
    pub epochs: BTreeMap<u16, Epoch>,
    /// The newest term of a leader whose orders were obeyed.
    pub custody: u64,
    /// The disk id of each data directory.
    pub disks: BTreeMap<PathBuf, String>,
}

/// The facts, kept.
pub(crate) struct StateFile {
    disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    pub(crate) facts: Facts,
}

impl StateFile {
    pub(crate) fn open(disk: Arc<dyn Disk>, directory: &Path) -> io::Result<Self> {
        disk.create_dir_all(directory)?;
        let path = directory.join(STATE_FILE);
        let facts = match disk.open(&path, OpenMode::ReadOnly) {
            Ok(file) => decode(&read_all(&*file)?)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Facts::default(),
            Err(e) => return Err(e),
        };
        Ok(Self { disk, path, facts })
    }

    /// Makes changed facts durable; on failure the old ones stand.
    pub(crate) fn keep(&mut self, facts: Facts) -> io::Result<()> {
        write_atomically(&*self.disk, &self.path, encode(&facts).as_bytes())?;
        self.facts = facts;
        Ok(())
    }
}

/// Facts as the file has them.
pub fn encode(facts: &Facts) -> String {
    let mut text = format!("format {FORMAT}\n");
    if let Some(Owner { cluster, chunkserver }) = &facts.owner {
        text.push_str(&format!("cluster {cluster}\nchunkserver {chunkserver}\n"));
    }
    text.push_str(&format!("incarnation {}\n", facts.incarnation));
    if let Some(founding) = facts.founding {
        text.push_str(&format!("founding {founding}\n"));
    }
    if facts.custody > 0 {
        text.push_str(&format!("custody {}\n", facts.custody));
    }
    for (volume, epoch) in &facts.epochs {
        text.push_str(&format!("epoch {volume} {epoch}\n"));
    }
    for (path, id) in &facts.disks {
        text.push_str(&format!("disk {id} {}\n", path.display()));
    }
    let checksum = format!("checksum {:08x}\n", crate::checksum(text.as_bytes()));
    text + &checksum
}

/// The lines in front of the checksum, which is theirs.
fn checked(text: &str) -> Result<&str, StateError> {
    let whole = text.strip_suffix('\n').unwrap_or(text);
    let (lines, last) = whole.split_at(whole.rfind('\n').map_or(0, |end| end + 1));
    let last = last.strip_suffix('\r').unwrap_or(last);
    let Some(told) = last.strip_prefix("checksum ") else {
        return Err(StateError::Damaged("it doesn't end in a checksum".into()));
    };
    let theirs = format!("{:08x}", crate::checksum(lines.as_bytes()));
    if told != BY_HAND && told != theirs {
        let reason = format!("the checksum of its lines is {theirs}, and the last one says {told:?}");
        return Err(StateError::Damaged(reason));
    }
    Ok(lines)
}

/// What a file says.
pub fn decode(bytes: &[u8]) -> Result<Facts, StateError> {
    let mut facts = Facts::default();
    let text = std::str::from_utf8(bytes).map_err(|_| StateError::Damaged("it isn't text".into()))?;
    let first = text.lines().next().unwrap_or_default();
    let lines = match first.strip_prefix("format ").and_then(|format| format.parse::<u32>().ok()) {
        None => return Err(malformed(0, first)),
        Some(format) if format > FORMAT => return Err(StateError::Newer(format)),
        Some(FORMAT_CHECKED..) => checked(text)?,
        Some(_) => text,
    };
    let (mut cluster, mut chunkserver) = (None, None);
    for (n, line) in lines.lines().enumerate().skip(1) {
        let malformed = || malformed(n, line);
        let mut words = line.splitn(3, ' ');
        let (key, first, second) =
            (words.next().unwrap_or(""), words.next().ok_or_else(malformed)?, words.next());
        match (key, second) {
            ("cluster", None) => cluster = Some(first.to_owned()),
            ("chunkserver", None) => chunkserver = Some(first.to_owned()),
            ("incarnation", None) => facts.incarnation = first.parse().map_err(|_| malformed())?,
            ("founding", None) => facts.founding = Some(Founding::parse(first).ok_or_else(malformed)?),
            ("custody", None) => facts.custody = first.parse().map_err(|_| malformed())?,
            ("epoch", Some(epoch)) => {
                let volume = first.parse().map_err(|_| malformed())?;
                facts.epochs.insert(volume, Epoch(epoch.parse().map_err(|_| malformed())?));
            }
            ("disk", Some(path)) => {
                facts.disks.insert(PathBuf::from(path), first.to_owned());
            }
            _ => return Err(malformed()),
        }
    }
    facts.owner = match (cluster, chunkserver) {
        (Some(cluster), Some(chunkserver)) => Some(Owner { cluster, chunkserver }),
        (None, None) => None,
        _ => {
            let reason =
                "of the lines \"cluster\" and \"chunkserver\", which say whose it is, one is missing";
            return Err(StateError::Damaged(reason.into()));
        }
    };
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let mut facts = Facts { incarnation: 4, custody: 6, ..Facts::default() };
        facts.owner = Some(Owner { cluster: "c".into(), chunkserver: "cs-1".into() });
        facts.founding = Some(Founding([0xa7; 16]));
        facts.epochs.insert(3, Epoch(9));
        facts.disks.insert("/a dir/x".into(), "d-1".into());
        facts
    }

    #[test]
    fn facts_round_trip_and_nonsense_is_named() {
        let facts = facts();
        assert!(encode(&facts).starts_with("format 4\n"), "earlier builds refuse it, and say why");
        assert_eq!(decode(encode(&facts).as_bytes()), Ok(facts.clone()));
        let unmarked = Facts { founding: None, owner: None, ..facts };
        assert_eq!(decode(encode(&unmarked).as_bytes()), Ok(unmarked));
        assert_eq!(decode(encode(&Facts::default()).as_bytes()), Ok(Facts::default()));
        let says = |text: &str| decode(text.as_bytes()).unwrap_err().to_string();
        assert!(says("founding a7\n").contains("line 1"));
        assert!(says("format 99\n").contains("upgrade"));
        assert!(says("epoch x 1\n").contains("line 1"));
        assert!(says("format 2\nepoch x 1\n").contains("line 2"));
        assert!(says("").contains("line 1"), "a file that lost everything says nothing");
        for half in ["cluster c", "chunkserver cs-1"] {
            assert!(says(&format!("format 4\n{half}\nchecksum none\n")).contains("one is missing"), "{half}");
        }
        assert!(says("what\n").contains("line 1"));
        assert!(decode(b"\xff").is_err());
    }

    /// Found by review: a bit that fell over in an epoch was believed.
    #[test]
    fn whatever_is_damaged_is_found_out() {
        let whole = encode(&facts()).into_bytes();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}: {:?}", String::from_utf8_lossy(&bytes));
        }
        for length in 0..whole.len() - 1 {
            assert!(decode(&whole[..length]).is_err(), "cut at {length}");
        }
        let text = String::from_utf8(whole).unwrap();
        let lower = decode(text.replace("epoch 3 9", "epoch 3 8").as_bytes()).unwrap_err();
        let says = lower.to_string();
        assert!(says.contains(STATE_FILE) && says.contains("set the file aside"), "{says}");
    }

    #[test]
    fn who_changes_it_by_hand_says_so_in_place_of_the_checksum() {
        let text = encode(&facts());
        let (lines, _) = text.rsplit_once("checksum ").unwrap();
        let changed = lines.replace("disk d-1 /a dir/x\n", "");
        let says = decode(changed.as_bytes()).unwrap_err().to_string();
        assert!(says.contains("doesn't end in a checksum") && says.contains("\"checksum none\""), "{says}");
        let without = Facts { disks: BTreeMap::new(), ..facts() };
        for end in ["checksum none\n", "checksum none", "checksum none\r\n"] {
            assert_eq!(decode(format!("{changed}{end}").as_bytes()), Ok(without.clone()), "{end:?}");
        }
    }

    #[test]
    fn files_of_earlier_formats_are_read_without_what_they_lack() {
        let old = "format 1\nincarnation 4\ncustody 6\nepoch 3 9\ndisk d-1 /a dir/x\n";
        assert_eq!(decode(old.as_bytes()), Ok(Facts { founding: None, owner: None, ..facts() }));
        let marked = "format 2\nincarnation 4\nfounding a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7\n";
        let expected = Facts { incarnation: 4, founding: facts().founding, ..Facts::default() };
        assert_eq!(decode(marked.as_bytes()), Ok(expected));
        let whole = marked.replace("format 2", "format 3");
        assert!(decode(whole.as_bytes()).is_err(), "it ends in no checksum");
        let whole = format!("{whole}checksum {:08x}\n", crate::checksum(whole.as_bytes()));
        assert_eq!(decode(whole.as_bytes()), decode(marked.as_bytes()));
        // One whose format was lowered isn't taken for one of them.
        for format in ["format 2", "format 3"] {
            assert!(decode(encode(&facts()).replace("format 4", format).as_bytes()).is_err(), "{format}");
        }
    }
}
