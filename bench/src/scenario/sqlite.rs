//! Transactions of sqlite with its rollback journal, flushed as by default.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::{PROGRAM_MAX, Stage};
use crate::process;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let database = stage.path("db");
    process::timed(
        Command::new("sqlite3")
            .arg(&database)
            .arg("create table t(k integer primary key, v text); insert into t values(0, 'x');"),
        PROGRAM_MAX,
    )?;
    let mut script = String::from("pragma synchronous=full;\n");
    for n in 0..stage.sizes.transactions {
        writeln!(
            script,
            "begin; insert into t(v) values('{n:0>200}'); update t set v='{n}' where k=0; commit;"
        )?;
    }
    let file = stage.scratch.join("transactions.sql");
    fs::write(&file, script)?;
    let mut command = Command::new("sqlite3");
    command.arg("-bail").arg(&database).stdin(File::open(&file)?).stdout(Stdio::null());
    let took = process::timed(&mut command, PROGRAM_MAX)?;
    stage.record("sqlite", stage.sizes.transactions as f64 / took.as_secs_f64());
    stage.clear()
}
