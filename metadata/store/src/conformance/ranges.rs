//! Ranges: forwards, backwards, in pages, under limits, over many keys and versions.

use super::*;

pub(super) async fn run<H: Harness>(make: &impl AsyncFn() -> H) {
    pages(&make().await).await;
    bytes_limit(&make().await.store()).await;
    cleared_ranges(&make().await).await;
    prefixes(&make().await.store()).await;
}

/// Half of the pairs lie where old versions go, half are new, some were changed or cleared since.
async fn pages<H: Harness>(harness: &H) {
    let store = harness.store();
    let mut expected = std::collections::BTreeMap::new();
    for step in 0..3 {
        let tx = store.begin();
        for n in (0..300).filter(|n| n % (step + 1) == 0) {
            let key = format!("k{n:03}");
            if n % 7 == step {
                tx.clear(key.as_bytes());
                expected.remove(&key);
            } else {
                tx.set(key.as_bytes(), format!("{step}").as_bytes());
                expected.insert(key, format!("{step}"));
            }
        }
        tx.commit().await.unwrap();
        if step == 0 {
            harness.expire().await;
        }
    }
    let forwards: Vec<String> = expected.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let backwards: Vec<String> = forwards.iter().rev().cloned().collect();
    for pairs_max in [1, 7, 100, 1000] {
        for reverse in [false, true] {
            let tx = store.begin();
            let mut found = Vec::new();
            let mut left = range("k", "l");
            loop {
                let page =
                    tx.get_range(left.clone(), limit(pairs_max, reverse), Read::Snapshot).await.unwrap();
                assert!(page.pairs.len() <= pairs_max);
                found.extend(text(&page).split_whitespace().map(String::from));
                if !page.more {
                    break;
                }
                let last = page.pairs.last().expect("a page with more has a pair").0.clone();
                left = if reverse {
                    KeyRange { end: last, ..left }
                } else {
                    KeyRange { begin: crate::mvcc::after(&last), ..left }
                };
            }
            assert_eq!(&found, if reverse { &backwards } else { &forwards });
        }
    }
}

async fn bytes_limit<S: Store>(store: &S) {
    let tx = store.begin();
    for n in 0..20 {
        tx.set(format!("k{n:02}").as_bytes(), &[b'x'; 97]);
    }
    tx.commit().await.unwrap();
    let most = RangeLimit { pairs_max: 1000, bytes_max: 450, reverse: false };
    let page = store.begin().get_range(range("k", "l"), most, Read::Snapshot).await.unwrap();
    assert!((1..=5).contains(&page.pairs.len()) && page.more, "{} pairs", page.pairs.len());
    let least = RangeLimit { bytes_max: 1, ..most };
    let page = store.begin().get_range(range("k", "l"), least, Read::Snapshot).await.unwrap();
    assert_eq!(page.pairs.len(), 1, "one pair comes at least");
}

async fn cleared_ranges<H: Harness>(harness: &H) {
    let store = harness.store();
    for key in ["a", "b", "c", "d", "e", "f"] {
        put(&store, key, "1").await;
    }
    harness.expire().await;
    let before = store.begin();
    before.read_version().await.unwrap();
    let clear = store.begin();
    clear.clear_range(range("b", "e"));
    clear.commit().await.unwrap();
    put(&store, "c", "2").await;
    let all = async |tx: &<H::Store as Store>::Transaction, reverse| {
        text(&tx.get_range(range("", "z"), limit(100, reverse), Read::Snapshot).await.unwrap())
    };
    assert_eq!(all(&before, false).await, "a=1 b=1 c=1 d=1 e=1 f=1");
    assert_eq!(before.get(b"d", Read::Snapshot).await.unwrap().as_deref(), Some(b"1".as_slice()));
    let now = store.begin();
    assert_eq!(all(&now, false).await, "a=1 c=2 e=1 f=1");
    assert_eq!(all(&now, true).await, "f=1 e=1 c=2 a=1");
    assert_eq!(now.get(b"d", Read::Snapshot).await.unwrap(), None);
    drop((before, now));
    harness.expire().await;
    assert_eq!(all(&store.begin(), false).await, "a=1 c=2 e=1 f=1");
}

async fn prefixes<S: Store>(store: &S) {
    let tx = store.begin();
    for key in [b"p".as_slice(), b"p\x00", b"p\xfe\xff", b"p\xff", b"p\xff\xff", b"q", b"o\xff"] {
        tx.set(key, b"");
    }
    tx.commit().await.unwrap();
    let count = async |prefix: &[u8]| {
        let found =
            store.begin().get_range(crate::prefix_range(prefix), limit(100, false), Read::Snapshot).await;
        found.unwrap().pairs.len()
    };
    assert_eq!(count(b"p").await, 5);
    assert_eq!(count(b"p\xff").await, 2);
    assert_eq!(count(b"").await, 7);
}
