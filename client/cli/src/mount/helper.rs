//! `mount.mooseng`: what mount(8) runs for `mount -t mooseng SPEC PATH` and for lines of fstab.
//!
//! SPEC is a configuration's path, or its name in /etc/mooseng without `.toml`. Exit codes are those of mount(8).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::args::Mount;
use crate::config;
use crate::exit::{Failure, Kind, USAGE};

/// The program was called by one of these names.
const NAMES: &[&str] = &["mount.mooseng", "mount.fuse.mooseng"];
/// mount(8): wrong arguments.
const INVOCATION: u8 = 1;
/// mount(8): the mount failed.
const FAILED: u8 = 32;

const FORM: &str = "mount.mooseng CONFIG|NAME DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS]";

/// Whether mount(8) called.
pub fn is_called(program: &Path) -> bool {
    program.file_name().and_then(|n| n.to_str()).is_some_and(|name| NAMES.contains(&name))
}

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    spec: String,
    path: PathBuf,
    options: Vec<String>,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    namespace: Option<PathBuf>,
}

/// Does it.
pub fn run(argv: impl Iterator<Item = OsString>) -> ExitCode {
    match Call::parse(argv).and_then(Call::mount) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mount.mooseng: {failure}");
            ExitCode::from(if failure.exit_code() == USAGE { INVOCATION } else { FAILED })
        }
    }
}

impl Call {
    fn parse(argv: impl Iterator<Item = OsString>) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::usage(format!("{what} The form is: {FORM}"));
        let mut call = Self::default();
        let mut places: Vec<OsString> = Vec::new();
        let mut argv = argv.peekable();
        while let Some(argument) = argv.next() {
            let flags = match argument.to_str().and_then(|a| a.strip_prefix('-')) {
                Some(flags) if !flags.is_empty() => flags.to_owned(),
                _ => {
                    places.push(argument);
                    continue;
                }
            };
            for (at, flag) in flags.char_indices() {
                let rest = &flags[at + flag.len_utf8()..];
                let mut value = || match rest.is_empty() {
                    false => Ok(OsString::from(rest)),
                    true => argv.next().ok_or_else(|| wrong(format!("-{flag} lacks its value."))),
                };
                match flag {
                    's' => call.sloppy = true,
                    'f' => call.fake = true,
                    'v' => call.verbose = true,
                    // There is no table to leave alone: the kernel's is the only one.
                    'n' => {}
                    'o' => call.options.extend(value()?.to_string_lossy().split(',').map(str::to_owned)),
                    // The type: it is ours.
                    't' => drop(value()?),
                    'N' => call.namespace = Some(value()?.into()),
                    _ => return Err(wrong(format!("There is no option -{flag}."))),
                }
                if matches!(flag, 'o' | 't' | 'N') {
                    break;
                }
            }
        }
        let [spec, path] = <[OsString; 2]>::try_from(places)
            .map_err(|places| wrong(format!("Two places are expected, not {}.", places.len())))?;
        call.spec = spec.into_string().map_err(|_| wrong("The configuration's name isn't UTF-8.".into()))?;
        call.path = path.into();
        Ok(call)
    }

    fn mount(self) -> Result<(), Failure> {
        if let Some(namespace) = &self.namespace {
            enter(namespace)?;
        }
        let config = config::named(&self.spec)?;
        if self.verbose {
            eprintln!("mount.mooseng: the configuration is {}", config.display());
        }
        let args = Mount {
            options: self.options,
            sloppy: self.sloppy,
            source: Some(self.spec),
            ..Mount::of(config, self.path)
        };
        if self.fake { super::check(&args) } else { super::mount(args) }
    }
}

/// Goes into another mount namespace: of a process by its id, or by its file. What is named is looked for there from then on.
fn enter(namespace: &Path) -> Result<(), Failure> {
    let file = match namespace.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        None => namespace.to_owned(),
    };
    let failed = |e: std::io::Error| {
        Failure::new(Kind::Failed, format!("The mount namespace {} can't be entered: {e}.", file.display()))
    };
    let handle = std::fs::File::open(&file).map_err(failed)?;
    nix::sched::setns(handle, nix::sched::CloneFlags::CLONE_NEWNS).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Call, Failure> {
        Call::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn what_mount_8_passes_is_understood() {
        let call = parse("/etc/mooseng/client.toml /mnt -sfnv -o rw,_netdev -t fuse.mooseng").unwrap();
        assert_eq!(call.path, Path::new("/mnt"));
        assert_eq!(call.options, ["rw", "_netdev"]);
        assert!(call.sloppy && call.fake && call.verbose);
        let call = parse("-n -oro,nofail client /mnt -N 4711").unwrap();
        assert_eq!((call.spec.as_str(), call.options.len()), ("client", 2));
        assert_eq!(call.namespace.as_deref(), Some(Path::new("4711")));
    }

    #[test]
    fn nonsense_is_refused_with_the_form() {
        for line in ["client", "client /mnt /mnt2", "client /mnt -x", "client /mnt -o"] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains("The form is"), "{line}: {error}");
        }
    }

    #[test]
    fn it_is_known_by_its_name() {
        assert!(is_called(Path::new("/sbin/mount.mooseng")) && is_called(Path::new("mount.fuse.mooseng")));
        assert!(!is_called(Path::new("/usr/bin/mooseng")));
    }
}
