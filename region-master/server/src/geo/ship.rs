//! What a home's leader does: it has the volume's log written, sends it to the regions that have the volume, and trims it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use mooseng_region::kept::Kept;
use mooseng_region::shipping::{Heard, Next, Shipping};
use mooseng_replica::{Entry, ReplicaError, read, turn};
use mooseng_schema::Record;
use mooseng_schema::log::{self, LogPosition, LoggedRecord};
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::geo::{Hint, LogEntry, Push, Pushed, PutAside};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, VolumeId};

use super::{
    Whereabouts, ask, chunks, lag, leased, losses, pause, place, place_of, position, push, sync, written,
};
use crate::global::Global;
use crate::master::Master;

/// Bytes of one push, or one entry.
const PUSH_BYTES: usize = 512 << 10;
/// A region that has everything hears so this often.
const GREET_EVERY: Duration = Duration::from_millis(500);
/// A region that copies the volume, or wasn't reached, is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often the log is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(10);

type Answer = (u64, Result<Pushed, String>);
type Answers<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send + 'a>>>;

/// Sends the volume's log wherever it is wanted, as long as this region is its home under that epoch, and this master its leader of that custody epoch.
pub async fn run(master: &Arc<Master>, volume: VolumeId, custody: u64, epoch: Epoch) {
    let Some(mut cluster) = master.geo.cluster.clone() else { return std::future::pending().await };
    loop {
        let view = cluster.borrow_and_update().clone();
        let regions: Vec<String> = view.replicas_of(volume).map(str::to_owned).collect();
        // One that is added again begins anew, whatever it said before.
        super::lock(&master.geo.seat(volume).shipped).retain(|region, _| regions.contains(region));
        let same = |view: &Arc<mooseng_global::View>| {
            view.replicas_of(volume).eq(regions.iter().map(String::as_str))
        };
        let work = async {
            if regions.is_empty() {
                tokio::join!(
                    keep_trimmed(master, volume, epoch, &regions),
                    leased::keep(master, volume, epoch)
                );
                return std::future::pending().await;
            }
            have_logged(master, volume, epoch).await;
            let shipping = join_all(regions.iter().map(|region| ship(master, volume, epoch, region)));
            let receiving =
                join_all(regions.iter().map(|region| push::ask_receivers(master, volume, epoch, region)));
            tokio::join!(
                shipping,
                receiving,
                keep_trimmed(master, volume, epoch, &regions),
                sync::keep(master, volume, custody, epoch),
                leased::keep(master, volume, epoch),
                lag::keep(master, volume, epoch),
                written::keep(master, volume, &regions)
            );
        };
        tokio::select! {
            () = work => {}
            changed = cluster.wait_for(|view| !same(view)) => if changed.is_err() { return },
        }
    }
}

/// Has the log written, from now on.
async fn have_logged(master: &Master, volume: VolumeId, epoch: Epoch) {
    loop {
        let tried = async {
            let tx = master.store.begin();
            let key = log::logged_key(volume);
            let known = tx.get(&key, Read::Conflicting).await?;
            let known = known.map(|value| LoggedRecord::from_value(&value)).transpose()?;
            // A later epoch's is written by whoever takes over.
            if known.is_none() {
                // Nothing up to the commit that says so, which comes later than this version, is in the log.
                let begins = LogPosition::new(epoch, tx.read_version().await?.0 + 1);
                let trimmed = begins;
                let record = LoggedRecord {
                    epoch: epoch.0,
                    trimmed_epoch: trimmed.epoch.0,
                    trimmed_version: trimmed.version,
                    closed: 0,
                };
                tx.set(&key, &record.to_value());
                tx.commit().await?;
            }
            let tx = master.store.begin();
            let trimmed = read::logged(&tx, volume).await?.ok_or(ReplicaError::NotLogged)?.trimmed();
            Ok::<_, ReplicaError>((read::newest(&tx, volume).await?, trimmed))
        };
        match tried.await {
            Ok((newest, trimmed)) => {
                master.geo.note_log(volume, newest, trimmed);
                return;
            }
            Err(error) => tracing::info!(%error, "the volume's log can't be begun yet; trying on"),
        }
        tokio::time::sleep(pause(Duration::from_millis(200))).await;
    }
}

/// Sends the log to one region.
async fn ship(master: &Arc<Master>, volume: VolumeId, epoch: Epoch, region: &str) {
    let mut shipping = Shipping::<LogPosition>::default();
    let mut answers = Answers::new();
    let mut pushed = master.geo.tail.pushed();
    let mut named: Vec<PutAside> = Vec::new();
    let mut acknowledged = master.geo.seat(volume).acknowledged.subscribe();
    let mut told = None;
    let mut hinted = BTreeSet::new();
    loop {
        pushed.borrow_and_update();
        acknowledged.borrow_and_update();
        match shipping.next() {
            Next::Ask => {
                let number = shipping.asked();
                send(
                    master,
                    volume,
                    epoch,
                    region,
                    (number, LogPosition::default()),
                    None,
                    (&[], Vec::new()),
                    &mut answers,
                );
            }
            Next::Send(after) => match following(master, volume, after).await {
                Ok(entries) => {
                    if let Some(last) = entries.last() {
                        let number = shipping.pushed(last.at);
                        let hints = chunks::hints(master, volume, region, &entries, &mut hinted).await;
                        let agreed = shipping.agreed();
                        send(
                            master,
                            volume,
                            epoch,
                            region,
                            (number, after),
                            agreed,
                            (&entries, hints),
                            &mut answers,
                        );
                        continue;
                    }
                }
                // The region copies the volume anew, once it asks for what follows.
                Err(error) => {
                    tell(master, volume, region, error.to_string());
                    shipping.failed();
                    answers.clear();
                    tokio::time::sleep(pause(ASK_AGAIN)).await;
                }
            },
            Next::Wait => {}
        }
        let greet = answers.is_empty();
        if greet && sync::is_news(master, volume, region, told) {
            told = sync::synced(master, volume);
            let (greeting, agreed) = ((0, LogPosition::default()), shipping.agreed());
            send(master, volume, epoch, region, greeting, agreed, (&[], Vec::new()), &mut answers);
            continue;
        }
        tokio::select! {
            Some((number, answer)) = answers.next(), if !answers.is_empty() => {
                let again = match answer {
                    Ok(Pushed { at, copying, complete, put_aside }) => {
                        let (at, complete) = (position(at.as_ref()), position(complete.as_ref()));
                        let heard = shipping.answered(number, at, copying);
                        let now = master.clock.boot();
                        // A greeting shows whether the region still is where it was.
                        let greeted = number == 0 && shipping.agreed().is_some();
                        let moved = greeted && (copying || shipping.is_elsewhere(at));
                        let lost = copying || heard == Heard::Elsewhere;
                        let agreeing = heard == Heard::Asked;
                        master.geo.note_shipped(volume, region, |known| {
                            known.copying = copying;
                            known.heard = Some(now);
                            // A region that has begun anew may have less than it had; and of another log it may have more than there is.
                            if lost {
                                known.complete = None;
                            } else if heard == Heard::Taken || greeted && !moved {
                                known.complete = known.complete.max(Some(complete));
                            }
                            // A greeting of a region that isn't agreed with says nothing of why it isn't.
                            if copying || heard == Heard::Taken || greeted && !moved {
                                known.trouble.clear();
                            }
                        });
                        if !agreeing && named != put_aside {
                            // It goes on without it, and is asked again.
                            match losses::name(master, volume, epoch, region, &put_aside, false).await {
                                Ok(()) => named = put_aside.clone(),
                                Err(trouble) => tracing::info!(region, trouble, "what a region put aside can't be put on record yet"),
                            }
                        }
                        if agreeing {
                            match agree(master, volume, epoch, region, at, &put_aside).await {
                                Ok(agreed) => {
                                    if agreed {
                                        shipping.agree(at);
                                    }
                                    let complete = agreed.then_some(complete);
                                    master.geo.note_shipped(volume, region, |known| {
                                        known.complete = complete;
                                        known.trouble.clear();
                                    });
                                    !agreed
                                }
                                Err(trouble) => {
                                    tell(master, volume, region, trouble);
                                    true
                                }
                            }
                        } else {
                            heard == Heard::Copying || heard == Heard::Elsewhere || moved
                        }
                    }
                    Err(error) => {
                        tell(master, volume, region, error);
                        true
                    }
                };
                let acknowledged = shipping.acknowledged();
                master.geo.note_shipped(volume, region, |known| known.at = acknowledged.or(known.at));
                if again {
                    shipping.failed();
                    answers.clear();
                    tokio::time::sleep(pause(ASK_AGAIN)).await;
                }
            }
            changed = pushed.changed() => if changed.is_err() { return },
            // Others of the set than this region have come further: what may be told there is more by now.
            _ = acknowledged.changed(), if greet => {}
            () = tokio::time::sleep(GREET_EVERY), if greet => {
                let (greeting, agreed) = ((0, LogPosition::default()), shipping.agreed());
                send(master, volume, epoch, region, greeting, agreed, (&[], Vec::new()), &mut answers);
            }
        }
    }
}

/// Answers whether a region's place is one of this log. One whose isn't has something of its own, or is too far behind: it is told to begin anew.
async fn agree(
    master: &Master,
    volume: VolumeId,
    epoch: Epoch,
    region: &str,
    at: LogPosition,
    put_aside: &[PutAside],
) -> Result<bool, String> {
    let tx = master.store.begin();
    if read::has(&tx, volume, at).await.map_err(|e| e.to_string())? {
        losses::name(master, volume, epoch, region, put_aside, true).await?;
        return Ok(true);
    }
    let common = read::at_or_before(&tx, volume, at).await.map_err(|e| e.to_string())?;
    let trimmed = read::logged(&tx, volume).await.map_err(|e| e.to_string())?.map(|logged| logged.trimmed());
    tracing::warn!(region, %at, %common, "a region isn't at a place of the volume's log: it copies the volume anew");
    master.geo.note_shipped(volume, region, |known| known.complete = None);
    let message = Push {
        volume: volume.0.into(),
        after: place(common),
        epoch: epoch.0,
        trimmed: trimmed.and_then(place),
        begin_anew: true,
        was_at: place(at),
        ..Push::default()
    };
    ask::<_, Pushed>(master, region, Method::LogPush, &message).await.map(|_| false)
}

fn tell(master: &Master, volume: VolumeId, region: &str, trouble: String) {
    let mut before = String::new();
    master.geo.note_shipped(volume, region, |known| {
        before = std::mem::replace(&mut known.trouble, trouble.clone())
    });
    if before != trouble {
        tracing::info!(region, trouble, "the log can't be sent; trying on");
    }
}

/// From memory, else from the store.
pub(super) async fn following(
    master: &Master,
    volume: VolumeId,
    after: LogPosition,
) -> Result<Vec<Entry>, ReplicaError> {
    match master.geo.tail.after(volume, after, PUSH_BYTES) {
        Some(entries) => Ok(entries),
        None => read::entries(&master.store.begin(), volume, after, PUSH_BYTES).await,
    }
}

#[allow(clippy::too_many_arguments, reason = "what a push is made of")]
fn send<'a>(
    master: &'a Arc<Master>,
    volume: VolumeId,
    epoch: Epoch,
    region: &'a str,
    (number, after): (u64, LogPosition),
    agreed: Option<LogPosition>,
    (entries, hints): (&[Entry], Vec<Hint>),
    answers: &mut Answers<'a>,
) {
    let entry = |entry: &Entry| LogEntry { at: place(entry.at), changes: entry.bytes.clone() };
    let message = Push {
        volume: volume.0.into(),
        after: place(after),
        entries: entries.iter().map(entry).collect(),
        newest: place(master.geo.newest(volume)),
        trimmed: place(master.geo.trimmed(volume)),
        epoch: epoch.0,
        begin_anew: false,
        was_at: None,
        hints,
        synced: sync::synced(master, volume).and_then(place),
        agreed: agreed.and_then(place),
    };
    let mut asking: Pin<Box<dyn Future<Output = Answer> + Send + 'a>> =
        Box::pin(async move { (number, ask(master, region, Method::LogPush, &message).await) });
    // Polled at once, so that pushes leave in their order.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match asking.as_mut().poll(&mut context) {
        Poll::Ready(answer) => answers.push(Box::pin(std::future::ready(answer))),
        Poll::Pending => answers.push(asking),
    }
}

/// Lets go of entries that every region has, and of what lies so far back that regions which don't follow had better copy the volume. One that wasn't heard
/// of since this leader began may need all of them; where there is no other region, nobody needs any.
async fn keep_trimmed(master: &Master, volume: VolumeId, epoch: Epoch, regions: &[String]) {
    let mut newest_before = read::newest(&master.store.begin(), volume).await.unwrap_or_default();
    let mut kept = Kept::default();
    loop {
        tokio::time::sleep(TRIM_EVERY).await;
        if place_of(master, volume) != Whereabouts::Here(epoch) {
            return;
        }
        let holds_lease = |global: &Arc<Global>| global.may_change(volume) == Some(epoch);
        if !master.global.as_ref().is_some_and(holds_lease) {
            continue;
        }
        let trimmed = async {
            let upto = match regions {
                // A master that has just begun hears in time of regions that were added lately.
                [] => newest_before,
                regions => nobody_follows(master, volume, regions, newest_before, &mut kept).await?,
            };
            let tx = master.store.begin();
            let trimmed = turn::trim(&tx, volume, upto).await?;
            let newest = read::newest(&tx, volume).await?;
            tx.commit().await?;
            Ok::<_, ReplicaError>((trimmed, newest))
        };
        match trimmed.await {
            Ok((trimmed, newest)) => {
                newest_before = newest;
                master.geo.note_trimmed(volume, trimmed);
            }
            // No other region has ever had it.
            Err(ReplicaError::NotLogged) if regions.is_empty() => {}
            Err(error) => tracing::info!(%error, "the volume's log can't be trimmed yet; trying on"),
        }
    }
}

/// Up to where the log is sent to no region any more.
async fn nobody_follows(
    master: &Master,
    volume: VolumeId,
    regions: &[String],
    newest_before: LogPosition,
    kept: &mut Kept<LogPosition>,
) -> Result<LogPosition, ReplicaError> {
    let at = |region: &String| master.geo.shipped(volume).get(region).and_then(|known| known.at);
    let all_have = regions.iter().map(at).min().flatten().unwrap_or_default();
    let mib_max = master.config.house.log_kept_mib;
    if all_have >= newest_before || mib_max == 0 {
        *kept = Kept::default();
        return Ok(all_have);
    }
    let trimmed = look_through(master, volume, kept).await?;
    // What the sync set was promised isn't copied anew for want of room: whoever doesn't follow leaves it first.
    let members = sync::waited_for(master, volume);
    let members_have = members.iter().map(at).min().map(Option::unwrap_or_default);
    let bound = kept.leaves(mib_max.saturating_mul(1 << 20)).unwrap_or_default();
    let bound = members_have.map_or(bound, |have| bound.min(have));
    if bound > all_have {
        for region in regions.iter().filter(|region| at(region).is_some_and(|at| trimmed <= at && at < bound))
        {
            tracing::warn!(
                region,
                %bound,
                mib_max,
                "a region is too far behind: the log isn't kept for it any longer, and it will copy the volume anew"
            );
        }
    }
    Ok(all_have.max(bound))
}

/// Takes note of how much of the log there is. Answers up to where it is trimmed.
async fn look_through(
    master: &Master,
    volume: VolumeId,
    kept: &mut Kept<LogPosition>,
) -> Result<LogPosition, ReplicaError> {
    loop {
        let tx = master.store.begin();
        let trimmed = read::logged(&tx, volume).await?.ok_or(ReplicaError::NotLogged)?.trimmed();
        kept.trimmed(trimmed);
        let entries = read::entries(&tx, volume, kept.upto().unwrap_or(trimmed), PUSH_BYTES).await?;
        let Some(last) = entries.last() else { return Ok(trimmed) };
        kept.note(last.at, entries.iter().map(|entry| entry.bytes.len() as u64).sum());
    }
}
