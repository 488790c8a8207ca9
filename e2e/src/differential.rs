//! Random operations, each through one of two mounts and in a local directory: what they answer must be the same, and both mounts must show
//! afterwards what the local directory shows.
//!
//! ```text
//!   seed --> op::Generator --> Op --> Place (mount A or B) --> Outcome \
//!                               \---> Place (local)        --> Outcome  > equal?
//!                                     look at A, at B, and local       /
//! ```
//! One operation at a time: what one mount has answered the other one knows. Several names are used again and again, so that many operations are
//! refused; with which error is compared, too.

mod op;
mod place;
mod run;

pub use op::{Generator, Op};
pub use place::{Outcome, Place};
pub use run::{Settings, run};
