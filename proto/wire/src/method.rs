//! The calls on framed streams: their numbers, never reused, and the lane that each travels on.

/// A lane: calls of one lane may wait for each other, calls of different lanes don't (DESIGN section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Renewals, recall answers, Raft: never behind anything else.
    Control = 0,
    /// Reads.
    Read = 1,
    /// Flushes.
    Flush = 2,
    /// Changes.
    Change = 3,
}

/// All lanes, in order of precedence.
pub const LANES: [Lane; 4] = [Lane::Control, Lane::Read, Lane::Flush, Lane::Change];

impl Lane {
    /// The lane of that number.
    pub fn from_u8(n: u8) -> Option<Self> {
        LANES.get(usize::from(n)).copied()
    }
}

macro_rules! methods {
    ($($(#[$meta:meta])* $name:ident = $number:literal on $lane:ident),* $(,)?) => {
        /// A call on a framed stream. Messages are named in the comment of each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Method { $($(#[$meta])* $name = $number),* }
        impl Method {
            /// The method of that number; none if this version doesn't know it.
            pub fn from_u16(n: u16) -> Option<Self> {
                match n { $($number => Some(Method::$name),)* _ => None }
            }
            /// The lane that the call travels on. A request of a session may choose `Change` or `Read` itself.
            pub fn lane(self) -> Lane {
                match self { $(Method::$name => Lane::$lane),* }
            }
            /// The word used in metrics and traces.
            pub fn as_str(self) -> &'static str {
                match self { $(Method::$name => stringify!($name)),* }
            }
        }
    };
}

methods! {
    /// session.OpenSession -> session.SessionOpened
    OpenSession = 1 on Control,
    /// session.Renew -> session.Renewed
    Renew = 2 on Control,
    /// session.CloseSession -> session.SessionClosed
    CloseSession = 3 on Control,
    /// session.Request (a read) -> session.Response
    FsRead = 4 on Read,
    /// session.Request (a change) -> session.Response
    FsChange = 5 on Change,
    /// session.Notice, master to client, without an answer.
    Notice = 6 on Control,
    /// session.AnswerRecalls -> session.RecallsAnswered
    AnswerRecalls = 7 on Control,
    /// chunk.Append + bulk -> chunk.Appended
    ChunkAppend = 20 on Change,
    /// chunk.Read -> chunk.ReadDone + bulk
    ChunkRead = 21 on Read,
    /// chunk.Seal -> chunk.Sealed
    ChunkSeal = 22 on Flush,
    /// chunk.StatChunk -> chunk.ChunkStat
    ChunkStat = 23 on Read,
    /// chunk.Pull -> chunk.Pulled
    ChunkPull = 24 on Change,
    /// chunk.AskDigest -> chunk.Digested
    ChunkDigest = 25 on Read,
    /// chunk.Close -> chunk.Sealed
    ChunkClose = 26 on Flush,
    /// chunk.Build -> chunk.Built
    ChunkBuild = 27 on Change,
    /// chunk.Lend -> chunk.Lent
    ChunkLend = 28 on Read,
    /// chunk.Follow -> chunk.Followed
    ChunkFollow = 29 on Change,
    /// chunk.Push -> chunk.PushBegun
    ChunkPush = 30 on Change,
    /// chunk.AskMemory -> chunk.MemoryLent
    ChunkMemory = 31 on Read,
    /// raft.AppendEntries -> raft.AppendAnswer
    RaftAppend = 40 on Control,
    /// raft.VoteRequest -> raft.VoteAnswer
    RaftVote = 41 on Control,
    /// raft.SnapshotBegin -> raft.SnapshotAnswer
    RaftSnapshotBegin = 42 on Change,
    /// raft.SnapshotPage -> raft.SnapshotAnswer
    RaftSnapshotPage = 43 on Change,
    /// raft.SnapshotEnd -> raft.SnapshotAnswer
    RaftSnapshotEnd = 44 on Change,
    /// raft.Found -> raft.FoundAnswer
    RaftFound = 45 on Control,
    /// geo.Push -> geo.Pushed
    LogPush = 60 on Flush,
    /// geo.AskLog -> geo.Log
    LogAsk = 61 on Read,
    /// geo.AskPage -> geo.Page
    VolumePage = 62 on Read,
    /// geo.AskDigest -> geo.Digest
    VolumeDigest = 63 on Read,
    /// geo.NearRead -> geo.NearReply
    NearRead = 64 on Read,
    /// geo.AskSource -> geo.Source
    ChunkSource = 65 on Read,
    /// geo.Complete -> geo.CompleteHeard
    LogComplete = 66 on Control,
    /// geo.AskReceivers -> geo.Receivers
    ChunkReceivers = 67 on Control,
    /// geo.NearRenew -> geo.NearRenewed
    NearRenew = 68 on Control,
    /// geo.NearNews, master to client, without an answer.
    NearNotice = 69 on Control,
    /// geo.AskServed -> geo.Served
    VolumeServed = 70 on Control,
    /// geo.AskClassUse -> geo.ClassUse
    ClassUse = 71 on Change,
    /// geo.AskLetGo -> geo.LetGo
    VolumeLetGo = 80 on Read,
    /// raft.AppendEntries -> raft.AppendAnswer, of the global group, as all that follow.
    GlobalAppend = 50 on Control,
    /// raft.VoteRequest -> raft.VoteAnswer
    GlobalVote = 51 on Control,
    /// raft.SnapshotBegin -> raft.SnapshotAnswer
    GlobalSnapshotBegin = 52 on Change,
    /// raft.SnapshotPage -> raft.SnapshotAnswer
    GlobalSnapshotPage = 53 on Change,
    /// raft.SnapshotEnd -> raft.SnapshotAnswer
    GlobalSnapshotEnd = 54 on Change,
    /// raft.Found -> raft.FoundAnswer
    GlobalFound = 55 on Control,
    /// global.Renew -> global.Renewed
    GlobalRenew = 56 on Control,
    /// global.Change -> global.Changed
    GlobalChange = 57 on Change,
}
