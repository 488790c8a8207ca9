//! Room for frames on their way in. What is large takes it when it is announced: until then nobody knows of it, and it may take long to be whole.

use std::sync::Arc;

use mooseng_wire::Role;
use mooseng_wire::frame::Head;
use mooseng_wire::method::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Frames up to this size lie in the buffer that each connection has anyway, and take room when they are whole; on the control lane they take none.
pub(crate) const SMALL_BYTES: usize = 64 << 10;

/// Why there is no room: what there are too many of.
pub(crate) type Full = &'static str;

/// Where the frames of one connection take room.
pub(crate) struct Inbound {
    /// Bytes of all calls at the port.
    all: Arc<Semaphore>,
    /// Bytes that the peer's identity has announced and not sent yet.
    unfinished: Arc<Semaphore>,
    is_master: bool,
}

/// Room that a frame took when it was announced.
#[derive(Debug)]
pub(crate) struct Announced {
    all: OwnedSemaphorePermit,
    _unfinished: OwnedSemaphorePermit,
}

impl Announced {
    /// It is whole: of what its identity has under way it is no part any more.
    pub(crate) fn whole(self) -> OwnedSemaphorePermit {
        self.all
    }
}

impl Inbound {
    /// Of a connection whose peer has that role.
    pub(crate) fn new(all: Arc<Semaphore>, unfinished: Arc<Semaphore>, role: Role) -> Self {
        Self { all, unfinished, is_master: role == Role::Master }
    }

    /// Whether a call takes no room. The lane is the caller's word: what is small there goes whatever else is under way, and what masters say to each
    /// other (Raft) at any size.
    pub(crate) fn is_free(&self, lane: usize, bytes: usize) -> bool {
        lane == Lane::Control as usize && (bytes <= SMALL_BYTES || self.is_master)
    }

    /// Room for a whole call, or what is beyond its frame.
    pub(crate) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Full> {
        take(&self.all, bytes).ok_or("bytes are in flight at this server")
    }

    /// Room for a frame that is announced, if it takes any before it is whole.
    pub(crate) fn announce(&self, head: &Head) -> Result<Option<Announced>, Full> {
        if head.bytes <= SMALL_BYTES || self.is_free(usize::from(head.lane), head.bytes) {
            return Ok(None);
        }
        let unfinished = take(&self.unfinished, head.bytes)
            .ok_or("bytes are on their way to this server from the caller's host")?;
        Ok(Some(Announced { all: self.take(head.bytes)?, _unfinished: unfinished }))
    }
}

fn take(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    room.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}
