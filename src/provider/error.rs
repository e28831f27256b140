//! The one error of all providers: what went wrong, in which operation, on which object, and whether trying again may help.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Confirmed absent.
    NotFound,
    /// [`crate::provider::PutMode::IfAbsent`] found an object.
    AlreadyExists,
    /// The credentials are missing, wrong, or not allowed to do this.
    PermissionDenied,
    /// What answers cannot prove that it is the store: its certificate is not one that is trusted.
    Untrusted,
    /// The store asks to slow down.
    RateLimited {
        /// How long the store asks to wait, where it says so.
        retry_after: Option<Duration>,
    },
    /// The store cannot be reached, broke off, or answered that it has trouble.
    Unreachable,
    /// No answer within the deadline.
    Timeout,
    /// The remote is not as configured: no such bucket, an address that makes no sense.
    InvalidConfig,
    /// The store answered with something that cannot be right, such as fewer bytes than the object has.
    Corrupt,
    /// The store is full.
    NoSpace,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// Whether an operation that failed like this is worth repeating as it is.
    fn is_transient(self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Unreachable | Self::Timeout)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "it does not exist",
            Self::AlreadyExists => "it exists already",
            Self::PermissionDenied => "access is denied; check the credentials of this remote",
            Self::Untrusted => "its certificate is not accepted",
            Self::RateLimited { .. } => "the remote asks to slow down",
            Self::Unreachable => "the remote cannot be reached",
            Self::Timeout => "the remote did not answer in time",
            Self::InvalidConfig => "the remote is not configured correctly",
            Self::Corrupt => "the remote gave a wrong answer",
            Self::NoSpace => "the remote is full",
            Self::Other => "the operation failed",
        })
    }
}

/// A failed operation of a [`crate::provider::Provider`].
#[derive(Debug)]
pub struct ProviderError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Whether the same operation may succeed later.
    pub retryable: bool,
    /// What was tried: `open`, `put`, `get`, `head`, `list` or `delete`.
    pub operation: &'static str,
    /// The name of the remote, without secrets.
    pub remote: String,
    /// The path of the object, or the prefix that was listed; empty where the remote itself is meant.
    pub object: String,
    /// What the store or the system said, without secrets.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProviderError {
    /// An error of this kind, retryable as that kind usually is.
    pub fn new(kind: ErrorKind, operation: &'static str, remote: impl Into<String>, object: impl Into<String>) -> Self {
        Self {
            kind,
            retryable: kind.is_transient(),
            operation,
            remote: remote.into(),
            object: object.into(),
            source: None,
        }
    }

    /// With what lies behind it, which must hold no secret.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl ProviderError {
    /// The operation as people call it.
    fn verb(&self) -> &'static str {
        match self.operation {
            "put" => "store",
            "get" => "read",
            "head" => "look up",
            other => other,
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, remote, object, .. } = self;
        let verb = self.verb();
        if object.is_empty() {
            write!(f, "cannot {verb} {remote}: {kind}")
        } else {
            write!(f, "cannot {verb} {object:?} on {remote}: {kind}")
        }
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

/// The error and all its causes in one line, without repeating one that the previous already says.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
