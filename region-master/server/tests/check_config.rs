//! `--check-config` refuses what a start would refuse, and a start refuses it before it makes anything.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mooseng_certs::Authority;
use mooseng_master::owner;
use mooseng_wire::{Identity, Role};

/// How the daemon ended, and what it said.
fn run(dir: &Path, text: &str, words: &[&str]) -> (bool, String) {
    let path = dir.join("master.toml");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooseng-master"));
    let output = command.arg("--config").arg(&path).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

/// The section `tls` of master m1 of region eu in cluster c, with files that are made here.
fn tls(dir: &Path) -> String {
    let authority = Authority::create(&dir.join("ca"), "c").unwrap();
    authority.region("eu").unwrap();
    let leaf = dir.join("leaf");
    let identity =
        Identity { cluster: "c".into(), region: "eu".into(), role: Role::Master, name: "m1".into() };
    authority.issue(&identity, Duration::from_secs(3600), &leaf, false).unwrap();
    format!(
        "[tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n",
        leaf.join("cert.pem"),
        leaf.join("key.pem"),
        leaf.join("ca.pem")
    )
}

#[test]
fn what_a_start_refuses_the_check_refuses_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let settings = |name: &str| {
        format!(
            "name = \"{name}\"\nid = 1\nregion = \"eu\"\ncluster = \"c\"\nlisten = \"127.0.0.1:7000\"\nstate_dir = {state:?}\n"
        )
    };
    let tls = tls(dir.path());
    let good = settings("m1") + &tls;
    let (well, said) = run(dir.path(), &good, &["--check-config"]);
    assert!(well && said.contains("is well"), "{said}");
    for (text, names) in [
        (settings("m1"), "`tls`"),
        (settings("m2") + &tls, "the certificate says spiffe://c/eu/master/m1"),
        (good.replace("key.pem", "no.pem"), "no.pem"),
        (good.clone() + "[log]\nfilter = \"mooseng=loud\"\n", "`log`"),
    ] {
        for words in [vec!["--check-config"], vec![]] {
            let (well, said) = run(dir.path(), &text, &words);
            assert!(!well && said.contains(names), "{words:?}, {names}: {said}");
        }
    }
    assert!(!state.exists(), "a start that was refused has made something");
}

/// Found by review: a master over another one's log voted by that.
#[test]
fn nothing_is_done_with_anothers_log() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let log = state.join("raft");
    std::fs::create_dir_all(&log).unwrap();
    let whose = "format 1\ncluster c\nregion eu\nmaster m2\nid 2\ngroup region\nmember 2\n";
    std::fs::write(log.join(owner::FILE), whose).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "name = \"m1\"\nid = 1\nregion = \"eu\"\ncluster = \"c\"\nlisten = \"{free}\"\nstate_dir = {state:?}\n{}",
        tls(dir.path())
    );
    for words in [vec!["--check-config"], vec![], vec!["recover"]] {
        let (well, said) = run(dir.path(), &text, &words);
        let names = "is that of master m2 (id 2) of region eu in cluster c, and this is master m1 (id 1)";
        assert!(!well && said.contains(names), "{words:?}: {said}");
    }
    let left = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<BTreeSet<String>>()
    };
    assert_eq!(left(&log), BTreeSet::from([owner::FILE.to_owned()]));
    // But for the lock, which is no part of what a master keeps.
    assert_eq!(left(&state), BTreeSet::from(["LOCK".to_owned(), "raft".to_owned()]));
}
