//! When a mount takes changes: a file after another is made and fsynced.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::load::worker::sync_dir;

/// Before another attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What a probe has seen.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    /// When the first file was made and fsynced.
    pub first: Option<Instant>,
    /// Files whose fsync returned, with that of the directory: they must stay.
    pub made: Vec<PathBuf>,
    /// Attempts that failed.
    pub errors: Vec<String>,
}

/// A probe at work, on a thread of its own: a mount may keep an attempt waiting.
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probed>,
}

impl Probe {
    /// Begins in a directory, up to the first success.
    pub fn start(dir: &Path, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (dir, name, stopped) = (dir.to_owned(), name.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut probed = Probed::default();
            while probed.first.is_none() && !stopped.load(Ordering::SeqCst) {
                let file = format!("{name}-{}", probed.errors.len());
                match make(&dir, &file) {
                    Ok(()) => {
                        probed.first = Some(Instant::now());
                        // Mounts have different paths: the name is what they share.
                        probed.made.push(PathBuf::from(file));
                    }
                    Err(error) => {
                        probed.errors.push(format!("{error:#}"));
                        std::thread::sleep(AGAIN_AFTER);
                    }
                }
            }
            probed
        });
        Self { stop, thread }
    }

    /// Waits for its success, so long at most.
    pub fn wait(self, time: Duration) -> Result<Probed> {
        let deadline = Instant::now() + time;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stop.store(true, Ordering::SeqCst);
        if !self.thread.is_finished() {
            return Err(anyhow!(
                "no change was made within {} s: the mount keeps it waiting",
                time.as_secs()
            ));
        }
        self.thread.join().map_err(|_| anyhow!("a probe panicked"))
    }
}

fn make(dir: &Path, name: &str) -> Result<()> {
    let mut file = File::create(dir.join(name)).with_context(|| format!("making {name}"))?;
    file.write_all(name.as_bytes()).context("write")?;
    file.sync_all().context("fsync")?;
    sync_dir(dir)
}
