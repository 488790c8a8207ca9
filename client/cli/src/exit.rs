//! Failures of a command, and the exit code of each (DESIGN section 10).

use std::fmt;

use mooseng_client::FsError;

/// Wrong arguments.
pub const USAGE: u8 = 2;

/// What kind of failure it is: the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It failed, or was refused for what was asked.
    Failed,
    /// The arguments or the configuration make no sense.
    Usage,
    /// What was named doesn't exist.
    NotFound,
    /// Whoever asks may not: the certificate, its role, or a rule.
    Denied,
    /// Nobody answered, or no majority.
    Unavailable,
    /// It may or may not have been done.
    OutcomeUnknown,
}

/// A command's failure: a sentence for the person who typed it.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    /// A failure of that kind, in a sentence.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    /// It failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }
    /// The arguments or the configuration make no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    /// What was named doesn't exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }
    /// Nobody answered.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }
    /// A part that isn't there yet, by name (docs/not-built.md).
    pub fn not_built(what: &str) -> Self {
        Self::new(
            Kind::Failed,
            format!("NotBuilt: {what} isn't built yet; docs/not-built.md lists what is to come."),
        )
    }
    /// Puts what was being done before the message.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{doing}: {}", self.message) }
    }
    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => USAGE,
            Kind::NotFound => 3,
            Kind::Denied => 4,
            Kind::Unavailable => 5,
            Kind::OutcomeUnknown => 6,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        let kind = match &error {
            FsError::Answered(libc::ENOENT) => Kind::NotFound,
            FsError::Answered(libc::EACCES | libc::EPERM) | FsError::Denied(_) => Kind::Denied,
            FsError::Unanswered { .. } | FsError::Data { .. } => Kind::Unavailable,
            FsError::SessionLost => Kind::OutcomeUnknown,
            _ => Kind::Failed,
        };
        Self::new(kind, format!("{error}."))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(error) => Self::failed(format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_design() {
        let codes = [
            Kind::Failed,
            Kind::Usage,
            Kind::NotFound,
            Kind::Denied,
            Kind::Unavailable,
            Kind::OutcomeUnknown,
        ]
        .map(|kind| Failure::new(kind, "x").exit_code());
        assert_eq!(codes, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_failure_keeps_its_code_through_anyhow() {
        let through: Failure = anyhow::Error::from(Failure::not_found("no such thing")).into();
        assert_eq!(through.exit_code(), 3);
    }
}
