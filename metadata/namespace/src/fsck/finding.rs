//! What a check can find.

use bytes::Bytes;
use mooseng_schema::directory::Counter;
use mooseng_schema::quota::{Account, Usage};
use mooseng_schema::staged::Staged;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

/// Makes the kinds, with their names and what to do about each.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $advice:literal;)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// What to do about it.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$kind => $advice,)* }
            }
        }
    };
}

kinds! {
    /// A key or a value can't be read.
    Record = "RECORD_DAMAGED", "compare the masters (`mooseng status`): replace the one whose store differs; if all have it, keep the bytes and report it";
    /// An entry names an inode that isn't there.
    EntryDangling = "ENTRY_DANGLING", "the file's inode is lost: remove the name once you know what was there";
    /// An entry says another kind than its inode.
    EntryKind = "ENTRY_KIND", "copy what it names to another name, then remove it";
    /// An entry lies in something that isn't a directory, or is removed.
    EntryParent = "ENTRY_PARENT", "what it names can't be reached by this name: if it has no other, report it before anything is removed";
    /// An entry lies where its name isn't looked for, or a name is there twice.
    EntryPlace = "ENTRY_PLACE", "the name isn't found though it is listed: report it";
    /// The names that an inode knows aren't those that entries give it.
    Names = "NAMES_DIFFER", "read what it names, copy it to a new name, and remove the old one";
    /// A directory that can't be reached from the root.
    Unreachable = "UNREACHABLE", "nothing below it can be opened by a path: report it";
    /// A volume is joined at what isn't an empty directory, or at two.
    Joined = "JOINED", "what lies there can't be reached, nor the volume: report it, and don't delete the volume";
    /// A directory names a volume that isn't there, or that is joined at another one.
    JoinDangling = "JOIN_DANGLING", "nothing can be opened there: `mooseng volume delete PATH` makes it an ordinary, empty directory again";
    /// A volume is joined, and its directory doesn't name it.
    JoinLost = "JOIN_LOST", "nothing of the volume can be reached: `mooseng volume create PATH`, with the volume's home and durability, has the directory name it again";
    /// The number of its names is wrong.
    Links = "LINK_COUNT", "`mooseng fsck --repair` sets it to the names that there are";
    /// A directory counts its entries wrongly.
    Entries = "DIRECTORY_COUNT", "`mooseng fsck --repair` sets it to the entries that there are";
    /// The names of extended attributes are counted wrongly.
    Xattrs = "XATTR_COUNT", "`mooseng fsck --repair` sets it to the attributes that there are";
    /// An access control list that can't be set.
    Acl = "ACL", "set it anew (`setfacl`), or take it away (`setfacl -b`, `setfacl -k`)";
    /// The bytes that extents cover are counted wrongly.
    Allocated = "ALLOCATED", "`mooseng fsck --repair` sets it to the extents that there are";
    /// Small pieces of a large file that wait to be moved into a chunk are counted wrongly.
    Staged = "STAGED_COUNT", "`mooseng fsck --repair` sets it to the pieces that there are";
    /// They are listed wrongly.
    StagedList = "STAGED_LIST", "some may stay in the metadata store, where they can be read: copy the file to a new name, and remove the old one";
    /// Pieces of a small file that may go to a shared chunk are listed wrongly.
    PackableList = "PACKABLE_LIST", "`mooseng fsck --repair` lists them anew: they were written by a release that didn't, or report it";
    /// An inode without a name isn't marked as an orphan, or one that is has a name.
    Orphan = "ORPHAN", "it keeps its space, or will lose its data: give it a name (`ln` through an open file) or report it";
    /// The trash and an inode don't agree whether, or until when, the inode is in it.
    Trash = "TRASH", "it can't be listed, restored or purged, or not by its time: report it";
    /// A mark of dead extents is there without them being announced, or the other way round.
    Trim = "TRIM", "truncating the file once more mends it";
    /// Something is left of an inode that isn't there.
    Leftover = "LEFTOVER", "it only takes space: report it";
    /// Two extents say what the same byte is.
    Overlap = "EXTENT_OVERLAP", "read the file and write it anew under another name; compare with a backup";
    /// An extent reaches behind the file's end, or is empty.
    Beyond = "EXTENT_BEYOND", "truncating the file to its size mends it";
    /// An extent names a chunk that isn't there.
    ChunkMissing = "CHUNK_MISSING", "bytes of the file are lost: restore it from a backup; `mooseng info PATH` shows which";
    /// An extent names bytes behind the chunk's end.
    ChunkShort = "CHUNK_SHORT", "bytes of the file are lost: restore it from a backup; `mooseng info PATH` shows which";
    /// A chunk counts wrongly what an inode uses of it.
    ChunkUse = "CHUNK_USE", "`mooseng fsck --repair` sets it to the extents that there are";
    /// A chunk has no location, or a location has no chunk, or a dead chunk lives.
    ChunkPlace = "CHUNK_PLACE", "report it; don't remove chunkservers before it is understood";
    /// An id is in use that wasn't given out: it will be given out again.
    IdUngiven = "ID_UNGIVEN", "the store is older than its records: stop writing, and recover from the newest master";
    /// The volume's totals are wrong.
    Statistics = "STATISTICS", "`mooseng fsck --repair` sets them to what there is";
    /// What counts for a user or a directory's quota is recorded wrongly.
    QuotaUsage = "QUOTA_USAGE", "`mooseng fsck --repair` sets it to what there is";
    /// An inode has a storage class that there isn't.
    ClassUnknown = "CLASS_UNKNOWN", "its data is kept as the default class says: `mooseng class assign` gives it one that there is";
    /// A copy isn't there, is damaged or too short, on a chunkserver that says so.
    CopyBad = "COPY_BAD", "repair replaces it from a good one; `mooseng status` shows how far it is";
    /// A chunk has fewer good copies than it should, with those of silent chunkservers counted as good.
    CopiesFew = "COPIES_FEW", "repair makes more as soon as it may; `mooseng status` shows what it waits for";
    /// No copy of a chunk is left on chunkservers that are here.
    CopiesNone = "COPIES_NONE", "bring the chunkservers back that have it; else restore the files from a backup";
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An inode.
    Inode(InodeId),
    /// A name in a directory.
    Entry(InodeId, Bytes),
    /// A chunk, and a file that names it, if one is known.
    Chunk(ChunkId, Option<InodeId>),
    /// A volume.
    Volume(VolumeId),
    /// A key that can't be read.
    Key(Bytes),
}

impl Subject {
    /// The volume that it is of; none for what can't be read.
    pub fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Inode(inode) | Self::Entry(inode, _) => Some(inode.volume()),
            Self::Chunk(chunk, _) => Some(chunk.volume()),
            Self::Volume(volume) => Some(*volume),
            Self::Key(_) => None,
        }
    }
}

/// A counter that is off, and by how much it has to grow. The difference stands whatever changes meanwhile, for changes keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// An inode's names.
    Links(InodeId, i64),
    /// A directory's counter.
    Counter(InodeId, Counter, i64),
    /// Bytes of the names of an inode's attributes.
    Xattrs(InodeId, i64),
    /// Bytes that an inode's extents cover.
    Allocated(InodeId, i64),
    /// What a file has staged.
    Staged(InodeId, Staged),
    /// The list of a file's packable pieces, which is made anew.
    Packable(InodeId),
    /// What an inode uses of a chunk: extents, bytes.
    Use(ChunkId, InodeId, i64, i64),
    /// A volume's inodes.
    Inodes(VolumeId, i64),
    /// A volume's bytes.
    Bytes(VolumeId, i64),
    /// The files in a volume's trash.
    TrashFiles(VolumeId, i64),
    /// Their bytes.
    TrashBytes(VolumeId, i64),
    /// What counts for an account.
    Usage(VolumeId, Account, Usage),
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// With what.
    pub subject: Subject,
    /// In words: what is recorded, and what there is.
    pub detail: String,
    /// How it is mended, where that is beyond doubt.
    pub fix: Option<Fix>,
}

impl Finding {
    pub(super) fn new(kind: Kind, subject: Subject, detail: impl Into<String>) -> Self {
        Self { kind, subject, detail: detail.into(), fix: None }
    }

    pub(super) fn fixed_by(self, fix: Fix) -> Self {
        Self { fix: Some(fix), ..self }
    }
}
