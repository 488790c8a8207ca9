//! The namespace on the memory engine: against a reference model, under concurrency, with faults, and by hand.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod abandon;
mod by_hand;
mod classes;
mod concurrency;
mod deleted;
mod faulty;
mod fsck;
mod harness;
mod joins;
mod let_go;
mod locks;
mod model;
mod model_acl;
mod outcomes;
mod pack;
mod quotas;
mod random;
mod recount;
mod rename;
mod rewrite;
mod space;
mod staged;
mod tell;
mod trash;
