//! The setting `[global]`: the regions of a cluster, as its masters know them before they have agreed on anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use mooseng_global::{Founding, MasterAt, Region, voters};
use mooseng_transport::root_sha256;
use mooseng_wire::global::{JoinToken, Master};
use mooseng_wire::level::FeatureLevel;
use mooseng_wire::{is_identity_word, join};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, MasterConfig, address_is_well, wrong};

/// The cluster's regions.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct GlobalConfig {
    /// The root volume's first home: the region with data of the lowest number where it isn't given.
    #[serde(default)]
    pub root_home: Option<String>,
    /// How long a region's lease lasts without a renewal. Counts when the cluster is founded.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
    /// Raft's times in the global group.
    #[serde(default)]
    pub raft: GlobalRaftConfig,
    /// Of a region that is taken in by a cluster that there is: the token that `mooseng regions add` printed. It names the regions, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// The regions. They found the cluster; afterwards `mooseng regions list` shows what there is.
    #[serde(default)]
    pub regions: Vec<RegionConfig>,
}

/// Raft's times between regions, in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct GlobalRaftConfig {
    /// Between heartbeats; several round trips between the regions.
    pub heartbeat_ms: u64,
    /// A follower waits at least so long for its leader.
    pub election_min_ms: u64,
    /// And at most so long.
    pub election_max_ms: u64,
}

impl Default for GlobalRaftConfig {
    fn default() -> Self {
        Self { heartbeat_ms: 400, election_min_ms: 2_000, election_max_ms: 3_500 }
    }
}

/// A region.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RegionConfig {
    /// Its name.
    pub name: String,
    /// Its number, from 1; never given twice.
    pub number: u16,
    /// It has a voice and no data.
    #[serde(default)]
    pub witness: bool,
    /// Its masters.
    pub masters: Vec<RegionMasterConfig>,
}

/// A master of a region.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RegionMasterConfig {
    /// Its number in its region's group.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How others reach it.
    pub address: String,
    /// Its zone.
    #[serde(default)]
    pub zone: String,
}

fn lease_ms() -> u64 {
    10_000
}

impl GlobalConfig {
    /// The regions by name.
    pub fn regions(&self) -> BTreeMap<String, Region> {
        let master = |m: &RegionMasterConfig| MasterAt {
            id: m.id,
            name: m.name.clone(),
            address: m.address.clone(),
            zone: m.zone.clone(),
        };
        let region = |r: &RegionConfig| {
            let masters = r.masters.iter().map(master).collect();
            (r.name.clone(), Region { number: r.number, witness: r.witness, masters })
        };
        self.regions.iter().map(region).collect()
    }

    /// Takes regions and lease from the join token, where there is one and no region is named.
    pub fn take_token(&mut self) -> Result<(), ConfigError> {
        let Some(token) = self.token()?.filter(|_| self.regions.is_empty()) else { return Ok(()) };
        let master =
            |m: Master| RegionMasterConfig { id: m.id, name: m.name, address: m.address, zone: m.zone };
        for region in token.regions {
            let number = u16::try_from(region.number).map_err(|_| {
                wrong("global.join", "it numbers a region beyond 65535: it is of another version")
            })?;
            self.regions.push(RegionConfig {
                name: region.name,
                number,
                witness: region.witness,
                masters: region.masters.into_iter().map(master).collect(),
            });
        }
        self.lease_ms = token.lease_ms;
        Ok(())
    }

    fn token(&self) -> Result<Option<JoinToken>, ConfigError> {
        let token = self.join.as_deref().map(join::parse).transpose();
        token.map_err(|e| wrong("global.join", e.to_string()))
    }

    /// What the region's first renewal shows; empty without a token.
    pub fn secret(&self) -> Bytes {
        // The token was looked at when the configuration was read.
        self.token().ok().flatten().map(|token| token.secret).unwrap_or_default()
    }

    /// Refuses a token of another cluster than that of the root certificate which this master trusts.
    pub fn check_root(&self, root: &Path) -> Result<(), ConfigError> {
        let Some(token) = self.token()? else { return Ok(()) };
        let own = root_sha256(root).map_err(|e| wrong("tls.ca", e.to_string()))?;
        if token.root_sha256[..] == own {
            return Ok(());
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let problem = format!(
            "the token is of a cluster whose root certificate has the SHA-256 fingerprint {}, and that in {} has {}: this master's certificates are of another cluster, or its root was made anew",
            hex(&token.root_sha256),
            root.display(),
            hex(&own)
        );
        Err(wrong("global.join", problem))
    }

    fn token_is_ours(&self, own: &MasterConfig) -> Result<(), ConfigError> {
        let Some(token) = self.token()? else { return Ok(()) };
        let other = |what: &str, theirs: &str, ours: &str| {
            Err(wrong(
                "global.join",
                format!("the token is for the {what} {theirs:?}, and this master is of {ours:?}"),
            ))
        };
        if token.cluster != own.cluster {
            return other("cluster", &token.cluster, &own.cluster);
        }
        if token.region != own.region {
            return other("region", &token.region, &own.region);
        }
        Ok(())
    }

    /// What the cluster begins with, at that feature level.
    pub fn founding(&self, level: FeatureLevel) -> Founding {
        let first = self.regions.iter().filter(|r| !r.witness).min_by_key(|r| r.number);
        let first = first.map(|r| r.name.clone()).unwrap_or_default();
        Founding {
            regions: self.regions(),
            root_home: self.root_home.clone().unwrap_or(first),
            lease_ms: self.lease_ms,
            level,
        }
    }

    /// The lease before anything is known of the one that was agreed on.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// Whether that master makes the group when there is none: the lowest id of the region of the lowest number.
    pub fn makes_the_group(&self, region: &str, id: u64) -> bool {
        let first = self.regions.iter().min_by_key(|r| r.number);
        first.is_some_and(|r| r.name == region && r.masters.iter().map(|m| m.id).min() == Some(id))
    }

    /// Refuses what can't work, naming the setting.
    pub fn check(&self, own: &MasterConfig) -> Result<(), ConfigError> {
        self.token_is_ours(own)?;
        self.regions_are_well()?;
        self.masters_are_well()?;
        self.own_is_there(own)?;
        let with_data = self.regions.iter().filter(|r| !r.witness).count();
        if with_data == 0 {
            return Err(wrong("global.regions", "there is no region with data: each is a witness"));
        }
        if self.regions.len() - with_data >= with_data && self.regions.len() > with_data {
            let problem = "there are as many witnesses as regions with data: one witness beside two regions with data is what it takes";
            return Err(wrong("global.regions", problem));
        }
        if let Some(home) = &self.root_home
            && !self.regions.iter().any(|r| r.name == *home && !r.witness)
        {
            return Err(wrong("global.root_home", format!("{home:?} isn't a region with data")));
        }
        // A cluster may begin with one region; of several, any one must be one that can be lost. What a token names was agreed on.
        if self.regions.len() > 1 && self.join.is_none() {
            voters::check(&self.regions()).map_err(|e| wrong("global.regions", e.to_string()))?;
        }
        self.times_are_well(own)
    }

    fn regions_are_well(&self) -> Result<(), ConfigError> {
        if self.regions.is_empty() {
            return Err(wrong(
                "global.regions",
                "there are none; name each region with its masters, this one included, or give the token of `mooseng regions add` as global.join",
            ));
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for region in &self.regions {
            if !is_identity_word(&region.name) {
                let problem =
                    format!("the name {:?} isn't a word of letters, digits, '-', '_' and '.'", region.name);
                return Err(wrong("global.regions.name", problem));
            }
            if !names.insert(&region.name) {
                return Err(wrong(
                    "global.regions.name",
                    format!("the name {:?} is given twice", region.name),
                ));
            }
            if region.number == 0 || !numbers.insert(region.number) {
                let problem = format!(
                    "the number {} of {} is 0 or another region's; count from 1",
                    region.number, region.name
                );
                return Err(wrong("global.regions.number", problem));
            }
            if region.masters.is_empty() {
                return Err(wrong(
                    "global.regions.masters",
                    format!("the region {} has no master", region.name),
                ));
            }
            if region.witness && region.masters.len() > 1 {
                let problem =
                    format!("the witness {} has {} masters; it takes one", region.name, region.masters.len());
                return Err(wrong("global.regions.masters", problem));
            }
        }
        Ok(())
    }

    fn masters_are_well(&self) -> Result<(), ConfigError> {
        let mut addresses = BTreeSet::new();
        for region in &self.regions {
            let mut ids = BTreeSet::new();
            for master in &region.masters {
                if master.id == 0 || u32::try_from(master.id).is_err() || !ids.insert(master.id) {
                    let problem = format!(
                        "the id {} in {} is 0, given twice, or not below 2^32",
                        master.id, region.name
                    );
                    return Err(wrong("global.regions.masters.id", problem));
                }
                address_is_well("global.regions.masters.address", &master.address)?;
                if !addresses.insert(&master.address) {
                    let problem = format!("the address {} is given twice", master.address);
                    return Err(wrong("global.regions.masters.address", problem));
                }
            }
        }
        Ok(())
    }

    fn own_is_there(&self, own: &MasterConfig) -> Result<(), ConfigError> {
        let Some(region) = self.regions.iter().find(|r| r.name == own.region) else {
            let problem = format!("this master's own region {:?} isn't among them", own.region);
            return Err(wrong("global.regions", problem));
        };
        match region.masters.iter().find(|m| m.id == own.id) {
            Some(master) if master.name == own.name => Ok(()),
            Some(master) => {
                let problem = format!(
                    "id {} of {} is {:?} there and {:?} here",
                    own.id, region.name, master.name, own.name
                );
                Err(wrong("global.regions.masters", problem))
            }
            None => {
                let problem =
                    format!("this master's id {} isn't among those of its region {}", own.id, region.name);
                Err(wrong("global.regions.masters", problem))
            }
        }
    }

    fn times_are_well(&self, own: &MasterConfig) -> Result<(), ConfigError> {
        let raft = &self.raft;
        if raft.heartbeat_ms == 0 {
            return Err(wrong("global.raft.heartbeat_ms", "it is zero; 400 is usual"));
        }
        if raft.election_min_ms < raft.heartbeat_ms * 2 {
            return Err(wrong(
                "global.raft.election_min_ms",
                "it must be at least twice global.raft.heartbeat_ms",
            ));
        }
        if raft.election_max_ms <= raft.election_min_ms {
            return Err(wrong(
                "global.raft.election_max_ms",
                "it must be more than global.raft.election_min_ms",
            ));
        }
        if self.lease_ms < raft.election_max_ms * 2 {
            let problem = "it must be at least twice global.raft.election_max_ms: a region's lease must outlast an election; 10000 is usual";
            return Err(wrong("global.lease_ms", problem));
        }
        if self.lease_ms < own.session_lease_ms {
            let problem = format!(
                "it must be at least session_lease_ms, which is {}: what a session was promised mustn't outlast its region's word",
                own.session_lease_ms
            );
            return Err(wrong("global.lease_ms", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(global: &str) -> String {
        format!(
            "name = \"m1\"\nid = 1\nregion = \"a\"\ncluster = \"c\"\nlisten = \"127.0.0.1:7001\"\nstate_dir = \"/s\"\n{global}"
        )
    }

    fn region(name: &str, number: u16, witness: bool, port: u16) -> String {
        format!(
            "[[global.regions]]\nname = {name:?}\nnumber = {number}\nwitness = {witness}\n[[global.regions.masters]]\nid = 1\nname = \"m1\"\naddress = \"h:{port}\"\n"
        )
    }

    fn good() -> String {
        let regions = [region("a", 1, false, 1), region("b", 2, false, 2), region("w", 3, true, 3)];
        text(&format!("[global]\n{}", regions.concat()))
    }

    #[test]
    fn a_good_one_has_defaults_and_comes_back_as_it_was_printed() {
        let config = MasterConfig::parse(&good()).unwrap();
        let global = config.global.clone().unwrap();
        assert_eq!(
            (global.lease_ms, global.raft.heartbeat_ms, global.raft.election_max_ms),
            (10_000, 400, 3_500)
        );
        assert_eq!(global.founding(FeatureLevel(1)).root_home, "a");
        assert!(global.makes_the_group("a", 1) && !global.makes_the_group("b", 1));
        assert_eq!(MasterConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        let text =
            good().replace("[global]", "[global]\nroot_home = \"b\"\n[global.raft]\nheartbeat_ms = 300\n");
        let global = MasterConfig::parse(&text).unwrap().global.unwrap();
        assert_eq!(
            (global.founding(FeatureLevel(1)).root_home.as_str(), global.raft.heartbeat_ms),
            ("b", 300)
        );
        assert_eq!(global.raft.election_min_ms, 2_000, "what isn't given keeps the default of this group");
        // A cluster may begin with one region.
        MasterConfig::parse(&text_of(&[region("a", 1, false, 1)])).unwrap();
    }

    fn text_of(regions: &[String]) -> String {
        text(&format!("[global]\n{}", regions.concat()))
    }

    fn token(region: &str, cluster: &str) -> String {
        let regions =
            [("a", 4, 4), ("b", 2, 2)].map(|(name, number, port)| mooseng_wire::global::JoinRegion {
                name: name.into(),
                number,
                witness: false,
                masters: vec![Master {
                    id: 1,
                    name: "m1".into(),
                    address: format!("h:{port}"),
                    zone: String::new(),
                }],
            });
        join::to_text(&JoinToken {
            cluster: cluster.into(),
            root_sha256: vec![7; 32].into(),
            region: region.into(),
            regions: regions.into(),
            secret: vec![9; 16].into(),
            lease_ms: 12_000,
        })
    }

    #[test]
    fn a_join_token_stands_for_the_regions_and_is_of_this_cluster_and_region() {
        let with = |token: &str| MasterConfig::parse(&text(&format!("[global]\njoin = {token:?}\n")));
        // Two regions only: what a token names was agreed on, whether it could lose a region or not.
        let config = with(&token("a", "c")).unwrap();
        let global = config.global.clone().unwrap();
        assert_eq!((global.regions.len(), global.lease_ms, &global.secret()[..]), (2, 12_000, &[9; 16][..]));
        assert!(!global.makes_the_group("a", 1), "it is the newest");
        assert_eq!(MasterConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        for (token, says) in [
            (token("b", "c"), "for the region \"b\""),
            (token("a", "x"), "for the cluster \"x\""),
            (token("a", "c").replace("1.", "2."), "doesn't begin with"),
            (token("a", "c")[..60].to_owned(), "cut off"),
        ] {
            let error = with(&token).unwrap_err().to_string();
            assert!(error.contains("global.join") && error.contains(says), "{error}");
        }
        let none = global.check_root(Path::new("/nowhere/ca.pem")).unwrap_err().to_string();
        assert!(none.contains("tls.ca"), "{none}");
    }

    #[test]
    fn errors_name_the_setting_and_say_why() {
        let refused = |text: &str| MasterConfig::parse(text).unwrap_err().to_string();
        let table = [
            ("name = \"b\"", "name = \"a\"", "given twice"),
            ("name = \"b\"", "name = \"b b\"", "global.regions.name"),
            ("number = 2", "number = 1", "another region's"),
            ("number = 2", "number = 0", "count from 1"),
            ("address = \"h:2\"", "address = \"h:1\"", "given twice"),
            ("address = \"h:2\"", "address = \"h\"", "global.regions.masters.address"),
            ("region = \"a\"", "region = \"x\"", "own region"),
            ("id = 1\nregion", "id = 2\nregion", "isn't among those"),
            (
                "name = \"m1\"\nid = 1\nregion",
                "name = \"mx\"\nid = 1\nregion",
                "\"m1\" there and \"mx\" here",
            ),
            ("number = 2\nwitness = false", "number = 2\nwitness = true", "witnesses"),
            ("[global]", "[global]\nroot_home = \"w\"", "global.root_home"),
            ("[global]", "[global]\nlease_ms = 6000", "global.lease_ms"),
            ("[global]", "[global]\nlease_ms = 8000", "session_lease_ms"),
            ("[global]", "[global]\n[global.raft]\nheartbeat_ms = 0", "global.raft.heartbeat_ms"),
            ("[global]", "[global]\n[global.raft]\nelection_min_ms = 500", "global.raft.election_min_ms"),
            ("[global]", "[global]\n[global.raft]\nelection_max_ms = 2000", "global.raft.election_max_ms"),
            ("[global]", "[global]\nroot_hom = \"a\"", "Did you mean `root_home`?"),
        ];
        for (from, to, says) in table {
            let text = good().replacen(from, to, 1);
            assert_ne!(text, good(), "{from}");
            let error = refused(&text);
            assert!(error.contains(says), "{to}: {error}");
        }
        let two = refused(&text_of(&[region("a", 1, false, 1), region("b", 2, false, 2)]));
        assert!(two.contains("couldn't lose a") && two.contains("a witness"), "{two}");
        let more = "[[global.regions.masters]]\nid = 2\nname = \"m2\"\naddress = \"h:9\"\n";
        assert!(refused(&format!("{}{more}", good())).contains("it takes one"));
        let none = refused(&text("[global]\nregions = []\n"));
        assert!(none.contains("there are none"), "{none}");
    }
}
