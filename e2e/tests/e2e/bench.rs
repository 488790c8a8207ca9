//! The benchmark still runs: a few of its measures, once, for their form and not for their figures.

use std::process::Command;

use anyhow::{Result, ensure};
use mooseng_e2e::cluster::{binary, checked, workspace};

#[test]
fn the_benchmark_runs() {
    run().unwrap();
}

fn run() -> Result<()> {
    // Not in /tmp, which may be memory: the benchmark refuses that.
    let scratch = tempfile::Builder::new().prefix("mse-bench-").tempdir_in(workspace().join("target"))?;
    let (dir, json) = (scratch.path().join("b"), scratch.path().join("result.json"));
    let mut bench = Command::new(binary("mooseng-bench")?);
    let only = "create-4,overwrite-1,dbench-4,cpu-write";
    bench.args(["--quick", "--only", only, "-o", "json", "--dir"]);
    let output = checked(bench.arg(&dir).arg("--json").arg(&json))?;
    let result: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    ensure!(kept == result, "the file and the output differ");
    ensure!(!dir.exists(), "it leaves {} behind", dir.display());
    let metrics = result["metrics"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = metrics.iter().filter_map(|m| m["name"].as_str()).collect();
    ensure!(names == ["overwrite-1", "create-4", "dbench-4", "cpu-write"], "it measured {names:?}");
    for metric in &metrics {
        for target in ["bare", "passthrough", "mooseng"] {
            ensure!(
                metric["median"][target].as_f64().is_some_and(|v| v > 0.0),
                "no value of {target}: {metric}"
            );
        }
        ensure!(metric["passed"].is_boolean() == metric["gate"].is_number(), "its gate: {metric}");
    }
    ensure!(
        result["flushes"].is_array() != result["flushes_uncounted"].is_string(),
        "flushes are counted, or it says why not: {result:#}"
    );
    for flushes in result["flushes"].as_array().into_iter().flatten() {
        ensure!(flushes["acknowledged"].as_u64() > Some(0), "nothing was acknowledged: {flushes}");
        ensure!(flushes["without"] == 0, "an acknowledged fsync had no flush: {flushes}");
    }
    Ok(())
}
