//! What a chunkserver keeps durable about itself, in its state directory: how often it started, the founding mark of its region, the newest epoch of
//! each volume, and which disk belongs in which data directory. One small text file, replaced as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_wire::Epoch;
use mooseng_wire::founding::Founding;

/// The file's name in the state directory.
pub const STATE_FILE: &str = "chunkserver.state";
/// The newest format that is read. 2 has a founding mark: a build that would ignore that refuses the file.
const FORMAT: u32 = 2;

/// The facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
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
                .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?,
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
    let format = if facts.founding.is_some() { FORMAT } else { 1 };
    let mut text = format!("format {format}\nincarnation {}\n", facts.incarnation);
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
    text
}

/// What a file says, or what is wrong with it in words.
pub fn decode(bytes: &[u8]) -> Result<Facts, String> {
    let mut facts = Facts::default();
    let text = std::str::from_utf8(bytes).map_err(|_| "the state file isn't text")?;
    for (n, line) in text.lines().enumerate() {
        let malformed = || format!("line {} of the state file is malformed: {line:?}", n + 1);
        let mut words = line.splitn(3, ' ');
        let (key, first, second) =
            (words.next().unwrap_or(""), words.next().ok_or_else(malformed)?, words.next());
        match (key, second) {
            ("format", None) => {
                let format: u32 = first.parse().map_err(|_| malformed())?;
                if format > FORMAT {
                    return Err(format!(
                        "the state file has format {format}, this build reads up to {FORMAT}: upgrade the chunkserver"
                    ));
                }
            }
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
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_round_trip_and_nonsense_is_named() {
        let mut facts = Facts { incarnation: 4, custody: 6, ..Facts::default() };
        facts.epochs.insert(3, Epoch(9));
        facts.disks.insert("/a dir/x".into(), "d-1".into());
        assert!(encode(&facts).starts_with("format 1\n"), "earlier builds read it");
        assert_eq!(decode(encode(&facts).as_bytes()), Ok(facts.clone()));
        facts.founding = Some(Founding([0xa7; 16]));
        assert!(encode(&facts).starts_with("format 2\n"), "earlier builds would ignore the mark");
        assert_eq!(decode(encode(&facts).as_bytes()), Ok(facts));
        assert!(decode(b"founding a7\n").unwrap_err().contains("line 1"));
        assert!(decode(b"format 99\n").unwrap_err().contains("upgrade"));
        assert!(decode(b"epoch x 1\n").unwrap_err().contains("line 1"));
        assert!(decode(b"what\n").is_err());
    }
}
