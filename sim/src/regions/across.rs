//! What a mount does with two volumes: it crosses into the second one, works there as it does in the root, and looks time and again whether the one leads
//! to the other still, and nothing else goes from one to the other.

use std::time::Duration;

use mooseng_client::{FsError, RenameMode, Tree};
use mooseng_wire::{InodeId, ROOT_INODE};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tracing::Instrument;

use super::clients::{Mount, with};
use super::mount::caller;
use super::volumes::{NAME, SECOND, Volume};

const AGAIN: Duration = Duration::from_millis(200);
const EXDEV: i32 = 18;

/// What a lookup of the place where the volume is joined came to.
enum Crossed {
    Into,
    /// It is a directory as others are, or nothing.
    No,
    /// Nobody knows.
    Unknown,
}

struct Across {
    tree: Tree,
    root: Mount,
    second: Volume,
}

impl Across {
    async fn cross(&self) -> Crossed {
        match self.tree.find(&caller(), ROOT_INODE.0, NAME.as_bytes()).await {
            Ok(Some(found)) if found.crossed.is_some() => {
                let (inode, root) = (found.attr.inode, InodeId::root_of(SECOND).0);
                if inode != root {
                    self.root
                        .violation(format!("/{NAME} leads to inode {inode}, and volume {SECOND} is there"));
                }
                with(&self.second.notes, |notes| notes.crossed += 1);
                Crossed::Into
            }
            Ok(_) => Crossed::No,
            Err(error) => {
                self.root.excuse("crossing into a volume", &error);
                Crossed::Unknown
            }
        }
    }

    /// Once it was crossed into it stays where it is: in a root of `region` durability as long as the epoch lasts.
    async fn cross_on(&self, here: &Mount, seed: u64, since: u64) {
        let number = u64::from(self.root.number);
        let mut rng = StdRng::seed_from_u64(seed ^ 0xac_4055 ^ (number << 48));
        while !with(&self.root.shared, |notes| notes.healed) {
            let crossed = self.cross().await;
            let may_be_lost = !self.root.geo && self.root.homes.newest() > since;
            if matches!(crossed, Crossed::No) && !may_be_lost {
                self.root
                    .violation(format!("mount {number} doesn't find volume {SECOND} at /{NAME} any more"));
            }
            if here.fs.is_gone() {
                self.root.violation(format!("mount {number} was told that there is no volume {SECOND}"));
            }
            self.nothing_goes_across(here).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
        }
    }

    async fn nothing_goes_across(&self, here: &Mount) {
        let (caller, name) = (caller(), b"across");
        for (from, to) in [(&self.root, here), (here, &self.root)] {
            let (at, into) = (from.fs.root(), to.fs.root());
            let renamed = from.fs.rename(&caller, at, b"locked", into, name, RenameMode::default()).await;
            let linked = to.fs.link(&caller, at, into, name).await.map(drop);
            for (what, done) in [("rename", renamed), ("link", linked)] {
                if done != Err(FsError::Answered(EXDEV)) {
                    self.root.violation(format!("{what} from inode {at} to inode {into} answered {done:?}"));
                }
            }
        }
    }
}

/// Works in the second volume as soon as it is there, until faults are over.
pub async fn work(tree: Tree, root: Mount, second: Volume, seed: u64) {
    let across = Across { tree: tree.clone(), root, second };
    let (fs, since) = loop {
        let since = across.root.homes.newest();
        if matches!(across.cross().await, Crossed::Into) {
            match tree.of(InodeId::root_of(SECOND).0) {
                Ok(fs) => break (fs, since),
                Err(error) => across.root.excuse("entering a volume", &error),
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    let (second, Mount { number, region, alone, appends, .. }) = (&across.second, &across.root);
    let here = Mount::new(fs, *number, region, second, *alone, *appends);
    let seed = seed ^ (u64::from(SECOND.0) << 40);
    let working = async { tokio::join!(here.clone().work(seed), across.cross_on(&here, seed, since)) };
    working.instrument(tracing::info_span!("second")).await;
}
