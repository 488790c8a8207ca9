//! The registry of events: what `mooseng events`, masters' journals and the documentation have in common.
//!
//! A word is never renamed and never reused. `docs/events.md` lists them, which a test compares with this file.

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventWord {
    /// The word, in capitals.
    pub word: &'static str,
    /// What it is about.
    pub subject: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

macro_rules! events {
    ($($word:ident, $subject:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $word: EventWord = EventWord { word: stringify!($word), subject: $subject, meaning: $meaning };
        )*
        /// All words, by name.
        pub const ALL: &[EventWord] = &[$($word),*];
    };
}

events! {
    CHUNKSERVER_BACK, "a chunkserver", "It reports to its region again.";
    CHUNKSERVER_LOST, "a chunkserver", "It hasn't reported to its region's leader for too long.";
    COPY_BEGUN, "a region", "It copies a volume from its home from the start, because it doesn't have it or is too far behind the log.";
    COPY_FINISHED, "a region", "Its copy of a volume is whole and follows the log.";
    EPOCH_CLOSED, "a volume", "Its home changes it no more: the home's lease ran out, or it gave the volume up.";
    EPOCH_OPENED, "a volume", "A region has become its home, behind a place of the log from which nothing else counts.";
    GLOBAL_LEADER, "a master", "It leads the global group now.";
    HEALTH_CLEARED, "a health code", "A finding is gone.";
    HEALTH_RAISED, "a health code", "A finding is there, and was for some seconds.";
    HOME_MOVED, "a volume", "Its home was moved to another region, as somebody asked for: nothing was lost.";
    LEADER_ELECTED, "a region", "A master leads the region's group now.";
    LEASE_LOST, "a region", "Its lease ran out: it must have stopped to change what another region may take over.";
    LEASE_RENEWED, "a region", "Its lease, which had run out, was renewed.";
    LEVEL_RAISED, "a feature level", "The cluster is at it from then on: what came with it is allowed, and no release that doesn't support it can be started.";
    OUTAGE, "a region", "The master that leads it from now on had heard of no leader with a majority for so long: the region served nothing then, unless that master alone was cut off. Told above five seconds.";
    REGION_ADDED, "a region", "It was taken into the cluster.";
    REGION_REACHED, "a region", "A region whose masters didn't answer another one's leader does so again.";
    REGION_REMOVED, "a region", "It was let go of.";
    REGION_UNREACHABLE, "a region", "None of its masters answers the leader of another one.";
    SALVAGE_KEPT, "a region", "What it alone had of a volume when it was followed by another home is put aside.";
    SYNC_SET_GROWN, "a volume", "A region more must have what was flushed before fsync returns.";
    SYNC_SET_SHRUNK, "a volume", "A region isn't waited for any more; nothing is answered without it before this.";
    VOLUME_CHANGED, "a volume", "Its settings were changed: durability, failover, what fsync does alone, how old its tail may be, or its regions.";
    VOLUME_DELETED, "a volume", "It is deleted, and the directory that it was joined at is an ordinary one.";
    VOLUME_JOINED, "a volume", "Its directory names it: mounts cross into it there.";
    VOLUME_LET_GO, "a region", "Nothing is left there of a volume that it was taken out of.";
    VOLUME_MADE, "a volume", "It was made; its home prepares it, and no directory names it yet.";
}

/// The word of that name.
pub fn find(word: &str) -> Option<&'static EventWord> {
    ALL.iter().find(|known| known.word == word)
}

/// The table of `docs/events.md`.
pub fn table() -> String {
    let row = |event: &EventWord| format!("| {} | {} | {} |\n", event.word, event.subject, event.meaning);
    format!("| event | about | meaning |\n| --- | --- | --- |\n{}", ALL.iter().map(row).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn words_are_sorted_and_documented() {
        assert!(ALL.is_sorted_by(|a, b| a.word < b.word));
        assert_eq!(find("EPOCH_OPENED"), Some(&EPOCH_OPENED));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/events.md");
        let page = std::fs::read_to_string(page).unwrap();
        assert!(
            page.contains(&table()),
            "docs/events.md differs from the registry, which says:\n{}",
            table()
        );
    }
}
