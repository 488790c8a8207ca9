//! Whom the cluster refuses, as masters tell it: kept in the state directory, so that a chunkserver that starts without a master refuses them, too.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_transport::{Blocking, Network};
use mooseng_wire::admin::RevocationList;
use mooseng_wire::revocations::Agreed;

/// The file in the state directory.
const FILE: &str = "revocations.agreed";

/// Keeps them.
pub struct Kept {
    network: Arc<dyn Network>,
    disk: Arc<dyn Disk>,
    blocking: Blocking,
    path: PathBuf,
    /// One is taken up and written at a time: masters tell the same at the same time, and the newest must be on the disk last.
    turn: tokio::sync::Mutex<()>,
}

impl Kept {
    /// Goes by what was kept before. A file that can't be read is no reason not to serve: without a master's answer no client is let in anyway, for want of
    /// ticket keys, and with the answer comes the list.
    pub async fn load(
        network: Arc<dyn Network>,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        state_dir: PathBuf,
    ) -> Self {
        let path = state_dir.join(FILE);
        let kept = Self { network, disk, blocking, path, turn: tokio::sync::Mutex::default() };
        let (disk, path) = (kept.disk.clone(), kept.path.clone());
        let read = move || disk.open(&path, OpenMode::ReadOnly).and_then(|file| read_all(&*file));
        match kept.blocking.run(read).await {
            Ok(bytes) => match std::str::from_utf8(&bytes).map_err(|e| e.to_string()).and_then(parse) {
                Ok(agreed) => {
                    kept.network.refuse(agreed);
                }
                Err(reason) => kept.unread(&reason),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => kept.unread(&error.to_string()),
        }
        kept
    }

    fn unread(&self, reason: &str) {
        tracing::error!(
            path = %self.path.display(),
            reason,
            "The list of whom the cluster has revoked can't be read. Until a master tells it again, the other chunkservers among them are let in."
        );
    }

    /// A master told one that is newer than what it knows of this chunkserver.
    pub async fn told(&self, master: &str, list: &RevocationList) {
        let agreed = match Agreed::from_told(list) {
            Ok(agreed) => agreed,
            Err(error) => {
                tracing::warn!(master, %error, "what a master says that the cluster has revoked isn't understood");
                return;
            }
        };
        let _one = self.turn.lock().await;
        let text = agreed.to_text();
        if !self.network.refuse(agreed) {
            return;
        }
        let (disk, path) = (self.disk.clone(), self.path.clone());
        let written = self.blocking.run(move || write_atomically(&*disk, &path, text.as_bytes())).await;
        if let Err(error) = written {
            // It holds all the same, and comes again after a restart.
            tracing::warn!(%error, path = %self.path.display(), "the list of whom the cluster has revoked can't be kept");
        }
    }
}

fn parse(text: &str) -> Result<Agreed, String> {
    Agreed::parse(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use mooseng_ports::disk::sim::SimDisk;
    use mooseng_transport::{ConnectError, Connection, Listener, Protocol};
    use mooseng_wire::{Identity, Role};

    use super::*;

    /// Remembers what it was told.
    #[derive(Default)]
    struct Refusing(Mutex<Agreed>);

    #[async_trait]
    impl Network for Refusing {
        async fn connect(&self, address: &str, _: Protocol, _: Role) -> Result<Connection, ConnectError> {
            Err(ConnectError::Crowded { address: address.to_owned() })
        }
        async fn listen(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn identity(&self) -> Identity {
            Identity::parse("spiffe://c/r/chunkserver/a").unwrap()
        }
        fn refuse(&self, agreed: Agreed) -> bool {
            let mut now = self.0.lock().unwrap();
            let newer = agreed.version > now.version;
            if newer {
                *now = agreed;
            }
            newer
        }
    }

    async fn start(disk: &SimDisk) -> (Arc<Refusing>, Kept) {
        let network = Arc::new(Refusing::default());
        let kept =
            Kept::load(network.clone(), Arc::new(disk.clone()), Blocking::Inline, PathBuf::from("/state"))
                .await;
        (network, kept)
    }

    #[tokio::test]
    async fn what_was_told_is_in_force_after_a_restart_without_a_master() {
        let disk = SimDisk::default();
        disk.create_dir_all(Path::new("/state")).unwrap();
        let (network, kept) = start(&disk).await;
        assert_eq!(*network.0.lock().unwrap(), Agreed::default());
        let list = |version, what: &str| RevocationList { version, revoked: vec![what.to_owned()] };
        kept.told("m1", &list(7, "77")).await;
        // A master that lags, and one that tells what can't be.
        kept.told("m2", &list(6, "66")).await;
        kept.told("m3", &list(8, "king")).await;
        disk.crash(|_| 0);
        let (network, _) = start(&disk).await;
        assert_eq!(*network.0.lock().unwrap(), Agreed::from_told(&list(7, "77")).unwrap());
        // What can't be read is told again.
        write_atomically(&disk, Path::new("/state/revocations.agreed"), b"king").unwrap();
        let (network, kept) = start(&disk).await;
        assert_eq!(network.0.lock().unwrap().version, 0);
        kept.told("m1", &list(7, "77")).await;
        assert_eq!(start(&disk).await.0.0.lock().unwrap().version, 7);
    }
}
