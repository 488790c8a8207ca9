//! libFuzzer over the target that MOOSENG_FUZZ names.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mooseng_fuzz::{TARGETS, Target};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("MOOSENG_FUZZ").unwrap_or_default();
        let named = TARGETS.iter().find(|target| target.name == name);
        named.unwrap_or_else(|| panic!("MOOSENG_FUZZ must name a target"))
    })
}

fuzz_target!(|input: &[u8]| (target().run)(input));
