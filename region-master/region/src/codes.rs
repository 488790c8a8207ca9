//! The registry of health codes: what status, `mooseng explain`, the documentation, alerts and log events have in common.
//!
//! A code is never renamed and never reused. Each has a page in `docs/errors/`, which a test compares with this file.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Something is degraded: the next failure may hurt.
    Warning,
    /// Data or service is affected now.
    Critical,
}

impl Severity {
    /// The word in status and documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A health code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCode {
    /// The code, in capitals.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it says.
    pub meaning: &'static str,
    /// Where it usually comes from.
    pub cause: &'static str,
    /// What to do.
    pub fix: &'static str,
}

macro_rules! codes {
    ($($code:ident, $severity:ident, $meaning:literal, $cause:literal, $fix:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $code: HealthCode = HealthCode {
                code: stringify!($code), severity: Severity::$severity, meaning: $meaning, cause: $cause, fix: $fix,
            };
        )*
        /// All codes, by name.
        pub const ALL: &[HealthCode] = &[$($code),*];
    };
}

codes! {
    CERT_EXPIRED, Critical,
        "A daemon's certificate has expired: its peers refuse it.",
        "Renewal has failed for half of the certificate's life, the machine was off for longer than the certificate lives, or its clock is wrong.",
        "Check the machine's clock. Renew the certificate on the authority's machine (`mooseng-certs renew DIR`) and copy it to the daemon's (`docs/operations.md`, *Certificates*); the daemon takes it up without a restart.";
    CERT_EXPIRING, Warning,
        "A daemon's certificate is close to its end and hasn't been renewed.",
        "Nobody renews it: `mooseng-certs renew --watch` isn't running where the cluster's authority lies, or fails; or what it renewed wasn't copied to this machine. The daemon only reads its files again when they change.",
        "Look at that service's log (`journalctl -u mooseng-certs-renew`), run `mooseng-certs renew DIR` on the authority's machine for the directory that `mooseng-certs list` shows with the identity, and copy what is in there to the daemon's machine (`docs/operations.md`, *Certificates*). The daemon takes it up without a restart.";
    CHUNKS_ENDANGERED, Warning,
        "Chunks have fewer reachable copies than their storage class asks for. No data is unavailable yet.",
        "A chunkserver or a disk is down, or a write went on without a member that failed.",
        "Repair makes copies by itself, the most endangered first, once a chunkserver has been silent for a minute (`house.grace_ms`); `mooseng status` shows how far it is. Bring the named chunkservers back. `mooseng info PATH` shows where the chunks of a file lie.";
    CHUNKS_MISPLACED, Info,
        "Chunks have a copy on a chunkserver that lacks labels of their storage class.",
        "A class' labels or a chunkserver's were changed, files were assigned another class, or the only good copy lay elsewhere.",
        "They are moved by themselves, at the pace of repair. Where it doesn't go on, too few chunkservers with these labels have space (`CLASS_SHORT`): until they do, the copies stay where they are.";
    CHUNKS_UNAVAILABLE, Critical,
        "Chunks have no reachable copy: reads of the files that use them wait.",
        "All chunkservers that hold these chunks are down, or their disks failed.",
        "Start the chunkservers that hold them; `mooseng info PATH` names these. If their disks are lost, what another region has of the volume is fetched from there by itself; restore the rest from a copy elsewhere.";
    CHUNKSERVER_DOWN, Warning,
        "A chunkserver sends no heartbeats.",
        "Its process or machine is down, the network between it and the master is cut, or its certificate is refused.",
        "Look at its log and at the machine; start the daemon. Chunks that it holds have a copy less until it is back, or until they are copied elsewhere, which begins a minute after its last heartbeat (`house.grace_ms`).";
    CHUNKSERVER_DRAINING, Info,
        "A chunkserver is being emptied: it takes no new chunks, and those that it has are moved to others.",
        "An administrator asked for it with `mooseng chunkservers drain`.",
        "Wait until it is empty, then stop it. `mooseng chunkservers undrain` takes it back into use.";
    CLASS_SHORT, Warning,
        "Fewer chunkservers that fit a storage class can take a chunk than the class asks for copies.",
        "Chunkservers with these labels are down, full or being drained; or no chunkserver has them: `labels` in a chunkserver's configuration and the class' labels don't agree.",
        "Compare `mooseng class list` with the labels in `mooseng status -o json`. Label chunkservers, start or add some, free space, or change the class (`mooseng class set`). Below the class' least number of copies, writes of file data are refused with ENOSPC.";
    CLUSTER_FULL, Critical,
        "Too few chunkservers take a new chunk: writes of file data wait.",
        "Disks are down to their reserve, or so many chunkservers are being drained that too few are left.",
        "Add disks or chunkservers, take drained ones back into use (`mooseng chunkservers undrain`), or remove files.";
    DISK_FAILED, Warning,
        "A data directory of a chunkserver failed and is out of use.",
        "The disk returned an error on a write or a flush, or the directory holds another disk's identity.",
        "Check the disk (`dmesg`, SMART). Replace it, and give the chunkserver an empty directory in its place.";
    DISK_FULL, Warning,
        "A data directory of a chunkserver is full: it takes no new chunks.",
        "The disk is down to the configured reserve (`reserve_bytes`).",
        "Free space or add a disk. Other disks and chunkservers go on taking chunks.";
    DISK_HUNG, Warning,
        "A disk of a chunkserver doesn't answer: nothing new is placed there, and only a few calls wait for it. Others are refused at once, and go to other copies.",
        "The disk, its controller or the way to it hangs, without an error: the kernel tries on. Or it has so much to do that a single call takes more than five seconds.",
        "Look at the kernel's log (`dmesg`), and at what else uses the disk. Where it doesn't come back by itself, stop the chunkserver; if its process doesn't end, restart the machine. Chunks on a disk that hangs aren't copied elsewhere before their chunkserver is silent or drained, or started without that disk.";
    GLOBAL_NO_LEADER, Critical,
        "The global group has no leader with a majority: regions can't renew their leases, and nothing is decided between them.",
        "A majority of the masters that vote in it is down, or the regions can't reach each other.",
        "Look at `mooseng regions list` for masters that don't answer; start them, and check the network and the certificates between the regions. Volumes that fail over by themselves take changes again once their home can renew its lease.";
    GLOBAL_REGION_LOSS, Warning,
        "The loss of one more region would stop the global group: no volume could fail over, and homes that need a lease would stop.",
        "Masters that vote in it are down, a region among them, or there are fewer than three regions.",
        "Start the masters that `mooseng regions list` shows as down. With two regions, add a third one: a witness with one master and no data is enough.";
    GLOBAL_THIN, Info,
        "The global group survives the loss of any region, but not of one more master with it.",
        "There are too few masters that could vote: three regions with three masters each have enough, a witness with one master hasn't.",
        "Nothing has to be done. For more, give each of three regions three masters, or have five regions.";
    LEASE_LOST, Critical,
        "This region doesn't hold its lease: volumes that fail over by themselves and have their home here take no changes.",
        "The region's leader can't reach the leader of the global group, or that group has none.",
        "Look for `GLOBAL_NO_LEADER`, and at the network between the regions. The region goes on by itself once it renews its lease, unless another one has become the home meanwhile.";
    LEVELS_DIFFER, Info,
        "The masters of the cluster support different feature levels.",
        "They run different releases: an upgrade is under way, or was left unfinished.",
        "Upgrade the others (`docs/operations.md`, *Upgrading*); `mooseng cluster level` shows which master supports what. Until all support it, the level can't be raised.";
    LEVEL_RAISABLE, Info,
        "All masters support a higher feature level than the cluster is at: what came with it isn't allowed yet.",
        "All were upgraded. The level is raised by command only, for no earlier release can be started afterwards.",
        "`mooseng cluster level` shows what it would allow, and `mooseng cluster level --raise` raises it, once you are sure that you won't go back.";
    MASTER_DISK_LOW, Warning,
        "The disk of a master's `state_dir` is nearly full: it leads only while no other master has room.",
        "Something else fills the disk, or the metadata has outgrown it: less than `reserve_bytes` is free.",
        "Free space on that disk or enlarge it; the master takes it up within a second. Removing files from the filesystem gives back space of the metadata only by and by.";
    MASTER_DOWN, Warning,
        "A master can't be reached by the leader.",
        "Its process or machine is down, or the network to it is cut.",
        "Start it. While a majority of masters is up the region serves; the next loss may stop it. If its disk is lost, never start it with an empty one under its old id: `docs/operations.md` says how to replace it.";
    MASTER_FAILED, Critical,
        "A master can't take part in its group: its log or its store failed or is lost, its disk is full to the last byte, or it was taken out of the group.",
        "The disk below the master's `state_dir` answered an error on a write or a flush, has no room, or was replaced. Or a bug ended a task that the master does its work by; what it says names that, and its log the place. Or somebody took it out (`mooseng members remove`).",
        "While its log's disk is full the master waits for room: free some. After any other failure, of its store on a full disk, too, it ends itself: free space, check the disk (`dmesg`, SMART), then start it again. If the disk is lost or the log is empty, replace it by one with a new id: `docs/operations.md`. After a bug start it again, and report it. One that was taken out is to be stopped.";
    MASTERS_FEW, Warning,
        "The region has too few masters to survive the loss of one.",
        "The Raft group has fewer than three voters.",
        "Add masters until there are three: start each with its configuration, then add it as a member.";
    MASTERS_FULL, Critical,
        "No master has room: new files and names are refused with ENOSPC, and file data as well once half of the reserve is used up.",
        "The disks of all masters that answer are nearly full (`MASTER_DISK_LOW`).",
        "Free space on the disk of one master's `state_dir`: it then leads, and the region takes changes again. Removing files goes on meanwhile. What was acknowledged is safe.";
    MASTERS_ONE_ZONE, Info,
        "A majority of the masters lies in one zone: the loss of that zone stops the region.",
        "Masters were placed without regard to zones, or the configuration names the wrong zone.",
        "Spread the masters over three zones.";
    MASTER_OUTDATED, Warning,
        "A master runs a release that doesn't support the cluster's feature level: the other masters don't hear it.",
        "An earlier release was started on it after the level was raised, or it joins with one.",
        "Start a release that supports the level, with the same `state_dir`; `mooseng cluster level` shows it.";
    NO_CHUNKSERVERS, Critical,
        "Fewer chunkservers are alive than a new chunk needs copies: writes of file data wait.",
        "Chunkservers are down, or haven't found this master yet.",
        "Start chunkservers; check that their configuration names the masters' addresses.";
    NO_QUORUM, Critical,
        "The region's masters have no leader with a majority: every operation waits.",
        "A majority of masters is down, or they can't reach each other.",
        "Start masters until a majority is up, and check the network and the certificates between them.";
    OTHER_FOUNDING, Critical,
        "A chunkserver or a mount is of another founding of this region: the region was made anew since, and knows nothing of its data.",
        "The disks of all masters were lost, or that of the only one that `members` names; its successor made the region anew, with empty metadata. Or a chunkserver was moved here from another region of the same name.",
        "Stop this region's masters, and start those of the old one with their old disks (`docs/operations.md`, the first start of a region). No chunk is deleted meanwhile. If the old data is given up: start the chunkservers with empty data and state directories, and mount again.";
    PEERS_TOO_MANY, Warning,
        "A daemon turned connections away, for too many are open.",
        "Something opens connections and keeps them, or never finishes a handshake; or the region has outgrown the limit.",
        "Look at who connects (`ss -tn` on the daemon's port, the log's `address`) and stop it. Connections that exist go on.";
    PEER_BAD_CERTIFICATE, Warning,
        "A peer was refused: its certificate can't be used.",
        "It isn't signed by this cluster's authority in the way that leaves are, has no SPIFFE id or several, or isn't made for this use.",
        "Issue it anew with `mooseng-certs issue`; `mooseng-certs inspect FILE` says what a file holds.";
    PEER_EXPIRED, Warning,
        "A peer was refused: its certificate has expired, or isn't valid yet.",
        "It wasn't renewed in time, or the clocks of the two machines differ.",
        "Compare the clocks. Renew the peer's certificate (`mooseng-certs renew`); it is taken up without a restart.";
    PEER_LEFT, Info,
        "A peer went away before it was known.",
        "Somebody looked whether the port is open, or a process ended in the middle of a handshake.",
        "Nothing, unless it happens all the time: then look at what connects from the logged address.";
    PEER_NO_CERTIFICATE, Warning,
        "A peer was refused: it showed no certificate.",
        "Something that isn't of the cluster connects, or a program without the cluster's certificates.",
        "Give whatever connects from the logged address its configuration (`tls`), or stop it.";
    PEER_OTHER_CLUSTER, Warning,
        "A peer was refused: its certificate belongs to another cluster.",
        "A configuration names the addresses of another cluster's daemons, or the cluster's root was made anew.",
        "Correct the addresses; or issue new certificates from the root that the other daemons have.";
    PEER_REFUSED, Warning,
        "A peer was refused for a reason without a code of its own.",
        "Its side of the TLS handshake is broken: the log line has the reason.",
        "Look at the reason, and at the software that connects from the logged address.";
    PEER_REVOKED, Warning,
        "A peer was refused: its certificate is revoked.",
        "Its identity or serial number is revoked: in the cluster (`mooseng certs revoked` lists those), or by the list in the daemon's own file (`tls.revocations`).",
        "If it should be let in again, take that back: `mooseng certs unrevoke`, or its line out of the authority's `revocations.txt`, which is handed out then; and issue a new certificate. Otherwise stop it.";
    PEER_VERSION, Warning,
        "A peer was refused: it speaks another protocol, or a version that this daemon doesn't know.",
        "Programs of versions that lie too far apart, or something that isn't MooseNG's.",
        "Upgrade the older side: neighbouring versions understand each other.";
    PEER_WRONG_ROLE, Warning,
        "A peer was refused: what its certificate says it is has no business here.",
        "A daemon was given another one's certificate, or an address of the wrong kind (a chunkserver's in place of a master's).",
        "Correct the address, or issue a certificate of the right role (`mooseng-certs issue --role`).";
    REFUSED_BY_PEER, Warning,
        "A daemon was refused by its peer.",
        "Its own certificate has ended, is revoked or of another cluster; the reason says which, and the peer's log more.",
        "Do what the peer's code asks (`PEER_EXPIRED`, `PEER_REVOKED`, ...).";
    REGION_DOWN, Warning,
        "A region hasn't renewed its lease for longer than the lease lasts.",
        "Its masters are down or have no leader with a majority, or the region is cut off from the others.",
        "Look at that region: its machines, and the network to it. Volumes that fail over by themselves get another home; others wait for theirs.";
    REGION_SMALL, Warning,
        "The chunkservers span fewer failure domains than a chunk has copies: two copies share one.",
        "There are fewer zones (or racks, or hosts) with living chunkservers than `copies`.",
        "Add chunkservers in other zones, racks or hosts, or start the ones that are down.";
    REVOCATIONS_DIFFER, Warning,
        "A daemon goes by another revocation list than the rest of the region: it may let in whom the others refuse.",
        "Of lists in files: one was made by `mooseng-certs revoke` and hasn't been copied to every machine, or the daemon isn't configured with one (`tls.revocations`). Of what the cluster has revoked (the detail tells versions): the daemon hasn't heard of it for 15 s, for it is cut off, paused, or of an earlier release.",
        "Of lists in files: copy the authority's `revocations.txt` to the file that the daemon's setting `tls.revocations` names; it takes the list up within seconds. `mooseng status -o json` shows each daemon's digest, and `mooseng-certs revoke` the newest list's. Of versions: look at the other findings about that daemon, and start it anew if it doesn't catch up; `mooseng certs revoked` shows who lacks it.";
    REPAIR_LATE, Warning,
        "Chunks have been endangered for a quarter of an hour or longer, and repair hasn't mended it.",
        "No chunkserver can take their copies: too few are up, or they have no space. Or the chunkservers with the good copies are down, or there is more to copy than the bounds let through (`house.copy_mib_per_s`, `house.copies_per_chunkserver`).",
        "Look at the other findings first: start chunkservers, free space or add some. The leader's log says why copies aren't made.";
    SESSIONS_FULL, Warning,
        "The limit of sessions is nearly reached: new mounts are refused beyond it.",
        "Many hosts mount the region, or mounts come and go without being unmounted.",
        "Unmount what isn't used; sessions of dead mounts end by themselves after a lease.";
    TRASH_HELD, Warning,
        "Deleted files stay in the trash although their time is over by the clock.",
        "The clock of the master that leads was set forward, or one leads whose clock is ahead; or no master has led for longer than half of the trash's retention. What was deleted before that isn't as old as the clock says.",
        "Compare the masters' clocks, and set those right that are wrong. Nothing else has to be done: the files go once they have been in the trash for as long as they were to, counted from when the clock was set. Where space is short, `mooseng trash purge` frees single files, or all of it (`--all`).";
    VOLUME_WAITS, Critical,
        "A volume takes no changes: its home region is lost, and no other region has taken it over yet.",
        "The home is down or cut off for longer than its lease. A volume of `region` durability goes to the region that has most of it, a `geo` volume only to a member of its sync set; one with manual failover to none.",
        "Wait if the finding names regions that are there: a failover takes some seconds. Otherwise start the home, or a region that could take over. What was acknowledged is on its disks.";
    WRITERS_HELD, Warning,
        "Writers of a volume wait: what no other region has of it is older than the volume's `lag_max`. Reads go on.",
        "More is written than the way to the other regions or their disks take; or, of a volume with `on sync loss block`, no other region follows at all.",
        "It goes on by itself as other regions catch up (`mooseng volume info` shows how far each is). Bring regions back that are down, or give the volume another bound: `mooseng volume set PATH --lag-max 5m`, or `none`; so much more is lost with the home then. With `--on-sync-loss degrade` writers don't wait for regions that aren't there.";
}

/// The code of that name.
pub fn find(code: &str) -> Option<&'static HealthCode> {
    ALL.iter().find(|c| c.code.eq_ignore_ascii_case(code))
}

impl HealthCode {
    /// Its page in `docs/errors/`.
    pub fn page(&self) -> String {
        format!(
            "# {}\n\nSeverity: {}\n\n{}\n\n## Cause\n{}\n\n## Fix\n{}\n",
            self.code,
            self.severity.as_str(),
            self.meaning,
            self.cause,
            self.fix
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn codes_are_sorted_and_unique() {
        let names: Vec<&str> = ALL.iter().map(|c| c.code).collect();
        let unique: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(unique.len(), names.len());
        assert_eq!(find("no_quorum"), Some(&NO_QUORUM));
        assert_eq!(find("NO_SUCH"), None);
        assert!(ALL.iter().all(|c| [c.meaning, c.cause, c.fix].iter().all(|t| t.ends_with(['.', ')']))));
    }

    /// `WRITE_PAGES=1 cargo test -p mooseng-region` writes them.
    #[test]
    fn each_code_has_its_page_and_no_page_is_without_a_code() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        if std::env::var_os("WRITE_PAGES").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            for code in ALL {
                std::fs::write(dir.join(format!("{}.md", code.code)), code.page()).unwrap();
            }
        }
        for code in ALL {
            let page = std::fs::read_to_string(dir.join(format!("{}.md", code.code)))
                .unwrap_or_else(|e| panic!("{} has no page in docs/errors: {e}", code.code));
            assert!(page.starts_with(&code.page()), "docs/errors/{}.md differs from the registry", code.code);
        }
        for entry in std::fs::read_dir(&dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".md").unwrap_or(&name);
            assert!(
                stem == "README" || ALL.iter().any(|c| c.code == stem),
                "docs/errors/{name} is of no code"
            );
        }
    }
}
