//! Room for frames on their way in. What is large takes it when it is announced: until then nobody knows of it, and it may take long to be whole.

use std::sync::Arc;

use mooseng_wire::Role;
use mooseng_wire::frame::Head;
use mooseng_wire::method::{Lane, Method};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Frames up to this size lie in the buffer that each connection has anyway, and take room when they are whole; on the control lane they take none.
pub(crate) const SMALL_BYTES: usize = 64 << 10;

/// Bytes of one connection's calls on the control lane that take no room.
const FREE_BYTES_MAX: usize = 1 << 20;

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

    /// Whether a call takes no room. What is small and control's by its nature goes whatever else is under
    /// way, and what masters say to each other there (Raft) at any size. The lane alone is the caller's word:
    /// whoever sent changes there had as many as he wished.
    pub(crate) fn is_free(&self, lane: usize, method: u16, bytes: usize) -> bool {
        let is_control = || Method::from_u16(method).is_some_and(|method| method.lane() == Lane::Control);
        lane == Lane::Control as usize && (self.is_master || bytes <= SMALL_BYTES && is_control())
    }

    /// Whether what is small takes none although its connection has so many bytes under way in that lane.
    pub(crate) fn is_free_beside(&self, bytes: usize) -> bool {
        self.is_master || bytes < FREE_BYTES_MAX
    }

    /// Room for a whole call, or what is beyond its frame.
    pub(crate) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Full> {
        take(&self.all, bytes).ok_or("bytes are in flight at this server")
    }

    /// Room for a frame that is announced, if it takes any before it is whole.
    pub(crate) fn announce(&self, head: &Head) -> Result<Option<Announced>, Full> {
        if head.bytes <= SMALL_BYTES || self.is_free(usize::from(head.lane), head.method, head.bytes) {
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
