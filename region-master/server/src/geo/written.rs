//! When what a home's log holds was written, and about how much that is: so that it is known how old and how much is what a region lacks of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_schema::log::LogPosition;
use mooseng_wire::{VolumeId, admin};

use super::{lock, ship};
use crate::master::Master;

/// What is written within so long is one span.
const SPAN: Duration = Duration::from_millis(20);
/// So many spans are kept. Where there would be more, each two neighbours become one: ages and bytes of them become coarser, and never too small.
const SPANS_MAX: usize = 2_048;
/// How often the replicas' ages are put among the metrics.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Entries that follow those of the span before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// None of them was written before, but for the moment that it takes to hear of them.
    since: BootTime,
    /// The last of them.
    upto: LogPosition,
    /// What they are long.
    bytes: u64,
    /// There are more, which couldn't be counted.
    more: bool,
}

/// How old and how much is what lies behind a place of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Since the first of it was written, at most so long has passed.
    pub age: Duration,
    /// Something of it is from before this account: it is older than that.
    pub longer: bool,
    /// About how long its entries are together, those of its whole first span.
    pub bytes: u64,
    /// There are more.
    pub more: bool,
}

/// A home's account of its log, since its leader began.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// What follows this place is accounted for; none before that began.
    begun: Option<(BootTime, LogPosition)>,
    spans: VecDeque<Span>,
    /// When it was looked last whether there is more.
    looked: Option<BootTime>,
}

impl Written {
    /// Up to where it is accounted for; none before the account has begun.
    fn upto(&self) -> Option<LogPosition> {
        let begun = self.begun.map(|(_, at)| at);
        self.spans.back().map(|span| span.upto).or(begun)
    }

    /// What is written behind `at` is accounted for from now on. One that has begun goes on.
    pub fn begin(&mut self, now: BootTime, at: LogPosition) {
        self.begun.get_or_insert((now, at));
    }

    /// It is looked whether there is more. Answers when what is new was written at the earliest: where the account goes on after nobody kept it for a while, since no
    /// other region had the volume, that is when it was looked last.
    fn look(&mut self, now: BootTime, newest: LogPosition, goes_on: bool) -> BootTime {
        self.begin(now, newest);
        let before = self.looked.replace(now);
        before.filter(|_| goes_on).unwrap_or(now)
    }

    /// Entries up to a place were written by now; `more`: others besides these bytes of them.
    pub fn note(&mut self, now: BootTime, upto: LogPosition, bytes: u64, more: bool) {
        if self.upto().is_none_or(|known| upto <= known) {
            return;
        }
        match self.spans.back_mut() {
            Some(last) if now.since(last.since) < SPAN => {
                *last = Span { since: last.since, upto, bytes: last.bytes + bytes, more: last.more || more };
            }
            _ => self.spans.push_back(Span { since: now, upto, bytes, more }),
        }
        if self.spans.len() > SPANS_MAX {
            let spans: Vec<Span> = self.spans.drain(..).collect();
            self.spans = spans.chunks(2).filter_map(together).collect();
        }
    }

    /// What lies up to there every region has.
    fn all_have(&mut self, at: LogPosition) {
        while let Some(span) = self.spans.pop_front_if(|span| span.upto <= at) {
            self.begun = self.begun.map(|_| (span.since, span.upto));
        }
    }

    /// What lies behind a place, of a log whose newest place is `newest`; none where nothing does.
    pub fn behind(&self, now: BootTime, at: LogPosition, newest: LogPosition) -> Option<Behind> {
        if at >= newest {
            return None;
        }
        let mut behind = match self.begun {
            Some((_, first)) if first <= at => Behind::default(),
            // Of what was written before nothing is known but that it was.
            begun => {
                let age = begun.map_or(Duration::ZERO, |(since, _)| now.since(since));
                Behind { age, longer: true, bytes: 0, more: true }
            }
        };
        let lacking = self.spans.iter().rev().take_while(|span| span.upto > at);
        for span in lacking {
            behind.age = behind.age.max(now.since(span.since));
            behind.bytes = behind.bytes.saturating_add(span.bytes);
            behind.more |= span.more;
        }
        Some(behind)
    }
}

/// Spans that follow each other as one.
fn together(spans: &[Span]) -> Option<Span> {
    let (first, last) = (spans.first()?, spans.last()?);
    let bytes = spans.iter().map(|span| span.bytes).fold(0, u64::saturating_add);
    Some(Span { since: first.since, upto: last.upto, bytes, more: spans.iter().any(|span| span.more) })
}

/// Keeps the account of a volume that is at home here and that these other regions have, and tells their ages among the metrics.
pub(super) async fn keep(master: &Arc<Master>, volume: VolumeId, regions: &[String]) {
    let _told = Told(master, volume, regions);
    let looking = async {
        let mut pushed = master.geo.tail.pushed();
        let mut goes_on = true;
        loop {
            pushed.borrow_and_update();
            look(master, volume, std::mem::take(&mut goes_on)).await;
            if pushed.changed().await.is_err() {
                return;
            }
        }
    };
    let telling = async {
        while !master.shutdown.is_cancelled() {
            tell(master, volume, regions);
            tokio::time::sleep(TELL_EVERY).await;
        }
    };
    tokio::join!(looking, telling);
}

/// Takes note of what was written since the last look; where the account `goes_on`, that may be long ago.
async fn look(master: &Master, volume: VolumeId, goes_on: bool) {
    let seat = master.geo.seat(volume);
    let newest = master.geo.newest(volume);
    let since = lock(&seat.written).look(master.clock.boot(), newest, goes_on);
    loop {
        let upto = lock(&seat.written).upto().filter(|upto| *upto < newest);
        let Some(upto) = upto else { return };
        match ship::following(master, volume, upto).await {
            Ok(entries) => {
                let Some(last) = entries.last() else { return };
                let bytes: u64 = entries.iter().map(|entry| entry.bytes.len() as u64).sum();
                lock(&seat.written).note(since, last.at, bytes, false);
            }
            // It is trimmed already, or can't be read: how old it is is known all the same.
            Err(error) => {
                tracing::debug!(%error, "what was written to the volume's log can't be counted");
                lock(&seat.written).note(since, newest, 0, true);
            }
        }
    }
}

/// Puts the replicas' ages among the metrics, and forgets what all of them have.
fn tell(master: &Master, volume: VolumeId, regions: &[String]) {
    let replicas = super::replicas(master, volume);
    for region in regions {
        // None of those that aren't heard of, and of none while this master may not answer: what was known before is stale.
        let replica = replicas.iter().find(|replica| replica.region == *region);
        let (age, bytes) = replica.map(known_of).unwrap_or_default();
        master.metrics.replica_behind(volume, region, age, bytes);
    }
    let seat = master.geo.seat(volume);
    let all_have = lock(&seat.shipped).values().map(|known| known.complete).min().flatten();
    if let Some(at) = all_have {
        lock(&seat.written).all_have(at);
    }
}

/// For how many seconds a replica has lacked what it lacks, and how many bytes of the log that is: nothing of what isn't known, for the least that it may be looks
/// like what it is. A leader that begins knows of what was lacking before only that it was.
fn known_of(replica: &admin::Replica) -> (Option<f64>, Option<u64>) {
    let is_known = replica.complete.is_some();
    let age = is_known && !replica.complete_behind_longer;
    let bytes = is_known && !replica.log_bytes_more;
    (
        age.then(|| replica.complete_behind_ms.unwrap_or(0) as f64 / 1_000.0),
        bytes.then(|| replica.log_bytes_behind.unwrap_or(0)),
    )
}

/// The ages are told as long as it lives.
struct Told<'a>(&'a Master, VolumeId, &'a [String]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        for region in self.2 {
            self.0.metrics.replica_behind(self.1, region, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::Epoch;

    use super::*;

    fn at(version: u64) -> LogPosition {
        LogPosition::new(Epoch(1), version)
    }

    fn time(ms: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(ms))
    }

    fn begun() -> Written {
        let mut written = Written::default();
        written.begin(time(0), at(10));
        written
    }

    #[test]
    fn what_is_lacking_is_as_old_as_the_first_of_it() {
        let mut written = begun();
        for n in 1..=5 {
            written.note(time(1_000 * n), at(10 + n), 100, false);
        }
        let behind = |place| written.behind(time(6_000), at(place), at(15));
        let of = |secs, bytes| Behind { age: Duration::from_secs(secs), longer: false, bytes, more: false };
        assert_eq!(behind(15), None);
        assert_eq!(behind(14), Some(of(1, 100)));
        assert_eq!(behind(11), Some(of(4, 400)));
        assert_eq!(behind(10), Some(of(5, 500)));
        let longer = behind(9).unwrap();
        assert_eq!((longer.age, longer.longer, longer.bytes), (Duration::from_secs(6), true, 500));
        assert!(longer.more);
        let unknown = Written::default().behind(time(1), at(3), at(4)).unwrap();
        assert!(unknown.longer && unknown.more);
        // What was written this moment isn't accounted for yet.
        assert_eq!(written.behind(time(6_000), at(15), at(16)), Some(Behind::default()));
        // Nothing that was noted is noted again.
        written.note(time(9_000), at(15), 100, false);
        assert_eq!(written.behind(time(9_000), at(14), at(15)), Some(of(4, 100)));
    }

    #[test]
    fn however_much_is_written_it_is_bounded_and_nothing_seems_younger_or_less_than_it_is() {
        let mut written = begun();
        let all = 20 * SPANS_MAX as u64;
        for n in 1..=all {
            written.note(time(30 * n), at(10 + n), 7, n == 5);
        }
        assert!(written.spans.len() <= SPANS_MAX, "{}", written.spans.len());
        let (now, newest) = (time(30 * all), at(10 + all));
        for lacking in [1, 2, 100, all / 2, all - 1, all] {
            let behind = written.behind(now, at(10 + all - lacking), newest).unwrap();
            let real = Duration::from_millis(30 * (lacking - 1));
            assert!(behind.age >= real && behind.bytes >= 7 * lacking, "{lacking}: {behind:?}");
            assert!(!behind.longer && behind.bytes <= 7 * all);
        }
        assert!(written.behind(now, at(10), newest).unwrap().more);
        // What all have is of no interest any more.
        written.all_have(at(9 + all));
        assert!(written.spans.len() <= 1, "{:?}", written.spans);
        assert!(!written.behind(now, at(9 + all), newest).unwrap().longer);
    }

    /// Found by review: after a change of the leader a region that was an hour behind was told to be so by no seconds.
    #[test]
    fn of_what_was_lacking_before_this_leader_no_age_is_told() {
        let complete = Some(super::super::log_place(at(10)));
        let replica = admin::Replica {
            complete,
            complete_behind_ms: Some(1_500),
            log_bytes_behind: Some(300),
            ..admin::Replica::default()
        };
        assert_eq!(known_of(&replica), (Some(1.5), Some(300)));
        let longer = admin::Replica { complete_behind_longer: true, log_bytes_more: true, ..replica.clone() };
        assert_eq!(known_of(&longer), (None, None));
        let more = admin::Replica { log_bytes_more: true, ..replica.clone() };
        assert_eq!(known_of(&more), (Some(1.5), None));
        let unheard = admin::Replica { complete: None, ..replica.clone() };
        assert_eq!(known_of(&unheard), (None, None));
        let whole = admin::Replica { complete_behind_ms: None, log_bytes_behind: Some(0), ..replica };
        assert_eq!(known_of(&whole), (Some(0.0), Some(0)), "nothing is lacking");
    }

    /// A region that is taken out of a volume and in again may have it as it was, of a time at which no other region had it.
    #[test]
    fn what_was_written_while_nobody_kept_the_account_isnt_taken_for_new() {
        let mut written = Written::default();
        assert_eq!(written.look(time(0), at(10), true), time(0));
        let since = written.look(time(1_000), at(11), false);
        assert_eq!(since, time(1_000));
        written.note(since, at(11), 100, false);
        let since = written.look(time(60_000), at(90), true);
        written.note(since, at(90), 100, false);
        let behind = written.behind(time(60_000), at(11), at(90)).unwrap();
        assert_eq!((behind.age, behind.longer), (Duration::from_secs(59), false));
    }

    #[test]
    fn what_comes_in_one_moment_is_one_span() {
        let mut written = begun();
        for n in 1..=10 {
            written.note(time(1_000 + n), at(10 + n), 1, false);
        }
        assert_eq!(written.spans.len(), 1);
        let behind = written.behind(time(2_001), at(19), at(20)).unwrap();
        assert_eq!((behind.age, behind.bytes), (Duration::from_secs(1), 10), "of its whole span");
    }
}
