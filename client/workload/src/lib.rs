//! A verified workload: every byte describes itself, every acknowledged operation is written down on local disk, and afterwards
//! what is found must be what was acknowledged.
//!
//! Each thread works alone in a directory, one operation after the other, so that at most one is unanswered when the world ends.
//! An operation counts as acknowledged after the fsync of the file and, where a name changed, of the directory.
//!
//! - [`worker`]: threads that work, and what each operation does.
//! - [`journal`]: what was begun and answered, one file for each thread.
//! - [`model`]: what a thread's directory must hold; [`record`]: bytes that say what they are.
//! - [`mod@verify`]: compares what is found with what the journals say.

pub mod journal;
pub mod model;
pub mod record;
pub mod verify;
pub mod worker;

pub use journal::{Line, Timeline};
pub use model::{FileModel, Model, Op};
pub use worker::{Outcome, Settings, run};
