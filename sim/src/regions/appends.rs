//! What mounts append to common files, of which there is one for each home epoch: what a mount knows of epochs and losses, by which [`crate::appending`] judges.

use std::time::Duration;

use super::clients::{EIO, ENOENT, ESTALE, ETIMEDOUT, Mount, with};
use crate::appending::{Appended, Board};
use crate::hosts::now;

impl Board for Mount {
    fn appended<T>(&self, f: impl FnOnce(&mut Appended) -> T) -> T {
        with(&self.shared, |notes| f(&mut notes.appended))
    }

    fn violation(&self, what: String) {
        Self::violation(self, what);
    }

    fn is_healed(&self) -> bool {
        with(&self.shared, |notes| notes.healed)
    }

    /// A failover takes a file back, with its name.
    fn excuses(&self, errno: i32) -> bool {
        matches!(errno, ENOENT | EIO | ESTALE | ETIMEDOUT)
    }

    fn epoch(&self) -> u64 {
        Self::epoch(self)
    }

    fn newest(&self) -> u64 {
        self.homes.newest()
    }

    fn kept(&self, from: u64, to: u64) -> bool {
        self.homes.kept(from, to)
    }

    fn home_since(&self, began: Duration) -> Option<u64> {
        self.homes.around(&self.region, began, now())
    }

    fn outlives_home(&self) -> bool {
        self.geo
    }

    fn lapses(&self) -> u64 {
        Self::lapses(self)
    }

    fn lost(&self) -> u64 {
        with(&self.shared, |notes| notes.lost.values().sum())
    }
}
