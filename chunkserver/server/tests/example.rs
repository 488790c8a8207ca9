//! The example in `packaging/examples` has every setting, with its default.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use mooseng_chunkserver::ChunkserverConfig;
use toml::{Table, Value};

const EXAMPLE: &str = include_str!("../../../packaging/examples/chunkserver.toml");

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
    let config = ChunkserverConfig::parse(&whole()).unwrap();
    let mut printed: Table = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
    printed.remove("dev");
    assert_eq!(missing(&printed, &example, ""), Vec::<String>::new());
    // What isn't given isn't printed: serde names all that there is.
    let unknown = ChunkserverConfig::parse("no_such_setting = 1").unwrap_err().to_string();
    let known: Vec<&str> =
        unknown.split('`').skip(1).step_by(2).filter(|word| *word != "no_such_setting").collect();
    assert!(known.len() > 15, "{unknown}");
    let lacking: Vec<&&str> =
        known.iter().filter(|word| **word != "dev" && !example.contains_key(**word)).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
}

#[test]
fn what_the_example_says_of_defaults_is_so() {
    let given = ChunkserverConfig::parse(EXAMPLE).unwrap();
    let least = "name = \"a\"\nregion = \"a\"\ncluster = \"a\"\nlisten = \"127.0.0.1:1\"\ndata_dirs = [\"/b\"]\nstate_dir = \"/a\"\nmasters = [\"127.0.0.1:2\"]\n";
    let default = ChunkserverConfig::parse(least).unwrap();
    // Everything but what the example has to give, or gives for a machine.
    let like_it = ChunkserverConfig {
        name: given.name.clone(),
        region: given.region.clone(),
        cluster: given.cluster.clone(),
        listen: given.listen.clone(),
        advertise: given.advertise.clone(),
        data_dirs: given.data_dirs.clone(),
        state_dir: given.state_dir.clone(),
        masters: given.masters.clone(),
        zone: given.zone.clone(),
        rack: given.rack.clone(),
        tls: given.tls.clone(),
        labels: given.labels.clone(),
        ..default
    };
    assert_eq!(given, like_it);
}
