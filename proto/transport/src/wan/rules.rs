//! The rules: a small TOML file, looked at again whenever it changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mooseng_wire::is_identity_word;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Changed rules count from so long after the file was changed: by then every process of the host has seen them, and all go over at one moment, as
/// when a link is cut.
const COUNTS_AFTER: Duration = Duration::from_millis(300);
/// The longest round trip: past it nothing would work.
const ROUND_TRIP_MS_MAX: u64 = 10_000;

/// What lies between regions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WanRules {
    /// Round trip between regions that no pair is about, in milliseconds.
    #[serde(default)]
    pub default_round_trip_ms: u64,
    /// What is particular about two regions.
    #[serde(default, rename = "pair", skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<Pair>,
}

/// Two regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// One region.
    pub a: String,
    /// The other.
    pub b: String,
    /// Their round trip, in milliseconds; the default one where it isn't given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<u64>,
    /// What doesn't arrive.
    #[serde(default)]
    pub cut: Cut,
}

/// What doesn't arrive between two regions, whoever of them made the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// All arrives.
    #[default]
    None,
    /// Nothing arrives.
    Both,
    /// What a sends doesn't reach b.
    AToB,
    /// What b sends doesn't reach a.
    BToA,
}

impl Cut {
    /// What neither lets through.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, cut) | (cut, Self::None) => cut,
            (cut, other) if cut == other => cut,
            _ => Self::Both,
        }
    }
}

/// One direction between two regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// How long bytes take.
    pub(super) delay: Duration,
    /// They don't arrive.
    pub(super) cut: bool,
}

impl WanRules {
    /// Reads and checks rules.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rules: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        rules.check()?;
        Ok(rules)
    }

    /// Refuses what can't work, in words.
    pub fn check(&self) -> Result<(), String> {
        let times = self.pairs.iter().filter_map(|p| p.round_trip_ms).chain([self.default_round_trip_ms]);
        if let Some(ms) = times.max().filter(|ms| *ms > ROUND_TRIP_MS_MAX) {
            return Err(format!("a round trip of {ms} ms is too long: {ROUND_TRIP_MS_MAX} at most"));
        }
        for (n, pair) in self.pairs.iter().enumerate() {
            if let Some(word) = [&pair.a, &pair.b].into_iter().find(|w| !is_identity_word(w)) {
                return Err(format!("{word:?} isn't a region's name"));
            }
            if pair.a == pair.b {
                return Err(format!("a pair names {:?} twice", pair.a));
            }
            if self.pairs[..n].iter().any(|other| other.is_of(&pair.a, &pair.b)) {
                return Err(format!("two pairs are about {} and {}", pair.a, pair.b));
            }
        }
        Ok(())
    }

    /// Reads them from a file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{} can't be read: {e}", path.display()))?;
        Self::parse(&text).map_err(|e| format!("{} is of no use: {e}", path.display()))
    }

    /// The pair of two regions, made if there is none.
    pub fn pair_mut(&mut self, a: &str, b: &str) -> &mut Pair {
        let at = self.pairs.iter().position(|pair| pair.is_of(a, b)).unwrap_or_else(|| {
            self.pairs.push(Pair { a: a.to_owned(), b: b.to_owned(), round_trip_ms: None, cut: Cut::None });
            self.pairs.len() - 1
        });
        &mut self.pairs[at]
    }

    fn pair(&self, a: &str, b: &str) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.is_of(a, b))
    }

    /// How long there and back takes.
    pub(super) fn round_trip(&self, a: &str, b: &str) -> Duration {
        let own = self.pair(a, b).and_then(|pair| pair.round_trip_ms);
        Duration::from_millis(own.unwrap_or(self.default_round_trip_ms))
    }

    /// The way of bytes from one region to another.
    pub(super) fn way(&self, from: &str, to: &str) -> Way {
        let cut = self.pair(from, to).is_some_and(|pair| match pair.cut {
            Cut::None => false,
            Cut::Both => true,
            Cut::AToB => pair.a == from,
            Cut::BToA => pair.b == from,
        });
        Way { delay: self.round_trip(from, to) / 2, cut }
    }

    /// Whether anything is cut between two regions: then none makes a connection to the other.
    pub(super) fn is_cut(&self, a: &str, b: &str) -> bool {
        self.pair(a, b).is_some_and(|pair| pair.cut != Cut::None)
    }
}

impl Pair {
    /// Whether it is about these two, in whatever order.
    pub fn is_of(&self, a: &str, b: &str) -> bool {
        (self.a == a && self.b == b) || (self.a == b && self.b == a)
    }
}

type Stamp = Option<(SystemTime, u64, u64)>;

/// Tells whether the file changed.
fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len(), found.ino()))
}

/// How long it is until the file that has this stamp counts.
fn until_it_counts(stamp: Stamp) -> Duration {
    let age = stamp.and_then(|(changed, ..)| SystemTime::now().duration_since(changed).ok());
    COUNTS_AFTER.saturating_sub(age.unwrap_or_default())
}

/// Reads the file, and again whenever it changes, until nobody asks any more. Rules of no use are logged, and those before stay in force.
pub(super) fn watch(path: PathBuf) -> Result<watch::Receiver<Arc<WanRules>>, String> {
    // Looked at before it is read: a change in between is seen as one.
    let mut seen = stamp(&path);
    let (sender, receiver) = watch::channel(Arc::new(WanRules::read(&path)?));
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = stamp(&path);
            if now == seen {
                continue;
            }
            seen = now;
            match WanRules::read(&path) {
                Ok(rules) => {
                    tokio::time::sleep(until_it_counts(seen)).await;
                    tracing::info!(path = %path.display(), ?rules, "took up changed rules between regions");
                    sender.send_replace(Arc::new(rules));
                }
                Err(reason) => {
                    tracing::warn!(
                        reason,
                        "changed rules between regions are of no use; the old ones stay in force"
                    );
                }
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_follows_from_the_pair() {
        let text = r#"
            default_round_trip_ms = 60
            [[pair]]
            a = "eu"
            b = "us"
            round_trip_ms = 100
            cut = "a-to-b"
        "#;
        let mut rules = WanRules::parse(text).unwrap();
        let way = |ms, cut| Way { delay: Duration::from_millis(ms), cut };
        assert_eq!(rules.way("eu", "us"), way(50, true));
        assert_eq!(rules.way("us", "eu"), way(50, false));
        assert_eq!(rules.way("us", "asia"), way(30, false));
        assert!(rules.is_cut("us", "eu") && !rules.is_cut("eu", "asia"));
        rules.pair_mut("us", "eu").cut = Cut::BToA;
        assert_eq!((rules.way("eu", "us").cut, rules.way("us", "eu").cut), (false, true));
        rules.pair_mut("us", "asia").cut = Cut::Both;
        assert!(rules.way("asia", "us").cut && rules.way("us", "asia").cut);
        assert_eq!(WanRules::parse(&toml::to_string(&rules).unwrap()).unwrap(), rules);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let pair = "[[pair]]\na = \"x\"\nb = \"y\"\n";
        for (text, word) in [
            ("default_round_trip_ms = 10001".to_owned(), "too long"),
            (pair.replace("\"y\"", "\"x\""), "twice"),
            (pair.replace("\"y\"", "\"a b\""), "region's name"),
            (format!("{pair}{}", "[[pair]]\na = \"y\"\nb = \"x\"\n"), "two pairs"),
            (format!("{pair}cut = \"sometimes\""), "sometimes"),
            (format!("{pair}cutt = \"none\""), "cutt"),
        ] {
            let error = WanRules::parse(&text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_taken_up_and_nonsense_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wan.toml");
        assert!(watch(path.clone()).unwrap_err().contains("can't be read"));
        std::fs::write(&path, "default_round_trip_ms = 60").unwrap();
        let mut rules = watch(path.clone()).unwrap();
        assert_eq!(rules.borrow_and_update().default_round_trip_ms, 60);
        std::fs::write(&path, "nonsense").unwrap();
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert_eq!(rules.borrow().default_round_trip_ms, 60);
        std::fs::write(&path, "default_round_trip_ms = 5").unwrap();
        rules.changed().await.unwrap();
        assert_eq!(rules.borrow().default_round_trip_ms, 5);
    }
}
