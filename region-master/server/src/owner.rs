//! Whose directory a log lies in.
//!
//! A log says what its master has promised the others: whom it voted for, and what it acknowledged. A master over another one's log - its disk was swapped at
//! a restart, or mounted in the wrong place - is held to that one's promises and has forgotten its own: it votes a second time in a term, and leaves the others
//! without entries that they count on. So a file beside each log names its owner, and a start as anybody else is refused before anything there is opened. It is
//! lost with the log, and an empty directory is whoever's starts there: a substitute begins so, under an id that was never used. Where a log has no such file
//! an earlier release wrote it, and the first start takes it over.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};

use crate::config::MasterConfig;
use crate::global;

/// The file, in the log's directory.
pub const FILE: &str = "owner";
/// The format that is written, and the newest that is read.
const FORMAT: u32 = 1;

/// A group whose log a master has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Its region's.
    Region,
    /// That of the masters of all regions.
    Global,
}

impl Group {
    fn word(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Global => "global",
        }
    }
}

/// Who a master is in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: String,
    /// The region.
    pub region: String,
    /// Its name.
    pub name: String,
    /// Its id in its region.
    pub id: u64,
    /// The group.
    pub group: Group,
    /// Its number there, by which it votes.
    pub member: u64,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, region, name, id, group, member } = self;
        write!(f, "master {name} (id {id}) of region {region} in cluster {cluster}")?;
        match group {
            Group::Region => Ok(()),
            Group::Global => write!(f, ", which is member {member} of the global group"),
        }
    }
}

/// Why a log isn't this master's.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// It is another one's.
    #[error(
        "the log in {} is that of {found}, and this is {ours}: it would vote against what it has promised itself. Mount the right disk there, or correct the settings `state_dir`, `id`, `name`, `region` and `cluster` (for the global group also its region's `number` in `global.regions`). A master that takes another one's place, or has got another name, begins with an empty state_dir and an id that was never used (docs/operations.md, \"A master lost its disk\")",
        dir.display()
    )]
    Other {
        /// The log's directory.
        dir: PathBuf,
        /// Whose it is.
        found: Box<Owner>,
        /// We.
        ours: Box<Owner>,
    },
    /// The file isn't what was written.
    #[error(
        "the file {} is damaged, and nothing else says whose log lies beside it. If that is the log of {ours}, remove this one file, and start the master again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// We.
        ours: Box<Owner>,
    },
    /// A later release wrote it.
    #[error("the file {} has format {format}, this release reads up to {FORMAT}: upgrade the master", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The disk doesn't give it.
    #[error("the file {}, which says whose log lies beside it, can't be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
}

/// Where a master's logs are, and who it is in each.
fn logs(config: &MasterConfig) -> Vec<(PathBuf, Owner)> {
    let owner = |group, member| Owner {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        name: config.name.clone(),
        id: config.id,
        group,
        member,
    };
    let region = (config.state_dir.join("raft"), owner(Group::Region, config.id));
    let global = config.global.as_ref().map(|global| {
        (global::raft_dir(&config.state_dir), owner(Group::Global, global::member(config, global)))
    });
    [region].into_iter().chain(global).collect()
}

/// Refuses a master whose logs are another one's. Nothing is changed.
pub fn check(disk: &dyn Disk, config: &MasterConfig) -> Result<(), OwnerError> {
    logs(config).iter().try_for_each(|(dir, ours)| is_ours(disk, dir, ours).map(drop))
}

/// The same, before any of them is opened; those that are nobody's yet are this master's from then on.
pub fn claim(disk: &dyn Disk, config: &MasterConfig) -> Result<(), OwnerError> {
    check(disk, config)?;
    for (dir, ours) in logs(config) {
        if is_ours(disk, &dir, &ours)? {
            continue;
        }
        let path = dir.join(FILE);
        let written = disk.create_dir_all(&dir).and_then(|()| write_atomically(disk, &path, &encode(&ours)));
        // An old log on a disk that is full is no worse than it was. A new one can't be begun there anyway.
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "whose log this is can't be noted down; the next start tries again");
        }
    }
    Ok(())
}

/// Whether a log is this master's; false where it is nobody's yet.
fn is_ours(disk: &dyn Disk, dir: &Path, ours: &Owner) -> Result<bool, OwnerError> {
    let path = dir.join(FILE);
    let bytes = match disk.open(&path, OpenMode::ReadOnly).and_then(|file| read_all(&*file)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(OwnerError::Unreadable { path, source }),
    };
    if let Some(format) = format_of(&bytes).filter(|format| *format > FORMAT) {
        return Err(OwnerError::Newer { path, format });
    }
    let Some(found) = decode(&bytes) else {
        return Err(OwnerError::Damaged { path, ours: Box::new(ours.clone()) });
    };
    if found != *ours {
        let (dir, ours) = (dir.to_owned(), Box::new(ours.clone()));
        return Err(OwnerError::Other { dir, found: Box::new(found), ours });
    }
    Ok(true)
}

fn encode(owner: &Owner) -> Vec<u8> {
    let Owner { cluster, region, name, id, group, member } = owner;
    let group = group.word();
    format!(
        "format {FORMAT}\ncluster {cluster}\nregion {region}\nmaster {name}\nid {id}\ngroup {group}\nmember {member}\n"
    )
    .into_bytes()
}

fn format_of(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.lines().next()?.strip_prefix("format ")?.parse().ok()
}

fn decode(bytes: &[u8]) -> Option<Owner> {
    let text = std::str::from_utf8(bytes).ok()?;
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let word = field("group")?;
    let owner = Owner {
        cluster: field("cluster")?.to_owned(),
        region: field("region")?.to_owned(),
        name: field("master")?.to_owned(),
        id: field("id")?.parse().ok()?,
        group: [Group::Region, Group::Global].into_iter().find(|group| group.word() == word)?,
        member: field("member")?.parse().ok()?,
    };
    // Nothing is missing, and nothing there twice.
    (encode(&owner) == bytes).then_some(owner)
}

#[cfg(test)]
mod tests {
    use mooseng_ports::disk::sim::{Fault, SimDisk};

    use super::*;

    const REGIONS: &str = "[[global.regions]]\nname = \"eu\"\nnumber = 2\n[[global.regions.masters]]\nid = 1\nname = \"m1\"\naddress = \"h1:1\"\n";

    /// Of a cluster of several regions, with that line in place of another one.
    fn config(from: &str, to: &str) -> MasterConfig {
        let text = format!(
            "name = \"m1\"\nid = 1\nregion = \"eu\"\ncluster = \"c\"\nlisten = \"h1:1\"\nstate_dir = \"/state\"\n{REGIONS}"
        );
        let changed = text.replace(from, to);
        assert!(from == to || changed != text);
        MasterConfig::parse(&changed).unwrap()
    }

    fn refused(disk: &SimDisk, config: &MasterConfig) -> String {
        let told = claim(disk, config).unwrap_err().to_string();
        assert_eq!(check(disk, config).unwrap_err().to_string(), told);
        told
    }

    #[test]
    fn a_log_is_its_first_masters_until_it_is_lost() {
        let (disk, ours) = (SimDisk::default(), config("", ""));
        check(&disk, &ours).unwrap();
        assert!(disk.list(Path::new("/state/raft")).is_err(), "it only looked");
        claim(&disk, &ours).unwrap();
        // Flushed before the log is opened.
        disk.crash(|_| 0);
        claim(&disk, &ours).unwrap();
        for (from, to, says) in [
            ("id = 1", "id = 4", "of region eu in cluster c, and this is master m1 (id 4) of region eu"),
            ("\"m1\"", "\"m2\"", "and this is master m2 (id 1) of region eu"),
            ("\"eu\"", "\"us\"", "of region eu in cluster c, and this is master m1 (id 1) of region us"),
            ("\"c\"", "\"d\"", "and this is master m1 (id 1) of region eu in cluster d: "),
        ] {
            let told = refused(&disk, &config(from, to));
            assert!(told.starts_with("the log in /state/raft is that of master m1 (id 1) of"), "{told}");
            assert!(told.contains(says) && told.contains("an id that was never used"), "{told}");
        }
        claim(&disk, &ours).unwrap();
        // A substitute on a disk that was emptied.
        claim(&SimDisk::default(), &config("id = 1", "id = 4")).unwrap();
    }

    #[test]
    fn the_log_between_regions_has_an_owner_of_its_own() {
        let (disk, ours) = (SimDisk::default(), config("", ""));
        claim(&disk, &ours).unwrap();
        let told = refused(&disk, &config("number = 2", "number = 3"));
        assert!(told.contains("its region's `number` in `global.regions`"), "{told}");
        assert!(told.contains("/state/global/raft is that of master m1 (id 1) of region eu in cluster c, which is member 8589934593 of the global group"), "{told}");
        assert!(told.contains("which is member 12884901889 of the global group: "), "{told}");
        // A log that lies where the other one belongs.
        let (region, global) = (Path::new("/state/raft/owner"), Path::new("/state/global/raft/owner"));
        disk.rename(global, region).unwrap();
        let told = refused(&disk, &ours);
        assert!(told.starts_with("the log in /state/raft is that of"), "{told}");
        // A cluster of one region comes to have several.
        let disk = SimDisk::default();
        claim(&disk, &config(REGIONS, "")).unwrap();
        claim(&disk, &ours).unwrap();
        assert!(disk.open(global, OpenMode::ReadOnly).is_ok());
    }

    #[test]
    fn what_is_damaged_is_nobodys_and_says_what_to_do() {
        let (disk, ours) = (SimDisk::default(), config("", ""));
        claim(&disk, &ours).unwrap();
        let path = Path::new("/state/raft/owner");
        let whole = read_all(&*disk.open(path, OpenMode::ReadOnly).unwrap()).unwrap();
        for length in 0..whole.len() {
            write_atomically(&disk, path, &whole[..length]).unwrap();
            let told = refused(&disk, &ours);
            assert!(told.contains("remove this one file") && told.contains("master m1 (id 1)"), "{told}");
        }
        let text = String::from_utf8(whole).unwrap();
        write_atomically(&disk, path, text.replace("format 1", "format 2").as_bytes()).unwrap();
        assert!(refused(&disk, &ours).contains("upgrade the master"));
        // What it says is to be done.
        disk.remove(path).unwrap();
        claim(&disk, &ours).unwrap();
        assert_eq!(read_all(&*disk.open(path, OpenMode::ReadOnly).unwrap()).unwrap(), text.as_bytes());
    }

    #[test]
    fn a_full_disk_keeps_nobody_from_starting() {
        let (disk, ours) = (SimDisk::default(), config("", ""));
        disk.create_dir_all(Path::new("/state/raft")).unwrap();
        disk.set_fault(Fault::Full);
        claim(&disk, &ours).unwrap();
        disk.set_fault(Fault::None);
        claim(&disk, &ours).unwrap();
        assert!(disk.open(Path::new("/state/raft/owner"), OpenMode::ReadOnly).is_ok());
    }
}
