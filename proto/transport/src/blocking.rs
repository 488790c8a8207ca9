//! Where work runs that blocks.

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
