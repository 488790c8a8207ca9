//! How long sessions have owed the answer to a recall: others wait for it, and a session that renews its lease and doesn't answer would have them wait for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::SessionId;

/// What sessions owe.
#[derive(Debug)]
pub struct Debts {
    at_most: Duration,
    /// The oldest recall that each hasn't answered, and since when that has been the oldest.
    owed: BTreeMap<SessionId, (u64, BootTime)>,
}

impl Debts {
    /// None yet. Whoever owes the same answer for longer than `at_most` is overdue: longer than an honest mount takes to give up what it can't send.
    pub fn new(at_most: Duration) -> Self {
        Self { at_most, owed: BTreeMap::new() }
    }

    /// Takes note of who owes what now, by the numbers of the oldest recalls; answers who is overdue.
    pub fn look(
        &mut self,
        now: BootTime,
        owed: impl IntoIterator<Item = (SessionId, u64)>,
    ) -> Vec<SessionId> {
        let before = std::mem::take(&mut self.owed);
        for (session, oldest) in owed {
            let since =
                before.get(&session).filter(|(known, _)| *known == oldest).map_or(now, |(_, since)| *since);
            self.owed.insert(session, (oldest, since));
        }
        let overdue = self.owed.iter().filter(|(_, (_, since))| now >= since.after(self.at_most));
        overdue.map(|(session, _)| *session).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_one_after_the_other_is_never_overdue() {
        let mut debts = Debts::new(Duration::from_secs(90));
        let (a, b) = (SessionId(1), SessionId(2));
        let at = |seconds| BootTime::default().after(Duration::from_secs(seconds));
        assert_eq!(debts.look(at(0), [(a, 1), (b, 7)]), []);
        assert_eq!(debts.look(at(60), [(a, 2), (b, 7)]), []);
        assert_eq!(debts.look(at(90), [(a, 3), (b, 7)]), [b]);
        assert_eq!(debts.look(at(149), [(a, 3)]), []);
        // It owed nothing in between.
        assert_eq!(debts.look(at(200), [(a, 3), (b, 7)]), [a]);
        assert_eq!(debts.look(at(300), []), []);
    }
}
