//! Jobs, and the processes that do them.
//!
//! Each job runs in a process of its own (`mooseng-bench worker`), as programs do: threads of one process would share a table of
//! descriptors. All of a measurement prepare, say so, and start on one word.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// The size of a small read or overwrite.
pub const SMALL: usize = 4096;
/// The size of a sequential read or write.
pub const LARGE: usize = 1 << 20;
/// The size of a file of a client as dbench has them.
const CLIENT_FILE: usize = 64 << 10;
/// Of so many of a client's files one is flushed.
const CLIENT_FLUSHES_ONE_OF: u64 = 4;

/// What a process does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    /// Writes a new file and flushes it.
    Write {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Reads a file from start to end.
    Read {
        /// The file.
        path: PathBuf,
    },
    /// Reads 4 KiB here and there.
    RandomRead {
        /// The file.
        path: PathBuf,
        /// How often.
        limit: Limit,
    },
    /// Overwrites 4 KiB here and there, each followed by fsync.
    Overwrite {
        /// The file.
        path: PathBuf,
        /// How often.
        limit: Limit,
        /// Whether each one's times are wanted.
        record: bool,
    },
    /// Creates empty files `dir/fN` and closes them.
    Create {
        /// Where.
        dir: PathBuf,
        /// How many.
        limit: Limit,
    },
    /// lstat(2) of all entries of directories. The names are made up, not read: `dir/fN`.
    Stat {
        /// Where.
        dirs: Vec<PathBuf>,
        /// Names in each.
        files: u64,
        /// How many in all.
        limit: Limit,
    },
    /// Lists directories.
    List {
        /// Which.
        dirs: Vec<PathBuf>,
    },
    /// Renames `dir/fN` to `dir/gN`.
    Rename {
        /// Where.
        dir: PathBuf,
        /// How many.
        limit: Limit,
    },
    /// Removes `dir/PREFIXN`.
    Unlink {
        /// Where.
        dir: PathBuf,
        /// The letter.
        prefix: char,
        /// How many.
        files: u64,
    },
    /// Reads every file below a directory.
    ReadTree {
        /// Which.
        dir: PathBuf,
    },
    /// What a client of dbench does, file after file: made, written in pieces, sometimes flushed, looked at,
    /// renamed, read back, removed.
    Client {
        /// A directory of its own.
        dir: PathBuf,
        /// How many files.
        limit: Limit,
    },
}

/// So often, but no longer than so long: what is slow is measured by fewer operations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// Operations.
    pub count: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// Operations.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// How long.
    pub seconds: f64,
    /// CPU seconds, user and system, of the process meanwhile.
    pub cpu_seconds: f64,
    /// When each recorded operation began and was acknowledged, in seconds since the epoch.
    pub recorded: Vec<(f64, f64)>,
}

/// What several did together.
#[derive(Debug)]
pub struct Total {
    /// Each one's.
    pub each: Vec<Done>,
}

impl Total {
    /// How long the longest took.
    pub fn seconds(&self) -> f64 {
        self.each.iter().map(|d| d.seconds).fold(0.0, f64::max)
    }
    /// CPU seconds of all of them.
    pub fn cpu_seconds(&self) -> f64 {
        self.each.iter().map(|d| d.cpu_seconds).sum()
    }
    /// Operations.
    pub fn count(&self) -> u64 {
        self.each.iter().map(|d| d.count).sum()
    }
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.each.iter().map(|d| d.bytes).sum()
    }
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.each.iter().map(|d| d.count as f64 / d.seconds.max(1e-9)).sum()
    }
    /// MiB per second: all bytes in the longest time.
    pub fn mib_per_second(&self) -> f64 {
        self.bytes() as f64 / f64::from(1 << 20) / self.seconds().max(1e-9)
    }
    /// The same in millions of bytes.
    pub fn mb_per_second(&self) -> f64 {
        self.bytes() as f64 / 1e6 / self.seconds().max(1e-9)
    }
}

/// Runs jobs at once, each in a process.
pub fn run(jobs: &[Job]) -> Result<Total> {
    let mut workers = jobs.iter().map(Worker::start).collect::<Result<Vec<_>>>()?;
    for worker in &mut workers {
        worker.expect_ready()?;
    }
    for worker in &mut workers {
        worker.go()?;
    }
    let each = workers.iter_mut().map(Worker::outcome).collect::<Result<_>>()?;
    crate::process::check_interrupt()?;
    Ok(Total { each })
}

struct Worker {
    job: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(job: &Job) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a worker")?;
        let (stdin, stdout) =
            (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
        let text = serde_json::to_string(job)?;
        let mut worker = Self { job: text, child, stdin, stdout: BufReader::new(stdout) };
        writeln!(worker.stdin, "{}", worker.job)?;
        Ok(worker)
    }
    fn expect_ready(&mut self) -> Result<()> {
        let line = self.line()?;
        ensure!(line == "ready", "a worker failed in {}", self.job);
        Ok(())
    }
    fn go(&mut self) -> Result<()> {
        writeln!(self.stdin, "go").with_context(|| format!("a worker died: {}", self.job))
    }
    fn outcome(&mut self) -> Result<Done> {
        let line = self.line()?;
        let done = serde_json::from_str(&line).with_context(|| format!("a worker failed in {}", self.job));
        self.child.wait()?;
        done
    }
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process's side: `mooseng-bench worker`.
pub fn serve() -> Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let job: Job = serde_json::from_str(&lines.next().context("no job")??)?;
    let work = prepare(&job).with_context(|| format!("{job:?}"))?;
    println!("ready");
    lines.next().context("not started")??;
    let me = Process { name: "worker".into(), role: "worker".into(), pid: std::process::id() as i32 };
    let used = me.cpu_seconds()?;
    let began = Instant::now();
    let mut done = work().with_context(|| format!("{job:?}"))?;
    done.seconds = began.elapsed().as_secs_f64();
    done.cpu_seconds = me.cpu_seconds()? - used;
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}

type Work<'a> = Box<dyn FnOnce() -> Result<Done> + 'a>;

/// What is done before the clock starts; answers the rest.
fn prepare(job: &Job) -> Result<Work<'_>> {
    Ok(match job {
        Job::Write { path, bytes } => {
            let data = noise(LARGE);
            Box::new(move || write(path, *bytes, &data))
        }
        Job::Read { path } => Box::new(move || read(path, &mut vec![0; LARGE])),
        Job::RandomRead { path, limit } => {
            let (file, size) = open(path)?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
            let mut block = vec![0; SMALL];
            Box::new(move || each_random(*limit, size, |offset| Ok(file.read_exact_at(&mut block, offset)?)))
        }
        Job::Overwrite { path, limit, record } => {
            let file = File::options().read(true).write(true).open(path)?;
            let size = file.metadata()?.len();
            let block = noise(SMALL);
            let mut recorded = Vec::new();
            Box::new(move || {
                let done = each_random(*limit, size, |offset| {
                    let began = now();
                    file.write_all_at(&block, offset)?;
                    file.sync_all()?;
                    if *record {
                        recorded.push((began, now()));
                    }
                    Ok(())
                })?;
                Ok(Done { recorded, ..done })
            })
        }
        Job::Create { dir, limit } => Box::new(move || {
            each(*limit, |n| {
                File::options().write(true).create_new(true).open(dir.join(format!("f{n}")))?;
                Ok(())
            })
        }),
        Job::Stat { dirs, files, limit } => Box::new(move || {
            let count = limit.count.min(dirs.len() as u64 * files);
            each(Limit { count, ..*limit }, |n| {
                let dir = &dirs[(n / files) as usize];
                std::fs::symlink_metadata(dir.join(format!("f{}", n % files)))?;
                Ok(())
            })
        }),
        Job::List { dirs } => Box::new(move || {
            let mut count = 0;
            for dir in dirs {
                for entry in std::fs::read_dir(dir)? {
                    entry?;
                    count += 1;
                }
            }
            Ok(Done { count, ..Done::default() })
        }),
        Job::Rename { dir, limit } => Box::new(move || {
            each(*limit, |n| Ok(std::fs::rename(dir.join(format!("f{n}")), dir.join(format!("g{n}")))?))
        }),
        Job::Unlink { dir, prefix, files } => Box::new(move || {
            let limit = Limit { count: *files, seconds: f64::INFINITY };
            each(limit, |n| Ok(std::fs::remove_file(dir.join(format!("{prefix}{n}")))?))
        }),
        Job::ReadTree { dir } => Box::new(move || {
            let mut done = Done::default();
            read_tree(dir, &mut vec![0; LARGE], &mut done)?;
            Ok(done)
        }),
        Job::Client { dir, limit } => {
            let data = noise(CLIENT_FILE);
            Box::new(move || client(dir, *limit, &data))
        }
    })
}

fn write(path: &Path, bytes: u64, data: &[u8]) -> Result<Done> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut left = bytes;
    while left > 0 {
        let part = left.min(data.len() as u64) as usize;
        file.write_all(&data[..part])?;
        left -= part as u64;
    }
    file.sync_all()?;
    Ok(Done { count: 1, bytes, ..Done::default() })
}

fn read(path: &Path, buffer: &mut [u8]) -> Result<Done> {
    let mut file = File::open(path)?;
    let mut bytes = 0;
    loop {
        match file.read(buffer)? {
            0 => break,
            part => bytes += part as u64,
        }
    }
    Ok(Done { count: 1, bytes, ..Done::default() })
}

fn read_tree(dir: &Path, buffer: &mut [u8], done: &mut Done) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_tree(&entry.path(), buffer, done)?;
        } else if kind.is_file() {
            let one = read(&entry.path(), buffer)?;
            done.count += 1;
            done.bytes += one.bytes;
        }
    }
    Ok(())
}

/// Bytes count as dbench counts them: those written and those read.
fn client(dir: &Path, limit: Limit, data: &[u8]) -> Result<Done> {
    let mut buffer = vec![0; SMALL];
    let mut bytes = 0;
    let done = each(limit, |n| {
        let (made, renamed) = (dir.join(format!("f{n}")), dir.join(format!("g{n}")));
        let mut file = File::options().write(true).create_new(true).open(&made)?;
        for piece in data.chunks(SMALL) {
            file.write_all(piece)?;
        }
        if n % CLIENT_FLUSHES_ONE_OF == 0 {
            file.sync_all()?;
        }
        drop(file);
        let length = std::fs::symlink_metadata(&made)?.len();
        std::fs::rename(&made, &renamed)?;
        let back = read(&renamed, &mut buffer)?.bytes;
        ensure!(length == data.len() as u64 && back == length, "{back} of {length} bytes were read");
        std::fs::remove_file(&renamed)?;
        bytes += length + back;
        Ok(())
    })?;
    Ok(Done { bytes, ..done })
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn each(limit: Limit, mut operation: impl FnMut(u64) -> Result<()>) -> Result<Done> {
    let began = Instant::now();
    let mut count = 0;
    while count < limit.count && (count == 0 || began.elapsed().as_secs_f64() < limit.seconds) {
        operation(count)?;
        count += 1;
    }
    Ok(Done { count, ..Done::default() })
}

/// The same blocks in each run and on each target.
fn each_random(limit: Limit, size: u64, mut operation: impl FnMut(u64) -> Result<()>) -> Result<Done> {
    let blocks = (size / SMALL as u64).max(1);
    let mut random = SmallRng::seed_from_u64(7);
    each(limit, |_| operation(random.random_range(0..blocks) * SMALL as u64))
}

/// Bytes that don't compress.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(11).fill(bytes.as_mut_slice());
    bytes
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn do_it(job: &Job) -> Done {
        prepare(job).unwrap()().unwrap()
    }

    #[test]
    fn jobs_do_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let few = Limit { count: 5, seconds: 9.0 };
        assert_eq!(do_it(&Job::Write { path: file.clone(), bytes: 3_000_000 }).bytes, 3_000_000);
        assert_eq!(do_it(&Job::Read { path: file.clone() }).bytes, 3_000_000);
        assert_eq!(do_it(&Job::RandomRead { path: file.clone(), limit: few }).count, 5);
        let overwritten = do_it(&Job::Overwrite { path: file.clone(), limit: few, record: true });
        assert!(overwritten.recorded.len() == 5 && overwritten.recorded.iter().all(|(a, b)| a <= b));
        assert_eq!(file.metadata().unwrap().len(), 3_000_000);
        std::fs::remove_file(&file).unwrap();
        let here = || vec![dir.path().to_owned()];
        assert_eq!(do_it(&Job::Create { dir: dir.path().into(), limit: few }).count, 5);
        assert_eq!(
            do_it(&Job::Stat { dirs: here(), files: 5, limit: Limit { count: 9, seconds: 9.0 } }).count,
            5
        );
        assert_eq!(do_it(&Job::List { dirs: here() }).count, 5);
        assert_eq!(do_it(&Job::ReadTree { dir: dir.path().into() }).count, 5);
        assert_eq!(do_it(&Job::Rename { dir: dir.path().into(), limit: few }).count, 5);
        assert_eq!(do_it(&Job::Unlink { dir: dir.path().into(), prefix: 'g', files: 5 }).count, 5);
        let client = do_it(&Job::Client { dir: dir.path().into(), limit: few });
        assert_eq!((client.count, client.bytes), (5, 5 * 2 * CLIENT_FILE as u64));
        assert_eq!(do_it(&Job::List { dirs: here() }).count, 0);
    }

    #[test]
    fn what_is_slow_is_cut_short() {
        let slow = Limit { count: 1000, seconds: 0.02 };
        let done = each(slow, |_| {
            std::thread::sleep(Duration::from_millis(10));
            Ok(())
        });
        assert!((1..10).contains(&done.unwrap().count));
    }
}
