//! The name of an object: a relative path with `/` between its segments.

use std::fmt;
use std::sync::Arc;

/// The longest path, in bytes: what S3 takes as a key, less room for a prefix.
const PATH_MAX: usize = 768;
/// The longest segment, in bytes: what file systems take as a name.
const SEGMENT_MAX: usize = 255;

/// A path that every store can keep: segments of 1 to 255 bytes, none of them `.` or `..`, without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPath(Arc<str>);

/// Why a text is no [`ObjectPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of an object: {reason}")]
pub struct InvalidObjectPath {
    text: String,
    reason: &'static str,
}

impl ObjectPath {
    /// No path is longer, in bytes.
    pub const LEN_MAX: usize = PATH_MAX;

    /// Checks `text`.
    ///
    /// # Errors
    /// When a segment is empty, too long, `.` or `..`, or holds a control character.
    pub fn new(text: &str) -> Result<Self, InvalidObjectPath> {
        match check(text) {
            Ok(()) => Ok(Self(text.into())),
            Err(reason) => Err(InvalidObjectPath { text: text.into(), reason }),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, at least one.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > PATH_MAX {
        return Err("it is too long");
    }
    for segment in text.split('/') {
        match segment {
            "" => return Err("a part of it is empty"),
            "." | ".." => return Err("a part of it is `.` or `..`"),
            _ if segment.len() > SEGMENT_MAX => return Err("a part of it is too long"),
            _ if segment.chars().any(char::is_control) => return Err("it holds a control character"),
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_names_are_taken_and_others_refused() {
        for good in ["a", "cairn.json", "packs/ab/cd", "My Files/é ü.txt", "a b", ".hidden"] {
            assert_eq!(ObjectPath::new(good).map(|path| path.to_string()), Ok(good.to_owned()));
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "/a", "a/", "a//b", ".", "a/../b", "./a", "a\0b", "a\nb", long.as_str()] {
            assert!(ObjectPath::new(bad).is_err(), "{bad:?}");
        }
    }
}
