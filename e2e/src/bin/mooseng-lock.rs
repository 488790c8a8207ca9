//! A process that takes locks, for tests: told what to do line by line, or working in a critical section until it is told to stop.
//!
//! Each line of a script is answered by one line: `ok` and what was asked for, or `error` and the error number.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Takes locks.
#[derive(Parser)]
enum Args {
    /// Does what standard input says:
    ///   open PATH | close | handle-usr1
    ///   lock flock|fcntl shared|exclusive FIRST LENGTH [try] | unlock flock|fcntl FIRST LENGTH | test FIRST LENGTH
    ///   write NUMBER | read
    Script,
    /// Takes the lock, looks whether it is alone, counts one further in the file, gives the lock up; again and again.
    Critical {
        /// The file that is locked and counted in.
        file: PathBuf,
        /// A file, on a disk that isn't under test, that exists while somebody is inside.
        inside: PathBuf,
        /// flock or fcntl.
        kind: String,
        /// Ends when this file exists.
        stop_file: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse() {
        Args::Script => script(),
        Args::Critical { file, inside, kind, stop_file } => critical(&file, &inside, &kind, &stop_file),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mooseng-lock: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn range(kind: libc::c_int, first: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: first,
        l_len: length,
        l_pid: 0,
    }
}

fn lock(
    file: &File,
    kind: &str,
    exclusive: bool,
    (first, length): (i64, i64),
    try_only: bool,
) -> io::Result<()> {
    if kind == "flock" {
        let tried = |outcome: Result<(), std::fs::TryLockError>| outcome.map_err(io::Error::from);
        return match (exclusive, try_only) {
            (true, true) => tried(file.try_lock()),
            (false, true) => tried(file.try_lock_shared()),
            (true, false) => file.lock(),
            (false, false) => file.lock_shared(),
        };
    }
    let lock = range(if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }, first, length);
    let arg = if try_only { FcntlArg::F_SETLK(&lock) } else { FcntlArg::F_SETLKW(&lock) };
    fcntl(file, arg).map(drop).map_err(io::Error::from)
}

fn unlock(file: &File, kind: &str, (first, length): (i64, i64)) -> io::Result<()> {
    if kind == "flock" {
        return file.unlock();
    }
    fcntl(file, FcntlArg::F_SETLK(&range(libc::F_UNLCK, first, length))).map(drop).map_err(io::Error::from)
}

fn test(file: &File, (first, length): (i64, i64)) -> io::Result<String> {
    let mut lock = range(libc::F_WRLCK, first, length);
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).map_err(io::Error::from)?;
    Ok(match i32::from(lock.l_type) {
        libc::F_UNLCK => "free".to_owned(),
        kind => {
            let kind = if kind == libc::F_WRLCK { "exclusive" } else { "shared" };
            format!("{kind} {} {} {}", lock.l_start, lock.l_len, lock.l_pid)
        }
    })
}

fn read_number(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    match file.read_at(&mut bytes, 0)? {
        0 => Ok(0),
        _ => Ok(u64::from_be_bytes(bytes)),
    }
}

fn write_number(file: &File, number: u64) -> io::Result<()> {
    file.write_all_at(&number.to_be_bytes(), 0)
}

extern "C" fn nothing(_signal: libc::c_int) {}

fn script() -> Result<()> {
    let mut file: Option<File> = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["open", path] => open(Path::new(path)).map(|opened| {
                file = Some(opened);
                String::new()
            }),
            ["close"] => {
                file = None;
                Ok(String::new())
            }
            ["handle-usr1"] => {
                let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
                // SAFETY: the handler does nothing.
                unsafe { sigaction(Signal::SIGUSR1, &action) }.map(|_| String::new()).map_err(io::Error::from)
            }
            other => at(file.as_ref().context("no file is open")?, other)?,
        };
        let mut out = io::stdout().lock();
        match answer {
            Ok(answer) => writeln!(out, "ok {answer}")?,
            Err(error) => writeln!(out, "error {}", errno(&error))?,
        }
        out.flush()?;
    }
    Ok(())
}

fn errno(error: &io::Error) -> i32 {
    // What a try answers has lost its number.
    let would_block = error.kind() == io::ErrorKind::WouldBlock;
    error.raw_os_error().unwrap_or(if would_block { libc::EAGAIN } else { 0 })
}

fn at(file: &File, words: &[&str]) -> Result<io::Result<String>> {
    let number = |word: &str| word.parse::<i64>().with_context(|| format!("{word} is no number"));
    Ok(match words {
        ["lock", kind, level, first, length, rest @ ..] => {
            let range = (number(first)?, number(length)?);
            lock(file, kind, *level == "exclusive", range, rest == ["try"]).map(|()| String::new())
        }
        ["unlock", kind, first, length] => {
            unlock(file, kind, (number(first)?, number(length)?)).map(|()| String::new())
        }
        ["test", first, length] => test(file, (number(first)?, number(length)?)),
        ["write", value] => write_number(file, number(value)? as u64).map(|()| String::new()),
        ["read"] => read_number(file).map(|number| number.to_string()),
        other => bail!("{other:?} isn't understood"),
    })
}

fn critical(path: &Path, inside: &Path, kind: &str, stop_file: &Path) -> Result<()> {
    let file = open(path)?;
    let mut rounds = 0_u64;
    while !stop_file.exists() {
        lock(&file, kind, true, (0, 0), false).context("locking")?;
        let alone = OpenOptions::new().write(true).create_new(true).open(inside);
        ensure!(alone.is_ok(), "after {rounds} rounds two are inside");
        let before = read_number(&file).context("reading under the lock")?;
        write_number(&file, before + 1).context("writing under the lock")?;
        std::fs::remove_file(inside)?;
        unlock(&file, kind, (0, 0)).context("unlocking")?;
        rounds += 1;
    }
    println!("{rounds}");
    Ok(())
}
