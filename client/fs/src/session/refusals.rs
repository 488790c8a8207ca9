//! When nobody is to be waited for: hosts that aren't let in, a region that was made anew, a volume that is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Session;
use crate::error::FsError;
use crate::peers::{Failure, Unconnected};

/// A region that nobody leads for so long, while a master says that it is of another founding, was made anew. Less might be an election beside a
/// single master that was made anew.
const MADE_ANEW_AFTER: Duration = Duration::from_secs(3);

/// Why no connection to a master is to be had with this host's certificate, however often it is tried: that has run out or is revoked, or is another
/// cluster's than the master's. None where it may be otherwise soon: the connection broke, or it is the master whose certificate has run out.
pub(super) fn of_certificate(failure: &Failure) -> Option<String> {
    match failure {
        Failure::NotSent(Unconnected::Certificate(why)) => Some(why.clone()),
        _ => None,
    }
}

impl Session {
    /// Returns once a search has ended with a master's word that it doesn't let this host in, or that of all of them on its certificate:
    /// [`FsError::Denied`], or [`FsError::NotBuilt`].
    pub async fn refused(&self) -> FsError {
        let mut confirmed = self.confirmed.subscribe();
        loop {
            if let Some(why) = self.state(|s| s.refused.clone()) {
                return why;
            }
            if confirmed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// [`Self::refused`] of a volume besides the root that never let this host in: nobody waits for that. The root's is waited for by whoever mounts.
    pub async fn shut_out(&self) -> FsError {
        if self.config.volume == 0 {
            return std::future::pending().await;
        }
        let why = self.refused().await;
        // Whoever was let in once waits as in the root.
        if self.life().0 == 0 { why } else { std::future::pending().await }
    }

    /// Returns once the region behind the session was made anew, with who says so.
    pub async fn made_anew(&self) -> String {
        let mut confirmed = self.confirmed.subscribe();
        loop {
            if let Some(why) = self.state(|s| s.made_anew.clone()) {
                return why;
            }
            if confirmed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// No leader was found, and a master is of another founding of the region.
    pub(super) fn met_another(self: &Arc<Self>, other: String) {
        let news = self.state(|s| {
            let since = *s.other_since.get_or_insert_with(Instant::now);
            if s.made_anew.is_some() || since.elapsed() < MADE_ANEW_AFTER {
                return false;
            }
            s.made_anew = Some(other.clone());
            true
        });
        if news {
            let mount = &self.config.mount_path;
            tracing::error!(
                mount,
                other,
                "The region behind this mount was made anew: its masters carry another founding mark than the region that was mounted, most likely because the masters' disks were lost. The new region's tree isn't shown here, and nothing that this mount buffers can be written there; operations answer EIO. Start the old region's masters with their old disks, and the mount goes on; or unmount, and mount the new region."
            );
            // What was promised of the old region nobody keeps any more.
            self.renounce();
            // Wakes whoever waits for a leader.
            self.publish();
        }
    }

    /// A master knows that there is no such volume any more. Numbers of volumes aren't given twice: that is so for good.
    pub fn no_volume(self: &Arc<Self>) {
        let news = self.state(|s| {
            s.seat = None;
            !std::mem::replace(&mut s.is_gone, true)
        });
        if !news {
            return;
        }
        let (volume, bytes, changes) = (self.config.volume, self.buffers.bytes(), self.journal.len());
        if bytes > 0 || changes > 0 {
            tracing::error!(
                volume,
                bytes,
                changes,
                "there is no such volume any more: what this mount had written there and not sent is gone with it"
            );
        } else {
            tracing::info!(volume, "there is no such volume any more: this mount leaves it");
        }
        self.renounce();
        self.publish();
        self.shutdown.cancel();
    }

    /// Whether a master has said so.
    pub fn is_gone(&self) -> bool {
        self.state(|s| s.is_gone)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::Role;
    use mooseng_wire::method::Method;

    use super::*;
    use crate::peers::{Answered, Peers};
    use crate::{ClientConfig, FileSystem};

    /// Masters with whom no connection is made, and why.
    struct Shut(Vec<(&'static str, Unconnected)>);

    fn expired() -> Unconnected {
        Unconnected::Certificate("the peer refused us: our certificate isn't valid now".into())
    }

    fn others() -> Unconnected {
        Unconnected::Certificate("the peer's certificate belongs to another cluster".into())
    }

    #[async_trait]
    impl Peers for Shut {
        async fn call(
            &self,
            _: Role,
            address: &str,
            _: Method,
            _: Bytes,
            _: Bytes,
            _: Duration,
        ) -> Result<Answered, Failure> {
            let why = self.0.iter().find(|(master, _)| *master == address).map(|(_, why)| why.clone());
            Err(Failure::NotSent(why.unwrap_or(Unconnected::Passing("nobody is there".into()))))
        }
    }

    /// What comes of a mount with these masters, and after how long.
    async fn connect(reasons: [Unconnected; 2]) -> (FsError, Duration) {
        let masters: Vec<_> = ["m1:1", "m2:1"].into_iter().zip(reasons).collect();
        let addresses = masters.iter().map(|(address, _)| (*address).to_owned()).collect();
        let config = ClientConfig { masters: addresses, ..ClientConfig::default() };
        let began = Instant::now();
        let clock = Arc::new(ManualClock::default());
        let made = FileSystem::connect_through(config, Arc::new(Shut(masters)), clock).await;
        (made.err().unwrap(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_let_in_by_no_master_for_its_certificate_hears_that_at_once() {
        for reasons in [[expired(), expired()], [others(), others()], [expired(), others()]] {
            let (error, took) = connect(reasons).await;
            assert!(matches!(&error, FsError::Denied(why) if why.contains("certificate")), "{error}");
            assert!(took < Duration::from_secs(2), "after {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_only_broke_is_waited_for() {
        // Whatever its words: those of the second are for people alone.
        for reason in ["Connection reset by peer (os error 104)", "the peer refused us: our certificate"] {
            let (error, _) = connect([expired(), Unconnected::Passing(reason.into())]).await;
            assert!(matches!(error, FsError::Unanswered { .. }), "{reason}: {error}");
        }
    }
}
