//! Files that a round could not send, and why: what `status` shows of them, and `drain` answers.

use std::fmt;

use cairn_platform_api::InodeNo;
use serde::{Deserialize, Serialize};

/// The most files that are named.
const NAMED_MAX: usize = 5;

/// Why a file's content is not on the remote although its time had come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum LeftReason {
    /// It is written all the time, faster than it can be read: no moment was found at which all that was read was there.
    Restless,
    /// The disk does not give its content.
    Unreadable {
        /// Why not.
        message: String,
    },
}

impl fmt::Display for LeftReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restless => f.write_str("is written faster than it can be read"),
            Self::Unreadable { message } => f.write_str(message),
        }
    }
}

/// A file whose content is not on the remote although its time had come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// Its path below the root of the drive.
    pub path: String,
    /// Why.
    #[serde(flatten)]
    pub reason: LeftReason,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    pub since_ms: i64,
}

impl fmt::Display for LeftFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.path, self.reason)
    }
}

/// Those that a round left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left(pub(super) Vec<InodeNo>);

impl Left {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Names some of the files that are left, in one sentence.
pub(super) fn sentence(files: &[LeftFile]) -> String {
    let count = if files.len() == 1 { "one file".to_owned() } else { format!("{} files", files.len()) };
    let named: Vec<_> = files.iter().take(NAMED_MAX).map(LeftFile::to_string).collect();
    let more = files.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{count} could not be sent: {}{more}", named.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_names_files_and_reasons_and_ends() {
        let file = |number: usize| LeftFile { path: format!("d/{number}"), reason: LeftReason::Restless, since_ms: 1 };
        assert_eq!(sentence(&[file(1)]), "one file could not be sent: \"d/1\" is written faster than it can be read");
        let many: Vec<_> = (0..1000).map(file).collect();
        assert!(sentence(&many).ends_with("; and 995 more"));
    }

    #[test]
    fn a_left_file_survives_json() {
        let reason = LeftReason::Unreadable { message: "no".to_owned() };
        let file = LeftFile { path: "a".to_owned(), reason, since_ms: 7 };
        let text = serde_json::to_string(&file).expect("can be written");
        assert_eq!(serde_json::from_str::<LeftFile>(&text).expect("and read"), file);
    }
}
