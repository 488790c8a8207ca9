//! Room for answers on their way out: whoever asks for much and reads nothing takes up no more than that.
//!
//! An answer takes room before it is queued, and gives it back once it is written. One that is known to be
//! large takes it before the call is worked on, so that it doesn't wait in memory. Room is the connection's,
//! its identity's, and all connections', and is waited for in this order only: no two calls wait for each
//! other. Small answers have room of their own, so that they never wait behind large ones: a write is
//! acknowledged while reads wait for their bytes.
//!
//! What is small and answers a call that is control's by its nature takes none, and masters' answers no more
//! than their connection's.

use std::sync::Arc;

use bytes::Bytes;
use mooseng_wire::chunk::Read;
use mooseng_wire::method::{Lane, Method};
use mooseng_wire::{BULK_BYTES_MAX, Role};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::inbound::SMALL_BYTES;

/// Answers up to this size are small.
const SMALL_ANSWER_BYTES: usize = 16 << 10;
/// Small ones have one part in so many.
const SMALL_SHARE: usize = 8;
/// Bytes of an answer beside its bulk, at least.
const BESIDE: usize = 64;
/// Whose room an answer takes: its connection's, its identity's, everybody's.
const OWNERS: usize = 3;

/// So many bytes, in two parts.
#[derive(Clone)]
pub(crate) struct Space {
    small: Part,
    large: Part,
}

#[derive(Clone)]
struct Part {
    room: Arc<Semaphore>,
    size: usize,
}

impl Part {
    fn new(size: usize) -> Self {
        let size = size.clamp(1, Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(size)), size }
    }

    /// What is larger than all there is has all there is.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.size)).unwrap_or(u32::MAX)
    }

    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let taken = self.room.clone().acquire_many_owned(self.permits(bytes)).await;
        taken.expect("room for answers is never closed")
    }

    fn take_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_many_owned(self.permits(bytes)).ok()
    }
}

impl Space {
    pub(crate) fn new(bytes: usize) -> Self {
        let small = bytes / SMALL_SHARE;
        Self { small: Part::new(small), large: Part::new(bytes - small) }
    }

    fn part(&self, bytes: usize) -> &Part {
        if bytes <= SMALL_ANSWER_BYTES { &self.small } else { &self.large }
    }
}

/// Room that an answer has; given back with this.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: usize,
    permits: [Option<OwnedSemaphorePermit>; OWNERS],
}

impl Held {
    pub(crate) fn is_nothing(&self) -> bool {
        self.bytes == 0
    }

    /// Gives back what is beyond so many bytes. False where it is less.
    pub(crate) fn cut_to(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            return false;
        }
        self.bytes = bytes;
        for permit in self.permits.iter_mut().flatten() {
            let beyond = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(beyond));
        }
        true
    }
}

/// Where the answers of one connection take room.
pub(crate) struct Answers {
    spaces: [Option<Space>; OWNERS],
    is_master: bool,
}

impl Answers {
    /// Of a connection whose peer has that role.
    pub(crate) fn new(of_connection: usize, of_identity: Space, of_all: Space, role: Role) -> Self {
        let is_master = role == Role::Master;
        // What masters tell each other never waits for what others don't read.
        let others = if is_master { [None, None] } else { [Some(of_identity), Some(of_all)] };
        let [of_identity, of_all] = others;
        Self { spaces: [Some(Space::new(of_connection)), of_identity, of_all], is_master }
    }

    /// Whether an answer takes no room. The lane that a call names is its caller's word; its method's isn't.
    pub(crate) fn is_free(&self, method: Option<Method>, bytes: usize) -> bool {
        let is_control = method.is_some_and(|method| method.lane() == Lane::Control);
        is_control && (bytes <= SMALL_BYTES || self.is_master)
    }

    /// Room for so many bytes, once there is some.
    pub(crate) async fn take(&self, bytes: usize) -> Held {
        let mut held = Held { bytes, ..Held::default() };
        for (permit, space) in held.permits.iter_mut().zip(self.spaces.iter().flatten()) {
            *permit = Some(space.part(bytes).take(bytes).await);
        }
        held
    }

    /// Room for so many bytes, if there is some.
    pub(crate) fn take_now(&self, bytes: usize) -> Option<Held> {
        let mut held = Held { bytes, ..Held::default() };
        for (permit, space) in held.permits.iter_mut().zip(self.spaces.iter().flatten()) {
            *permit = Some(space.part(bytes).take_now(bytes)?);
        }
        Some(held)
    }
}

/// What the answer to a call comes to at most, where the call says it and it may be much. 0 for any other:
/// what it takes is known once it is there.
pub(crate) fn expected(method: Option<Method>, body: &Bytes) -> usize {
    match method {
        Some(Method::ChunkRead) => match Read::decode(body.clone()) {
            Ok(read) => (read.length as usize).min(BULK_BYTES_MAX) + BESIDE,
            Err(_) => 0,
        },
        _ => 0,
    }
}

/// Whether an answer isn't kept until there is room for it: it is large, and a read's, which is made again.
pub(crate) fn is_dropped(method: Option<Method>, bytes: usize) -> bool {
    bytes > SMALL_ANSWER_BYTES && method.is_some_and(|method| method.lane() == Lane::Read)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: usize = 1 << 20;

    fn free(space: &Space) -> (usize, usize) {
        (space.small.room.available_permits(), space.large.room.available_permits())
    }

    #[test]
    fn an_answer_takes_the_room_of_its_connection_its_identity_and_all() {
        let (identity, all) = (Space::new(16 * MIB), Space::new(64 * MIB));
        let answers = || Answers::new(8 * MIB, identity.clone(), all.clone(), Role::Client);
        let (one, other) = (answers(), answers());
        let mut held: Vec<Held> = (0..7).map(|_| one.take(MIB).now_or_never().unwrap()).collect();
        assert!(one.take_now(MIB).is_none() && one.take(MIB).now_or_never().is_none());
        // Small ones don't wait behind them.
        let small = one.take_now(100).unwrap();
        assert_eq!(free(&identity), (2 * MIB - 100, 7 * MIB));
        drop(small);
        held.extend((0..7).map(|_| other.take_now(MIB).unwrap()));
        let third = answers();
        assert!(third.take_now(MIB).is_none(), "the identity has no more");
        let (foreign, master) = (Space::new(16 * MIB), Space::new(1));
        let foreign = Answers::new(8 * MIB, foreign, all.clone(), Role::Client);
        held.push(foreign.take_now(MIB).unwrap());
        let master = Answers::new(8 * MIB, master.clone(), master, Role::Master);
        assert!(master.take_now(MIB).is_some(), "masters take their connection's alone");
        // What turned out smaller gives back the rest.
        assert!(held[0].cut_to(20_000) && !held[0].cut_to(20_001));
        assert_eq!(free(&all), (8 * MIB, (56 - 15) * MIB + MIB - 20_000));
        drop(held);
        assert_eq!((free(&identity), free(&all)), ((2 * MIB, 14 * MIB), (8 * MIB, 56 * MIB)));
        // What is larger than all there is isn't waited for for ever.
        assert!(third.take_now(100 * MIB).is_some());
    }

    #[test]
    fn a_read_says_what_its_answer_comes_to_and_control_takes_no_room() {
        let read = |length| Bytes::from(Read { length, ..Read::default() }.encode_to_vec());
        assert_eq!(expected(Some(Method::ChunkRead), &read(5000)), 5000 + BESIDE);
        assert_eq!(expected(Some(Method::ChunkRead), &read(u32::MAX)), BULK_BYTES_MAX + BESIDE);
        assert_eq!(expected(Some(Method::ChunkRead), &Bytes::from_static(b"\xff")), 0);
        assert_eq!(expected(Some(Method::FsRead), &read(5000)), 0);
        let answers = |role| Answers::new(MIB, Space::new(MIB), Space::new(MIB), role);
        let (client, master) = (answers(Role::Client), answers(Role::Master));
        assert!(client.is_free(Some(Method::Renew), 100) && !client.is_free(Some(Method::Renew), MIB));
        assert!(master.is_free(Some(Method::RaftAppend), MIB) && !master.is_free(Some(Method::LogAsk), 100));
        assert!(!client.is_free(Some(Method::FsRead), 100) && !client.is_free(None, 100));
    }
}
