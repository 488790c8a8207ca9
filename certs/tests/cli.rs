//! `mooseng-certs` as scripts find it: exit codes, file modes, output.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mooseng-certs"))
        .arg("--dir")
        .arg(dir.join("ca"))
        .args(words)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(!String::from_utf8_lossy(&text).contains("PRIVATE KEY"), "a key was printed");
    output.status.code().unwrap()
}

#[test]
fn a_cluster_is_made_listed_renewed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let out = dir.join("c1");
    let issue =
        ["issue", "--role", "client", "--region", "eu", "--name", "c1", "--out", out.to_str().unwrap()];
    assert_eq!(code(&run(dir, &["list"])), 3, "there is no authority");
    assert_eq!(code(&run(dir, &["init", "--cluster", "a/b"])), 2, "no name");
    assert_eq!(code(&run(dir, &["init"])), 2, "no cluster");
    assert_eq!(code(&run(dir, &["init", "--cluster", "dev"])), 0);
    assert_eq!(code(&run(dir, &issue)), 3, "there is no region");
    assert_eq!(code(&run(dir, &["region", "add", "eu"])), 0);
    assert_eq!(code(&run(dir, &issue)), 0);

    for key in [dir.join("ca/root/key.pem"), dir.join("ca/regions/eu/key.pem"), out.join("key.pem")] {
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
    }
    let key = std::fs::read(out.join("key.pem")).unwrap();
    for refused in [&issue[..], &["init", "--cluster", "dev"], &["region", "add", "eu"]] {
        assert_eq!(code(&run(dir, refused)), 1, "nothing is overwritten unasked: {refused:?}");
    }
    assert_eq!(std::fs::read(out.join("key.pem")).unwrap(), key);

    let list = run(dir, &["list", "-o", "json"]);
    assert_eq!(code(&list), 0);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let leaf = &list["items"][0];
    assert_eq!(leaf["spiffe"], "spiffe://dev/eu/client/c1");
    let life = leaf["not_after_unix"].as_i64().unwrap() - leaf["issued_unix"].as_i64().unwrap();
    assert_eq!(life, 24 * 3600);
    let inspected = run(dir, &["inspect", out.join("cert.pem").to_str().unwrap()]);
    let text = String::from_utf8(inspected.stdout).unwrap();
    assert!(text.contains("spiffe://dev/eu/client/c1") && text.contains("dev region eu"), "{text}");
    assert_eq!(code(&run(dir, &["inspect", "/nowhere.pem"])), 3);

    // As where root renews what a daemon reads; nobody else gives files away.
    let given = std::os::unix::fs::chown(out.join("key.pem"), Some(65_534), None).is_ok();
    assert_eq!(code(&run(dir, &["renew", out.to_str().unwrap()])), 0);
    let owner = std::fs::metadata(out.join("key.pem")).unwrap().uid();
    assert!(!given || owner == 65_534, "it stays whose it was, and is {owner}'s");
    assert_ne!(std::fs::read(out.join("key.pem")).unwrap(), key, "a renewed leaf has a new key");
    let other = dir.join("m1");
    let master =
        ["issue", "--role", "master", "--region", "eu", "--name", "m1", "--out", other.to_str().unwrap()];
    assert_eq!(code(&run(dir, &master)), 0);
    assert_eq!(code(&run(dir, &["revoke", "0000"])), 3);
    let revoked = run(dir, &["revoke", "spiffe://dev/eu/client/c1"]);
    assert_eq!(code(&revoked), 0);
    let said = String::from_utf8(revoked.stdout).unwrap();
    assert!(said.contains("spiffe://dev/eu/master/m1 lacks the list"), "{said}");
    let advice = String::from_utf8(revoked.stderr).unwrap();
    assert!(advice.contains("mooseng status -o json") && advice.contains("REVOCATIONS_DIFFER"), "{advice}");
    assert!(!advice.contains("no record"), "{advice}");
    // Its list would have to be copied to another machine.
    std::fs::rename(&other, dir.join("moved")).unwrap();
    let unknown = run(dir, &["revoke", "spiffe://dev/eu/client/nobody", "--distribute"]);
    assert_eq!(code(&unknown), 0);
    let advice = String::from_utf8(unknown.stderr).unwrap();
    assert!(advice.contains("no record of spiffe://dev/eu/client/nobody"), "{advice}");
    let said = String::from_utf8(unknown.stdout).unwrap();
    assert!(said.contains("master/m1 lacks the list") && !said.contains("client/c1 lacks"), "{said}");
    assert_eq!(code(&run(dir, &["renew", out.to_str().unwrap()])), 4, "a revoked identity isn't renewed");
    assert!(String::from_utf8(run(dir, &["list"]).stdout).unwrap().contains("REVOKED"));
    let too_long = [
        "issue",
        "--role",
        "client",
        "--region",
        "eu",
        "--name",
        "c2",
        "--hours",
        "90000",
        "--out",
        out.to_str().unwrap(),
    ];
    assert_eq!(
        code(&run(dir, &[&too_long[..], &["--force"]].concat())),
        4,
        "a leaf doesn't outlive its region"
    );
}
