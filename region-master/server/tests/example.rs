//! The example in `packaging/examples` has every setting, with its default.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use mooseng_master::{GlobalRaftConfig, HouseConfig, MasterConfig, RaftConfig};
use toml::{Table, Value};

const EXAMPLE: &str = include_str!("../../../packaging/examples/master.toml");

/// The example with what it has as comments, too: a setting begins right behind the #, words behind a space.
fn whole() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
        _ => line,
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Settings that are printed and not in the example.
fn missing(printed: &Table, example: &Table, path: &str) -> Vec<String> {
    let of = |(key, value): (&String, &Value)| {
        let path = format!("{path}{key}");
        match (value, example.get(key)) {
            (_, None) => vec![path],
            (Value::Table(printed), Some(Value::Table(example))) => {
                missing(printed, example, &format!("{path}."))
            }
            (Value::Array(printed), Some(Value::Array(example))) => {
                match (printed.first(), example.first()) {
                    (Some(Value::Table(printed)), Some(Value::Table(example))) => {
                        missing(printed, example, &format!("{path}."))
                    }
                    _ => vec![],
                }
            }
            _ => vec![],
        }
    };
    printed.iter().flat_map(of).collect()
}

#[test]
fn the_example_has_every_setting() {
    let example: Table = toml::from_str(&whole()).unwrap();
    let config = MasterConfig::parse(&whole()).unwrap();
    let mut printed: Table = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
    printed.remove("dev");
    assert_eq!(missing(&printed, &example, ""), Vec::<String>::new());
    // What isn't given isn't printed: serde names all that there is.
    let unknown = MasterConfig::parse("no_such_setting = 1").unwrap_err().to_string();
    let known: Vec<&str> =
        unknown.split('`').skip(1).step_by(2).filter(|word| *word != "no_such_setting").collect();
    assert!(known.len() > 15, "{unknown}");
    let lacking: Vec<&&str> =
        known.iter().filter(|word| **word != "dev" && !example.contains_key(**word)).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
}

#[test]
fn what_the_example_says_of_defaults_is_so() {
    let given = MasterConfig::parse(EXAMPLE).unwrap();
    let least = "name = \"a\"\nid = 1\nregion = \"a\"\ncluster = \"a\"\nlisten = \"127.0.0.1:1\"\nstate_dir = \"/a\"\n";
    let default = MasterConfig::parse(least).unwrap();
    let plain = |config: &MasterConfig| {
        let sizes = (config.copies, config.min_copies, config.session_lease_ms, config.reserve_bytes);
        (sizes, config.log.clone(), config.http_listen.clone())
    };
    assert_eq!(plain(&given), plain(&default));
    assert_eq!((given.house, given.raft), (HouseConfig::default(), RaftConfig::default()));
    let global = MasterConfig::parse(&whole()).unwrap().global.unwrap();
    assert_eq!((global.raft, global.lease_ms), (GlobalRaftConfig::default(), 10_000));
}
