//! How a filesystem begins and ends: what it is made of, and what the volumes of one mount have in common.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mooseng_ports::clock::Clock;
use mooseng_transport::Network;
use mooseng_wire::VolumeId;
use mooseng_wire::fs::TouchAtime;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acls::Acls;
use crate::alone::Eager;
use crate::append::Appenders;
use crate::atime::Touches;
use crate::borrow::Borrower;
use crate::buffers::{Buffers, Room};
use crate::cache::BlockCache;
use crate::chunkservers::Chunkservers;
use crate::config::ClientConfig;
use crate::error::FsError;
use crate::facts::Facts;
use crate::files::Handles;
use crate::flush::FLUSHES;
use crate::fs::{FileSystem, Inner, daemon};
use crate::full::Full;
use crate::links::LinkPeers;
use crate::lookahead::LookAhead;
use crate::opens::Opens;
use crate::peers::Peers;
use crate::read::Reader;
use crate::recalls::Recalls;
use crate::region::{Region, send_closes};
use crate::session::Session;
use crate::telling;
use crate::waits::Watched;
use crate::writeback::WriteBack;

/// A volume besides the root may keep so small a part of the bytes of facts that the root may.
const FACTS_SHARE: usize = 4;

/// What the volumes of one mount have in common.
#[derive(Clone)]
pub(crate) struct Common {
    peers: Arc<dyn Peers>,
    chunkservers: Arc<Chunkservers>,
    cache: Arc<BlockCache>,
    room: Arc<Room>,
    /// The last handle: what one volume's handle is given for is never another's.
    handles: Arc<AtomicU64>,
}

impl Common {
    fn new(config: &ClientConfig, peers: Arc<dyn Peers>) -> Self {
        let borrower = if config.same_host_reads { Borrower::start(peers.clone()) } else { None };
        let (zone, hedge_after) = (config.zone.clone(), config.hedge_after);
        Self {
            chunkservers: Arc::new(Chunkservers::new(peers.clone(), zone, hedge_after, borrower)),
            peers,
            cache: Arc::new(BlockCache::new(config.cache_bytes)),
            room: Arc::new(Room::new(config.write_buffer_bytes)),
            handles: Arc::default(),
        }
    }
}

impl FileSystem {
    /// Connects to the region and opens a session; waits for it for `connect_timeout`.
    pub async fn connect(
        config: ClientConfig,
        network: Arc<dyn Network>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FsError> {
        let peers = LinkPeers::new(network, config.same_host_writes);
        Self::connect_through(config, Arc::new(peers), clock).await
    }

    /// [`Self::connect`] through any implementation of the port to other daemons.
    pub async fn connect_through(
        config: ClientConfig,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FsError> {
        let fs = Self::start_through(config, peers, clock)?;
        let patience = fs.inner.session.config.connect_timeout;
        let seat = tokio::select! {
            biased;
            seat = fs.inner.session.seat(0, Instant::now() + patience) => seat,
            // A master's no is an answer: waiting doesn't change it.
            why = fs.inner.session.refused() => return Err(why),
        };
        match seat {
            Some(_) => Ok(fs),
            None => Err(FsError::Unanswered {
                what: "opening a session with the region".into(),
                after: patience,
                last: fs.inner.session.last_error(),
            }),
        }
    }

    /// Starts without waiting: operations wait for the session instead. Must be called inside a tokio runtime.
    pub fn start(
        config: ClientConfig,
        network: Arc<dyn Network>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FsError> {
        let peers = LinkPeers::new(network, config.same_host_writes);
        Self::start_through(config, Arc::new(peers), clock)
    }

    fn start_through(
        config: ClientConfig,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FsError> {
        config.validate().map_err(FsError::Invalid)?;
        let peers: Arc<dyn Peers> = Arc::new(Watched(peers));
        let common = Common::new(&config, peers.clone());
        Ok(Self::begin(config, peers, clock, common))
    }

    /// Starts what the same mount has of another volume, with the same settings, without waiting. Its masters are asked over connections of their own, so that
    /// what waits for one volume fills no lane of another's; all else that is bounded is shared.
    pub(crate) fn start_beside(&self, volume: VolumeId) -> Self {
        let session = &self.inner.session;
        let config = ClientConfig {
            volume: volume.0,
            facts_bytes: session.config.facts_bytes / FACTS_SHARE,
            ..session.config.clone()
        };
        let common = self.inner.common.clone();
        let peers = common.peers.apart().unwrap_or_else(|| common.peers.clone());
        let fs = Self::begin(config, peers, session.clock.clone(), common);
        // Where none of this region's masters answers from the start.
        fs.inner.session.hear_of(session.elsewhere());
        fs
    }

    fn begin(config: ClientConfig, peers: Arc<dyn Peers>, clock: Arc<dyn Clock>, common: Common) -> Self {
        let shutdown = CancellationToken::new();
        let opens = Arc::new(Opens::default());
        let facts = Arc::new(Facts::new(clock.clone(), config.facts_bytes));
        let buffers = Arc::new(Buffers::sharing(common.room.clone()));
        let session = Session::new(
            config,
            peers,
            clock,
            opens.clone(),
            facts.clone(),
            buffers.clone(),
            shutdown.clone(),
        );
        let recalls = Arc::new(Recalls::default());
        session.on_recall(recalls.clone());
        session.near.forget_through(recalls.clone());
        let region = Region::new(session.clone(), recalls.clone());
        let chunkservers = common.chunkservers.clone();
        let touches = Arc::new(Touches::default());
        let appenders = Arc::new(Appenders::new(region.clone(), chunkservers.clone()));
        let writer = Arc::new(WriteBack {
            region: region.clone(),
            appenders: appenders.clone(),
            facts: facts.clone(),
            opens: opens.clone(),
            buffers,
            recalls: recalls.clone(),
            slots: Arc::new(Semaphore::new(FLUSHES)),
            full: Full::default(),
            refusals: AtomicU64::new(0),
        });
        recalls.write_back(&writer);
        tokio::spawn(WriteBack::keep(Arc::downgrade(&writer)));
        tokio::spawn(session.clone().keep());
        tokio::spawn(session.clone().keep_near());
        tokio::spawn(send_closes(Arc::downgrade(&region), opens.clone(), shutdown.clone()));
        tokio::spawn(send_touches(region.clone(), touches.clone(), shutdown.clone()));
        let inner = Inner {
            reader: Reader::new(region.clone(), chunkservers.clone(), common.cache.clone()),
            appenders,
            writer,
            handles: Handles::numbered_by(common.handles.clone()),
            locks: session.locks.clone(),
            session,
            facts,
            recalls,
            region,
            opens,
            chunkservers,
            touches,
            lookahead: LookAhead::default(),
            acls: Acls::default(),
            eager: Eager::default(),
            asking_ids: tokio::sync::Mutex::default(),
            asking_files: Default::default(),
            common,
            shutdown,
        };
        let inner = Arc::new(inner);
        tokio::spawn(telling::keep(Arc::downgrade(&inner)));
        tokio::spawn(crate::locks::keep(Arc::downgrade(&inner), inner.shutdown.clone()));
        Self { inner }
    }

    /// Seals open chunks, sends what is pending and ends the session. Operations fail from then on.
    pub async fn close(&self) {
        let inner = &self.inner;
        if self.is_gone() {
            return inner.shutdown.cancel();
        }
        // What was written comes first, and gets the time that any operation has.
        let flushed =
            tokio::time::timeout(inner.session.config.retry_timeout, inner.writer.flush_all()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            let bytes = inner.writer.buffers.bytes();
            tracing::error!(
                bytes,
                outcome = ?flushed,
                "the filesystem is closed although written data couldn't be sent; what wasn't fsynced of it is lost"
            );
        }
        if let Err(error) = self.told(inner.session.config.retry_timeout).await {
            let changes = inner.session.journal.len();
            tracing::error!(changes, %error, "the filesystem is closed although changes of names couldn't be told; what wasn't fsynced of them is lost");
        }
        let patience = inner.session.config.retry_timeout.min(Duration::from_secs(5));
        let tidy = async {
            inner.appenders.close_all(&daemon()).await;
            flush_touches(&inner.region, &inner.touches).await;
            inner.session.close().await
        };
        match tokio::time::timeout(patience, tidy).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(%error, "the session couldn't be closed; it ends with its lease")
            }
            Err(_) => tracing::info!("the region didn't answer; the session ends with its lease"),
        }
        inner.shutdown.cancel();
    }

    /// Ends a session of this host that a process had which is dead for certain, so that nobody waits for its lease. Never of one that may
    /// still serve: what it was promised is promised to others then.
    pub async fn end_session_of_dead(&self, session: u64, incarnation: u64) {
        if let Err(error) = self.inner.session.end_other(session, incarnation).await {
            tracing::info!(session, %error, "the session of the dead mount ends with its lease");
        }
    }
}

async fn send_touches(region: Arc<Region>, touches: Arc<Touches>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(region.session.config.atime_interval) => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = flush_touches(&region, &touches) => {}
        }
    }
}

async fn flush_touches(region: &Arc<Region>, touches: &Touches) {
    loop {
        let batch = touches.take();
        if batch.is_empty() {
            return;
        }
        let facts = &region.session.facts;
        let shown = batch.iter().filter_map(|touch| {
            let (known, _) = facts.inode(touch.inode)?;
            Some((touch.inode, known.attr.ctime_ns, touch.atime_ns))
        });
        let shown: Vec<_> = shown.collect();
        // Never reported to the application.
        match region.change(&daemon(), Op::TouchAtime(TouchAtime { touches: batch })).await {
            Ok(Reply::Errno(errno)) => tracing::debug!(errno, "access times weren't updated"),
            Err(error) => tracing::debug!(%error, "access times weren't updated"),
            // Who is promised a file doesn't ask for its attributes: it would show the old time for good, and each read would be sent anew.
            Ok(_) => {
                for (inode, changed_ns, atime_ns) in shown {
                    facts.touched(inode, changed_ns, atime_ns);
                }
            }
        }
    }
}
