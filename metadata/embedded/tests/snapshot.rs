//! Snapshots: pinned while the state goes on, installed atomically, equal by digest.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{made_up_log, reference};
use mooseng_embedded::*;
use mooseng_store::{Read, Store, StoreError, Transaction};

fn bases(directory: &Path) -> Vec<Arc<dyn Base>> {
    vec![Arc::new(MemoryBase::new()), Arc::new(FjallBase::open(directory).unwrap())]
}

#[test]
fn pin_install_and_go_on() {
    let entries = made_up_log(3, 400);
    let directory = tempfile::tempdir().unwrap();
    for (n, source) in bases(&directory.path().join("source")).into_iter().enumerate() {
        for (m, target) in bases(&directory.path().join(format!("target{n}"))).into_iter().enumerate() {
            let leader = Embedded::open(source.clone(), Options::default()).unwrap();
            let at = leader.position().index as usize;
            leader.apply(entries[at..].iter().take(100).cloned().collect()).unwrap();
            leader.expire().unwrap();
            let at = at + 150;
            leader.apply(entries[..at].to_vec()).unwrap();
            let digest = leader.state_digest().unwrap();
            let mut pin = leader.pin().unwrap();
            assert_eq!(pin.position, leader.position());
            assert_eq!((digest, pin.position.clone()), reference(&entries[..at]));

            // The target has a state of its own, and keeps it until the end.
            let follower = Embedded::open(target.clone(), Options::default()).unwrap();
            follower.apply(entries[..60].to_vec()).unwrap();
            follower.expire().unwrap();
            let before = follower.state_digest().unwrap();
            follower.install_begin().unwrap();
            let mut went_on = at;
            let mut pages = 0;
            loop {
                let page = pin.page(100).unwrap();
                if page.is_empty() {
                    break;
                }
                pages += 1;
                follower.install_page(page).unwrap();
                if went_on < at + 40 {
                    leader.apply(vec![entries[went_on].clone()]).unwrap();
                    went_on += 1;
                    leader.expire().unwrap();
                }
            }
            assert!(pages > 5, "{pages} pages only");
            assert_eq!(follower.state_digest().unwrap(), before);
            let old = follower.begin();
            old.set_read_version(follower.applied_version());
            old.read_version_now();
            follower.install_end(pin.position.clone()).unwrap();
            assert_eq!(follower.state_digest().unwrap(), digest, "{n} to {m}");
            assert_eq!(follower.position(), pin.position);
            assert_eq!(follower.flushed_index(), pin.position.index);
            let stale = futures::executor::block_on(old.get(b"key0001", Read::Snapshot));
            assert_eq!(stale, Err(StoreError::TooOld));

            // It goes on with the log, also after it was opened anew.
            follower.apply(entries[at..went_on].to_vec()).unwrap();
            assert_eq!(follower.state_digest().unwrap(), leader.state_digest().unwrap());
            drop((follower, old));
            let again = Embedded::open(target, Options::default()).unwrap();
            assert_eq!(again.position().index as usize, at);
            again.apply(entries[at..].to_vec()).unwrap();
            assert_eq!((again.state_digest().unwrap(), again.position()), reference(&entries));
        }
    }
}

trait Now {
    fn read_version_now(&self);
}
impl<T: Transaction> Now for T {
    fn read_version_now(&self) {
        futures::executor::block_on(self.read_version()).unwrap();
    }
}

#[test]
fn unfinished_installations_leave_the_old_state() {
    let directory = tempfile::tempdir().unwrap();
    let entries = made_up_log(4, 50);
    let open =
        || Embedded::open(Arc::new(FjallBase::open(directory.path()).unwrap()), Options::default()).unwrap();
    let engine = open();
    engine.apply(entries.clone()).unwrap();
    engine.expire().unwrap();
    let expected = reference(&entries);
    for _ in 0..2 {
        engine.install_begin().unwrap();
        engine.install_page(vec![("a".into(), "b".into())]).unwrap();
    }
    let incomplete = engine.install_end(Position { index: 9, ..Position::default() });
    assert!(matches!(incomplete, Err(BaseError::Damaged { .. })), "a snapshot without its version");
    assert!(matches!(engine.install_page(vec![]), Err(BaseError::Misuse(_))));
    assert_eq!((engine.state_digest().unwrap(), engine.position()), expected);
    drop(engine);
    // A crash in the middle of an installation leaves a directory behind.
    std::fs::create_dir(directory.path().join("gen-00000002")).unwrap();
    std::fs::write(directory.path().join("gen-00000002/rubbish"), b"").unwrap();
    let engine = open();
    assert_eq!((engine.state_digest().unwrap(), engine.position()), expected);
    assert!(!directory.path().join("gen-00000002").exists());
}

#[test]
fn damaged_pointers_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(FjallBase::open(directory.path()).unwrap());
    let current = directory.path().join("CURRENT");
    for bytes in ["gen-00000009", "nonsense", ""] {
        std::fs::write(&current, bytes).unwrap();
        assert!(matches!(FjallBase::open(directory.path()), Err(BaseError::Damaged { .. })), "{bytes:?}");
    }
}

#[test]
fn replayed_entries_are_skipped_and_gaps_refused() {
    let entries = made_up_log(6, 80);
    let engine = Embedded::open(Arc::new(MemoryBase::new()), Options::default()).unwrap();
    engine.apply(entries[..50].to_vec()).unwrap();
    engine.apply(entries[..60].to_vec()).unwrap();
    engine.apply(entries[20..60].to_vec()).unwrap();
    assert_eq!((engine.state_digest().unwrap(), engine.position()), reference(&entries[..60]));
    assert!(matches!(engine.apply(entries[70..].to_vec()), Err(BaseError::Misuse(_))));
    let damaged = LogEntry { index: 61, term: 9, node: 1, payload: Payload::Batch(vec![1, 2, 3].into()) };
    assert!(matches!(engine.apply(vec![damaged]), Err(BaseError::Damaged { .. })));
}

/// A view shows one version, as often as it is read, while the state goes on.
#[tokio::test]
async fn a_view_stays_as_it_is() {
    let entries = made_up_log(5, 300);
    let directory = tempfile::tempdir().unwrap();
    for base in bases(directory.path()) {
        let embedded = Embedded::open(base, Options::default()).unwrap();
        embedded.apply(entries[..100].to_vec()).unwrap();
        embedded.expire().unwrap();
        embedded.apply(entries[100..150].to_vec()).unwrap();
        let version = embedded.applied_version();
        let mut view = embedded.view().await.unwrap();
        assert_eq!(view.version(), version);
        let mut seen = Vec::new();
        for n in 0..2 {
            let mut pairs = Vec::new();
            loop {
                let page = view.page(200).await.unwrap();
                if page.is_empty() {
                    break;
                }
                pairs.extend(page);
                if n == 0 && pairs.len() < 500 {
                    let next = embedded.position().index as usize;
                    embedded.apply(entries[next..(next + 1).min(300)].to_vec()).unwrap();
                    embedded.expire().unwrap();
                }
            }
            assert!(pairs.is_sorted_by(|a, b| a.0 < b.0));
            seen.push(pairs);
            view.rewind();
        }
        assert_eq!(seen[0], seen[1]);
        assert!(!seen[0].is_empty() && embedded.applied_version() > version);
    }
}
