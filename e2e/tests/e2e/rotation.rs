//! Leaves of sixty seconds, renewed under load.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mooseng_e2e::cluster::DevCluster;
use mooseng_e2e::steps::Steps;

use super::chaos::Load;

#[test]
fn certificates_are_renewed_under_load_without_an_error() {
    run().unwrap();
}

fn run() -> Result<()> {
    let seconds: u64 = std::env::var("ROTATE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(130);
    let cluster = DevCluster::up("rotation", &["--leaf-lifetime", "60s"])?;
    let mut steps = Steps::default();
    let serials = || -> Result<Vec<Vec<u8>>> {
        let names = [
            "master-1",
            "master-2",
            "master-3",
            "chunkserver-1",
            "chunkserver-2",
            "chunkserver-3",
            "client-1",
        ];
        names
            .iter()
            .map(|n| Ok(std::fs::read(cluster.dir().join("certs").join(n).join("cert.pem"))?))
            .collect()
    };
    let first = serials()?;
    let mut load = Load::start(&cluster, "rotated", 6)?;
    steps.run(&format!("{seconds} s of load over leaves of 60 s"), || {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(1));
            let timeline = load.timeline()?;
            ensure!(timeline.errors.is_empty(), "an error reached the application: {:?}", timeline.errors);
        }
        let renewed = serials()?;
        ensure!(first.iter().zip(&renewed).all(|(a, b)| a != b), "some leaves were never renewed");
        Ok(())
    });
    steps.run("no error reached the application", || load.stop(true));
    steps.run("nothing was lost or torn", || load.verify());
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}
