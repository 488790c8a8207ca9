//! `mooseng events`: what happened in the cluster, in the order of time, from the journals of all masters that can be reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mooseng_ports::interrupt;
use mooseng_transport::{Network, grpc_request};
use mooseng_wire::admin::{Event, ListEventsReply, ListEventsRequest};
use serde_json::{Value, json};

use crate::admin;
use crate::args::{EventsArgs, Format};
use crate::config::{self, ClientFile};
use crate::exit::Failure;
use crate::output::{self, Table};
use crate::trash::time_ms;

/// How long a master may take to answer, the way between regions included.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Between two rounds of `--follow`.
const ASK_EVERY: Duration = Duration::from_millis(700);
/// How often `--follow` asks which masters there are.
const MASTERS_EVERY: Duration = Duration::from_secs(5);
/// Pages of one master in a round: more than it keeps.
const PAGES_MAX: usize = 20;
/// Masters that are asked.
const MASTERS_MAX: usize = 64;
/// Facts that are remembered, so that nobody's word for them is told a second time.
const KNOWN_MAX: usize = 20_000;

/// Asks and prints.
pub fn run(args: &EventsArgs) -> Result<(), Failure> {
    let file = ClientFile::load(&config::find(args.reading.config.as_deref())?)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(args.since);
    let mut asking = Asking {
        network: None,
        addresses: file.masters.clone(),
        cursors: BTreeMap::new(),
        since_ms: i64::try_from(since.as_millis()).unwrap_or(0),
    };
    match args.follow {
        false => admin::block_on(once(&file, &mut asking, args.reading.output.format)),
        true => {
            interrupt::catch();
            admin::block_on(follow(&file, &mut asking, args.reading.output.format))
        }
    }
}

/// Whom to ask, and how far each was read.
struct Asking {
    network: Option<Arc<dyn Network>>,
    addresses: Vec<String>,
    /// By address: which journal, and behind which of its events.
    cursors: BTreeMap<String, (u64, u64)>,
    since_ms: i64,
}

/// What a round came to.
#[derive(Default)]
struct Round {
    events: Vec<Heard>,
    /// Masters that don't answer, and why.
    silent: Vec<(String, String)>,
}

/// An event with who told of it.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    region: String,
    master: String,
    event: Event,
}

impl Asking {
    fn network(&mut self, file: &ClientFile) -> Result<Arc<dyn Network>, Failure> {
        match &self.network {
            Some(network) => Ok(network.clone()),
            None => Ok(self.network.insert(file.network()?).clone()),
        }
    }

    /// The masters of all regions, as far as anybody tells of them; a cluster of one region has those of the configuration.
    async fn look_for_masters(&mut self, file: &ClientFile) {
        let Ok(regions) = admin::list_regions(file).await else { return };
        for master in regions.regions.into_iter().flat_map(|region| region.masters) {
            if !self.addresses.contains(&master.address) && self.addresses.len() < MASTERS_MAX {
                self.addresses.push(master.address);
            }
        }
    }

    /// Asks all of them at once for what is new.
    async fn round(&mut self, file: &ClientFile) -> Result<Round, Failure> {
        let network = self.network(file)?;
        let asked: Vec<_> = self
            .addresses
            .iter()
            .map(|address| {
                let cursor = self.cursors.get(address).copied().unwrap_or_default();
                let (network, address, since_ms) = (network.clone(), address.clone(), self.since_ms);
                tokio::spawn(async move {
                    let read = read(network, &address, cursor, since_ms).await;
                    (address, read)
                })
            })
            .collect();
        let mut round = Round::default();
        for task in asked {
            let (address, read) =
                task.await.map_err(|e| Failure::failed(format!("Asking a master failed inside: {e}.")))?;
            let (pages, failed) = read;
            for page in pages {
                self.cursors.insert(address.clone(), (page.journal, page.next));
                let heard = |event| Heard { region: page.region.clone(), master: page.master.clone(), event };
                round.events.extend(page.events.into_iter().map(heard));
            }
            round.silent.extend(failed.map(|why| (address, why)));
        }
        if round.silent.len() == self.addresses.len() {
            let list: Vec<String> = round.silent.iter().map(|(a, why)| format!("\n  {a}: {why}")).collect();
            return Err(Failure::unavailable(format!("No master answers:{}", list.concat())));
        }
        Ok(round)
    }
}

/// What a master has behind a cursor, as far as it answers.
async fn read(
    network: Arc<dyn Network>,
    address: &str,
    (mut journal, mut after): (u64, u64),
    since_ms: i64,
) -> (Vec<ListEventsReply>, Option<String>) {
    let mut client = admin::client(network, address).await;
    let mut pages = Vec::new();
    for _ in 0..PAGES_MAX {
        let request = ListEventsRequest { journal, after, since_ms, limit: 0 };
        let call = client.list_events(grpc_request(request, ANSWER_WAIT));
        let page = match tokio::time::timeout(ANSWER_WAIT, call).await {
            Ok(Ok(page)) => page.into_inner(),
            Ok(Err(status)) => return (pages, Some(admin::reason(&status))),
            Err(_) => return (pages, Some(format!("no answer within {} s", ANSWER_WAIT.as_secs()))),
        };
        (journal, after) = (page.journal, page.next);
        let more = page.more;
        pages.push(page);
        if !more {
            break;
        }
    }
    (pages, None)
}

/// What was told already. Several masters tell of the same fact by the same key; a finding that was raised, or a copy that was begun, is no news until it has
/// ended, whoever says so.
#[derive(Default)]
struct Known {
    keys: BTreeSet<String>,
    order: VecDeque<String>,
    lasting: BTreeSet<String>,
}

impl Known {
    fn is_news(&mut self, heard: &Heard) -> bool {
        let Heard { region, event, .. } = heard;
        let about = match event.event.as_str() {
            "HEALTH_RAISED" | "HEALTH_CLEARED" => {
                let of = event.detail.split([':', '.']).next().unwrap_or_default();
                Some(format!("health/{region}/{}/{of}", event.subject))
            }
            "COPY_BEGUN" | "COPY_FINISHED" => {
                Some(format!("copy/{region}/{}", copied(&event.detail).unwrap_or_default()))
            }
            _ => None,
        };
        if let Some(about) = about {
            return match event.event.as_str() {
                "HEALTH_RAISED" | "COPY_BEGUN" => {
                    self.lasting.len() < KNOWN_MAX && self.lasting.insert(about)
                }
                // What began before the time that was asked about ends, too.
                _ => {
                    self.lasting.remove(&about);
                    true
                }
            };
        }
        if event.key.is_empty() {
            return true;
        }
        if !self.keys.insert(event.key.clone()) {
            return false;
        }
        self.order.push_back(event.key.clone());
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }

    /// In the order of time, each fact once.
    fn news(&mut self, mut events: Vec<Heard>) -> Vec<Heard> {
        events.sort_by_key(|heard| (heard.event.unix_ms, heard.event.sequence));
        events.retain(|heard| self.is_news(heard));
        events
    }
}

/// The volume of a copy, by what the event says of it: /, a number, or a path and, in brackets, a number. What says nothing of it is about any.
fn copied(detail: &str) -> Option<&str> {
    let begun = detail.strip_prefix("It copies volume ").and_then(|of| of.strip_suffix(" from its home."));
    let ended = || detail.strip_prefix("Its copy of volume ").and_then(|of| of.strip_suffix(" is whole."));
    let named = begun.or_else(ended)?;
    // The path may be another one by the time the copy is whole.
    let number = named.strip_suffix(')').and_then(|named| named.rsplit_once('(')).map(|(_, number)| number);
    Some(number.unwrap_or(named))
}

async fn once(file: &ClientFile, asking: &mut Asking, format: Format) -> Result<(), Failure> {
    asking.look_for_masters(file).await;
    let round = asking.round(file).await?;
    let events = Known::default().news(round.events);
    match format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "events": events.iter().map(shape).collect::<Vec<_>>(),
            "silent_masters": round.silent.iter().map(|(a, why)| json!({ "address": a, "reason": why })).collect::<Vec<_>>(),
        }))?,
        Format::Table => output::text_line(&table(&events))?,
    }
    for (address, why) in &round.silent {
        eprintln!("What {address} knows is missing: {why}");
    }
    Ok(())
}

async fn follow(file: &ClientFile, asking: &mut Asking, format: Format) -> Result<(), Failure> {
    let mut known = Known::default();
    let mut looked: Option<Instant> = None;
    let mut silent = BTreeSet::new();
    while !interrupt::asked() {
        if looked.is_none_or(|at| at.elapsed() >= MASTERS_EVERY) {
            asking.look_for_masters(file).await;
            looked = Some(Instant::now());
        }
        // Nobody answering is nothing to end for: they may come back.
        match asking.round(file).await {
            Ok(round) => {
                for heard in known.news(round.events) {
                    output::text_line(&match format {
                        Format::Json => shape(&heard).to_string(),
                        Format::Table => line(&heard),
                    })?;
                }
                let now: BTreeSet<String> = round.silent.into_iter().map(|(address, _)| address).collect();
                for address in now.difference(&silent) {
                    eprintln!("{address} doesn't answer: what it tells is missing.");
                }
                silent = now;
            }
            Err(failure) if silent.len() < asking.addresses.len() => {
                eprintln!("{failure}");
                silent = asking.addresses.iter().cloned().collect();
            }
            Err(_) => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// A word or a detail may hold what would draw over the table.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cells(heard: &Heard) -> [String; 5] {
    let Heard { region, event, .. } = heard;
    [time_ms(event.unix_ms), region.clone(), plain(&event.event), plain(&event.subject), plain(&event.detail)]
}

fn line(heard: &Heard) -> String {
    let [at, region, event, subject, detail] = cells(heard);
    format!("{at}  {region:<10}  {event:<18}  {subject:<10}  {detail}")
}

fn table(events: &[Heard]) -> String {
    let mut table = Table::new(["TIME", "TOLD BY", "EVENT", "ABOUT", "WHAT"]);
    events.iter().for_each(|heard| table.row(cells(heard)));
    table.render()
}

fn shape(heard: &Heard) -> Value {
    let Heard { region, master, event } = heard;
    json!({ "unix_ms": event.unix_ms, "time": time_ms(event.unix_ms), "region": region, "master": master, "event": event.event,
            "subject": event.subject, "detail": event.detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(region: &str, unix_ms: i64, word: &str, key: &str) -> Heard {
        let event = Event {
            unix_ms,
            event: word.into(),
            subject: "s".into(),
            detail: "cs1: x.".into(),
            key: key.into(),
            ..Event::default()
        };
        Heard { region: region.into(), master: "m".into(), event }
    }

    #[test]
    fn each_fact_is_told_once_in_the_order_of_time() {
        let mut known = Known::default();
        let told = vec![
            heard("b", 5, "EPOCH_OPENED", "opened/0/2"),
            heard("a", 3, "EPOCH_OPENED", "opened/0/2"),
            heard("a", 1, "CHUNKSERVER_LOST", ""),
            heard("b", 2, "CHUNKSERVER_LOST", ""),
        ];
        let news = known.news(told);
        let at: Vec<(i64, &str)> = news.iter().map(|h| (h.event.unix_ms, h.region.as_str())).collect();
        assert_eq!(at, [(1, "a"), (2, "b"), (3, "a")]);
        assert_eq!(known.news(vec![heard("w", 9, "EPOCH_OPENED", "opened/0/2")]), []);
    }

    #[test]
    fn what_lasts_is_told_again_only_once_it_has_ended() {
        let mut known = Known::default();
        let of = |words: &[&str]| words.iter().zip(1..).map(|(word, at)| heard("a", at, word, "")).collect();
        let news = known.news(of(&["HEALTH_RAISED", "HEALTH_RAISED", "HEALTH_CLEARED", "HEALTH_RAISED"]));
        assert_eq!(news.iter().map(|h| h.event.unix_ms).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(known.news(vec![heard("b", 9, "HEALTH_RAISED", "")]).len(), 1, "another region's");
    }

    #[test]
    fn copies_of_several_volumes_are_told_each() {
        let of = |at, word, detail: &str| {
            let mut heard = heard("a", at, word, "");
            heard.event.detail = detail.into();
            heard
        };
        let begun =
            |at, volume: &str| of(at, "COPY_BEGUN", &format!("It copies volume {volume} from its home."));
        let ended =
            |at, volume: &str| of(at, "COPY_FINISHED", &format!("Its copy of volume {volume} is whole."));
        let news = Known::default().news(vec![
            begun(1, "/"),
            begun(2, "/a of volume (1) (2)"),
            begun(3, "/"),
            ended(4, "/b (2)"),
            begun(5, "/b (2)"),
            begun(6, "/"),
            ended(7, "/"),
            begun(8, "/"),
            begun(9, "7"),
        ]);
        let at: Vec<i64> = news.iter().map(|heard| heard.event.unix_ms).collect();
        assert_eq!(at, [1, 2, 4, 5, 7, 8, 9]);
    }

    #[test]
    fn an_event_is_a_line() {
        let text = line(&heard("a", 0, "LEASE_LOST", ""));
        assert_eq!(text, "1970-01-01T00:00:00.000Z  a           LEASE_LOST          s           cs1: x.");
    }
}
