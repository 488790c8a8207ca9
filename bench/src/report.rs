//! The result: values, ratios, gates; as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::flushes::Flushes;
use crate::memory::Memory;
use crate::metric::{METRICS, Metric};
use crate::scenario::Sizes;
use crate::target::Kind;

/// The JSON's form; counted up when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of this form.
    pub version: u32,
    /// Where it ran.
    pub host: Host,
    /// How much was done.
    pub sizes: Sizes,
    /// By measure.
    pub metrics: Vec<Line>,
    /// Flushes during overwrites, if they were counted.
    pub flushes: Option<Vec<Flushes>>,
    /// Why they weren't counted although they were to be.
    pub flushes_uncounted: Option<String>,
    /// Memory of the daemons, if it was measured.
    pub memory: Option<Memory>,
}

/// The machine.
#[derive(Debug, Serialize)]
pub struct Host {
    /// Seconds since the epoch when it began.
    pub began: u64,
    /// How long it took, in seconds.
    pub took_seconds: u64,
    /// debug or release.
    pub build: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Processors.
    pub processors: usize,
    /// The directory's filesystem, as in the table of mounts.
    pub filesystem: String,
    /// The load (of one minute) before anything was started: what else the machine did.
    pub load_before: f64,
}

/// A measure's values.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Which.
    #[serde(flatten)]
    pub metric: Metric,
    /// Of each round.
    pub rounds: BTreeMap<Kind, Vec<f64>>,
    /// Median over rounds.
    pub median: BTreeMap<Kind, f64>,
    /// MooseNG against the passthrough, above 1 is better: the median of the rounds' ratios.
    pub to_passthrough: Option<f64>,
    /// MooseNG against the bare directory, likewise.
    pub to_bare: Option<f64>,
    /// Whether the gate is reached, where there is one.
    pub passed: Option<bool>,
}

impl Line {
    fn new(metric: Metric, rounds: BTreeMap<Kind, Vec<f64>>) -> Self {
        let ratio = |to: Kind| {
            let pairs = rounds.get(&Kind::MooseNG)?.iter().zip(rounds.get(&to)?);
            median(&pairs.map(|(ours, theirs)| metric.unit.ratio(*ours, *theirs)).collect::<Vec<_>>())
        };
        let to_passthrough = ratio(Kind::Passthrough);
        Self {
            to_passthrough,
            to_bare: ratio(Kind::Bare),
            passed: metric.gate.map(|gate| to_passthrough.is_some_and(|ratio| ratio >= gate)),
            median: rounds.iter().filter_map(|(kind, values)| Some((*kind, median(values)?))).collect(),
            metric,
            rounds,
        }
    }
}

/// The values of each measure on each target, round by round.
#[derive(Debug, Default)]
pub struct Values(BTreeMap<&'static str, BTreeMap<Kind, Vec<f64>>>);

impl Values {
    /// Adds one.
    pub fn add(&mut self, metric: &'static str, kind: Kind, value: f64) {
        self.0.entry(metric).or_default().entry(kind).or_default().push(value);
    }

    /// In the report's order.
    pub fn lines(mut self) -> Vec<Line> {
        METRICS.iter().filter_map(|m| Some(Line::new(*m, self.0.remove(m.name)?))).collect()
    }
}

impl Report {
    /// Names of measures that miss their gates.
    pub fn failed(&self) -> Vec<&'static str> {
        self.metrics.iter().filter(|l| l.passed == Some(false)).map(|l| l.metric.name).collect()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut row = |cells: [&str; 9]| {
            let [name, unit, bare, pass, ours, ratio, to_bare, goal, gate] = cells;
            let line = format!(
                "{name:<16} {unit:<9} {bare:>9} {pass:>11} {ours:>9} {ratio:>8} {to_bare:>8} {goal:>5} {gate:>10}"
            );
            let _ = writeln!(out, "{}", line.trim_end());
        };
        row(["MEASURE", "UNIT", "BARE", "PASSTHROUGH", "MOOSENG", "/PASSTHR", "/BARE", "GOAL", "GATE"]);
        for line in &self.metrics {
            let value = |kind| line.median.get(&kind).map(|v| figure(*v)).unwrap_or_else(|| "-".into());
            let ratio = |r: Option<f64>| r.map(|r| format!("{r:.2}")).unwrap_or_else(|| "-".into());
            let gate = match (line.metric.gate, line.passed) {
                (Some(gate), Some(true)) => format!("{gate:.2} pass"),
                (Some(gate), _) => format!("{gate:.2} FAIL"),
                (None, _) => String::new(),
            };
            row([
                line.metric.name,
                line.metric.unit.name(),
                &value(Kind::Bare),
                &value(Kind::Passthrough),
                &value(Kind::MooseNG),
                &ratio(line.to_passthrough),
                &ratio(line.to_bare),
                &line.metric.goal.map(|g| format!("{g:.2}")).unwrap_or_default(),
                &gate,
            ]);
        }
        let host = &self.host;
        let _ = writeln!(
            out,
            "\nRatios are above 1 where MooseNG is better. {} build, up to {} rounds in {} s, {} processors, {}, load before {:.1}.",
            host.build,
            self.sizes.rounds,
            host.took_seconds,
            host.processors,
            host.filesystem,
            host.load_before
        );
        for flushes in self.flushes.iter().flatten() {
            let _ = writeln!(out, "{flushes}");
        }
        if let Some(why) = &self.flushes_uncounted {
            let _ = writeln!(out, "FLUSHES WERE NOT COUNTED: {why}");
        }
        if let Some(memory) = &self.memory {
            let _ = write!(out, "{memory}");
        }
        out
    }
}

/// Three significant digits or whole numbers.
fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (upper, lower) = (sorted.get(sorted.len() / 2)?, sorted.get((sorted.len().checked_sub(1)?) / 2)?);
    Some((upper + lower) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut values = Values::default();
        for (kind, rounds) in [
            (Kind::Bare, [900.0, 1000.0, 1100.0]),
            (Kind::Passthrough, [400.0, 200.0, 100.0]),
            // Round by round 0.25, 0.75, 0.5; of the medians it would be 0.5, too, but of the first alone not.
            (Kind::MooseNG, [100.0, 150.0, 50.0]),
        ] {
            for value in rounds {
                values.add("overwrite-1", kind, value);
            }
        }
        values.add("untar", Kind::Passthrough, 1.0);
        values.add("untar", Kind::MooseNG, 10.0);
        Report {
            version: VERSION,
            host: Host {
                began: 0,
                took_seconds: 1,
                build: "debug",
                kernel: "6".into(),
                processors: 2,
                filesystem: "ext4".into(),
                load_before: 0.0,
            },
            sizes: Sizes::QUICK,
            metrics: values.lines(),
            flushes: None,
            flushes_uncounted: Some("there is no strace".into()),
            memory: None,
        }
    }

    #[test]
    fn ratios_are_those_of_the_rounds_and_gates_of_the_ratios() {
        let report = report();
        assert_eq!(report.metrics[0].to_passthrough, Some(0.5));
        assert_eq!(report.metrics[0].passed, Some(true));
        // Seconds: ten times as long is a tenth as good.
        assert_eq!(report.metrics[1].to_passthrough, Some(0.1));
        assert_eq!(report.failed(), ["untar"]);
        let table = report.table();
        assert!(table.contains("0.40 pass") && table.contains("0.15 FAIL"), "{table}");
        assert!(table.contains("NOT COUNTED: there is no strace"), "{table}");
    }

    #[test]
    fn json_has_a_version_and_names() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["metrics"][0]["name"], "overwrite-1");
        assert_eq!(json["metrics"][0]["median"]["mooseng"], 100.0);
        assert_eq!(json["metrics"][1]["passed"], false);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
    }
}
