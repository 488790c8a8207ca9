//! Where work runs that blocks, and the runtime that waits for it.

use std::future::Future;
use std::sync::mpsc;

use tokio::sync::oneshot;

/// Where work runs that blocks a thread: disk, mostly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// On tokio's pool of threads.
    Pool,
    /// In place: the simulation has no threads.
    Inline,
}

impl Blocking {
    /// Runs `f` and waits for it.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Blocking::Inline => f(),
            Blocking::Pool => match tokio::task::spawn_blocking(f).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is going down: whoever waits here goes with it.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}

/// A thread of one's own for work that blocks, one job after the other. A wake-up each way is all that a job costs; threads of the pool wake
/// each other besides.
#[derive(Clone, Debug)]
pub struct Lane(Option<mpsc::Sender<Job>>);

type Job = Box<dyn FnOnce() + Send>;

impl Lane {
    /// A lane whose thread has that name, and ends with the last clone. Where nothing may run elsewhere, or no thread can be made, jobs run
    /// as `blocking` says.
    pub fn new(blocking: Blocking, name: &str) -> Self {
        if blocking == Blocking::Inline {
            return Self(None);
        }
        let (jobs, waiting) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in waiting {
                job();
            }
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, name, "a thread can't be started; its work is done in between");
        }
        Self(thread.is_ok().then_some(jobs))
    }

    /// Runs `f` behind all jobs before it, and doesn't wait. Whoever calls bounds how many there are.
    pub fn post(&self, f: impl FnOnce() + Send + 'static) {
        let Some(jobs) = &self.0 else { return f() };
        let job = move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err() {
                tracing::error!("a job in the background panicked");
            }
        };
        // The thread lives as long as its lane.
        let _ = jobs.send(Box::new(job));
    }

    /// Runs `f` behind all jobs before it and waits for it. As many jobs wait as there are callers.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(jobs) = &self.0 else { return f() };
        let (answer, answered) = oneshot::channel();
        let job = move || {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            let _ = answer.send(ran);
        };
        if jobs.send(Box::new(job)).is_err() {
            return std::future::pending().await;
        }
        match answered.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // The thread lives as long as its lane.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Runs a daemon: half as many workers as processors. On a small machine each wake-up across processors costs more than what it
/// would save, and other daemons and applications want the other half. The variable TOKIO_WORKER_THREADS says otherwise.
pub fn run_daemon<T: Send + 'static>(main: impl Future<Output = T> + Send + 'static) -> std::io::Result<T> {
    let runtime = daemon_runtime()?;
    // On a worker: whatever wakes it wakes no other thread.
    runtime.block_on(async {
        match tokio::spawn(main).await {
            Ok(value) => Ok(value),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(std::io::Error::other(error)),
            },
        }
    })
}

/// The runtime of [`run_daemon`].
pub fn daemon_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads((processors / 2).max(1));
    }
    builder.enable_all().build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_does_one_job_after_the_other_and_outlives_one_that_panics() {
        for blocking in [Blocking::Pool, Blocking::Inline] {
            let lane = Lane::new(blocking, "lane");
            let (first, second) = tokio::join!(lane.run(|| std::thread::current().id()), async {
                lane.run(|| std::thread::current().id()).await
            });
            assert_eq!(first, second);
            assert_eq!(first == std::thread::current().id(), blocking == Blocking::Inline);
            let other = lane.clone();
            let panicked = tokio::spawn(async move { other.run(|| panic!("on purpose")).await }).await;
            assert!(panicked.unwrap_err().is_panic());
            assert_eq!(lane.run(|| 7).await, 7);
        }
    }
}
