//! Tasks that a master does its work by. One that panics ends the master: without it the others would go on as if all was well - hold a lease and free nothing, be the
//! leader and repair nothing - where another master would do all of it.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The tasks of a master.
#[derive(Debug)]
pub struct Kept {
    tasks: JoinSet<()>,
    broken: watch::Sender<Option<&'static str>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), broken: watch::Sender::new(None) }
    }
}

impl Kept {
    /// Runs one. `what` it does is told where it panics.
    pub fn spawn(&mut self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let broken = self.broken.clone();
        self.tasks.spawn(async move {
            // Nothing of it is looked at afterwards: the process ends.
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(what, "a task of the master panicked");
                broken.send_if_modified(|first| first.is_none() && first.replace(what).is_none());
            }
        });
    }

    /// Waits until one has panicked, and says what it did.
    pub async fn broken(&self) -> &'static str {
        let mut broken = self.broken.subscribe();
        let found = broken.wait_for(Option::is_some).await.ok().and_then(|what| *what);
        match found {
            Some(what) => what,
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended, which have been told so.
    pub async fn stopped(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_one_that_panics_is_told() {
        let mut kept = Kept::default();
        kept.spawn("one thing", std::future::ready(()));
        kept.spawn("another thing", async {
            tokio::task::yield_now().await;
            panic!("on purpose");
        });
        assert_eq!(kept.broken().await, "another thing");
        kept.stopped().await;
        assert_eq!(kept.broken().await, "another thing");
    }
}
