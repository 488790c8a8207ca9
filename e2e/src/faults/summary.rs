//! What each kind of fault cost: how often it struck, and the longest operation that it met.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::plan::{Kind, Round, Who};
use super::work::{Class, Event};

/// Longest operations, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls([Duration; 3]);

impl Stalls {
    /// Of the operations that were under way between two moments.
    pub fn between(events: &[Event], from: Instant, until: Instant) -> Self {
        let mut stalls = Self::default();
        for event in events.iter().filter(|e| e.ended > from && e.began < until) {
            stalls.add(event.class, event.ended - event.began);
        }
        stalls
    }

    /// Of the operations that were over before a fault struck: those that run on into it are its cost, not what is usual.
    pub fn before(events: &[Event], struck: Instant) -> Self {
        let mut stalls = Self::default();
        for event in events.iter().filter(|e| e.ended <= struck) {
            stalls.add(event.class, event.ended - event.began);
        }
        stalls
    }

    fn add(&mut self, class: Class, time: Duration) {
        let longest = &mut self.0[class as usize];
        *longest = time.max(*longest);
    }

    /// The longest of a class.
    pub fn of(&self, class: Class) -> Duration {
        self.0[class as usize]
    }

    fn join(&mut self, other: Self) {
        Class::ALL.into_iter().for_each(|class| self.add(class, other.of(class)));
    }
}

/// What a hung process may cost, where that is promised: a write 1.5 s and a read 0.5 s for a chunkserver, nothing for a follower, 5 s for
/// the leader; a mount that is away for longer than its lease costs those over others a lease, and what it takes to note its end.
pub fn limit(round: &Round) -> Option<Stalls> {
    let ms = Duration::from_millis;
    let [fault] = round.faults.as_slice() else { return None };
    match (fault.kind, fault.who) {
        (Kind::StopShort | Kind::StopLong, Who::Chunkserver(_)) => {
            Some(Stalls([ms(500), ms(1_500), ms(1_500)]))
        }
        // Nothing is what an operation takes anyway.
        (Kind::StopShort | Kind::StopLong, Who::Follower) => Some(Stalls([ms(300), ms(300), ms(300)])),
        (Kind::StopShort | Kind::StopLong, Who::Leader) => Some(Stalls([ms(5_000); 3])),
        (Kind::StopLong | Kind::CutOff, Who::Mount(_)) => Some(Stalls([ms(13_000); 3])),
        _ => None,
    }
}

/// Which limits are exceeded, beyond what operations took before the fault.
pub fn exceeded(stalls: Stalls, limit: Stalls, before: Stalls) -> Vec<String> {
    let over = |class: &Class| stalls.of(*class) > limit.of(*class) + before.of(*class);
    let say = |class: Class| {
        let (is, most, usual) = (stalls.of(class), limit.of(class), before.of(class));
        format!("{class:?} took {is:.1?}, the limit is {most:.1?} (before the fault: {usual:.1?})")
    };
    Class::ALL.into_iter().filter(over).map(say).collect()
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    rounds: usize,
    alone: usize,
    stalls: Stalls,
}

/// The table at the end.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rows: BTreeMap<String, Row>,
}

impl Summary {
    /// Counts a round in which these struck. Stalls count where only one did.
    pub fn add(&mut self, round: &Round, stalls: Stalls) {
        for fault in &round.faults {
            let row = self.rows.entry(fault.label()).or_default();
            row.rounds += 1;
            if round.faults.len() == 1 {
                row.alone += 1;
                row.stalls.join(stalls);
            }
        }
    }

    /// Times without a fault.
    pub fn calm(&mut self, stalls: Stalls) {
        let row = self.rows.entry("(no fault)".into()).or_default();
        row.rounds += 1;
        row.alone += 1;
        row.stalls.join(stalls);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:44} {:>6}   longest where it struck alone: {:>6} {:>7} {:>7}",
            "fault", "rounds", "read", "write", "name"
        )?;
        for (label, row) in &self.rows {
            let seconds = |class| match row.alone {
                0 => "-".to_owned(),
                _ => format!("{:.2} s", row.stalls.of(class).as_secs_f64()),
            };
            writeln!(
                f,
                "{label:44} {:>6}   {:>37} {:>7} {:>7}",
                row.rounds,
                seconds(Class::Read),
                seconds(Class::Write),
                seconds(Class::Name)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Fault;
    use super::*;

    #[test]
    fn limits_hold_for_one_that_hangs_alone() {
        let fault =
            Fault { kind: Kind::StopLong, who: Who::Chunkserver(1), after_ms: 0, for_ms: 9_000, seed: 1 };
        let alone = Round { faults: vec![fault], fsck: false };
        let most = limit(&alone).unwrap();
        assert_eq!(most.of(Class::Write), Duration::from_millis(1_500));
        assert!(limit(&Round { faults: vec![fault, fault], fsck: false }).is_none());
        let cut_off = Fault { kind: Kind::CutOff, who: Who::Mount(1), ..fault };
        let cut_off = limit(&Round { faults: vec![cut_off], fsck: false }).unwrap();
        assert_eq!(cut_off.of(Class::Name), Duration::from_secs(13));
        let now = Instant::now();
        let event = |class, ms| Event { class, mount: 0, began: now, ended: now + Duration::from_millis(ms) };
        let events = [event(Class::Read, 400), event(Class::Write, 1_700)];
        let stalls = Stalls::between(&events, now, now + Duration::from_secs(1));
        assert_eq!(exceeded(stalls, most, Stalls::default()).len(), 1);
        let slow = Stalls::between(&[event(Class::Write, 300)], now, now + Duration::from_secs(1));
        assert!(exceeded(stalls, most, slow).is_empty());
        let mut summary = Summary::default();
        summary.add(&alone, stalls);
        assert!(summary.to_string().contains("1.70 s"), "{summary}");
    }
}
