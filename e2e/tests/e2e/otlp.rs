//! Traces and metrics of a real cluster, at a collector.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, wait_for};
use mooseng_otlp::collector::{Collector, Taken, number};
use tokio::runtime::Runtime;

/// What a daemon says once a minute while the collector takes nothing.
pub const TAKES_NOTHING: &str = "the OTLP collector takes nothing";

/// A collector in a runtime of its own, for tests that have none.
pub struct Collecting {
    _runtime: Runtime,
    pub collector: Collector,
}

impl Collecting {
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let collector = runtime.block_on(Collector::start(None))?;
        Ok(Self { _runtime: runtime, collector })
    }
}

/// The spans of one trace, by id.
struct Trace(BTreeMap<Vec<u8>, Taken>);

impl Trace {
    fn of<'a>(&'a self, service: &'a str, name: &'a str) -> impl Iterator<Item = &'a Taken> {
        self.0.values().filter(move |taken| taken.service == service && taken.span.name == name)
    }

    /// From a span to the root, as `service name`.
    fn line(&self, taken: &Taken) -> Vec<String> {
        let mut line = vec![format!("{} {}", taken.service, taken.span.name)];
        let mut at = taken;
        while let Some(parent) = self.0.get(&at.span.parent_span_id) {
            line.push(format!("{} {}", parent.service, parent.span.name));
            at = parent;
        }
        if !at.span.parent_span_id.is_empty() {
            line.push("nobody's".into());
        }
        line
    }

    fn shown(&self) -> String {
        let mut lines: Vec<String> = self.0.values().map(|taken| self.line(taken).join(" < ")).collect();
        lines.sort();
        lines.join("\n")
    }
}

/// All that the collector has of the traces whose root is of that name.
fn traces(collector: &Collector, root: &str) -> Vec<Trace> {
    let spans = collector.spans();
    let roots = spans.iter().filter(|t| t.span.name == root && t.span.parent_span_id.is_empty());
    let ids: BTreeSet<&Vec<u8>> = roots.map(|t| &t.span.trace_id).collect();
    ids.into_iter()
        .map(|id| spans.iter().filter(|t| t.span.trace_id == *id))
        .map(|of_it| Trace(of_it.map(|t| (t.span.span_id.clone(), t.clone())).collect()))
        .collect()
}

/// Checks that there is one whose line begins with `steps`, in this order, with others in between.
fn leads(trace: &Trace, service: &str, name: &str, steps: &[&str]) -> Result<()> {
    let fits = |taken: &Taken| {
        let line = trace.line(taken);
        let mut rest = line.iter();
        steps.iter().all(|step| rest.any(|at| at == step)) && rest.next().is_none()
    };
    ensure!(
        trace.of(service, name).any(fits),
        "no span {service} {name} below {steps:?}; there are:\n{}",
        trace.shown()
    );
    Ok(())
}

/// Checks that the trace of an operation, of that root, has everything that made new data durable: the chain of chunkservers, the master that leads and its followers.
fn is_whole(trace: &Trace, root: &str) -> Result<()> {
    let chain = ["mooseng-chunkserver ChunkAppend", "mooseng-mount ChunkAppend", root];
    leads(trace, "mooseng-chunkserver", "chunk.write", &chain)?;
    let second = [
        "mooseng-chunkserver ChunkAppend",
        "mooseng-chunkserver ChunkAppend",
        "mooseng-chunkserver ChunkAppend",
        "mooseng-mount ChunkAppend",
        root,
    ];
    leads(trace, "mooseng-chunkserver", "chunk.flush", &second)?;
    let change = ["mooseng-master FsChange", "mooseng-mount FsChange", root];
    let commit = [&["mooseng-master raft.commit", "mooseng-master commit"][..], &change].concat();
    leads(trace, "mooseng-master", "raft.log_flush", &commit)?;
    let follower = [&["mooseng-master RaftAppend", "mooseng-master RaftAppend"][..], &commit].concat();
    leads(trace, "mooseng-master", "raft.append_and_flush", &follower)?;

    let instances = |service: &str, name: &str| -> BTreeSet<String> {
        trace.of(service, name).map(|taken| taken.instance.clone()).collect()
    };
    let writers = instances("mooseng-chunkserver", "chunk.write");
    ensure!(writers.len() == 2, "a chunk has two copies; {writers:?} have written");
    let leader = instances("mooseng-master", "raft.commit");
    let followers = instances("mooseng-master", "raft.append_and_flush");
    ensure!(leader.len() == 1 && leader.is_disjoint(&followers), "{leader:?} leads {followers:?}");
    ensure!(!trace.shown().contains("nobody's"), "a parent is missing:\n{}", trace.shown());
    Ok(())
}

/// An fsync of new data is one trace.
pub fn one_trace(cluster: &DevCluster, collector: &Collector) -> Result<()> {
    let mut file = std::fs::File::create(cluster.mount().join("traced"))?;
    file.write_all(&vec![7; 2_000_000])?;
    // What was opened for it belongs to other operations.
    collector.forget_spans();
    file.sync_all()?;
    drop(file);
    wait_for("a whole trace of an fsync at the collector", Duration::from_secs(30), || {
        let traces = traces(collector, "fsync");
        let trace = traces.first().context("there is no trace with a root fsync")?;
        is_whole(trace, "mooseng-mount fsync")
    })
}

/// Bytes that went with a service's own calls to append to chunks: of a mount to the first chunkserver of the chain, and of that one to the next.
fn appended(trace: &Trace, service: &str) -> i64 {
    trace.of(service, "ChunkAppend").filter_map(|taken| number(&taken.span.attributes, "bytes")).sum()
}

/// So is each write to a file that is open with O_SYNC, which the kernel makes of a large one: what it was given goes down the whole chain within its trace.
pub fn a_large_write(cluster: &DevCluster, collector: &Collector) -> Result<()> {
    const BYTES: usize = 4 << 20;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).custom_flags(libc::O_SYNC);
    let mut file = options.open(cluster.mount().join("traced-write"))?;
    collector.forget_spans();
    file.write_all(&vec![7; BYTES])?;
    drop(file);
    wait_for("whole traces of a large write at the collector", Duration::from_secs(60), || {
        let traces = traces(collector, "write");
        traces.iter().try_for_each(|trace| is_whole(trace, "mooseng-mount write"))?;
        for service in ["mooseng-mount", "mooseng-chunkserver"] {
            let sent: i64 = traces.iter().map(|trace| appended(trace, service)).sum();
            ensure!(
                sent >= BYTES as i64,
                "{service} sent {sent} of {BYTES} bytes in {} traces",
                traces.len()
            );
        }
        println!("    {BYTES} bytes in {} traces", traces.len());
        Ok(())
    })
}

/// What a daemon shows at /metrics.
pub fn shown_at(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(text.to_owned())
}

/// Each daemon's metrics arrive under the names that its /metrics shows.
pub fn same_metrics(cluster: &DevCluster, collector: &Collector) -> Result<()> {
    let daemons = [cluster.names("master")?, cluster.names("chunkserver")?].concat();
    wait_for("metrics of all daemons at the collector", Duration::from_secs(30), || {
        let reports = collector.metrics();
        for name in &daemons {
            let (resource, metrics) = reports.get(name).with_context(|| format!("none of {name}"))?;
            ensure!(resource.get("mooseng.region").is_some_and(|r| r == "region-1"), "{resource:?}");
            let config = cluster.dir().join("etc").join(format!("{name}.toml"));
            let config: toml::Table = toml::from_str(&std::fs::read_to_string(config)?)?;
            let address = config["http_listen"].as_str().context("no http_listen")?;
            let text = shown_at(address)?;
            let family = |sample: &str| -> String {
                let of_histogram =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
                of_histogram.unwrap_or(sample).to_owned()
            };
            let shown: BTreeSet<String> = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split(['{', ' ']).next())
                .map(family)
                .collect();
            let sent: BTreeSet<String> = metrics.iter().map(|metric| metric.name.clone()).collect();
            ensure!(shown == sent, "{name} shows {shown:?} and sends {sent:?}");
        }
        let mount = reports.iter().find(|(instance, _)| instance.starts_with("client-1:"));
        let (_, (resource, metrics)) = mount.context("none of the mount")?;
        ensure!(resource.get("service.name").is_some_and(|s| s == "mooseng-mount"), "{resource:?}");
        ensure!(metrics.iter().any(|m| m.name == "mooseng_mount_operations_total"), "{metrics:?}");
        Ok(())
    })
}

/// Operations go on while the collector answers nobody.
pub fn a_collector_that_hangs(cluster: &DevCluster, collector: &Collector) -> Result<()> {
    collector.hang(true);
    let outcome = operations_end(cluster, collector);
    collector.hang(false);
    outcome?;
    collector.forget_spans();
    std::fs::write(cluster.mount().join("traced"), "again")?;
    wait_for("spans at the collector again", Duration::from_secs(60), || {
        ensure!(!collector.spans().is_empty(), "there are none");
        Ok(())
    })
}

fn operations_end(cluster: &DevCluster, collector: &Collector) -> Result<()> {
    let write = |n: usize| -> Result<()> {
        let path = cluster.mount().join(format!("hung-{}", n % 10));
        let mut file =
            std::fs::OpenOptions::new().create(true).write(true).custom_flags(libc::O_SYNC).open(path)?;
        Ok(file.write_all(&vec![n as u8; 100_000])?)
    };
    let mut n = 0;
    wait_for("all seven daemons' requests to hang", Duration::from_secs(60), || {
        n += 1;
        write(n).context("an operation failed")?;
        ensure!(collector.hung() >= 7, "{} of them hang", collector.hung());
        Ok(())
    })?;
    // They hang still; each of these ends all the same.
    for n in 0..100 {
        write(n)?;
    }
    println!("    {} operations ended while {} requests hung", n + 100, collector.hung());
    Ok(())
}

/// What can't work is refused before anything starts, in a sentence that names the setting.
pub fn bad_settings(cluster: &DevCluster) -> Result<()> {
    let scratch = cluster.scratch().join("otlp");
    std::fs::create_dir_all(&scratch)?;
    let refused = |name: &str, from: &str, to: &str, word: &str| -> Result<()> {
        let text = std::fs::read_to_string(cluster.dir().join("etc").join(name))?;
        ensure!(text.contains(from), "{name} has no {from}");
        let path = scratch.join(name);
        std::fs::write(&path, text.replacen(from, to, 1))?;
        let output = run(cluster, name, &path)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(word), "{name}, {to}: {output:?}");
        Ok(())
    };
    for name in ["master-1.toml", "chunkserver-1.toml", "client-1.toml"] {
        refused(name, "sample = 1.0", "sample = 1.5", "`otlp.sample`")?;
        refused(name, "endpoint = \"http:", "endpoint = \"ftp:", "`otlp.endpoint`")?;
        refused(name, "endpoint = \"http:", "endpoint = \"https:", "`otlp.ca`")?;
        refused(name, "sample = 1.0", "sampel = 1.0", "Did you mean `sample`?")?;
    }
    Ok(())
}

fn run(cluster: &DevCluster, name: &str, config: &Path) -> Result<std::process::Output> {
    let mut command = match name.split('-').next() {
        Some("client") => {
            let mut mount = cluster.mooseng(&["mount", "--config"]);
            mount.arg(config).arg(cluster.scratch());
            mount
        }
        role => {
            let binary = mooseng_e2e::cluster::binary(&format!("mooseng-{}", role.unwrap_or_default()))?;
            let mut check = Command::new(binary);
            check.arg("--check-config").arg("--config").arg(config);
            check
        }
    };
    Ok(command.output()?)
}
