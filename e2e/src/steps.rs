//! Several checks in one test: each is named, each runs, and the test fails at the end if any did.

use anyhow::{Result, bail};

/// Runs checks and remembers which failed.
#[derive(Default)]
pub struct Steps {
    failed: Vec<String>,
    passed: usize,
}

impl Steps {
    /// Runs one.
    pub fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        let began = std::time::Instant::now();
        match step() {
            Ok(()) => {
                self.passed += 1;
                println!("  ok      {name} ({:.1} s)", began.elapsed().as_secs_f64());
            }
            Err(error) => {
                println!("  FAILED  {name}: {error:#}");
                self.failed.push(format!("{name}: {error:#}"));
            }
        }
    }

    /// Fails if any failed.
    pub fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!(
                "{} of {} checks failed:\n{}",
                self.failed.len(),
                self.failed.len() + self.passed,
                self.failed.join("\n")
            );
        }
        Ok(())
    }
}
