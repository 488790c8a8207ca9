//! Where work runs that blocks, and the runtime that waits for it.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

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
pub struct Lane {
    jobs: Option<mpsc::Sender<Job>>,
    pace: Arc<Mutex<Pace>>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Work that takes longer than this belongs on a thread of its own.
const QUICK: Duration = Duration::from_millis(5);
/// So many slow ones in a row are no accident.
const SLOW_MAX: u32 = 2;
/// How long it isn't tried again then whether work is quick.
const SLOW_FOR: Duration = Duration::from_secs(1);

/// How long work takes, as seen lately.
#[derive(Debug, Default)]
struct Pace {
    /// Jobs that are with the thread.
    waiting: usize,
    slow: u32,
    slow_until: Option<Instant>,
}

impl Pace {
    /// Whether work may be done in place: nothing is before it, and it was quick lately.
    fn is_quick(&self, now: Instant) -> bool {
        self.waiting == 0 && self.slow_until.is_none_or(|until| until <= now)
    }

    fn took(&mut self, took: Duration, now: Instant) {
        self.slow = if took > QUICK { self.slow + 1 } else { 0 };
        self.slow_until = (self.slow >= SLOW_MAX).then(|| now + SLOW_FOR);
    }
}

impl Lane {
    /// A lane whose thread has that name, and ends with the last clone. Where nothing may run elsewhere, or no thread can be made, jobs run
    /// as `blocking` says.
    pub fn new(blocking: Blocking, name: &str) -> Self {
        if blocking == Blocking::Inline {
            return Self { jobs: None, pace: Arc::default() };
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
        Self { jobs: thread.is_ok().then_some(jobs), pace: Arc::default() }
    }

    /// Runs `f` behind all jobs before it, and doesn't wait. Whoever calls bounds how many there are.
    pub fn post(&self, f: impl FnOnce() + Send + 'static) {
        let Some(jobs) = &self.jobs else { return f() };
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
        let Some(jobs) = &self.jobs else { return f() };
        let (answer, answered) = oneshot::channel();
        self.pace().waiting += 1;
        let own = self.pace.clone();
        let job = move || {
            let began = Instant::now();
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            {
                let mut pace = own.lock().unwrap_or_else(PoisonError::into_inner);
                pace.waiting -= 1;
                pace.took(began.elapsed(), Instant::now());
            }
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

impl Lane {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Like [`run`](Self::run), on the caller's own thread as long as such work is quick: two wake-ups cost more than it does. Once it was slow twice in a
    /// row, it is done elsewhere for a while. Work that hangs holds up the caller's thread once.
    pub async fn run_quick<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        if !self.pace().is_quick(Instant::now()) {
            return self.run(f).await;
        }
        let began = Instant::now();
        let value = f();
        self.pace().took(began.elapsed(), Instant::now());
        value
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

    #[test]
    fn work_is_slow_once_it_was_so_twice_in_a_row() {
        let (now, slow) = (Instant::now(), QUICK * 2);
        let mut pace = Pace::default();
        for took in [slow, QUICK, slow] {
            pace.took(took, now);
            assert!(pace.is_quick(now));
        }
        pace.took(slow, now);
        assert!(!pace.is_quick(now) && !pace.is_quick(now + SLOW_FOR / 2));
        assert!(pace.is_quick(now + SLOW_FOR));
        pace.waiting = 1;
        assert!(!pace.is_quick(now + SLOW_FOR));
    }

    #[tokio::test]
    async fn quick_work_stays_on_its_thread_and_overtakes_nothing() {
        let lane = Lane::new(Blocking::Pool, "lane");
        let (here, quick) = (std::thread::current().id(), || std::thread::current().id());
        assert_eq!(lane.run_quick(quick).await, here);
        let (first, second) = tokio::join!(lane.run(quick), lane.run_quick(quick));
        assert!(first == second && first != here);
        lane.pace().slow_until = Some(Instant::now() + Duration::from_secs(60));
        assert_ne!(lane.run_quick(quick).await, here);
    }
}
