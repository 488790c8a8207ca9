//! Escrow: bytes of limited accounts that the region has promised, so that what is buffered has its room when it comes and a write that has none
//! says so itself (docs/decisions/0012-quotas.md). No clocks, no sending.
//!
//! ```text
//!   granted in all  =  spent or given back  +  covers what is buffered  +  left
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mooseng_wire::fs::{self, Attr, Reserve, Reserved, account::Whose};
use tokio::time::Instant;

/// Asked for beyond what is needed, so that not each write asks.
const WISH: u64 = 16 << 20;
/// What hasn't been used for so long is given back.
const IDLE: Duration = Duration::from_secs(1);
/// Where there was no room, writes go through for so long before it is asked again.
const NONE_FOR: Duration = Duration::from_secs(1);
/// Accounts that are remembered at most, but for those of which something is held.
const ACCOUNTS_MAX: usize = 10_000;

/// For whom bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Account {
    Directory(u64),
    User(u32),
}

/// Those of one file; fewer where only some are meant.
pub(crate) type Accounts = [Option<Account>; 2];

/// The accounts for which a file with these attributes counts.
pub(crate) fn accounts_of(attr: &Attr) -> Accounts {
    [(attr.quota != 0).then_some(Account::Directory(attr.quota)), Some(Account::User(attr.uid))]
}

impl Account {
    fn to_wire(self) -> fs::Account {
        let whose = match self {
            Self::Directory(id) => Whose::Directory(id),
            Self::User(uid) => Whose::User(uid),
        };
        fs::Account { whose: Some(whose) }
    }

    fn of_wire(account: Option<&fs::Account>) -> Option<Self> {
        Some(match account?.whose.as_ref()? {
            Whose::Directory(id) => Self::Directory(*id),
            Whose::User(uid) => Self::User(*uid),
        })
    }
}

#[derive(Debug)]
struct Held {
    limited: bool,
    /// Quotas have changed since: without a limit it counts as before, and is asked for beside.
    stale: bool,
    granted: u64,
    spent: u64,
    /// Covers what is buffered.
    covers: u64,
    used: Instant,
    none_until: Option<Instant>,
}

impl Held {
    fn left(&self) -> u64 {
        self.granted.saturating_sub(self.spent).saturating_sub(self.covers)
    }

    fn give_back(&mut self) {
        self.spent += self.left();
    }

    fn spend(&mut self, bytes: u64) {
        self.covers = self.covers.saturating_sub(bytes);
        self.spent = self.spent.saturating_add(bytes).min(self.granted);
    }
}

#[derive(Debug, Default)]
struct State {
    /// The version of the quotas by which accounts are known to have no limits.
    quotas: u64,
    /// How often what is held was declared, or lost: answers from before aren't taken in.
    generation: u64,
    accounts: BTreeMap<Account, Held>,
}

/// What becomes of a wish to buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// These accounts cover it; none where nothing is limited.
    Covered(Accounts),
    /// The region must be asked for these.
    Ask,
    /// There is no room: the region decides about the write itself.
    Through,
}

/// A question to the region, and what its answer needs.
#[derive(Debug)]
pub(crate) struct Question {
    pub reserve: Reserve,
    generation: u64,
}

impl Question {
    /// The answer of a region that knows of no limits.
    pub fn unlimited(&self) -> Reserved {
        let room = |account: &fs::Account| fs::AccountRoom {
            account: Some(*account),
            limited: false,
            granted: 0,
            enough: true,
        };
        Reserved { accounts: self.reserve.accounts.iter().map(room).collect(), quotas: 0 }
    }
}

/// The escrow of a mount.
#[derive(Debug, Default)]
pub(crate) struct Escrow {
    state: Mutex<State>,
    /// Held by whoever asks: the region counts on one question at a time.
    pub asking: tokio::sync::Mutex<()>,
}

impl Escrow {
    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes cover for bytes that are to be buffered.
    pub fn take(&self, accounts: Accounts, bytes: u64, now: Instant) -> Taken {
        self.state(|state| {
            let mut covering: Accounts = [None; 2];
            for (slot, account) in covering.iter_mut().zip(accounts) {
                let Some(account) = account else { continue };
                let Some(held) = state.accounts.get(&account) else { return Taken::Ask };
                if !held.limited {
                    continue;
                }
                if held.left() < bytes {
                    let none = held.none_until.is_some_and(|until| now < until);
                    return if none { Taken::Through } else { Taken::Ask };
                }
                *slot = Some(account);
            }
            for account in covering.iter().flatten() {
                if let Some(held) = state.accounts.get_mut(account) {
                    held.covers += bytes;
                    held.used = now;
                }
            }
            Taken::Covered(covering)
        })
    }

    /// Bytes aren't buffered any more: so many count at the region by now, so many were given up.
    pub fn settle(&self, accounts: &Accounts, spent: u64, given_up: u64) {
        if spent == 0 && given_up == 0 {
            return;
        }
        self.state(|state| {
            for account in accounts.iter().flatten() {
                if let Some(held) = state.accounts.get_mut(account) {
                    held.spend(spent);
                    held.covers = held.covers.saturating_sub(given_up);
                }
            }
        });
    }

    /// Whether it is known that a user has no limits.
    pub fn is_unlimited(&self, uid: u32) -> Option<bool> {
        let known = |held: &Held| (held.limited || !held.stale).then_some(!held.limited);
        self.state(|state| state.accounts.get(&Account::User(uid)).and_then(known))
    }

    /// Whether it is known that none of these accounts has limits.
    pub fn are_unlimited(&self, accounts: Accounts) -> Option<bool> {
        self.state(|state| {
            let mut unlimited = true;
            for account in accounts.iter().flatten() {
                let held = state.accounts.get(account)?;
                if held.stale && !held.limited {
                    return None;
                }
                unlimited &= !held.limited;
            }
            Some(unlimited)
        })
    }

    /// Whether these accounts had no limit when it was asked last, and quotas have changed since: a write needn't wait for the question.
    pub fn is_stale(&self, accounts: Accounts) -> bool {
        self.state(|state| {
            let stale = |account: &Account| {
                state.accounts.get(account).is_some_and(|held| held.stale && !held.limited)
            };
            accounts.iter().flatten().any(stale)
        })
    }

    /// What to ask the region for. What is left is too little, and goes back with the question.
    pub fn question(&self, accounts: Accounts, bytes: u64) -> Question {
        self.state(|state| {
            let mut held = Vec::new();
            for account in accounts.iter().flatten() {
                if let Some(known) = state.accounts.get_mut(account).filter(|known| known.limited) {
                    known.give_back();
                    held.push(told(*account, known));
                }
            }
            let reserve = Reserve {
                accounts: accounts.iter().flatten().map(|account| account.to_wire()).collect(),
                bytes,
                wish: if bytes == 0 { 0 } else { bytes.max(WISH) },
                held,
            };
            Question { reserve, generation: state.generation }
        })
    }

    /// Takes an answer in.
    pub fn answered(&self, question: &Question, reserved: &Reserved, now: Instant) {
        self.state(|state| {
            if question.generation != state.generation {
                return;
            }
            state.renewed(reserved.quotas);
            for room in &reserved.accounts {
                let Some(account) = Account::of_wire(room.account.as_ref()) else { continue };
                let held = state.accounts.entry(account).or_insert(Held {
                    limited: room.limited,
                    stale: false,
                    granted: 0,
                    spent: 0,
                    covers: 0,
                    used: now,
                    none_until: None,
                });
                (held.limited, held.stale) = (room.limited, false);
                held.granted = held.granted.max(room.granted);
                held.used = now;
                held.none_until = (!room.enough).then_some(now + NONE_FOR);
                if !room.enough {
                    held.give_back();
                }
            }
        });
    }

    /// The region's quotas are of this version.
    pub fn renewed(&self, quotas: u64) {
        self.state(|state| state.renewed(quotas));
    }

    /// What is told with a renewal; what has been idle goes back.
    pub fn tell(&self, now: Instant) -> Vec<fs::Escrow> {
        self.state(|state| {
            let limited = state.accounts.iter_mut().filter(|(_, held)| held.limited && held.granted > 0);
            let tell = |(account, held): (&Account, &mut Held)| {
                if now.saturating_duration_since(held.used) >= IDLE {
                    held.give_back();
                }
                told(*account, held)
            };
            limited.map(tell).collect()
        })
    }

    /// Everything that is held, for the next custodian.
    pub fn declare(&self) -> Vec<fs::Escrow> {
        self.state(|state| {
            state.generation += 1;
            // Also what is spent: both sides count what was ever granted.
            let held = state.accounts.iter().filter(|(_, held)| held.granted > 0);
            held.map(|(account, held)| told(*account, held)).collect()
        })
    }

    /// The session has lapsed: nothing is promised any more.
    pub fn lose(&self) {
        self.state(|state| {
            state.generation += 1;
            for held in state.accounts.values_mut() {
                (held.granted, held.spent) = (0, 0);
            }
        });
    }
}

impl State {
    fn renewed(&mut self, quotas: u64) {
        if std::mem::replace(&mut self.quotas, quotas) != quotas {
            self.accounts.values_mut().for_each(|held| held.stale = true);
        }
        if self.accounts.len() > ACCOUNTS_MAX {
            // What was ever granted is counted on both sides.
            self.accounts.retain(|_, held| held.covers > 0 || held.granted > 0);
        }
    }
}

fn told(account: Account, held: &Held) -> fs::Escrow {
    fs::Escrow { account: Some(account.to_wire()), granted: held.granted, spent: held.spent }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_wire::fs::AccountRoom;

    use super::*;

    const USER: Accounts = [None, Some(Account::User(7))];

    fn answer(escrow: &Escrow, question: &Question, limited: bool, granted: u64, enough: bool, now: Instant) {
        let room = AccountRoom { account: Some(Account::User(7).to_wire()), limited, granted, enough };
        escrow.answered(question, &Reserved { accounts: vec![room], quotas: 1 }, now);
    }

    #[test]
    fn an_account_without_limits_is_asked_for_once_and_again_when_limits_change() {
        let (escrow, now) = (Escrow::default(), Instant::now());
        assert_eq!(escrow.take(USER, 5, now), Taken::Ask);
        answer(&escrow, &escrow.question(USER, 5), false, 0, true, now);
        assert_eq!(escrow.take(USER, 5, now), Taken::Covered([None; 2]));
        assert_eq!(escrow.is_unlimited(7), Some(true));
        escrow.renewed(1);
        assert_eq!(escrow.is_unlimited(7), Some(true));
        escrow.renewed(2);
        // Nobody waits for the question: what is buffered until it is answered may have no room.
        assert_eq!((escrow.is_unlimited(7), escrow.is_stale(USER)), (None, true));
        assert_eq!(escrow.take(USER, 5, now), Taken::Covered([None; 2]));
        answer(&escrow, &escrow.question(USER, 5), true, 20, true, now);
        assert_eq!((escrow.is_stale(USER), escrow.is_unlimited(7)), (false, Some(false)));
    }

    #[test]
    fn what_was_granted_covers_and_is_given_back() {
        let (escrow, now) = (Escrow::default(), Instant::now());
        answer(&escrow, &escrow.question(USER, 5), true, 20, true, now);
        assert_eq!(escrow.take(USER, 15, now), Taken::Covered(USER));
        assert_eq!(escrow.take(USER, 6, now), Taken::Ask);
        escrow.settle(&USER, 10, 5);
        let [told] = escrow.tell(now).try_into().unwrap();
        assert_eq!((told.granted, told.spent), (20, 10));
        // Too little is left, and goes back; there is no room for what is needed.
        let question = escrow.question(USER, 11);
        assert_eq!((question.reserve.held[0].spent, question.reserve.bytes), (20, 11));
        answer(&escrow, &question, true, 20, false, now);
        assert_eq!(escrow.take(USER, 1, now), Taken::Through);
        assert_eq!(escrow.take(USER, 1, now + NONE_FOR), Taken::Ask);
    }

    #[test]
    fn answers_from_before_a_declaration_are_void() {
        let (escrow, now) = (Escrow::default(), Instant::now());
        answer(&escrow, &escrow.question(USER, 5), true, 20, true, now);
        let late = escrow.question(USER, 5);
        let [declared] = escrow.declare().try_into().unwrap_or_else(|_| [fs::Escrow::default()]);
        assert_eq!((declared.granted, declared.spent), (20, 20), "it was given back with the question");
        answer(&escrow, &late, true, 50, true, now);
        assert_eq!(escrow.take(USER, 1, now), Taken::Ask);
        answer(&escrow, &escrow.question(USER, 5), true, 30, true, now);
        assert_eq!(escrow.take(USER, 4, now), Taken::Covered(USER));
        escrow.lose();
        assert!(escrow.declare().is_empty());
        escrow.settle(&USER, 4, 0);
        assert_eq!(escrow.take(USER, 1, now), Taken::Ask);
        assert!(escrow.tell(now + IDLE).is_empty());
    }
}
