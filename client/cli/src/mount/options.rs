//! The options behind `-o`: ours, those of mount(8), and those that only fstab and systemd mean.

use crate::exit::Failure;

/// What they ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub read_only: bool,
    pub allow_other: bool,
    pub no_atime: bool,
    pub no_exec: bool,
    pub suid: bool,
    pub dev: bool,
    /// Everything is read at the volume's home.
    pub strong: bool,
    /// Each change is durable before it is answered.
    pub sync: bool,
    /// Each change of names is.
    pub dirsync: bool,
    pub retry_timeout_s: Option<u64>,
}

/// What to do with a word that isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Refuse,
    /// `mount -s`.
    Ignore,
}

/// What a mount does anyway, or what is for whoever reads fstab.
const NOTHING_TO_DO: &[&str] = &[
    "_netdev",
    "atime",
    "auto",
    "defaults",
    "diratime",
    "group",
    "lazytime",
    "loud",
    "noauto",
    "nodiratime",
    "nofail",
    "nogroup",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nouser",
    "nousers",
    "owner",
    "silent",
    "user",
    "users",
];

/// Suggested where a word is mistyped.
const KNOWN: &[&str] = &[
    "ro",
    "rw",
    "allow_other",
    "noatime",
    "relatime",
    "noexec",
    "exec",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "retry_timeout",
    "strong",
    "session",
    "consistency",
    "sync",
    "async",
    "dirsync",
    "nofail",
    "noauto",
    "_netdev",
    "user",
];

impl Options {
    /// Reads them; a later one counts.
    pub fn parse(words: &[String], unknown: Unknown) -> Result<Self, Failure> {
        let mut options = Self::default();
        for word in words.iter().filter(|w| !w.is_empty()) {
            options.take(word, unknown)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str, unknown: Unknown) -> Result<(), Failure> {
        match word.split_once('=').unwrap_or((word, "")) {
            ("ro", _) => self.read_only = true,
            ("rw", _) => self.read_only = false,
            ("exec", _) => self.no_exec = false,
            ("noexec", _) => self.no_exec = true,
            ("suid", _) => self.suid = true,
            ("nosuid", _) => self.suid = false,
            ("dev", _) => self.dev = true,
            ("nodev", _) => self.dev = false,
            ("allow_other", _) => self.allow_other = true,
            ("noatime", _) => self.no_atime = true,
            ("relatime", _) => self.no_atime = false,
            ("strong", _) | ("consistency", "strong") => self.strong = true,
            ("session", _) | ("consistency", "session") => self.strong = false,
            ("consistency", _) => {
                return Err(Failure::usage(format!(
                    "-o {word}: what is read can be as this host's session has seen it (consistency=session), or as the volume's home has it (consistency=strong)."
                )));
            }
            ("sync", _) => self.sync = true,
            ("async", _) => self.sync = false,
            ("dirsync", _) => self.dirsync = true,
            ("retry_timeout", seconds) => {
                let seconds = seconds.parse::<u64>().ok().filter(|seconds| *seconds > 0);
                let wrong = || Failure::usage(format!("-o {word}: seconds are expected, at least one."));
                self.retry_timeout_s = Some(seconds.ok_or_else(wrong)?);
            }
            ("bounded", _) => {
                return Err(Failure::not_built("reading from another region's replica (`-o bounded=TIME`)"));
            }
            ("remount", _) => {
                return Err(Failure::usage(
                    "A mount can't be changed while it is there (-o remount): unmount it, and mount it with the other options.",
                ));
            }
            (name, _) if NOTHING_TO_DO.contains(&name) || name == "comment" => {}
            // Notes to systemd and libmount.
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ if unknown == Unknown::Ignore => {}
            (name, _) => {
                let hint = crate::suggest::nearest(name, KNOWN.iter().copied());
                let hint = hint.map(|k| format!(" Did you mean {k}?")).unwrap_or_default();
                return Err(Failure::usage(format!("There is no mount option {name:?}.{hint}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failure> {
        Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>(), Unknown::Refuse)
    }

    #[test]
    fn options_are_understood() {
        let options = parse("ro,noatime,retry_timeout=5,noexec,strong").unwrap();
        let wanted = Options {
            read_only: true,
            strong: true,
            no_atime: true,
            no_exec: true,
            retry_timeout_s: Some(5),
            ..Options::default()
        };
        assert_eq!(options, wanted);
        assert_eq!(
            parse("ro,rw,noexec,exec,strong,session").unwrap(),
            Options::default(),
            "the last one counts"
        );
        assert!(parse("consistency=strong").unwrap().strong);
        assert_eq!(parse("strong,consistency=session").unwrap(), Options::default());
        for vague in ["consistency", "consistency=eventual"] {
            let refused = parse(vague).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{vague}");
            assert!(refused.to_string().contains("consistency=session"), "{refused}");
        }
        assert!(parse("readonly").unwrap_err().exit_code() == 2);
        for senseless in ["retry_timeout=0", "retry_timeout=soon", "retry_timeout"] {
            assert_eq!(parse(senseless).unwrap_err().exit_code(), 2, "{senseless}");
        }
        assert!(parse("noatme").unwrap_err().to_string().contains("noatime"));
        let not_built = parse("bounded=5s").unwrap_err();
        assert_eq!(not_built.exit_code(), 1);
        assert!(not_built.to_string().starts_with("NotBuilt"));
    }

    /// They were taken for something that a mount does anyway, and promised what it didn't keep.
    #[test]
    fn a_mount_that_is_to_wait_is_told_so() {
        assert_eq!(parse("sync").unwrap(), Options { sync: true, ..Options::default() });
        assert_eq!(parse("dirsync").unwrap(), Options { dirsync: true, ..Options::default() });
        assert_eq!(parse("sync,async").unwrap(), Options::default());
        assert!(parse("snc").unwrap_err().to_string().contains("sync"));
    }

    #[test]
    fn what_fstab_and_mount_say_is_taken() {
        let line = "rw,_netdev,nofail,noauto,x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir,user=ann,comment=x";
        assert_eq!(parse(line).unwrap(), Options::default());
        let options = Options::parse(&["vers=4".to_owned(), "ro".to_owned()], Unknown::Ignore).unwrap();
        assert!(options.read_only);
    }

    #[test]
    fn a_remount_is_refused_in_words() {
        let error = parse("remount,ro").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("unmount it"), "{error}");
    }
}
