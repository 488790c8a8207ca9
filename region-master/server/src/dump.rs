//! The whole store as a file ([`mooseng_store::dump`]), while the region works; and a region that begins with one.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mooseng_embedded::{BaseError, Embedded, FjallBase, Options, Pin, Position};
use mooseng_ports::disk::Disk;
use mooseng_raft::Node;
use mooseng_raft::recover::{self, RecoverError, Recovered};
use mooseng_store::dump::{DumpError, Encoder, Header, Reader, Totals, verify};
use mooseng_transport::Blocking;
use mooseng_wal::{Options as WalOptions, Wal, WalError};
use mooseng_wire::admin::DumpPiece;
use mooseng_wire::founding::Founding;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::config::MasterConfig;
use crate::master::Master;

/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that wait for the caller; reading waits then.
const PIECES_WAITING_MAX: usize = 4;
/// A caller that takes nothing for so long holds a version of the store for nothing.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Dumps in the background. Only the leader: it has all that was acknowledged.
#[allow(clippy::result_large_err, reason = "tonic's Status is what the service answers")]
pub fn stream(master: Arc<Master>) -> Result<ReceiverStream<Result<DumpPiece, Status>>, Status> {
    let term = master.serving().map_err(|e| Status::unavailable(e.message))?;
    let Ok(permit) = master.clone().dumping.clone().try_acquire_owned() else {
        return Err(Status::failed_precondition("another dump is being made; wait for its end"));
    };
    let (to, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    tokio::spawn(async move {
        let _one_at_a_time = permit;
        let outcome = tokio::select! {
            () = master.shutdown.cancelled() => Err(Status::unavailable("this master stops")),
            outcome = run(&master, term, &to) => outcome,
        };
        if let Err(status) = outcome {
            let _ = to.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(pieces))
}

async fn run(master: &Master, term: u64, to: &mpsc::Sender<Result<DumpPiece, Status>>) -> Result<(), Status> {
    let failed = |e: BaseError| Status::internal(e.to_string());
    let store = master.store.clone();
    let pin = Blocking::Pool.run(move || store.pin()).await.map_err(failed)?;
    // It led when the picture was taken: nothing that was acknowledged before is missing in it.
    master.may_answer(term).map_err(|e| Status::unavailable(e.message))?;
    let header = Header {
        cluster: master.identity.cluster.clone(),
        region: master.identity.region.clone(),
        founding: Founding::tell(master.desk(|desk| desk.founding())).to_vec(),
        version: pin.version().0,
        term,
        taken_unix_s: u64::try_from(master.clock.unix_ns() / 1_000_000_000).unwrap_or(0),
    };
    let mut making = Making::begin(pin, &header);
    while let (back, Some(piece)) = Blocking::Pool.run(move || making.next()).await.map_err(failed)? {
        making = back;
        let sent = timeout(TAKEN_WITHIN, to.send(Ok(DumpPiece { bytes: piece.into() }))).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Status::cancelled("nobody takes the dump any more")),
            Err(_) => return Err(Status::deadline_exceeded("the dump wasn't taken in time")),
        }
    }
    Ok(())
}

/// A dump in the making.
pub struct Making {
    pin: Pin,
    first: Option<Vec<u8>>,
    encoder: Option<Encoder>,
}

impl Making {
    /// Of that picture.
    pub fn begin(pin: Pin, header: &Header) -> Self {
        let (encoder, first) = Encoder::begin(header);
        Self { pin, first: Some(first), encoder: Some(encoder) }
    }

    /// The next piece, none behind the last; and itself.
    #[allow(clippy::type_complexity, reason = "it goes to another thread and comes back")]
    pub fn next(mut self) -> Result<(Self, Option<Vec<u8>>), BaseError> {
        if let Some(first) = self.first.take() {
            return Ok((self, Some(first)));
        }
        let Some(mut encoder) = self.encoder.take() else { return Ok((self, None)) };
        let pairs = self.pin.records(PIECE_BYTES)?;
        let piece = if pairs.is_empty() {
            encoder.end().0
        } else {
            let piece = encoder.block(&pairs);
            self.encoder = Some(encoder);
            piece
        };
        Ok((self, Some(piece)))
    }
}

/// Why a dump isn't loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum LoadError {
    #[error("{} can't be opened: {source}", .path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", .path.display())]
    Dump { path: PathBuf, source: DumpError },
    #[error(
        "the dump is of the region {region} of the cluster {cluster}, this master's configuration is for {own_region} of {own_cluster}"
    )]
    OtherRegion { cluster: String, region: String, own_cluster: String, own_region: String },
    #[error(
        "{} isn't empty: a dump is loaded only where nothing is. Give the master an empty state_dir; move this one away if it isn't needed", .0.display()
    )]
    NotEmpty(PathBuf),
    #[error(transparent)]
    Clock(#[from] crate::recover::Refused),
    #[error("the dump changed while it was loaded; empty {} and load it again", .0.display())]
    Changed(PathBuf),
    #[error("{0}; empty the state_dir and load the dump again")]
    Store(#[from] BaseError),
    #[error("{0}; empty the state_dir and load the dump again")]
    Log(#[from] WalError),
    #[error("{0}; empty the state_dir and load the dump again")]
    Group(#[from] RecoverError),
}

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What the dump is of.
    pub header: Header,
    /// What it holds.
    pub totals: Totals,
    /// The group that goes on with it.
    pub group: Recovered,
}

/// Makes the region anew on this master alone, with what the dump holds. All of the dump is checked before anything is written.
pub fn load(
    config: &MasterConfig,
    disk: Arc<dyn Disk>,
    path: &Path,
    now: SystemTime,
) -> Result<Loaded, LoadError> {
    let of_file = |source| LoadError::Dump { path: path.to_owned(), source };
    let open = || {
        let opened = File::open(path).map(BufReader::new);
        opened.map_err(|source| LoadError::Open { path: path.to_owned(), source })
    };
    let (header, totals) = verify(open()?).map_err(of_file)?;
    if (&header.cluster, &header.region) != (&config.cluster, &config.region) {
        return Err(LoadError::OtherRegion {
            cluster: header.cluster,
            region: header.region,
            own_cluster: config.cluster.clone(),
            own_region: config.region.clone(),
        });
    }
    let taken = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(header.taken_unix_s));
    crate::recover::clock_is_plausible(now, "the dump", taken)?;
    let (raft_dir, store_dir) = (config.state_dir.join("raft"), config.state_dir.join("store"));
    for dir in [&raft_dir, &store_dir] {
        if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(LoadError::NotEmpty(dir.clone()));
        }
    }
    let made = disk.create_dir_all(&raft_dir);
    made.map_err(|source| LoadError::Open { path: raft_dir.clone(), source })?;
    let options = WalOptions { segment_bytes: config.raft.segment_bytes, ..WalOptions::default() };
    let log = Wal::open(disk.clone(), &raft_dir, options)?;
    let node =
        Node { name: config.name.clone(), address: config.advertise.clone(), zone: config.zone.clone() };
    let now_s = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let member = (config.id, node);
    let (position, group) = recover::begin_with_store(&*disk, &raft_dir, &log, member, header.term, now_s)?;
    let base = FjallBase::open(&store_dir)?;
    let store = Embedded::open(Arc::new(base), Options::default())?;
    let mut reader = Reader::begin(open()?).map_err(of_file)?;
    fill(&store, &mut reader, position).map_err(|e| match e {
        Filling::Dump(source) => of_file(source),
        Filling::Store(source) => LoadError::Store(source),
    })?;
    if reader.totals() != Some(totals) || reader.header != header {
        return Err(LoadError::Changed(config.state_dir.clone()));
    }
    Ok(Loaded { header, totals, group })
}

/// Why a store isn't filled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum Filling {
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Store(#[from] BaseError),
}

/// Replaces a store's content by a dump's, as a whole.
pub fn fill(
    store: &Embedded,
    reader: &mut Reader<impl std::io::Read>,
    position: Position,
) -> Result<(), Filling> {
    store.install_begin()?;
    store.install_version(reader.header.version)?;
    while let Some(pairs) = reader.block()? {
        let pairs: Vec<(Bytes, Bytes)> = pairs;
        store.install_page(pairs)?;
    }
    Ok(store.install_end(position)?)
}
