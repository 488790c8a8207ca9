//! End-to-end tests on real daemons and real mounts: `make e2e` builds what they need and runs them (`scripts/e2e`), each in a process of its own, two at a
//! time; `make e2e E2E=regions::two_regions_and_a_witness_are_one_cluster` one of them.
//!
//! They need root or fusermount3.

#[path = "e2e/acls.rs"]
mod acls;
#[path = "e2e/bench.rs"]
mod bench;
#[path = "e2e/chaos.rs"]
mod chaos;
#[path = "e2e/classes.rs"]
mod classes;
#[path = "e2e/coherence.rs"]
mod coherence;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/forms.rs"]
mod forms;
#[path = "e2e/geo.rs"]
mod geo;
#[path = "e2e/hostile.rs"]
mod hostile;
#[path = "e2e/hosts.rs"]
mod hosts;
#[path = "e2e/housekeeping.rs"]
mod housekeeping;
#[path = "e2e/locks.rs"]
mod locks;
#[path = "e2e/made_anew.rs"]
mod made_anew;
#[path = "e2e/namespaces.rs"]
mod namespaces;
#[path = "e2e/operations.rs"]
mod operations;
#[path = "e2e/otlp.rs"]
mod otlp;
#[path = "e2e/plans.rs"]
mod plans;
#[path = "e2e/posix.rs"]
mod posix;
#[path = "e2e/ranges.rs"]
mod ranges;
#[path = "e2e/ready.rs"]
mod ready;
#[path = "e2e/recovery.rs"]
mod recovery;
#[path = "e2e/regions.rs"]
mod regions;
#[path = "e2e/rolling.rs"]
mod rolling;
#[path = "e2e/room.rs"]
mod room;
#[path = "e2e/rotation.rs"]
mod rotation;
#[path = "e2e/rules.rs"]
mod rules;
#[path = "e2e/three.rs"]
mod three;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/unlinked.rs"]
mod unlinked;
#[path = "e2e/unprivileged.rs"]
mod unprivileged;
#[path = "e2e/volumes.rs"]
mod volumes;
#[path = "e2e/workloads.rs"]
mod workloads;

/// What daemons may complain about while others start, stop or are killed: they say that a peer is away, and go on.
const PEERS_COME_AND_GO: &[&str] = &["a master isn't reached", "\"target\":\"openraft::", " openraft::"];
