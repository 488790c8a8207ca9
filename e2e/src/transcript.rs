//! A transcript in a page of documentation, run for real: commands behind `$ `, and below each what it must say.
//!
//! In an expected line `...` stands for anything, and a line of it for any lines; the length of gaps doesn't count. Lines that are expected must come in their
//! order, others may come between them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a command may take.
const WITHIN: Duration = Duration::from_secs(180);
/// How long a command that only looks may go on to say something else than what is expected.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);
/// What is said behind each command.
const MARK: &str = "--transcript-mark--";

/// A command and what it must say.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// As it is typed.
    pub command: String,
    /// The lines below it.
    pub expected: Vec<String>,
}

/// The steps of all blocks ```console``` of a page.
pub fn parse(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            _ if !inside => {}
            Some(command) => steps.push(Step { command: command.to_owned(), expected: Vec::new() }),
            None => steps.extend_last(line),
        }
    }
    steps
}

trait ExtendLast {
    fn extend_last(&mut self, line: &str);
}

impl ExtendLast for Vec<Step> {
    fn extend_last(&mut self, line: &str) {
        if let Some(step) = self.last_mut() {
            step.expected.push(line.to_owned());
        }
    }
}

fn is_like(line: &str, expected: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, expected) = (words(line), words(expected));
    let mut rest = line.as_str();
    let parts: Vec<&str> = expected.split("...").map(str::trim).collect();
    for (i, part) in parts.iter().enumerate() {
        let at = if i == 0 { rest.starts_with(part).then_some(0) } else { rest.find(part) };
        match at {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    parts.last().is_some_and(|last| last.is_empty() || rest.is_empty())
}

/// The first expected line that isn't there behind those before it.
pub fn missing<'a>(said: &[String], expected: &'a [String]) -> Option<&'a str> {
    let mut lines = said.iter();
    expected
        .iter()
        .map(String::as_str)
        .find(|wanted| wanted.trim() != "..." && !lines.any(|line| is_like(line, wanted)))
}

/// A command that changes nothing may be asked again until it shows what is expected.
fn only_looks(command: &str) -> bool {
    ["cat ", "ls ", "mooseng events ", "mooseng status ", "mooseng volume info "]
        .iter()
        .any(|begin| command.starts_with(begin))
}

/// A shell that types a transcript.
pub struct Shell {
    shell: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Shell {
    /// In `dir`; programs are looked for in `programs` first.
    pub fn start(dir: &Path, programs: &Path) -> Result<Self> {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.current_dir(dir).env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().context("starting bash")?;
        let mut input = shell.stdin.take().context("no stdin")?;
        writeln!(input, "exec 2>&1")?;
        let output = BufReader::new(shell.stdout.take().context("no stdout")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { shell, input, lines })
    }

    /// Runs a command; its lines, and its exit code.
    fn run(&mut self, command: &str) -> Result<(Vec<String>, i32)> {
        writeln!(self.input, "{command}\necho \"{MARK} $?\"")?;
        let (deadline, mut said) = (Instant::now() + WITHIN, Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .with_context(|| format!("{command:?} doesn't end; it said {said:#?}"))?;
            // Output without a newline at its end comes before the mark.
            if let Some((before, code)) = line.split_once(MARK) {
                if !before.is_empty() {
                    said.push(before.to_owned());
                }
                return Ok((said, code.trim().parse().unwrap_or(-1)));
            }
            said.push(line);
        }
    }

    /// Runs a step, and again as long as it only looks and shows something else.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let deadline = Instant::now() + SHOWN_WITHIN;
        loop {
            let (said, code) = self.run(&step.command)?;
            let missing = missing(&said, &step.expected);
            if code == 0 && missing.is_none() {
                return Ok(());
            }
            let last = Instant::now() >= deadline || !only_looks(&step.command);
            if let (true, Some(missing)) = (last, missing) {
                bail!("`{}` doesn't say {missing:?}, but:\n{}", step.command, said.join("\n"));
            }
            ensure!(!last, "`{}` ended with {code}:\n{}", step.command, said.join("\n"));
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_page_is_read() {
        let page = "text\n```console\n$ a b\nsays\n...\n$ c\n```\n$ no\n```\n$ neither\n```\n";
        let step =
            |command: &str, expected: &str| Step { command: command.into(), expected: lines(expected) };
        assert_eq!(parse(page), [step("a b", "says\n..."), step("c", "")]);
    }

    #[test]
    fn what_is_said_is_compared() {
        let said = lines("TIME  WHAT\n12:01  LOST    region-1  7 times\n12:02  OPEN  a -> b, cut at 1/9.");
        for expected in [
            "...",
            "TIME WHAT",
            "... LOST region-1 ...\n... a -> b, cut at ...",
            "... LOST ...\n...\n... OPEN ...",
        ] {
            assert_eq!(missing(&said, &lines(expected)), None, "{expected}");
        }
        for expected in ["LOST ...", "... OPEN ...\n... LOST ...", "TIME", "... region-2 ..."] {
            assert!(missing(&said, &lines(expected)).is_some(), "{expected}");
        }
    }

    #[test]
    fn a_shell_keeps_its_jobs() {
        let mut shell = Shell::start(Path::new("/"), Path::new("/nowhere")).unwrap();
        assert_eq!(shell.run("(sleep 0.1; printf late) &").unwrap().1, 0);
        assert_eq!(shell.run("wait").unwrap().0, ["late"]);
        let step = Step { command: "false".into(), expected: vec![] };
        assert!(shell.step(&step).unwrap_err().to_string().contains("ended with 1"));
    }
}
