//! The URL of a remote: what a person types, checked, and shown without secrets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

/// Where a remote is. It holds no secret, so it may be displayed, logged and stored.
///
/// - `fs:///absolute/path`: a folder.
/// - `s3://bucket/prefix?endpoint=https://host&region=name`: a bucket of Amazon S3 or of a service that speaks its protocol.
/// - `memory:name`: a store within this process, gone when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RemoteUrl {
    /// A folder.
    Fs(PathBuf),
    /// A bucket.
    S3(S3Location),
    /// A store of this process.
    Memory(String),
}

/// A bucket, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Location {
    /// Its name.
    pub bucket: String,
    /// What all keys begin with; without `/` at its ends, may be empty.
    pub prefix: String,
    /// Base URL of the service; Amazon when `None`.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: Option<String>,
    /// Whether to ask the metadata service of the cloud machine we run on for a key.
    pub metadata_service: MetadataService,
    /// A PEM file with authorities to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
}

/// Where keys may come from, besides files and the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MetadataService {
    /// Not asked: outside of a cloud machine it does not answer, and each try takes seconds.
    #[default]
    Off,
    /// Asked when nothing else gives a key.
    On,
}

/// Why a text is not the URL of a remote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteUrlError {
    /// Not one of ours.
    #[error("unknown kind of remote {scheme:?}; write fs:///path or s3://bucket/prefix?endpoint=URL&region=NAME")]
    UnknownScheme {
        /// What was given.
        scheme: String,
    },
    /// No URL at all.
    #[error(
        "{text:?} is not a remote; write the absolute path of a folder, or s3://bucket/prefix?endpoint=URL&region=NAME"
    )]
    NotAUrl {
        /// What was given, without what might be a secret.
        text: String,
    },
    /// An option this kind of remote does not have.
    #[error("unknown option {option:?} of an {scheme} remote; known are {known}")]
    UnknownOption {
        /// The kind of remote.
        scheme: &'static str,
        /// The name of the option.
        option: String,
        /// Those it has.
        known: &'static str,
    },
    /// An option given twice.
    #[error("the option {option:?} is given twice; leave one")]
    RepeatedOption {
        /// Its name.
        option: String,
    },
    /// An option whose value makes no sense.
    #[error("the value of the option {option:?} is not usable: {reason}")]
    BadOption {
        /// Its name.
        option: &'static str,
        /// What is wrong, and what to write.
        reason: &'static str,
    },
    /// A secret where it would be stored and shown.
    #[error(
        "a remote's URL must not hold a user name or a password; put keys into credentials.toml or the environment"
    )]
    SecretInUrl,
    /// A folder that depends on where the program is started.
    #[error("the folder of an fs remote must be absolute, as in fs:///mnt/backup")]
    RelativePath,
    /// An fs URL with a host.
    #[error("an fs remote has no host {host:?}; write three slashes, as in fs:///mnt/backup")]
    HostInFs {
        /// What stands where a host would.
        host: String,
    },
    /// No or no possible bucket.
    #[error("an s3 remote needs a bucket, as in s3://bucket/prefix: letters, digits, `.`, `-` and `_`")]
    BadBucket,
    /// A prefix that is no path.
    #[error("the prefix {prefix:?} of an s3 remote is not usable; write names separated by single slashes")]
    BadPrefix {
        /// What was given.
        prefix: String,
    },
    /// A name of a store in memory that is no name.
    #[error("the name of a memory remote is made of letters, digits, `-` and `_`, as in memory:name")]
    BadMemoryName,
}

const S3_OPTIONS: &str = "endpoint, region, imds, ca_file";

impl RemoteUrl {
    /// Checks the URL of a remote. An absolute path of this system is taken as an `fs` remote.
    ///
    /// # Errors
    /// [`RemoteUrlError`], which says what to write.
    pub fn parse(text: &str) -> Result<Self, RemoteUrlError> {
        if text.contains('\0') {
            return Err(RemoteUrlError::NotAUrl { text: text.into() });
        }
        if Path::new(text).is_absolute() {
            return Ok(Self::Fs(PathBuf::from(text)));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(RemoteUrlError::NotAUrl { text: text.into() });
        };
        match scheme.to_ascii_lowercase().as_str() {
            "fs" => parse_fs(text, rest),
            "s3" => parse_s3(text).map(Self::S3),
            "memory" => parse_memory(rest),
            other => Err(RemoteUrlError::UnknownScheme { scheme: other.into() }),
        }
    }
}

impl FromStr for RemoteUrl {
    type Err = RemoteUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

fn parse_fs(text: &str, rest: &str) -> Result<RemoteUrl, RemoteUrlError> {
    if !rest.starts_with("//") {
        return Err(RemoteUrlError::RelativePath);
    }
    let url = Url::parse(text).map_err(|_| RemoteUrlError::RelativePath)?;
    if let Some((option, _)) = url.query_pairs().next() {
        return Err(RemoteUrlError::UnknownOption { scheme: "fs", option: option.into_owned(), known: "none" });
    }
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        return Err(RemoteUrlError::HostInFs { host: host.into() });
    }
    let path = decode(url.path()).ok_or_else(|| RemoteUrlError::NotAUrl { text: text.into() })?;
    let path = drop_slash_before_drive(&path);
    if Path::new(path).is_absolute() {
        Ok(RemoteUrl::Fs(PathBuf::from(path)))
    } else {
        Err(RemoteUrlError::RelativePath)
    }
}

/// `fs:///C:/folder` means `C:/folder` where drives have letters.
fn drop_slash_before_drive(path: &str) -> &str {
    match path.strip_prefix('/') {
        Some(rest) if cfg!(windows) && rest.as_bytes().get(1) == Some(&b':') => rest,
        _ => path,
    }
}

fn parse_s3(text: &str) -> Result<S3Location, RemoteUrlError> {
    let url = Url::parse(text).map_err(|_| RemoteUrlError::BadBucket)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RemoteUrlError::SecretInUrl);
    }
    let bucket = url.host_str().unwrap_or_default().to_owned();
    let is_bucket_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if bucket.is_empty() || !bucket.bytes().all(is_bucket_byte) || url.port().is_some() {
        return Err(RemoteUrlError::BadBucket);
    }
    let prefix = decode(url.path()).unwrap_or_default();
    let prefix = prefix.trim_matches('/').to_owned();
    if !prefix.is_empty() && super::ObjectPath::new(&prefix).is_err() {
        return Err(RemoteUrlError::BadPrefix { prefix });
    }
    let mut location = S3Location {
        bucket,
        prefix,
        endpoint: None,
        region: None,
        metadata_service: MetadataService::Off,
        ca_file: None,
    };
    let mut seen: Vec<String> = Vec::new();
    for (option, value) in url.query_pairs() {
        if seen.iter().any(|name| *name == option) {
            return Err(RemoteUrlError::RepeatedOption { option: option.into_owned() });
        }
        seen.push(option.clone().into_owned());
        match option.as_ref() {
            "endpoint" => location.endpoint = Some(checked_endpoint(&value)?),
            "region" => location.region = Some(checked_region(&value)?),
            "imds" => location.metadata_service = checked_switch(&value)?,
            "ca_file" => location.ca_file = Some(checked_file(&value)?),
            _ => {
                let option = option.into_owned();
                return Err(RemoteUrlError::UnknownOption { scheme: "s3", option, known: S3_OPTIONS });
            }
        }
    }
    let is_plain = location.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if is_plain && location.ca_file.is_some() {
        let reason = "an endpoint that begins with http:// has no certificate to check";
        return Err(RemoteUrlError::BadOption { option: "ca_file", reason });
    }
    Ok(location)
}

fn checked_endpoint(value: &str) -> Result<String, RemoteUrlError> {
    let bad = |reason| RemoteUrlError::BadOption { option: "endpoint", reason };
    let url = Url::parse(value).map_err(|_| bad("write a URL, as in https://host:port"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("write a URL that begins with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RemoteUrlError::SecretInUrl);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("write it without ? and #"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn checked_region(value: &str) -> Result<String, RemoteUrlError> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Ok(value.to_owned());
    }
    Err(RemoteUrlError::BadOption { option: "region", reason: "write a name, as in eu-central-1" })
}

fn checked_switch(value: &str) -> Result<MetadataService, RemoteUrlError> {
    match value {
        "true" => Ok(MetadataService::On),
        "false" => Ok(MetadataService::Off),
        _ => Err(RemoteUrlError::BadOption { option: "imds", reason: "write true or false" }),
    }
}

fn checked_file(value: &str) -> Result<PathBuf, RemoteUrlError> {
    let path = Path::new(value);
    if path.is_absolute() && !value.contains('\0') {
        return Ok(path.to_owned());
    }
    Err(RemoteUrlError::BadOption { option: "ca_file", reason: "write the absolute path of a PEM file" })
}

fn parse_memory(rest: &str) -> Result<RemoteUrl, RemoteUrlError> {
    let name = rest.trim_start_matches('/');
    if name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Ok(RemoteUrl::Memory(name.to_owned()));
    }
    Err(RemoteUrlError::BadMemoryName)
}

/// Undoes percent-encoding; `None` where the result is no text.
fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Percent-encodes what would not be read back from a path.
fn encode(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~' | b':' | b'@' | b'+' | b',' | b'=')
        {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fs(path) => {
                let path = path.to_string_lossy();
                let slash = if path.starts_with('/') { "" } else { "/" };
                write!(f, "fs://{slash}{}", encode(&path))
            }
            Self::S3(location) => fmt::Display::fmt(location, f),
            Self::Memory(name) => write!(f, "memory:{name}"),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", encode(&self.prefix))?;
        }
        let mut separator = '?';
        let imds = match self.metadata_service {
            MetadataService::On => Some("true".to_owned()),
            MetadataService::Off => None,
        };
        let ca_file = self.ca_file.as_ref().map(|path| path.to_string_lossy().into_owned());
        let options = [("endpoint", &self.endpoint), ("region", &self.region), ("imds", &imds), ("ca_file", &ca_file)];
        for (option, value) in options {
            if let Some(value) = value {
                // In a query, `+` stands for a space.
                write!(f, "{separator}{option}={}", encode(value).replace('+', "%2B"))?;
                separator = '&';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an absolute path begins with.
    const ROOT: &str = if cfg!(windows) { "/C:" } else { "" };

    #[test]
    fn what_is_displayed_is_read_back_the_same() {
        for text in ["/mnt/backup", "/mnt/my%20disk/%C3%A9", "/with%3Fmark/and%23hash/100%25"] {
            let text = format!("fs://{ROOT}{text}");
            let url = RemoteUrl::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), text);
        }
        let with_file = format!(
            "s3://bucket?endpoint=https://host&ca_file={}/etc/my%20own%2B%26%23.pem",
            ROOT.trim_start_matches('/')
        );
        for text in [
            with_file.as_str(),
            "s3://bucket",
            "s3://bucket/deep/prefix",
            // Found by the fuzzer: hosts may have characters that mean something else in a query.
            "s3://bucket?endpoint=https://%2Bhost",
            "s3://bucketzp?endpoint=https://%2BBdpoint=https://%29en\u{c7}\u{659}EtB\u{55f}",
            "s3://my.bucket/p%20q?endpoint=http://127.0.0.1:9000&region=eu-central-1",
            "s3://bucket?region=garage&imds=true",
            "memory:",
            "memory:tests-1",
        ] {
            let url = RemoteUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(RemoteUrl::parse(&url.to_string()), Ok(url.clone()), "{text} -> {url}");
        }
        let url = RemoteUrl::parse("s3://bucket/a/?endpoint=https%3A%2F%2Fhost%2F&region=x").expect("valid");
        assert_eq!(url.to_string(), "s3://bucket/a?endpoint=https://host&region=x");
    }

    #[test]
    fn an_absolute_path_is_a_folder() {
        let path = std::env::temp_dir().join("a ?#%41 folder");
        let url = RemoteUrl::parse(path.to_str().expect("text")).expect("valid");
        assert_eq!(url, RemoteUrl::Fs(path));
        assert_eq!(RemoteUrl::parse(&url.to_string()), Ok(url));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, needle) in [
            ("ftp://host", "unknown kind of remote \"ftp\""),
            ("folder", "not a remote"),
            ("", "not a remote"),
            ("/with\0nul", "not a"),
            ("fs:relative", "absolute"),
            ("fs:/one/slash", "absolute"),
            ("fs://host/path", "no host \"host\""),
            ("fs:///path?sync=off", "unknown option \"sync\""),
            ("s3://", "needs a bucket"),
            ("s3:///prefix", "needs a bucket"),
            ("s3://bucket:99/x", "needs a bucket"),
            ("s3://bucket/a//b", "prefix"),
            ("s3://bucket?endpont=x", "unknown option \"endpont\""),
            ("s3://bucket?endpoint=host:9000", "begins with https://"),
            ("s3://bucket?endpoint=", "write a URL"),
            ("s3://bucket?region=", "region"),
            ("s3://bucket?region=a&region=b", "given twice"),
            ("s3://bucket?imds=yes", "true or false"),
            ("s3://bucket?ca_file=own.pem", "absolute path"),
            ("s3://KEY:SECRET@bucket", "must not hold"),
            ("s3://bucket?endpoint=http://KEY:SECRET@host", "must not hold"),
            ("s3://bucket?secret_access_key=SECRET", "unknown option"),
            ("memory:a/b", "memory:name"),
        ] {
            let error = RemoteUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
            assert!(!error.contains("SECRET"), "{text}: {error}");
        }
        let plain = format!("s3://bucket?endpoint=http://host&ca_file={}/own.pem", ROOT.trim_start_matches('/'));
        let error = RemoteUrl::parse(&plain).expect_err("there is no certificate").to_string();
        assert!(error.contains("http://"), "{error}");
    }
}
