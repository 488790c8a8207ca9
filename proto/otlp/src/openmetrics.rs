//! The OpenMetrics text of a registry as OTLP's messages.
//!
//! prometheus-client shows a registry as text only, or as messages that want a compiler for protobuf on the build machine. The text is complete and
//! its form is a standard, so the text is read again here. Names stay as they stand there: a counter keeps its `_total`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric,
};

/// The text isn't OpenMetrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metrics can't be sent: their line {line:?} isn't OpenMetrics")]
pub struct Malformed {
    /// The line.
    pub line: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

type Labels = BTreeMap<String, String>;

struct Family {
    name: String,
    kind: Kind,
    help: String,
    unit: String,
    metrics: Vec<Metric>,
    histograms: Vec<(Labels, Buckets)>,
}

#[derive(Default)]
struct Buckets {
    /// Upper bounds, and how many values are at most that.
    below: Vec<(f64, u64)>,
    sum: Option<f64>,
    count: u64,
}

/// An attribute.
pub fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    labels.iter().map(|(key, value)| attribute(key, value)).collect()
}

fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The metrics of an OpenMetrics text. `began` is when counters were zero, `now` when they were read.
pub fn to_otlp(text: &str, began: SystemTime, now: SystemTime) -> Result<Vec<Metric>, Malformed> {
    let mut reader = Reader { family: None, metrics: Vec::new(), began: unix_ns(began), now: unix_ns(now) };
    for line in text.lines() {
        reader.line(line).ok_or_else(|| Malformed { line: line.to_owned() })?;
    }
    reader.end_family();
    Ok(reader.metrics)
}

struct Reader {
    family: Option<Family>,
    metrics: Vec<Metric>,
    began: u64,
    now: u64,
}

impl Reader {
    fn line(&mut self, line: &str) -> Option<()> {
        let Some(comment) = line.strip_prefix("# ") else { return self.sample(line) };
        let mut words = comment.splitn(3, ' ');
        match (words.next()?, words.next(), words.next()) {
            ("HELP", Some(name), help) => self.family(name).help = unescaped(help.unwrap_or_default()),
            ("UNIT", Some(name), unit) => self.family(name).unit = unit.unwrap_or_default().to_owned(),
            ("TYPE", Some(name), Some(kind)) => {
                self.family(name).kind = match kind {
                    "counter" => Kind::Counter,
                    "gauge" | "unknown" | "info" | "stateset" => Kind::Gauge,
                    "histogram" => Kind::Histogram,
                    _ => return None,
                }
            }
            ("EOF", None, None) => {}
            _ => return None,
        }
        Some(())
    }

    /// The family of that name: the one that is being read, or the next.
    fn family(&mut self, name: &str) -> &mut Family {
        if self.family.as_ref().is_none_or(|family| family.name != name) {
            self.end_family();
        }
        self.family.get_or_insert_with(|| Family {
            name: name.to_owned(),
            kind: Kind::Gauge,
            help: String::new(),
            unit: String::new(),
            metrics: Vec::new(),
            histograms: Vec::new(),
        })
    }

    fn sample(&mut self, line: &str) -> Option<()> {
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end);
        let (mut labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        // A time and an exemplar may follow.
        let value = rest.split_ascii_whitespace().next()?;
        let (began, now) = (self.began, self.now);
        let family = self.family.as_mut().filter(|family| name.starts_with(&family.name))?;
        let suffix = &name[family.name.len()..];
        match (family.kind, suffix) {
            // When a counter was made: they are all made with the process.
            (_, "_created") => {}
            (Kind::Histogram, "_bucket") => {
                let bound = number(&labels.remove("le")?)?;
                family.buckets(labels).below.push((bound, value.parse().ok()?));
            }
            (Kind::Histogram, "_sum") => family.buckets(labels).sum = Some(number(value)?),
            (Kind::Histogram, "_count") => family.buckets(labels).count = value.parse().ok()?,
            (Kind::Counter, "_total") | (Kind::Gauge, "" | "_info") => {
                let point = NumberDataPoint {
                    attributes: attributes(&labels),
                    start_time_unix_nano: if family.kind == Kind::Counter { began } else { 0 },
                    time_unix_nano: now,
                    value: Some(match value.parse() {
                        Ok(whole) => Value::AsInt(whole),
                        Err(_) => Value::AsDouble(number(value)?),
                    }),
                    ..Default::default()
                };
                family.point(name, point);
            }
            _ => return None,
        }
        Some(())
    }

    fn end_family(&mut self) {
        let Some(mut family) = self.family.take() else { return };
        let histograms = std::mem::take(&mut family.histograms);
        let points: Vec<_> = histograms
            .into_iter()
            .map(|(labels, buckets)| buckets.point(&labels, self.began, self.now))
            .collect();
        if !points.is_empty() {
            let histogram = Histogram {
                data_points: points,
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            };
            let name = family.name.clone();
            family.metrics.push(family.metric(&name, metric::Data::Histogram(histogram)));
        }
        self.metrics.append(&mut family.metrics);
    }
}

impl Family {
    fn metric(&self, name: &str, data: metric::Data) -> Metric {
        // prometheus-client ends each help with a full stop.
        let description = self.help.strip_suffix('.').unwrap_or(&self.help).to_owned();
        Metric {
            name: name.to_owned(),
            description,
            unit: self.unit.clone(),
            data: Some(data),
            ..Default::default()
        }
    }

    /// Adds a point to the metric of that name.
    fn point(&mut self, name: &str, point: NumberDataPoint) {
        if self.metrics.last().is_none_or(|metric| metric.name != name) {
            let data = match self.kind {
                Kind::Counter => metric::Data::Sum(Sum {
                    data_points: Vec::new(),
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: true,
                }),
                _ => metric::Data::Gauge(Gauge::default()),
            };
            self.metrics.push(self.metric(name, data));
        }
        match self.metrics.last_mut().and_then(|metric| metric.data.as_mut()) {
            Some(metric::Data::Sum(sum)) => sum.data_points.push(point),
            Some(metric::Data::Gauge(gauge)) => gauge.data_points.push(point),
            _ => {}
        }
    }

    fn buckets(&mut self, labels: Labels) -> &mut Buckets {
        let at = self.histograms.iter().position(|(known, _)| *known == labels);
        let at = at.unwrap_or_else(|| {
            self.histograms.push((labels, Buckets::default()));
            self.histograms.len() - 1
        });
        &mut self.histograms[at].1
    }
}

impl Buckets {
    /// OTLP counts each bucket for itself, and the last has no bound.
    fn point(self, labels: &Labels, began: u64, now: u64) -> HistogramDataPoint {
        let mut before = 0;
        let mut counts = Vec::new();
        let mut bounds = Vec::new();
        for (bound, below) in self.below.into_iter().filter(|(bound, _)| bound.is_finite()) {
            counts.push(below.saturating_sub(before));
            bounds.push(bound);
            before = below;
        }
        counts.push(self.count.saturating_sub(before));
        HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: began,
            time_unix_nano: now,
            count: self.count,
            sum: self.sum,
            bucket_counts: counts,
            explicit_bounds: bounds,
            ..Default::default()
        }
    }
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.parse().ok(),
    }
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        rest = rest.strip_prefix(',').unwrap_or(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        labels.insert(key.to_owned(), unescaped(&after[..end]));
        rest = &after[end + 1..];
    }
}

fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            (c, false) => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mooseng_transport::observe::Metrics;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as Labelled;
    use prometheus_client::metrics::gauge::Gauge as PlainGauge;
    use prometheus_client::metrics::histogram::Histogram as PlainHistogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn what_a_registry_shows_is_what_is_sent() {
        let metrics = Metrics::default();
        let calls = Labelled::<Vec<(String, String)>, Counter>::default();
        let took = PlainHistogram::new([0.1, 1.0]);
        let free = PlainGauge::<i64>::default();
        calls.get_or_create(&vec![("method".into(), "a \"b\", {c}\\\n".into())]).inc_by(3);
        calls.get_or_create(&vec![("method".into(), "x".into()), ("code".into(), "}".into())]).inc();
        free.set(-5);
        [0.05, 0.5, 0.6, 7.0].iter().for_each(|s| took.observe(*s));
        metrics.register(|registry| {
            registry.register("mooseng_calls", "Calls", calls);
            registry.register_with_unit("mooseng_took", "How long", Unit::Seconds, took);
            registry.register("mooseng_free", "Free \\ bytes", free);
            registry.register("mooseng_build", "The build", Info::new(vec![("version", "1")]));
        });
        let began = UNIX_EPOCH + Duration::from_secs(1);
        let sent = to_otlp(&metrics.encode(), began, UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        let names: Vec<_> = sent.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            names,
            ["mooseng_calls_total", "mooseng_took_seconds", "mooseng_free", "mooseng_build_info"],
            "{}",
            metrics.encode()
        );
        let [calls, took, free, build] = &sent[..] else { panic!("{sent:?}") };
        let Some(metric::Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
        let three = sum.data_points.iter().find(|p| p.value == Some(Value::AsInt(3))).unwrap();
        assert_eq!(three.attributes, [attribute("method", "a \"b\", {c}\\\n")]);
        assert_eq!((three.start_time_unix_nano, three.time_unix_nano), (1_000_000_000, 9_000_000_000));
        let one = sum.data_points.iter().find(|p| p.value == Some(Value::AsInt(1))).unwrap();
        assert_eq!(one.attributes, [attribute("code", "}"), attribute("method", "x")]);
        let Some(metric::Data::Histogram(histogram)) = &took.data else { panic!("{took:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.bucket_counts.as_slice(), point.count), (&[1, 2, 1][..], 4));
        assert_eq!(point.explicit_bounds, [0.1, 1.0]);
        assert!((point.sum.unwrap() - 8.15).abs() < 1e-9);
        assert_eq!(took.unit, "seconds");
        let Some(metric::Data::Gauge(gauge)) = &free.data else { panic!("{free:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsInt(-5)));
        let Some(metric::Data::Gauge(gauge)) = &build.data else { panic!("{build:?}") };
        assert_eq!(gauge.data_points[0].attributes, [attribute("version", "1")]);
        assert_eq!((calls.description.as_str(), build.description.as_str()), ("Calls", "The build"));
    }

    #[test]
    fn what_is_not_openmetrics_is_refused() {
        let kind = "# TYPE a counter\n";
        for bad in
            ["a_total", "a_total{", "a_total{b} 1", "a_total{b=\"c} 1", "a_total x", "b_total 1", "a_sum 1"]
        {
            let refused = to_otlp(&format!("{kind}{bad}\n# EOF\n"), UNIX_EPOCH, UNIX_EPOCH).unwrap_err();
            assert_eq!(refused.line, bad);
        }
        assert!(to_otlp("# TYPE a summary\n", UNIX_EPOCH, UNIX_EPOCH).is_err());
        let written = "# the metrics can't be written: x\n# EOF\n";
        assert!(to_otlp(written, UNIX_EPOCH, UNIX_EPOCH).is_err());
    }
}
