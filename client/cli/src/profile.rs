//! `mooseng top` and `mooseng profile`: what mounts on this machine are asked for, from the difference of two looks at their metrics; and what is under way when
//! they look last.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::{Format, Profile, Top};
use crate::config::ClientFile;
use crate::dev::{namespaces, ready};
use crate::exit::{Failure, Kind};
use crate::live::{self, Live, time};
use crate::output::{self, Table};
use crate::process::Started;
use crate::runtime::{self, MountRecord};

mod spread;

use spread::Spread;

/// How long a mount may take to tell its metrics.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// What the metrics of operations begin with.
const PREFIX: &str = "mooseng_mount_operations";
/// And those of caches.
const CACHE: &str = "mooseng_mount_cache";
/// Requests under way that `top` shows of each mount, in its table.
const SHOWN_BY_TOP: usize = 10;

/// A mount's metrics: by name, and by operation or cache where they are counted so.
type Told = BTreeMap<(String, String), u64>;

/// What a mount tells.
#[derive(Clone, Debug)]
struct Look {
    /// Who told it: another process counts from nothing.
    process: Started,
    told: Told,
    /// What is under way, or why it doesn't tell.
    live: Result<Live, String>,
}

/// What one kind of operation did between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    operation: String,
    answered: u64,
    waited: u64,
    failed: u64,
    running: u64,
    total_us: u64,
    spread: Option<Spread>,
}

impl Row {
    /// Microseconds of one, on average.
    fn mean_us(&self) -> u64 {
        self.total_us / self.answered.max(1)
    }

    /// The share that was answered without asking anybody, in percent.
    fn known_percent(&self) -> u64 {
        let known = self.answered.saturating_sub(self.waited);
        known * 100 / self.answered.max(1)
    }

    fn per_second(&self, seconds: f64) -> f64 {
        self.answered as f64 / seconds.max(0.001)
    }
}

/// What one cache was asked for between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    hits: u64,
    misses: u64,
}

impl Asked {
    fn all(self) -> u64 {
        self.hits + self.misses
    }

    fn hit_percent(self) -> u64 {
        self.hits * 100 / self.all().max(1)
    }
}

/// Looks once, for a while, at one mount.
pub fn profile(args: &Profile) -> Result<(), Failure> {
    let path = crate::config::absolute(&args.path)?;
    let record = runtime::covering(&path).ok_or_else(|| {
        Failure::not_found(format!(
            "{} isn't below a MooseNG mount of yours on this machine.",
            path.display()
        ))
    })?;
    let began = Instant::now();
    let before = look(&record)?;
    std::thread::sleep(args.time);
    let after = look(&record)?;
    let seconds = began.elapsed().as_secs_f64();
    if let Err(why) = &after.live {
        eprintln!("{}", untold(&record, why));
    }
    let rows = rows_of(&before, &after);
    match args.output.format {
        Format::Json => {
            let mut shape = shape(&rows, seconds, &before, &after);
            shape["version"] = output::VERSION.into();
            shape["path"] = json!(record.path);
            shape["seconds"] = seconds.into();
            shape["counters"] = json!(counters(&before.told, &after.told));
            output::json(&shape)
        }
        Format::Table => {
            output::text_line(&table(&rows, seconds).render())?;
            output::text_line(&rest(&before.told, &after.told))?;
            below(&before, &after, live::TOLD_MAX)
        }
    }
}

/// Looks at all mounts, again and again.
pub fn top(args: &Top) -> Result<(), Failure> {
    let clears = std::io::stdout().is_terminal() && !args.once;
    let mut before = all();
    if before.is_empty() {
        return Err(Failure::not_found("Nothing of yours is mounted on this machine."));
    }
    for record in runtime::live() {
        if let Some(Err(why)) = before.get(&record.path.display().to_string()).map(|look| &look.live) {
            eprintln!("{}", untold(&record, why));
        }
    }
    let mut looked = Instant::now();
    loop {
        std::thread::sleep(args.every.max(Duration::from_millis(100)));
        let after = all();
        let seconds = looked.elapsed().as_secs_f64();
        looked = Instant::now();
        if clears {
            // Home, and everything below it away.
            print!("\x1b[H\x1b[2J");
            let _ = std::io::stdout().flush();
        }
        let mut mounts = Vec::new();
        for (path, now) in &after {
            let then = since(before.get(path), now);
            let rows = rows_of(then, now);
            match args.output.format {
                Format::Json => {
                    let mut shape = shape(&rows, seconds, then, now);
                    shape["path"] = json!(path);
                    mounts.push(shape);
                }
                Format::Table => {
                    let path = live::printable(path);
                    output::text_line(&format!("{path}   {}", rest(&then.told, &now.told)))?;
                    output::text_line(&table(&rows, seconds).render())?;
                    below(then, now, SHOWN_BY_TOP)?;
                }
            }
        }
        if args.output.format == Format::Json {
            output::json(&json!({ "version": output::VERSION, "seconds": seconds, "mounts": mounts }))?;
        }
        if args.once {
            return Ok(());
        }
        before = after;
    }
}

/// What every mount tells that answers.
fn all() -> BTreeMap<String, Look> {
    let records = runtime::live().into_iter();
    records.filter_map(|r| Some((r.path.display().to_string(), look(&r).ok()?))).collect()
}

fn look(record: &MountRecord) -> Result<Look, Failure> {
    let told = told(record)?;
    Ok(Look { process: record.process, told, live: live::ask(record).map_err(|e| e.to_string()) })
}

/// What is counted from: of a mount that wasn't there before, or was made anew since, nothing has been counted yet.
fn since<'a>(before: Option<&'a Look>, now: &'a Look) -> &'a Look {
    before.filter(|before| before.process == now.process).unwrap_or(now)
}

/// Percentiles and what is under way are missing: what to say to whoever looks.
fn untold(record: &MountRecord, why: &str) -> String {
    let path = record.path.display();
    format!(
        "The mount on {path} doesn't tell what is under way, nor percentiles: {why}. One that was made by an earlier release doesn't: mount again."
    )
}

fn told(record: &MountRecord) -> Result<Told, Failure> {
    let path = record.path.display();
    let Some(http) = &record.http else {
        return Err(Failure::failed(format!(
            "The mount on {path} doesn't tell what it does: set `http_listen = \"127.0.0.1:0\"` in {} and mount again.",
            record.config.display()
        )));
    };
    let unavailable = |why: String| {
        Failure::new(
            Kind::Unavailable,
            format!("The mount on {path} doesn't tell its metrics at {http}: {why}."),
        )
    };
    let namespace = ClientFile::read(&record.config).ok().and_then(|file| file.dev.namespace);
    let told = namespaces::within(namespace, || Ok(ready::get(http, "/metrics", TOLD_WITHIN)))?;
    match told {
        Ok((200, text)) => Ok(parse(&text)),
        Ok((status, _)) => Err(unavailable(format!("it answers {status}"))),
        Err(e) => Err(unavailable(e.to_string())),
    }
}

/// Reads the text format, as far as it is used here: `name value`, or `name{operation="word"} value`.
fn parse(text: &str) -> Told {
    let mut told = Told::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<u64>() else { continue };
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let operation = labels.split('"').nth(1).unwrap_or_default();
        told.insert((name.to_owned(), operation.to_owned()), value);
    }
    told
}

fn rows(before: &Told, after: &Told) -> Vec<Row> {
    let of = |told: &Told, what: &str, operation: &str| {
        told.get(&(format!("{PREFIX}{what}"), operation.to_owned())).copied().unwrap_or(0)
    };
    let named =
        after.keys().filter(|(name, _)| name == &format!("{PREFIX}_total")).map(|(_, operation)| operation);
    let mut rows: Vec<Row> = named
        .map(|operation| {
            let grown = |what: &str| of(after, what, operation).saturating_sub(of(before, what, operation));
            Row {
                operation: operation.clone(),
                answered: grown("_total"),
                waited: grown("_waited_total"),
                failed: grown("_failed_total"),
                running: of(after, "_running", operation),
                total_us: grown("_us_total"),
                spread: None,
            }
        })
        .filter(|row| row.answered > 0 || row.running > 0)
        .collect();
    // What takes the most time comes first.
    rows.sort_by(|a, b| (b.total_us, b.answered, &a.operation).cmp(&(a.total_us, a.answered, &b.operation)));
    rows
}

/// What operations did between two looks, with how long they took where the mount tells it.
fn rows_of(before: &Look, after: &Look) -> Vec<Row> {
    let mut rows = rows(&before.told, &after.told);
    // Between two looks of which one tells nothing, nothing can be said.
    if let (Ok(before), Ok(after)) = (&before.live, &after.live) {
        for row in &mut rows {
            let latency = after.latencies.get(&row.operation);
            row.spread = latency.and_then(|now| spread::between(before.latencies.get(&row.operation), now));
        }
    }
    rows
}

/// What each cache was asked for.
fn caches(before: &Told, after: &Told) -> BTreeMap<String, Asked> {
    let grown = |what: &str, cache: &str| {
        let of = |told: &Told| told.get(&(format!("{CACHE}_{what}_total"), cache.to_owned())).copied();
        of(after).unwrap_or(0).saturating_sub(of(before).unwrap_or(0))
    };
    let hits = format!("{CACHE}_hits_total");
    let named = after.keys().filter(|(name, _)| *name == hits).map(|(_, cache)| cache);
    named
        .map(|cache| (cache.clone(), Asked { hits: grown("hits", cache), misses: grown("misses", cache) }))
        .collect()
}

fn shape(rows: &[Row], seconds: f64, before: &Look, after: &Look) -> serde_json::Value {
    let operations: Vec<serde_json::Value> = rows
        .iter()
        .map(|r| {
            json!({
                "operation": r.operation, "answered": r.answered, "per_second": r.per_second(seconds),
                "waited": r.waited, "failed": r.failed, "running": r.running, "total_us": r.total_us,
                "mean_us": r.mean_us(), "p50_us": r.spread.map(|s| s.p50_us),
                "p99_us": r.spread.map(|s| s.p99_us), "max_us": r.spread.map(|s| s.max_us),
                "known_percent": r.known_percent(),
            })
        })
        .collect();
    let caches = caches(&before.told, &after.told).into_iter().map(|(cache, asked)| {
        let percent = (asked.all() > 0).then(|| asked.hit_percent());
        (cache, json!({ "hits": asked.hits, "misses": asked.misses, "hit_percent": percent }))
    });
    let caches: serde_json::Map<String, serde_json::Value> = caches.collect();
    let live = after.live.as_ref().ok();
    json!({
        "operations": operations, "caches": caches, "gauges": gauges(&after.told),
        "under_way": live.map(|live| &live.requests), "under_way_more": live.map(|live| live.more),
    })
}

/// What comes below the table of operations: hits of caches, and what is under way, `most` of it at most.
fn below(before: &Look, after: &Look, most: usize) -> Result<(), Failure> {
    let hits = hits(&caches(&before.told, &after.told));
    if !hits.is_empty() {
        output::text_line(&hits)?;
    }
    let Ok(live) = &after.live else { return Ok(()) };
    let table = live::table(live, most);
    if !table.is_empty() {
        output::text_line(&table.render())?;
    }
    match live::left_out(live, most) {
        0 => Ok(()),
        more => output::text_line(&format!("and {more} more under way")),
    }
}

/// The share of what caches were asked for that they had, of those that were asked for something.
fn hits(caches: &BTreeMap<String, Asked>) -> String {
    // Hardly anybody reads what he has just written: that it wasn't that is no news.
    let tells = |cache: &str, asked: &Asked| asked.all() > 0 && (cache != "written" || asked.hits > 0);
    let said: Vec<String> = caches
        .iter()
        .filter(|(cache, asked)| tells(cache, asked))
        .map(|(cache, asked)| {
            format!("{} {} % of {}", cache.replace('_', " "), asked.hit_percent(), asked.all())
        })
        .collect();
    if said.is_empty() { String::new() } else { format!("hits of caches: {}", said.join(", ")) }
}

fn table(rows: &[Row], seconds: f64) -> Table {
    let mut table =
        Table::new(["OPERATION", "A SECOND", "MEAN", "P50", "P99", "MAX", "KNOWN", "FAILED", "RUNNING"]);
    for row in rows {
        let took =
            |us: fn(&Spread) -> u64| row.spread.as_ref().map_or_else(|| "-".to_owned(), |s| time(us(s)));
        table.row([
            row.operation.clone(),
            format!("{:.1}", row.per_second(seconds)),
            time(row.mean_us()),
            took(|s| s.p50_us),
            took(|s| s.p99_us),
            took(|s| s.max_us),
            format!("{} %", row.known_percent()),
            row.failed.to_string(),
            row.running.to_string(),
        ]);
    }
    table
}

fn single<'t>(told: &'t Told, name: &str) -> Option<&'t u64> {
    told.get(&(format!("mooseng_mount_{name}"), String::new()))
}

/// What is as it is, not counted.
fn gauges(told: &Told) -> BTreeMap<&'static str, u64> {
    let names = ["unanswered", "open_inodes", "open_chunks", "cache_bytes", "dirty_bytes", "lease_left_ms"];
    names.into_iter().filter_map(|name| Some((name, *single(told, name)?))).collect()
}

/// What was read from chunkservers' files on this host.
const SAME_HOST_BYTES: &str = "same_host_bytes";

/// What was counted meanwhile: failures, but for the bytes read on this host.
fn counters(before: &Told, after: &Told) -> BTreeMap<&'static str, u64> {
    let names = [
        "retries",
        "timeouts",
        "hedges",
        "chunks_replaced",
        "corrupt_replicas",
        "lapses",
        "same_host_failures",
        SAME_HOST_BYTES,
    ];
    let grown = |name: &str| {
        let name = format!("{name}_total");
        Some(single(after, &name)?.saturating_sub(single(before, &name).copied().unwrap_or(0)))
    };
    names.into_iter().filter_map(|name| Some((name, grown(name)?))).collect()
}

fn rest(before: &Told, after: &Told) -> String {
    let is = |name: &str| single(after, name).copied().unwrap_or(0);
    let mut text = format!(
        "{} unsent, {} cached, {} inodes open",
        output::bytes(is("dirty_bytes")),
        output::bytes(is("cache_bytes")),
        is("open_inodes")
    );
    for (name, count) in counters(before, after).into_iter().filter(|(_, count)| *count > 0) {
        if name == SAME_HOST_BYTES {
            text.push_str(&format!(", {} read from files on this host", output::bytes(count)));
            continue;
        }
        text.push_str(&format!(", {count} {}", name.replace('_', " ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Latency, Request};

    const BEFORE: &str = "# HELP x\nmooseng_mount_operations_total{operation=\"read\"} 10\n\
        mooseng_mount_operations_waited_total{operation=\"read\"} 10\nmooseng_mount_operations_us_total{operation=\"read\"} 1000\n\
        mooseng_mount_operations_total{operation=\"write\"} 5\nmooseng_mount_retries_total 3\n# EOF\n";
    const AFTER: &str = "mooseng_mount_operations_total{operation=\"read\"} 14\n\
        mooseng_mount_operations_waited_total{operation=\"read\"} 11\nmooseng_mount_operations_us_total{operation=\"read\"} 1400\n\
        mooseng_mount_operations_total{operation=\"write\"} 5\nmooseng_mount_operations_running{operation=\"read\"} 2\n\
        mooseng_mount_retries_total 4\nmooseng_mount_dirty_bytes 2048\n";

    const ONE: Started = Started { pid: 31, start_ticks: 1 };

    #[test]
    fn two_looks_make_a_profile() {
        let (before, after) = (parse(BEFORE), parse(AFTER));
        let rows = rows(&before, &after);
        assert_eq!(rows.len(), 1, "what wasn't asked for isn't shown: {rows:?}");
        let read = &rows[0];
        assert_eq!((read.answered, read.waited, read.running), (4, 1, 2));
        assert_eq!((read.mean_us(), read.known_percent()), (100, 75));
        assert_eq!(counters(&before, &after)["retries"], 1);
        assert!(rest(&before, &after).contains("1 retries"), "{}", rest(&before, &after));
        assert!(table(&rows, 2.0).render().contains("2.0"));
    }

    #[test]
    fn a_mount_that_began_anew_counts_from_nothing() {
        assert_eq!(rows(&parse(AFTER), &parse(BEFORE)), []);
    }

    /// Found by review: what is more than the one before had counted passed for what came between the looks.
    #[test]
    fn nothing_is_counted_between_looks_at_two_processes() {
        let before = with(BEFORE, &[(96, 112, 10)], 100);
        let same = with(AFTER, &[(96, 112, 13)], 100);
        let anew = Look { process: Started { start_ticks: 2, ..ONE }, ..same.clone() };
        let answered = |before: Option<&Look>, now: &Look| -> u64 {
            rows_of(since(before, now), now).iter().map(|row| row.answered).sum()
        };
        assert_eq!(answered(Some(&before), &same), 4);
        assert_eq!((answered(Some(&before), &anew), answered(None, &same)), (0, 0));
        assert!(rows_of(since(Some(&before), &anew), &anew).iter().all(|row| row.spread.is_none()));
    }

    fn with(text: &str, buckets: &[(u64, u64, u64)], longest_us: u64) -> Look {
        let latency = Latency { longest_us, buckets: buckets.to_vec() };
        let latencies = BTreeMap::from([("read".to_owned(), latency)]);
        let requests = vec![Request { operation: "read".into(), age_us: 70_000_000, ..Request::default() }];
        Look { process: ONE, told: parse(text), live: Ok(Live { requests, more: 3, latencies }) }
    }

    #[test]
    fn percentiles_are_of_what_came_between_the_looks() {
        let before = with(BEFORE, &[(96, 112, 10)], 100);
        let after = with(AFTER, &[(96, 112, 13), (448, 512, 1)], 500);
        let rows = rows_of(&before, &after);
        let spread = rows[0].spread.unwrap();
        assert!((96..112).contains(&spread.p50_us), "{spread:?}");
        assert_eq!((spread.p99_us, spread.max_us), (500, 500));
        assert!(table(&rows, 2.0).render().contains("500 us"));
        let shape = shape(&rows, 2.0, &before, &after);
        let read = &shape["operations"][0];
        assert_eq!(read["p99_us"], 500, "{shape}");
        assert_eq!(read["per_second"], 2.0, "{shape}");
        assert_eq!(shape["under_way"][0]["age_us"], 70_000_000, "{shape}");
        assert_eq!(shape["under_way_more"], 3, "{shape}");
    }

    /// An earlier release's mount: its counts are shown as ever.
    #[test]
    fn who_tells_nothing_of_what_is_under_way_is_shown_without() {
        let silent = |text| Look { process: ONE, told: parse(text), live: Err("not there".into()) };
        let (before, after) = (silent(BEFORE), silent(AFTER));
        let rows = rows_of(&before, &after);
        assert_eq!((rows[0].answered, rows[0].spread), (4, None));
        assert!(table(&rows, 2.0).render().lines().nth(1).is_some_and(|line| line.contains('-')));
        let shape = shape(&rows, 2.0, &before, &after);
        assert!(shape["operations"][0]["p50_us"].is_null() && shape["under_way"].is_null(), "{shape}");
    }

    #[test]
    fn hits_are_of_each_cache_between_the_looks() {
        let text = |hits: u64, misses: u64| {
            let of = |what: &str, cache: &str, n: u64| {
                format!("mooseng_mount_cache_{what}_total{{cache=\"{cache}\"}} {n}\n")
            };
            [
                of("hits", "entries", hits),
                of("misses", "entries", misses),
                of("hits", "access_lists", 7),
                of("misses", "access_lists", 7),
                of("hits", "written", 0),
                of("misses", "written", misses),
            ]
            .concat()
        };
        let caches = caches(&parse(&text(10, 10)), &parse(&text(19, 11)));
        assert_eq!(caches["entries"], Asked { hits: 9, misses: 1 });
        assert_eq!(caches["access_lists"], Asked::default());
        assert_eq!(hits(&caches), "hits of caches: entries 90 % of 10");
        assert_eq!(hits(&BTreeMap::new()), "");
    }
}
