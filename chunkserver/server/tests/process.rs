//! The daemon as a process: it works in its directories alone.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::process::Command;

use mooseng_ports::disk::lock;

/// A second process would remove what the first has written and not flushed yet.
#[test]
fn a_chunkserver_doesnt_start_where_another_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let [state, one, two] = ["state", "one", "two"].map(|name| dir.path().join(name));
    [&one, &two].into_iter().for_each(|data| std::fs::create_dir(data).unwrap());
    let config = dir.path().join("chunkserver.toml");
    let text = format!(
        "name = \"a\"\nregion = \"eu\"\ncluster = \"test\"\nlisten = \"127.0.0.1:0\"\ndata_dirs = [{one:?}, {two:?}]\nstate_dir = {state:?}\nmasters = [\"127.0.0.1:1\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    let told = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mooseng-chunkserver"));
        let output = command.arg("--config").arg(&config).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for directory in [&state, &two] {
        let taken = lock::take(directory).unwrap();
        assert!(taken.is_some());
        let told = told();
        assert!(
            told.contains("another process works in") && told.contains(directory.to_str().unwrap()),
            "{told}"
        );
    }
    // It comes as far as what the configuration lacks.
    assert!(told().contains("`tls` is missing"), "{}", told());
}
