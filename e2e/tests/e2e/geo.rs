//! A short campaign that loses the home region; `make test-geo` runs a long one (docs/faults.md).

use mooseng_e2e::geo::campaign::{self, Settings};
use mooseng_e2e::geo::cluster::REGIONS;
use mooseng_e2e::geo::plan::KINDS;

#[test]
fn the_loss_of_the_home_region_breaks_no_promise() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let Some(rounds) = number("GEO_ROUNDS").filter(|rounds| *rounds > 0) else {
        println!(
            "skipped: it takes minutes; GEO_ROUNDS=N says how many rounds of each kind (make test-all: 1)"
        );
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let settings = Settings {
        seed: number("SEED").unwrap_or(1),
        rounds: rounds as usize,
        kinds: KINDS.to_vec(),
        regions: REGIONS.len(),
        keep_going: false,
        plant_loss: false,
    };
    campaign::run(&settings).unwrap();
}
