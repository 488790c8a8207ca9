//! The fixed forms of `mooseng dev` and cluster.json, as scripts outside of the project use them.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, wait_for};
use mooseng_e2e::steps::Steps;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn dev_clusters_are_driven_by_their_fixed_forms() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster =
        DevCluster::up("forms", &["--masters", "1", "--chunkservers", "1", "--copies", "1", "--no-mount"])?;
    let mut steps = Steps::default();
    steps.run("cluster.json describes what runs", || {
        let file = cluster.file()?;
        let roles: Vec<&str> = file.processes.iter().map(|p| p.role.as_str()).collect();
        ensure!(
            roles == ["master", "chunkserver"] && file.mounts.is_empty() && file.clients.len() == 1,
            "{file:?}"
        );
        for p in &file.processes {
            let argv = std::fs::read(format!("/proc/{}/cmdline", p.pid.context("no pid")?))?;
            ensure!(
                argv == p.argv.iter().flat_map(|a| [a.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>(),
                "argv of {}",
                p.name
            );
            ensure!(p.state_dir.is_dir() && p.address.starts_with("127.0.0.1:"), "{p:?}");
        }
        Ok(())
    });
    steps.run("kill, and the record says so; start, and it serves at the same address", || {
        let before = cluster.process("chunkserver-1")?;
        cluster.dev("kill", "chunkserver-1")?;
        ensure!(cluster.process("chunkserver-1")?.pid.is_none(), "a pid of a killed process");
        cluster.dev("start", "chunkserver-1")?;
        let after = cluster.process("chunkserver-1")?;
        ensure!(
            after.pid.is_some() && after.pid != before.pid && after.address == before.address,
            "{after:?}"
        );
        Ok(())
    });
    steps.run("a process killed and started by somebody else is noticed", || {
        cluster.kill_now(&["chunkserver-1".into()])?;
        wait_for("the pid to go", SOON, || {
            ensure!(cluster.process("chunkserver-1")?.pid.is_none(), "it is still on record");
            Ok(())
        })?;
        let argv = cluster.process("chunkserver-1")?.argv;
        let mut child =
            Command::new(&argv[0]).args(&argv[1..]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let seen = wait_for("the new pid", SOON, || {
            ensure!(cluster.process("chunkserver-1")?.pid == Some(child.id() as i32), "not seen");
            Ok(())
        });
        cluster.dev("kill", "chunkserver-1")?;
        child.wait()?;
        cluster.dev("start", "chunkserver-1")?;
        seen
    });
    steps.run("pause and resume", || {
        let is_paused = |paused: bool| -> Result<()> {
            let pid = cluster.process("master-1")?.pid.context("no pid")?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            ensure!(stat.rsplit_once(") ").is_some_and(|(_, r)| r.starts_with('T') == paused), "{stat}");
            Ok(())
        };
        cluster.dev("pause", "master-1")?;
        is_paused(true)?;
        cluster.dev("resume", "master-1")?;
        is_paused(false)
    });
    steps.run("names that aren't there are not found", || {
        let output = cluster.mooseng(&["dev", "kill", "master-9", "--dir"]).arg(cluster.dir()).output()?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        let output = cluster.mooseng(&["dev", "status", "--dir", "/nonexistent"]).output()?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        Ok(())
    });
    steps.run("up on a running cluster changes nothing", || {
        let before = cluster.process("master-1")?.pid;
        cluster.up_again(&[])?;
        ensure!(cluster.process("master-1")?.pid == before, "the master was started again");
        let output = cluster
            .mooseng(&["dev", "up", "--detach", "--masters", "3", "--dir"])
            .arg(cluster.dir())
            .output()?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        Ok(())
    });
    steps.run("what isn't built says so by name, and fails", || {
        let output = cluster.mooseng(&["policy", "list"]).output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        ensure!(String::from_utf8_lossy(&output.stderr).contains("NotBuilt: policies"), "{output:?}");
        Ok(())
    });
    steps.run("reading commands have a versioned shape", || {
        let config = cluster.client_config()?;
        for args in [
            vec!["explain", "-o", "json"],
            vec!["status", "-o", "json", "--config"],
            vec!["df", "-o", "json", "--config"],
        ] {
            let mut command = cluster.mooseng(&args);
            if args.contains(&"--config") {
                command.arg(&config);
            }
            let value: serde_json::Value = serde_json::from_slice(&checked(&mut command)?.stdout)?;
            ensure!(value["version"] == 1, "{args:?}: {value}");
        }
        Ok(())
    });
    steps.run("Ctrl-C stops a cluster in the foreground, and a temporary one is removed", || {
        let mut command = cluster.mooseng(&[
            "dev",
            "up",
            "--masters",
            "1",
            "--chunkservers",
            "1",
            "--copies",
            "1",
            "--no-mount",
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut out = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
        let mut dir = None;
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut out, &mut line)? > 0 {
            if let Some(found) = line.strip_prefix("State and logs: ") {
                dir = Some(std::path::PathBuf::from(found.trim()));
            }
            if line.contains("Ctrl-C") {
                break;
            }
            line.clear();
        }
        let dir = dir.context("it doesn't say where its state is")?;
        ensure!(dir.join("cluster.json").is_file(), "no cluster.json in {}", dir.display());
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGINT,
        )?;
        ensure!(child.wait()?.success(), "it failed");
        ensure!(!dir.exists(), "{} is left", dir.display());
        Ok(())
    });
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}
