//! Lending sealed chunks' files to clients on the same host, which then read and check them themselves, and memory to whoever writes.
//!
//! ```text
//!  client --ChunkLend (ticket, boot id)--> service -> store: open for reading -> Offers: token
//!         <--Lent (socket, token, file)---
//!         --token--> Counter (Unix socket) -> Offers: taken, once -> descriptor
//! ```
//! Who may have what is decided on the authenticated stream alone, exactly as for a read. What was lent isn't called back: a client closes each
//! descriptor [`HELD_FOR`] after it got it and asks anew, so that what ends a right (a ticket, a certificate, a deletion) ends this one as
//! well. A client that breaks this keeps bytes which it could as well have copied.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_chunk::lent::{HELD_FOR, Loan};
use mooseng_transport::descriptors::{Counter, Token, boot_id, our_uid};
use mooseng_transport::{ConnectionHandle, MemoryOffer};
use mooseng_wire::chunk::{LendRefusal, Lent, MemoryLent};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a token is good.
const OFFERED_FOR: Duration = Duration::from_secs(5);
/// Descriptors that wait for whoever asked for them.
const WAITING_MAX: usize = 256;
/// Descriptors that one client may have at a time, and all of them together.
const LENT_MAX: Limits = Limits { each: 1024, all: 8192 };
/// Connections that memory is shared with at a time, 16 MiB each at most. One peer has several where a new connection takes an old one's place.
const SHARED_MAX: Limits = Limits { each: 4, all: 32 };
/// The socket's directory and name below the state directory.
const SOCKET: [&str; 2] = ["lend", "socket"];

/// Most loans.
#[derive(Clone, Copy, Debug)]
struct Limits {
    each: usize,
    all: usize,
}

/// What is offered and lent. No clock, no descriptors of its own.
#[derive(Debug)]
struct Offers<T> {
    waiting: BTreeMap<Token, (Instant, T)>,
    /// When loans of each client end.
    lent: BTreeMap<String, VecDeque<Instant>>,
    limits: Limits,
}

impl<T> Offers<T> {
    fn new(limits: Limits) -> Self {
        Self { waiting: BTreeMap::new(), lent: BTreeMap::new(), limits }
    }

    fn expire(&mut self, now: Instant) {
        self.waiting.retain(|_, (until, _)| *until > now);
        self.lent.retain(|_, ends| {
            while ends.front().is_some_and(|end| *end <= now) {
                ends.pop_front();
            }
            !ends.is_empty()
        });
    }

    /// Keeps `item` for whoever shows the token, beside what is lent; false if too much is kept already.
    fn keep(&mut self, now: Instant, token: Token, item: T) -> bool {
        self.expire(now);
        let has_room = self.waiting.len() < WAITING_MAX;
        if has_room {
            self.waiting.insert(token, (now + OFFERED_FOR, item));
        }
        has_room
    }

    /// Keeps `item` for whoever shows the token; false if too much is lent already.
    fn offer(&mut self, now: Instant, client: &str, token: Token, item: T) -> bool {
        self.expire(now);
        let all: usize = self.lent.values().map(VecDeque::len).sum();
        let each = self.lent.get(client).map_or(0, VecDeque::len);
        if self.waiting.len() >= WAITING_MAX || all >= self.limits.all || each >= self.limits.each {
            return false;
        }
        self.lent.entry(client.to_owned()).or_default().push_back(now + HELD_FOR);
        self.waiting.insert(token, (now + OFFERED_FOR, item));
        true
    }

    fn take(&mut self, now: Instant, token: &Token) -> Option<T> {
        self.expire(now);
        self.waiting.remove(token).map(|(_, item)| item)
    }
}

/// What waits for whoever shows its token.
enum Offer {
    File(OwnedFd),
    Memory(MemoryOffer),
}

impl Offer {
    fn hand_over(self) -> Option<OwnedFd> {
        match self {
            Self::File(file) => Some(file),
            Self::Memory(offer) => offer.hand_over(),
        }
    }
}

/// Connections that share memory, or are about to, by who is at their other end.
#[derive(Debug, Default)]
struct Rooms(Mutex<BTreeMap<String, usize>>);

/// One of them, until this is dropped.
struct InRoom {
    rooms: Arc<Rooms>,
    peer: String,
}

impl Rooms {
    fn enter(rooms: &Arc<Self>, peer: &str) -> Option<InRoom> {
        let mut by_peer = rooms.0.lock().unwrap_or_else(PoisonError::into_inner);
        if by_peer.values().sum::<usize>() >= SHARED_MAX.all {
            return None;
        }
        let count = by_peer.entry(peer.to_owned()).or_default();
        if *count >= SHARED_MAX.each {
            return None;
        }
        *count += 1;
        Some(InRoom { rooms: rooms.clone(), peer: peer.to_owned() })
    }
}

impl Drop for InRoom {
    fn drop(&mut self) {
        let mut by_peer = self.rooms.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}

/// Lends files, and shares memory.
pub struct Lender {
    socket: PathBuf,
    boot_id: String,
    offers: Mutex<Offers<Offer>>,
    reads: bool,
    /// None where no memory is shared.
    memory: Option<Arc<Rooms>>,
}

impl Lender {
    /// Begins to lend files for `reads`, memory for `writes`; none where that isn't possible here, which is logged and hurts nothing but speed.
    pub fn start(state_dir: &Path, reads: bool, writes: bool) -> Option<(Arc<Self>, Counter)> {
        let socket = state_dir.join(SOCKET[0]).join(SOCKET[1]);
        let Some(boot_id) = boot_id() else {
            tracing::info!(
                "this system has no boot id: clients on this host read and write over the network"
            );
            return None;
        };
        match std::path::absolute(&socket).and_then(|path| Ok((Counter::bind(&path)?, path))) {
            Ok((counter, socket)) => {
                let offers = Mutex::new(Offers::new(LENT_MAX));
                let memory = writes.then(Arc::default);
                Some((Arc::new(Self { socket, boot_id, offers, reads, memory }), counter))
            }
            Err(error) => {
                tracing::info!(socket = %socket.display(), %error, "there is no socket for clients on this host: they read and write over the network");
                None
            }
        }
    }

    fn offers(&self) -> MutexGuard<'_, Offers<Offer>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody under a kernel of that id is on this host.
    pub fn is_here(&self, boot_id: &[u8]) -> bool {
        self.boot_id.as_bytes() == boot_id
    }

    /// Shares memory with whoever is at the other end of a connection, until that ends.
    pub fn share(&self, connection: &ConnectionHandle) -> MemoryLent {
        let (Some(rooms), Some(socket)) = (&self.memory, self.socket.to_str()) else {
            return no_memory(LendRefusal::NotHere);
        };
        let Some(room) = Rooms::enter(rooms, &connection.peer.uri) else {
            return no_memory(LendRefusal::TooMuchLent);
        };
        let made = connection.offer_memory(Box::new(room)).and_then(|offer| match offer {
            Some(offer) => Ok(Some((offer.identity()?, offer))),
            None => Ok(None),
        });
        let (identity, offer) = match made {
            Ok(Some(made)) => made,
            // It has some.
            Ok(None) => return no_memory(LendRefusal::NotHere),
            Err(error) => {
                tracing::debug!(peer = connection.peer.uri, %error, "no memory can be shared with a process on this host: it writes over the network");
                return no_memory(LendRefusal::NotHere);
            }
        };
        let token = Token::random();
        if !self.offers().keep(Instant::now(), token, Offer::Memory(offer)) {
            return no_memory(LendRefusal::TooMuchLent);
        }
        MemoryLent {
            refused: LendRefusal::Unspecified.into(),
            socket: socket.to_owned(),
            token: token.0.to_vec().into(),
            uid: our_uid(),
            device: identity.device,
            inode: identity.inode,
        }
    }

    /// Offers a file to a client, which has shown a right to it.
    pub fn offer(&self, client: &str, loan: Loan) -> Lent {
        let token = Token::random();
        let Some(socket) = self.socket.to_str().filter(|_| self.reads) else {
            return refused(LendRefusal::NotHere);
        };
        if !self.offers().offer(Instant::now(), client, token, Offer::File(loan.descriptor)) {
            return refused(LendRefusal::TooMuchLent);
        }
        Lent {
            refused: LendRefusal::Unspecified.into(),
            socket: socket.to_owned(),
            token: token.0.to_vec().into(),
            uid: our_uid(),
            device: loan.terms.file.device,
            inode: loan.terms.file.inode,
            format: loan.terms.format,
            length: loan.terms.length,
            tail_crc: loan.terms.tail_crc,
        }
    }

    /// Hands out what is offered, until told to stop.
    pub async fn serve(self: Arc<Self>, counter: Counter, shutdown: CancellationToken) {
        let lender = self.clone();
        let take = Arc::new(move |token: &Token| {
            let taken = lender.offers().take(Instant::now(), token);
            taken.and_then(Offer::hand_over)
        });
        let tidy = async {
            loop {
                tokio::time::sleep(OFFERED_FOR).await;
                self.offers().expire(Instant::now());
            }
        };
        tokio::select! {
            () = counter.serve(take, shutdown) => {}
            () = tidy => {}
        }
    }
}

/// That no memory is shared.
pub fn no_memory(why: LendRefusal) -> MemoryLent {
    MemoryLent { refused: why.into(), ..MemoryLent::default() }
}

/// That nothing is lent.
pub fn refused(why: LendRefusal) -> Lent {
    Lent { refused: why.into(), ..Lent::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Limits = Limits { each: 2, all: 3 };

    #[test]
    fn a_token_is_good_once_and_for_a_moment() {
        let (mut offers, now) = (Offers::new(FEW), Instant::now());
        let (one, other) = (Token([1; 32]), Token([2; 32]));
        assert!(offers.offer(now, "a", one, 'x') && offers.offer(now, "a", other, 'y'));
        assert_eq!(offers.take(now, &Token([3; 32])), None);
        assert_eq!(offers.take(now, &one), Some('x'));
        assert_eq!(offers.take(now, &one), None);
        assert_eq!(offers.take(now + OFFERED_FOR, &other), None);
        assert!(offers.waiting.is_empty(), "what nobody fetched is closed");
    }

    #[test]
    fn loans_are_bounded_for_each_client_and_for_all_until_they_end() {
        let (mut offers, now) = (Offers::new(FEW), Instant::now());
        let mut n = 0;
        let mut offer = |client: &str, now| {
            n += 1;
            offers.offer(now, client, Token([n; 32]), ())
        };
        assert!(offer("a", now) && offer("a", now) && !offer("a", now));
        assert!(offer("b", now) && !offer("c", now));
        assert!(!offer("a", now + HELD_FOR - Duration::from_millis(1)));
        assert!(offer("a", now + HELD_FOR) && offer("c", now + HELD_FOR));
    }

    #[test]
    fn waiting_offers_are_bounded() {
        let (mut offers, now) = (Offers::new(LENT_MAX), Instant::now());
        let taken = (0..1000u64).filter(|n| {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&n.to_le_bytes());
            offers.offer(now, &n.to_string(), Token(token), ())
        });
        assert_eq!(taken.count(), WAITING_MAX);
    }
}
