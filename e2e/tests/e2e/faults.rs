//! A short campaign of faults; `make test-faults` runs a long one (docs/faults.md).

use mooseng_e2e::faults::campaign::{self, Settings};

#[test]
fn faults_break_no_promise() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: disks and networks that fail need root");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let settings = Settings {
        seed: number("SEED").unwrap_or(1),
        rounds: number("FAULT_ROUNDS").unwrap_or(10) as usize,
        threads: 6,
        plant: None,
    };
    campaign::run(&settings).unwrap();
}
