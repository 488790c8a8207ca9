//! Histories of operations on one directory, and the search for an order that explains them (linearizability; Wing and Gong 1993,
//! with the memory of visited states of Lowe 2017).

use std::collections::{BTreeMap, BTreeSet};

/// An operation as a client called it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Exclusive create.
    Create(u8),
    /// Name to inode.
    Lookup(u8),
    /// Removes a name.
    Unlink(u8),
    /// Renames, replacing.
    Rename(u8, u8),
    /// Overwrites the inode's record with a value.
    Write(u64, u64),
    /// Reads the inode's record.
    Read(u64),
}

/// What it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// The inode found or made.
    Inode(u64),
    /// The record's value; 0 before the first write.
    Value(u64),
    /// ENOENT, or ESTALE for an inode.
    Absent,
    /// EEXIST.
    Exists,
}

/// One operation with its times. `returned` is none where the outcome isn't known: it may have happened at any time since, or never.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The client that called it.
    pub client: u8,
    /// When it was called: a position in the order of all calls and returns.
    pub called: u64,
    /// When it returned.
    pub returned: Option<u64>,
    /// What was called.
    pub call: Call,
    /// What it answered, if it did.
    pub reply: Option<Reply>,
    /// It may show any state that isn't older than what its own client has seen or done before: a look at a replica. Others show what was done before they
    /// were called, by whomever.
    pub elsewhere: bool,
}

impl Operation {
    /// It changes nothing, and has answered.
    fn is_look(&self) -> bool {
        self.reply.is_some() && matches!(self.call, Call::Lookup(_) | Call::Read(_))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    names: BTreeMap<u8, u64>,
    files: BTreeMap<u64, u64>,
}

impl Model {
    /// The states that the operation may lead to with that reply; none if it can't have answered so.
    fn step(&self, call: &Call, reply: Option<&Reply>) -> Option<Model> {
        let mut next = self.clone();
        let answer = match call {
            Call::Create(name) => match self.names.get(name) {
                Some(_) => Reply::Exists,
                None => match reply {
                    Some(Reply::Inode(inode)) if !self.files.contains_key(inode) => {
                        next.names.insert(*name, *inode);
                        next.files.insert(*inode, 0);
                        Reply::Inode(*inode)
                    }
                    Some(_) => return None,
                    // An unanswered create made an inode that nobody was told of: a number of its own.
                    None => {
                        let inode = u64::MAX - self.files.len() as u64;
                        next.names.insert(*name, inode);
                        next.files.insert(inode, 0);
                        return Some(next);
                    }
                },
            },
            Call::Lookup(name) => self.names.get(name).map_or(Reply::Absent, |inode| Reply::Inode(*inode)),
            Call::Unlink(name) => next.names.remove(name).map_or(Reply::Absent, |_| Reply::Done),
            Call::Rename(from, to) => match next.names.remove(from) {
                Some(inode) => {
                    next.names.insert(*to, inode);
                    Reply::Done
                }
                None => Reply::Absent,
            },
            Call::Write(inode, value) => {
                let linked = self.names.values().any(|i| i == inode);
                match reply {
                    // A file without a name lives until its last session closes it: both answers are right.
                    Some(Reply::Absent) if !linked => Reply::Absent,
                    _ if self.files.contains_key(inode) => {
                        next.files.insert(*inode, *value);
                        Reply::Done
                    }
                    _ => return None,
                }
            }
            Call::Read(inode) => {
                let linked = self.names.values().any(|i| i == inode);
                match reply {
                    Some(Reply::Absent) if !linked => Reply::Absent,
                    _ => Reply::Value(*self.files.get(inode)?),
                }
            }
        };
        match reply {
            Some(reply) if *reply != answer => None,
            _ => Some(next),
        }
    }
}

/// An unanswered create's inode gets its real number when somebody sees it: lookups that answer an unknown inode adopt it.
fn adopt(model: &Model, operation: &Operation) -> Option<Model> {
    let (Call::Lookup(name), Some(Reply::Inode(seen))) = (&operation.call, &operation.reply) else {
        return None;
    };
    let placeholder = *model.names.get(name)?;
    if placeholder <= u64::MAX / 2 || model.files.contains_key(seen) {
        return None;
    }
    let mut next = model.clone();
    let value = next.files.remove(&placeholder)?;
    next.files.insert(*seen, value);
    for inode in next.names.values_mut().filter(|i| **i == placeholder) {
        *inode = *seen;
    }
    Some(next)
}

/// Why a history can't be explained.
#[derive(Debug, thiserror::Error)]
#[error(
    "no order explains the history; the longest explanation covers {explained} of {total} operations and stops before one of: {stuck:?}"
)]
pub struct NotLinearizable {
    /// Operations in the longest order found.
    pub explained: usize,
    /// All operations.
    pub total: usize,
    /// The operations that could have come next and didn't fit.
    pub stuck: Vec<Operation>,
}

/// Searches an order in which each operation lies between its call and its return and every reply is right.
pub fn check(history: &[Operation]) -> Result<(), NotLinearizable> {
    let total = history.len();
    let mut visited: BTreeSet<(Vec<u64>, Model)> = BTreeSet::new();
    let mut stack = vec![(vec![0u64; total.div_ceil(64)], Model::default(), 0usize)];
    let (mut best, mut stuck) = (0, Vec::new());
    while let Some((done, model, count)) = stack.pop() {
        let is_done = |i: usize| done[i / 64] & (1 << (i % 64)) != 0;
        let pending = || (0..total).filter(|i| !is_done(*i));
        if pending().all(|i| history[i].returned.is_none()) {
            return Ok(());
        }
        // Nothing may come before an operation that returned before it was called; a look elsewhere, before one of its own client.
        let mut own: BTreeMap<u8, u64> = BTreeMap::new();
        let mut horizon = u64::MAX;
        for operation in pending().map(|i| &history[i]) {
            let Some(returned) = operation.returned else { continue };
            horizon = horizon.min(returned);
            own.entry(operation.client).and_modify(|first| *first = returned.min(*first)).or_insert(returned);
        }
        let comes_next = |i: &usize| {
            let Operation { client, called, elsewhere, .. } = &history[*i];
            *called <= if *elsewhere { own.get(client).copied().unwrap_or(u64::MAX) } else { horizon }
        };
        let candidates: Vec<usize> = pending().filter(comes_next).collect();
        if count >= best {
            best = count;
            stuck = candidates.iter().map(|i| history[*i].clone()).collect();
        }
        // A look that shows what is there now may come now, whatever comes later: in any order that has it later it could as well be here. So looks don't widen the
        // search, of which a listing brings several at a time.
        let shows_now = |i: &&usize| {
            let of = &history[**i];
            of.is_look() && model.step(&of.call, of.reply.as_ref()).is_some()
        };
        let look = candidates.iter().find(shows_now).copied();
        let candidates = look.map_or(candidates, |look| vec![look]);
        for i in candidates.into_iter().rev() {
            let operation = &history[i];
            let next =
                model.step(&operation.call, operation.reply.as_ref()).or_else(|| adopt(&model, operation));
            let Some(next) = next else { continue };
            let mut done = done.clone();
            done[i / 64] |= 1 << (i % 64);
            if visited.insert((done.clone(), next.clone())) {
                stack.push((done, next, count + 1));
            }
        }
    }
    Err(NotLinearizable { explained: best, total, stuck })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, returned: u64, call: Call, reply: Reply) -> Operation {
        Operation { client: 0, called, returned: Some(returned), call, reply: Some(reply), elsewhere: false }
    }

    #[test]
    fn a_sequential_history_is_explained() {
        let history = [
            op(0, 1, Call::Create(1), Reply::Inode(7)),
            op(2, 3, Call::Write(7, 5), Reply::Done),
            op(4, 5, Call::Read(7), Reply::Value(5)),
            op(6, 7, Call::Rename(1, 2), Reply::Done),
            op(8, 9, Call::Lookup(1), Reply::Absent),
            op(10, 11, Call::Lookup(2), Reply::Inode(7)),
        ];
        check(&history).unwrap();
    }

    #[test]
    fn a_stale_read_and_a_lost_write_are_caught() {
        let history = [
            op(0, 1, Call::Create(1), Reply::Inode(7)),
            op(2, 3, Call::Write(7, 5), Reply::Done),
            op(4, 5, Call::Read(7), Reply::Value(0)),
        ];
        assert!(check(&history).is_err());
    }

    #[test]
    fn two_exclusive_creates_cannot_both_win() {
        let history =
            [op(0, 3, Call::Create(1), Reply::Inode(7)), op(1, 2, Call::Create(1), Reply::Inode(8))];
        assert!(check(&history).is_err());
    }

    #[test]
    fn an_unanswered_write_may_come_late_or_never() {
        let mut history = vec![
            op(0, 1, Call::Create(1), Reply::Inode(7)),
            Operation {
                client: 1,
                called: 2,
                returned: None,
                call: Call::Write(7, 5),
                reply: None,
                elsewhere: false,
            },
            op(3, 4, Call::Read(7), Reply::Value(0)),
        ];
        check(&history).unwrap();
        history.push(op(5, 6, Call::Read(7), Reply::Value(5)));
        check(&history).unwrap();
        history.push(op(7, 8, Call::Read(7), Reply::Value(0)));
        assert!(check(&history).is_err());
    }

    #[test]
    fn an_unanswered_create_is_adopted_by_who_sees_it() {
        let history = [
            Operation {
                client: 1,
                called: 0,
                returned: None,
                call: Call::Create(1),
                reply: None,
                elsewhere: false,
            },
            op(3, 4, Call::Lookup(1), Reply::Inode(9)),
            op(5, 6, Call::Create(1), Reply::Exists),
        ];
        check(&history).unwrap();
    }

    /// Without the rule for looks all subsets of them would be tried.
    #[test]
    fn looks_at_the_same_time_dont_widen_the_search() {
        let mut history = vec![op(0, 1, Call::Create(1), Reply::Inode(7))];
        let look = |i: u64| match i % 2 {
            0 => op(2 + i, 100, Call::Lookup(0), Reply::Absent),
            _ => op(2 + i, 100, Call::Lookup(1), Reply::Inode(7)),
        };
        history.extend((0..40).map(look));
        check(&history).unwrap();
        history.push(op(101, 102, Call::Lookup(1), Reply::Absent));
        assert!(check(&history).is_err());
    }

    #[test]
    fn a_look_that_fits_now_and_one_that_fits_later_are_both_explained() {
        let history = [
            op(0, 1, Call::Create(1), Reply::Inode(7)),
            op(2, 9, Call::Unlink(1), Reply::Done),
            op(3, 8, Call::Lookup(1), Reply::Absent),
            op(4, 7, Call::Lookup(1), Reply::Inode(7)),
        ];
        check(&history).unwrap();
    }

    #[test]
    fn a_look_elsewhere_may_be_late_but_never_goes_back() {
        let look = |client, called, reply| Operation {
            client,
            elsewhere: true,
            ..op(called, called + 1, Call::Read(7), Reply::Value(reply))
        };
        let mut history = vec![
            op(0, 1, Call::Create(1), Reply::Inode(7)),
            op(2, 3, Call::Write(7, 5), Reply::Done),
            op(4, 5, Call::Write(7, 6), Reply::Done),
            look(1, 6, 5),
            look(2, 7, 0),
            look(1, 9, 6),
        ];
        check(&history).unwrap();
        history.push(look(2, 11, 6));
        history.push(look(1, 12, 5));
        assert!(check(&history).is_err(), "it has seen more");
        history.pop();
        history.push(look(0, 13, 5));
        assert!(check(&history).is_err(), "it has written more itself");
        history.pop();
        history.push(look(3, 13, 9));
        assert!(check(&history).is_err(), "nobody wrote that");
    }
}
