//! End-to-end tests: real daemons, a real mount, real kills.
//!
//! - [`cluster`]: starts `mooseng dev up` in a directory of its own and ends it, whatever happens.
//! - [`differential`]: random operations on two mounts and a local directory, compared (`mooseng-differential`).
//! - [`faults`]: a seeded campaign of faults (`mooseng-faults`).
//! - [`load`]: the workload that writes down what was acknowledged, and checks it afterwards (`mooseng-load`).
//! - [`logs`]: no WARN or ERROR that isn't listed.
//! - [`steps`]: several checks on one cluster, for starting one is the expensive part.
//! - [`transcript`]: what a page of documentation types, run for real.

pub mod cluster;
pub mod differential;
pub mod faults;
pub mod logs;
pub mod steps;
pub mod transcript;

pub use mooseng_workload as load;
