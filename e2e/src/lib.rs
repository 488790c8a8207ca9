//! End-to-end tests: real daemons, a real mount, real kills.
//!
//! - [`child`]: processes that a campaign starts itself.
//! - [`cluster`]: starts `mooseng dev up` in a directory of its own and ends it, whatever happens.
//! - [`differential`]: random operations on two mounts and a local directory, compared (`mooseng-differential`).
//! - [`faults`]: a seeded campaign of faults (`mooseng-faults`).
//! - [`geo`]: a home region is lost again and again (`mooseng-geo`).
//! - [`held`]: a file that is open and has no name any more.
//! - [`load`]: the workload that writes down what was acknowledged, and checks it afterwards (`mooseng-load`).
//! - [`logs`]: no WARN or ERROR that isn't listed.
//! - [`network`]: network namespaces, and cuts between them.
//! - [`steps`]: several checks on one cluster, for starting one is the expensive part.
//! - [`transcript`]: what a page of documentation types, run for real.

pub mod child;
pub mod cluster;
pub mod differential;
pub mod faults;
pub mod geo;
pub mod held;
pub mod logs;
pub mod network;
pub mod steps;
pub mod transcript;

pub use mooseng_workload as load;
