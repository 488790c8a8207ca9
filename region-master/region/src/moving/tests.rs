//! Moves step by step, and over a model of what they stand on: stores, links, regions that agree, leaders that die.

use proptest::prelude::*;

use super::*;

fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(ms))
}

fn facts(newest: u64, complete: u64, heard_ms: u64) -> Facts<u64> {
    Facts { newest, complete: Some(complete), heard: Some(at(heard_ms)) }
}

#[test]
fn a_target_that_has_everything_is_moved_to_at_once() {
    let mut moving = Move::new(at(1_000));
    assert_eq!(moving.step(at(1_000), &facts(7, 7, 900)), Step::Wait, "is it still there?");
    assert_eq!(moving.step(at(1_000), &facts(7, 7, 1_000)), Step::End);
    assert_eq!(moving.step(at(1_001), &facts(8, 7, 1_000)), Step::Wait, "the last entry is being written");
    moving.ended(at(1_002), Some(8));
    assert_eq!(moving.step(at(1_003), &facts(8, 7, 1_000)), Step::Wait);
    assert_eq!(moving.step(at(1_060), &facts(8, 8, 1_059)), Step::Propose(8));
    moving.answered(at(1_100), Answer::Overtaken);
    assert_eq!(moving.step(at(1_100), &facts(8, 8, 1_059)), Step::Propose(8), "again");
    moving.answered(at(1_160), Answer::Agreed);
    assert_eq!(moving.step(at(1_160), &facts(8, 8, 1_059)), Step::Over(Verdict::Moved));
}

#[test]
fn a_target_is_near_under_load_and_a_lagging_or_silent_one_stops_nothing() {
    let run = |lag: u64, silent: bool| {
        let mut moving = Move::new(at(1_000));
        for ms in (1_000..9_000).step_by(10) {
            let heard = if silent { 500 } else { ms };
            match moving.step(at(ms), &facts(ms, ms.saturating_sub(lag), heard)) {
                Step::Wait => {}
                step => return (ms, step),
            }
        }
        panic!("it has deadlines");
    };
    assert_eq!(run(100, false), (1_100, Step::End), "what was written before is there");
    let (ms, step) = run(2_000, false);
    assert!(
        ms == 6_000
            && matches!(step, Step::Over(Verdict::Behind(Some(behind))) if behind >= Duration::from_secs(1))
    );
    assert_eq!(run(0, true).1, Step::Over(Verdict::Silent(Some(Duration::from_millis(5_500)))));
    let mut unknown = Move::new(at(0));
    let nothing = Facts { newest: 5, complete: None, heard: Some(at(5_000)) };
    assert_eq!(unknown.step(at(0), &nothing), Step::Wait);
    assert_eq!(unknown.step(at(5_000), &nothing), Step::Over(Verdict::Behind(None)));
}

#[test]
fn whatever_is_waited_for_has_its_time() {
    let ended = || {
        let mut moving = Move::new(at(0));
        assert_eq!(moving.step(at(0), &facts(7, 7, 0)), Step::End);
        moving
    };
    let mut moving = ended();
    moving.ended(at(10), None);
    assert_eq!(moving.step(at(10), &facts(7, 7, 0)), Step::Over(Verdict::NotEnded));
    let mut moving = ended();
    moving.ended(at(10), Some(8));
    assert_eq!(moving.step(at(2_010), &facts(8, 7, 0)), Step::Over(Verdict::NotFollowed));
    for (answer, verdict) in [(Answer::Refused, Verdict::Refused), (Answer::Unknown, Verdict::Unknown)] {
        let mut moving = ended();
        moving.ended(at(10), Some(8));
        assert_eq!(moving.step(at(20), &facts(8, 8, 0)), Step::Propose(8));
        moving.answered(at(30), answer);
        assert_eq!(moving.step(at(30), &facts(8, 8, 0)), Step::Over(verdict));
    }
    let mut moving = ended();
    moving.ended(at(10), Some(8));
    assert_eq!(moving.step(at(20), &facts(8, 8, 0)), Step::Propose(8));
    assert_eq!(moving.step(at(3_020), &facts(8, 8, 0)), Step::Over(Verdict::Unknown));
}

/// What the regions agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    version: u64,
    epoch: u64,
    /// 0 is the old home, 1 the target.
    home: usize,
    cut: u64,
}

/// A request to the regions that is under way: a move behind a place, made of a version and an epoch.
#[derive(Clone, Copy, Debug)]
struct Asked {
    version: u64,
    epoch: u64,
    last: u64,
}

/// The old home's leader.
#[derive(Clone, Debug)]
enum Leader {
    /// It reads its records, and goes on from an end that it finds there once nothing can come of it any more.
    Begins,
    Serves,
    Moves(Move<u64>),
}

/// The model: a place is the number of changes so far, each of which is acknowledged where the leader may answer.
struct World {
    now: u64,
    agreed: Agreed,
    /// The home's store: its log's length, and whether its epoch is ended there.
    log: u64,
    is_ended: bool,
    leader: Leader,
    /// What the target has, and what the home has heard of that.
    complete: u64,
    heard: (u64, u64),
    acknowledged: u64,
    asked: Vec<Asked>,
    /// The old home's copy of what is agreed on.
    view: Agreed,
}

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Change,
    Ship,
    Ask,
    Step,
    /// A request reaches the regions; its answer comes or doesn't.
    Deliver(usize, bool),
    /// A request is lost.
    Lose(usize),
    /// The leader dies; another one follows.
    Die,
    /// The home hears of what is agreed on.
    Hear,
}

impl World {
    fn new() -> Self {
        let agreed = Agreed { version: 1, epoch: 1, home: 0, cut: 0 };
        Self {
            now: 0,
            agreed,
            log: 1,
            is_ended: false,
            leader: Leader::Serves,
            complete: 1,
            heard: (1, 0),
            acknowledged: 1,
            asked: Vec::new(),
            view: agreed,
        }
    }

    /// The old home takes a change and answers it: by its own view, and not while it moves.
    fn may_answer(&self) -> bool {
        let ending = matches!(&self.leader, Leader::Moves(moving) if moving.state != State::Nearing);
        self.view.home == 0 && !self.is_ended && !ending && !matches!(self.leader, Leader::Begins)
    }

    fn step(&mut self) {
        let now = at(self.now);
        let facts = Facts { newest: self.log, complete: Some(self.heard.0), heard: Some(at(self.heard.1)) };
        match &mut self.leader {
            Leader::Serves => {}
            Leader::Begins => {
                if !self.is_ended {
                    self.leader = Leader::Serves;
                } else if self.agreed.home == 0 {
                    // `stay_home`, then the end is undone.
                    self.agreed.version += 1;
                    self.view = self.agreed;
                    (self.is_ended, self.log) = (false, self.log + 1);
                    self.leader = Leader::Serves;
                }
            }
            Leader::Moves(moving) => match moving.step(now, &facts) {
                Step::Wait => {}
                Step::End => {
                    (self.is_ended, self.log) = (true, self.log + 1);
                    moving.ended(now, Some(self.log));
                }
                Step::Propose(last) => {
                    let asked = Asked { version: self.view.version, epoch: self.view.epoch, last };
                    self.asked.push(asked);
                }
                Step::Over(Verdict::Moved) => {}
                Step::Over(_) => self.leader = Leader::Begins,
            },
        }
    }

    fn deliver(&mut self, n: usize, answers: bool) {
        if self.asked.is_empty() {
            return;
        }
        let asked = self.asked.remove(n % self.asked.len());
        let answer = if asked.epoch != self.agreed.epoch || asked.version != self.agreed.version {
            let done = self.agreed.home == 1 && self.agreed.cut == asked.last;
            if done { Answer::Agreed } else { Answer::Overtaken }
        } else {
            self.agreed = Agreed {
                version: self.agreed.version + 1,
                epoch: self.agreed.epoch + 1,
                home: 1,
                cut: asked.last,
            };
            Answer::Agreed
        };
        if answers && let Leader::Moves(moving) = &mut self.leader {
            moving.answered(at(self.now), answer);
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Pass(ms) => self.now += ms,
            Event::Change if self.may_answer() => {
                self.log += 1;
                self.acknowledged = self.log;
            }
            Event::Change => {}
            Event::Ship => {
                self.complete = if self.agreed.home == 0 { self.log } else { self.complete };
                self.heard = (self.complete, self.now);
            }
            Event::Ask if matches!(self.leader, Leader::Serves) && self.view.home == 0 => {
                self.leader = Leader::Moves(Move::new(at(self.now)));
            }
            Event::Ask => {}
            Event::Step => self.step(),
            Event::Deliver(n, answers) => self.deliver(*n, *answers),
            Event::Lose(n) => {
                if !self.asked.is_empty() {
                    self.asked.remove(n % self.asked.len());
                }
            }
            Event::Die => self.leader = Leader::Begins,
            // A leader that hears that its region is the home no more leads it no more as one.
            Event::Hear => {
                self.view = self.agreed;
                if self.view.home == 1 {
                    self.leader = Leader::Begins;
                }
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        if self.agreed.home == 1 {
            prop_assert!(!self.may_answer(), "two homes");
            prop_assert!(self.acknowledged <= self.agreed.cut, "what was acknowledged is cut off");
            prop_assert_eq!(self.log, self.agreed.cut, "the old home has what the new one doesn't");
            prop_assert!(self.complete >= self.agreed.cut, "the new home lacks something");
        }
        Ok(())
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (1_u64..800).prop_map(Event::Pass),
        3 => Just(Event::Change),
        4 => Just(Event::Ship),
        2 => Just(Event::Ask),
        8 => Just(Event::Step),
        3 => (0_usize..4, any::<bool>()).prop_map(|(n, answers)| Event::Deliver(n, answers)),
        1 => (0_usize..4).prop_map(Event::Lose),
        1 => Just(Event::Die),
        1 => Just(Event::Hear),
    ];
    proptest::collection::vec(event, 0..120)
}

proptest! {
    #[test]
    fn there_is_one_home_that_has_everything_and_it_serves_in_the_end(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.take(event);
            world.check()?;
        }
        // Healed: links work and nobody dies any more. Whatever is under way comes to its end.
        for _ in 0..2_000 {
            for event in [Event::Ship, Event::Step, Event::Deliver(0, true), Event::Pass(20), Event::Hear] {
                world.take(&event);
                world.check()?;
            }
        }
        prop_assert!(world.agreed.home == 1 || world.may_answer(), "nobody serves: {:?}", world.leader);
    }
}
