//! What a mount's process tells the one that waits for it, on its stdout: one line, before it closes that.

use std::io::{Read, Write};

use crate::exit::{Failure, Kind};

/// Who serves a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// The process.
    pub pid: u32,
    /// Its session.
    pub session: u64,
    /// That session's incarnation.
    pub incarnation: u64,
}

/// The line.
#[derive(Debug)]
pub enum Word {
    /// It works.
    Mounted(Serving),
    /// It doesn't.
    Failed(Failure),
    /// It ended before it said anything.
    None,
}

impl Word {
    /// Says it, and closes stdout: what is written there afterwards goes nowhere.
    pub fn tell(&self) {
        let mut out = std::io::stdout();
        let _ = match self {
            Word::Mounted(s) => writeln!(out, "ok {} {} {}", s.pid, s.session, s.incarnation),
            Word::Failed(failure) => writeln!(out, "failed {} {failure}", failure.exit_code()),
            Word::None => Ok(()),
        };
        let _ = out.flush();
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdout(null);
        }
    }

    /// Hears it from a pipe, up to its end.
    pub fn hear(pipe: &mut impl Read) -> Self {
        let mut text = String::new();
        let _ = pipe.take(64 << 10).read_to_string(&mut text);
        Self::parse(&text)
    }

    /// Reads it.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_end();
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ok", numbers) => {
                let mut numbers = numbers.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
                let mut next = || numbers.next().unwrap_or(0);
                let pid = u32::try_from(next()).unwrap_or(0);
                Word::Mounted(Serving { pid, session: next(), incarnation: next() })
            }
            ("failed", rest) => {
                let (code, text) = rest.split_once(' ').unwrap_or(("1", rest));
                let kinds =
                    [Kind::Usage, Kind::NotFound, Kind::Denied, Kind::Unavailable, Kind::OutcomeUnknown];
                let kind = kinds
                    .into_iter()
                    .find(|k| Failure::new(*k, "").exit_code().to_string() == code)
                    .unwrap_or(Kind::Failed);
                Word::Failed(Failure::new(kind, text))
            }
            _ => Word::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let Word::Mounted(serving) = Word::parse("ok 4711 7 2\n") else { panic!() };
        assert_eq!(serving, Serving { pid: 4711, session: 7, incarnation: 2 });
        assert!(matches!(Word::parse(""), Word::None));
        let Word::Failed(failure) = Word::parse("failed 4 the region refuses this host: no rule.\n") else {
            panic!()
        };
        assert_eq!(failure.kind(), Kind::Denied);
        assert_eq!(failure.to_string(), "the region refuses this host: no rule.");
    }
}
