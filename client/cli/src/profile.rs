//! `mooseng top` and `mooseng profile`: what mounts on this machine are asked for, from the difference of two looks at their metrics.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::{Format, Profile, Top};
use crate::config::ClientFile;
use crate::dev::{namespaces, ready};
use crate::exit::{Failure, Kind};
use crate::output::{self, Table};
use crate::runtime::{self, MountRecord};

/// How long a mount may take to tell its metrics.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// What the metrics of operations begin with.
const PREFIX: &str = "mooseng_mount_operations";

/// A mount's metrics: by name, and by operation where they are counted so.
type Told = BTreeMap<(String, String), u64>;

/// What one kind of operation did between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    operation: String,
    answered: u64,
    waited: u64,
    failed: u64,
    running: u64,
    total_us: u64,
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
    let before = told(&record)?;
    std::thread::sleep(args.time);
    let after = told(&record)?;
    let seconds = began.elapsed().as_secs_f64();
    let rows = rows(&before, &after);
    match args.output.format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "path": record.path, "seconds": seconds, "operations": shape(&rows),
            "gauges": gauges(&after), "counters": counters(&before, &after),
        })),
        Format::Table => {
            output::text_line(&table(&rows, seconds).render())?;
            output::text_line(&rest(&before, &after))
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
            let rows = before.get(path).map(|then| rows(then, now)).unwrap_or_default();
            match args.output.format {
                Format::Json => mounts.push(json!({
                    "path": path, "operations": shape(&rows), "gauges": gauges(now),
                })),
                Format::Table => {
                    output::text_line(&format!("{path}   {}", rest(before.get(path).unwrap_or(now), now)))?;
                    output::text_line(&table(&rows, seconds).render())?;
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
fn all() -> BTreeMap<String, Told> {
    let records = runtime::live().into_iter();
    records.filter_map(|r| Some((r.path.display().to_string(), told(&r).ok()?))).collect()
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

/// Reads the text format, as far as mounts use it: `name value`, or `name{operation="word"} value`.
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
            }
        })
        .filter(|row| row.answered > 0 || row.running > 0)
        .collect();
    // What takes the most time comes first.
    rows.sort_by(|a, b| (b.total_us, b.answered, &a.operation).cmp(&(a.total_us, a.answered, &b.operation)));
    rows
}

fn shape(rows: &[Row]) -> Vec<serde_json::Value> {
    rows.iter()
        .map(|r| {
            json!({
                "operation": r.operation, "answered": r.answered, "waited": r.waited, "failed": r.failed,
                "running": r.running, "total_us": r.total_us, "mean_us": r.mean_us(), "known_percent": r.known_percent(),
            })
        })
        .collect()
}

fn table(rows: &[Row], seconds: f64) -> Table {
    let mut table = Table::new(["OPERATION", "A SECOND", "MEAN", "KNOWN", "FAILED", "RUNNING"]);
    for row in rows {
        table.row([
            row.operation.clone(),
            format!("{:.1}", row.answered as f64 / seconds.max(0.001)),
            if row.mean_us() < 10_000 {
                format!("{} us", row.mean_us())
            } else {
                format!("{} ms", row.mean_us() / 1000)
            },
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

    const BEFORE: &str = "# HELP x\nmooseng_mount_operations_total{operation=\"read\"} 10\n\
        mooseng_mount_operations_waited_total{operation=\"read\"} 10\nmooseng_mount_operations_us_total{operation=\"read\"} 1000\n\
        mooseng_mount_operations_total{operation=\"write\"} 5\nmooseng_mount_retries_total 3\n# EOF\n";
    const AFTER: &str = "mooseng_mount_operations_total{operation=\"read\"} 14\n\
        mooseng_mount_operations_waited_total{operation=\"read\"} 11\nmooseng_mount_operations_us_total{operation=\"read\"} 1400\n\
        mooseng_mount_operations_total{operation=\"write\"} 5\nmooseng_mount_operations_running{operation=\"read\"} 2\n\
        mooseng_mount_retries_total 4\nmooseng_mount_dirty_bytes 2048\n";

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
}
