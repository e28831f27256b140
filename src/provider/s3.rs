//! Amazon S3 and what speaks its protocol, over OpenDAL.
//!
//! OpenDAL signs, sends and decodes; its retries and pools of operators are not used. Its errors hide the HTTP response and may
//! quote whole answers, so [`ResponseNotes`] writes down status and `Retry-After` below it, and [`S3Provider::failed`] makes
//! our error from these, code and message of the answer, and nothing else.
//!
//! Not every store honours `If-None-Match` ([`super::PutMode::IfAbsent`]); so we ask for the object first, too.

use std::cell::Cell;
use std::error::Error;
use std::future::IntoFuture;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Request, Response, StatusCode, header};
use opendal::layers::HttpClientLayer;
use opendal::raw::{HttpBody, HttpClient, HttpFetch};
use opendal::{Buffer, Operator};

use crate::config::credentials::AccessKey;

use super::remote_url::{MetadataService, S3Location};
use super::{
    Capabilities, ErrorKind, LISTED_MAX, OBJECT_MAX, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError,
    ProviderFuture, PutMode, tls,
};

/// Completed by the region.
const AMAZON: &str = "https://s3.amazonaws.com";
/// The region that stores which have none want to see in a signature.
const DEFAULT_REGION: &str = "us-east-1";

/// The longest answer that is not an object: a page of a listing has 1000 entries, whose paths are escaped.
const ANSWER_MAX: u64 = 16 << 20;

/// A bucket, or a part of one.
pub struct S3Provider {
    name: String,
    operator: Operator,
    /// The time for one page of a listing, of at most 1000 entries.
    page_timeout: Duration,
    /// What must not show up in an error, even where a server repeats it.
    key: Option<AccessKey>,
}

impl S3Provider {
    /// Prepares access to a bucket; without `key`, the environment (`AWS_ACCESS_KEY_ID` ...) and then the profile in `~/.aws`
    /// give one. A listing takes several requests: each of them may take `page_timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when something is missing.
    pub fn new(location: &S3Location, key: Option<&AccessKey>, page_timeout: Duration) -> Result<Self, ProviderError> {
        let name = location.to_string();
        let invalid =
            |reason: String| ProviderError::new(ErrorKind::InvalidConfig, "open", &name, "").with_source(reason);
        let region = region(location, |name| std::env::var(name).ok())
            .ok_or_else(|| invalid("add its region to the URL, as in ?region=eu-central-1".into()))?;
        let mut builder = opendal::services::S3::default()
            .bucket(&location.bucket)
            .root(&format!("/{}", location.prefix))
            .region(&region)
            // Catches what is damaged on the way; of the checksums of S3 this one is known everywhere.
            .checksum_algorithm("md5")
            // Always given: where objects go is for the URL to say, not for the environment.
            .endpoint(location.endpoint.as_deref().unwrap_or(AMAZON));
        if location.metadata_service == MetadataService::Off {
            builder = builder.disable_ec2_metadata();
        }
        if let Some(key) = key {
            builder = builder
                .access_key_id(key.access_key_id.reveal())
                .secret_access_key(key.secret_access_key.reveal())
                .disable_config_load();
            if let Some(token) = &key.session_token {
                builder = builder.session_token(token.reveal());
            }
        }
        let client = tls::client(location).map_err(invalid)?;
        let operator = Operator::new(builder).map_err(|error| invalid(error.message().to_owned()))?;
        let operator = operator.layer(HttpClientLayer::new(HttpClient::with(ResponseNotes(client)))).finish();
        Ok(Self { name, operator, page_timeout, key: key.cloned() })
    }

    /// Runs one operation of OpenDAL, and explains its failure.
    async fn run<T, F>(&self, operation: &'static str, object: &str, work: F) -> Result<T, ProviderError>
    where
        F: IntoFuture<Output = opendal::Result<T>>,
    {
        self.run_noted(operation, object, ANSWER_MAX, work).await.map(|(value, _)| value)
    }

    /// The same, with what is noted of the last response. An answer longer than `longest` bytes is broken off.
    async fn run_noted<T, F>(
        &self,
        operation: &'static str,
        object: &str,
        longest: u64,
        work: F,
    ) -> Result<(T, Option<ResponseNote>), ProviderError>
    where
        F: IntoFuture<Output = opendal::Result<T>>,
    {
        let noted = async {
            let result = work.into_future().await;
            (result, LAST_RESPONSE.with(Cell::get))
        };
        let noted = LAST_RESPONSE.scope(Cell::new(None), noted);
        let (result, response) = LONGEST_ANSWER.scope(longest, noted).await;
        match result {
            Ok(value) => Ok((value, response)),
            Err(error) => Err(self.failed(operation, object, &error, response)),
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        object: &str,
        error: &opendal::Error,
        response: Option<ResponseNote>,
    ) -> ProviderError {
        if let (None, Some((kind, reason))) = (response, tls::explain(error)) {
            return ProviderError::new(kind, operation, &self.name, object).with_source(reason);
        }
        let answer = S3Answer::from_message(error.message());
        let (kind, retryable) = classify(error, response, answer.as_ref());
        let reason = match (answer, response) {
            (Some(S3Answer { code, message }), _) => format!("{code}: {}", without_request(&message)),
            (None, Some(response)) if !response.status.is_success() => format!("HTTP status {}", response.status),
            (None, _) => root_cause(error),
        };
        let reason = self.without_secrets(reason);
        ProviderError { retryable, ..ProviderError::new(kind, operation, &self.name, object).with_source(reason) }
    }
}

impl S3Provider {
    fn without_secrets(&self, text: String) -> String {
        let Some(key) = &self.key else { return text };
        let secrets = [Some(&key.access_key_id), Some(&key.secret_access_key), key.session_token.as_ref()];
        let secrets = secrets.into_iter().flatten().map(|secret| secret.reveal()).filter(|secret| !secret.is_empty());
        secrets.fold(text, |text, secret| text.replace(secret, "(secret)"))
    }
}

/// The region of the URL, of the environment, or where it does not matter.
fn region(location: &S3Location, environment: impl Fn(&str) -> Option<String>) -> Option<String> {
    let from_environment = || ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(environment);
    let for_other_stores = || location.endpoint.as_ref().map(|_| DEFAULT_REGION.to_owned());
    location.region.clone().or_else(from_environment).or_else(for_other_stores)
}

/// The next entry of a listing, which may take the request for a page. However many pages there are, none may hang.
async fn next_in_time(lister: &mut opendal::Lister, limit: Duration) -> opendal::Result<Option<opendal::Entry>> {
    let late = |_| opendal::Error::new(opendal::ErrorKind::Unexpected, "no answer in time").set_temporary();
    tokio::time::timeout(limit, lister.try_next()).await.map_err(late)?
}

/// What OpenDAL's errors do not tell of the response they come from.
#[derive(Debug, Clone, Copy)]
struct ResponseNote {
    status: StatusCode,
    retry_after: Option<Duration>,
    /// Where in the object the body begins, as the server says.
    range_start: Option<u64>,
}

tokio::task_local! {
    /// The last response of the operation that runs in this task. OpenDAL sends what we ask of it from the task that asks.
    static LAST_RESPONSE: Cell<Option<ResponseNote>>;
    /// How long an answer to that operation can be.
    static LONGEST_ANSWER: u64;
}

/// An HTTP client that notes responses in [`LAST_RESPONSE`], and reads no more of one than [`LONGEST_ANSWER`].
struct ResponseNotes(reqwest::Client);

impl HttpFetch for ResponseNotes {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let note = |note| LAST_RESPONSE.try_with(|last| last.set(note));
        // What is sent now has no response yet, whatever came before. Outside of an operation nobody asks.
        let _ = note(None);
        let response = self.0.fetch(request).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let _ = note(Some(ResponseNote {
            status: response.status(),
            retry_after: header(header::RETRY_AFTER).and_then(|value| parse_retry_after(value, SystemTime::now())),
            range_start: header(header::CONTENT_RANGE).and_then(parse_range_start),
        }));
        // What it says of a failure is not what was asked for, however short that is.
        let longest = LONGEST_ANSWER.try_with(|longest| *longest).ok().filter(|_| response.status().is_success());
        let mut left = longest.unwrap_or(ANSWER_MAX);
        let limited = move |piece: opendal::Result<Buffer>| {
            let piece = piece?;
            left = left.checked_sub(piece.len() as u64).ok_or_else(too_long)?;
            Ok(piece)
        };
        Ok(response.map(|body| body.map_inner(|stream| Box::new(stream.map(limited)))))
    }
}

fn too_long() -> opendal::Error {
    opendal::Error::new(opendal::ErrorKind::Unexpected, "the answer is longer than it can be")
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The first byte of `bytes first-last/size` (RFC 9110, section 14.4).
fn parse_range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Code and message of an S3 error document; any other text may be anything that a server or proxy said.
struct S3Answer {
    code: String,
    message: String,
}

impl S3Answer {
    /// Takes them out of how OpenDAL writes them down.
    fn from_message(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("S3Error { code: ")?;
        let (code, rest) = quoted(rest)?;
        let (message, _) = quoted(rest.strip_prefix(", message: ")?)?;
        (!code.is_empty()).then_some(Self { code, message })
    }
}

/// A text in quotes, as `Debug` writes it, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.char_indices();
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return text.get(at + 2..).map(|rest| (value, rest)),
            '\\' => value.push(chars.next().map(|(_, escaped)| if escaped == 'n' { ' ' } else { escaped })?),
            _ => value.push(c),
        }
    }
    None
}

/// What a message says before it repeats the request, which is signed.
fn without_request(message: &str) -> &str {
    let lower = message.to_ascii_lowercase();
    let repeats = ["authorization", "signature=", "credential=", "x-amz-"].iter().filter_map(|word| lower.find(word));
    message.get(..repeats.min().unwrap_or(message.len())).unwrap_or_default()
}

/// The innermost cause: `Connection refused` says more than the layers around it, which also quote URLs.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<opendal::Error>() {
        Some(error) => error.message().to_owned(),
        None => cause.to_string(),
    }
}

/// The one place that says what a failed request means, and whether to repeat it.
fn classify(error: &opendal::Error, response: Option<ResponseNote>, answer: Option<&S3Answer>) -> (ErrorKind, bool) {
    use opendal::ErrorKind as Dal;
    let status = response.map_or(0, |response| response.status.as_u16());
    let retry_after = response.and_then(|response| response.retry_after);
    match answer.map_or("", |answer| answer.code.as_str()) {
        "NoSuchBucket" | "InvalidBucketName" | "PermanentRedirect" | "AuthorizationHeaderMalformed" => {
            return (ErrorKind::InvalidConfig, false);
        }
        "QuotaExceeded" | "XMinioStorageFull" => return (ErrorKind::NoSpace, false),
        "BadDigest" => return (ErrorKind::Corrupt, true),
        _ => {}
    }
    match (error.kind(), status) {
        (Dal::NotFound, _) => (ErrorKind::NotFound, false),
        // Two conditional puts met; the store asks to try again, and then says which won.
        (Dal::ConditionNotMatch, 409) => (ErrorKind::Other, true),
        (Dal::ConditionNotMatch, _) => (ErrorKind::AlreadyExists, false),
        (Dal::PermissionDenied, _) | (_, 401) => (ErrorKind::PermissionDenied, false),
        (Dal::ConfigInvalid, _) => (ErrorKind::InvalidConfig, false),
        (Dal::RangeNotSatisfied, _) => (ErrorKind::Corrupt, false),
        (Dal::RateLimited, _) | (_, 429) => (ErrorKind::RateLimited { retry_after }, true),
        (_, 503) if retry_after.is_some() => (ErrorKind::RateLimited { retry_after }, true),
        (_, 507) => (ErrorKind::NoSpace, false),
        (_, 408) => (ErrorKind::Timeout, true),
        (_, 500..) => (ErrorKind::Unreachable, true),
        // No key was found to sign with, or it is not one.
        (_, 0) if error.message() == "signing http request" => (ErrorKind::PermissionDenied, false),
        // Nothing came back, or it broke off.
        (_, 0 | 200..=299) if error.is_temporary() => (ErrorKind::Unreachable, true),
        // It came whole, and is not what was asked for.
        (_, 200..=299) => (ErrorKind::Corrupt, false),
        _ => (ErrorKind::Other, error.is_temporary()),
    }
}

impl Provider for S3Provider {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: true, ranged_read: true }
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            let write = self.operator.write_with(path.as_str(), body);
            let write = match mode {
                PutMode::Overwrite => write,
                PutMode::IfAbsent => {
                    if self.head(path).await?.is_some() {
                        return Err(ProviderError::new(ErrorKind::AlreadyExists, "put", &self.name, path.as_str()));
                    }
                    write.if_not_exists(true)
                }
            };
            self.run("put", path.as_str(), write).await.map(drop)
        })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(async move {
            let read = self.operator.read_with(path.as_str());
            let Some(range) = range else {
                let (body, _) = self.run_noted("get", path.as_str(), OBJECT_MAX, read).await?;
                return Ok(body.to_bytes());
            };
            let wrong = || ProviderError::new(ErrorKind::Corrupt, "get", &self.name, path.as_str());
            let length = range.end.checked_sub(range.start).ok_or_else(wrong)?;
            if length == 0 {
                return match self.head(path).await? {
                    Some(meta) if range.end <= meta.size => Ok(Bytes::new()),
                    Some(_) => Err(wrong()),
                    None => Err(ProviderError::new(ErrorKind::NotFound, "get", &self.name, path.as_str())),
                };
            }
            let start = range.start;
            let (body, response) = self.run_noted("get", path.as_str(), length, read.range(range)).await?;
            // A range that ends behind the object is answered with what there is; by a server that knows no ranges, with all.
            // The status does not tell: some answer 200 to a range that they respect.
            let answered_start = response.and_then(|response| response.range_start).unwrap_or(0);
            let is_right = body.len() as u64 == length && answered_start == start;
            if is_right { Ok(body.to_bytes()) } else { Err(wrong()) }
        })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        Box::pin(async move {
            match self.run("head", path.as_str(), self.operator.stat(path.as_str())).await {
                Ok(meta) => {
                    let modified = meta.last_modified().map(SystemTime::from);
                    Ok(Some(ObjectMeta { size: meta.content_length(), modified }))
                }
                Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(async move {
            let collect = async {
                let lister = self.operator.lister_with(prefix).recursive(true);
                let lister = match start_after {
                    Some(start) => lister.start_after(start),
                    None => lister,
                };
                let (mut lister, mut listed) = (lister.await?, Vec::new());
                while let Some(entry) = next_in_time(&mut lister, self.page_timeout).await? {
                    if listed.len() >= LISTED_MAX {
                        return Err(too_long());
                    }
                    listed.push(entry);
                }
                Ok(listed)
            };
            let listed = self.run("list", prefix, collect).await?;
            let mut found = Vec::with_capacity(listed.len());
            for entry in listed {
                // Consoles mark folders by empty objects whose names end in a slash.
                let is_folder = entry.path().ends_with('/');
                // Some stores do not know `start-after`.
                if is_folder || start_after.is_some_and(|start| entry.path() <= start) {
                    continue;
                }
                let path = ObjectPath::new(entry.path()).map_err(|error| {
                    ProviderError::new(ErrorKind::Corrupt, "list", &self.name, prefix).with_source(error)
                })?;
                found.push(ObjectEntry { path, size: entry.metadata().content_length() });
            }
            found.sort_unstable();
            Ok(found)
        })
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        Box::pin(self.run("delete", path.as_str(), async { self.operator.delete(path.as_str()).await }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::provider::RemoteUrl;
    use crate::provider::error::with_causes;

    const ID: &str = "AKIA-THE-KEY-ID";
    const SECRET: &str = "the-secret-key";
    const TOKEN: &str = "the-session-token";

    /// A provider whose server answers every request with `answer`, filled with what was sent, and closes.
    async fn with_server(answer: impl Fn(&str) -> String + Send + 'static) -> S3Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    if connection.read_buf(&mut request).await.unwrap_or_default() == 0 {
                        break;
                    }
                }
                let response = answer(&String::from_utf8_lossy(&request));
                // The client may be gone, which is its business.
                let _ = connection.write_all(response.as_bytes()).await;
            }
        });
        provider_at(address)
    }

    fn provider_at(address: std::net::SocketAddr) -> S3Provider {
        let url = format!("s3://bucket/prefix?endpoint=http://{address}&region=nowhere");
        let Ok(RemoteUrl::S3(location)) = RemoteUrl::parse(&url) else { panic!("a valid URL") };
        let key = AccessKey {
            access_key_id: ID.to_owned().into(),
            secret_access_key: SECRET.to_owned().into(),
            session_token: Some(TOKEN.to_owned().into()),
        };
        S3Provider::new(&location, Some(&key), Duration::from_secs(30)).expect("complete")
    }

    fn response(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    fn path() -> ObjectPath {
        ObjectPath::new("object").expect("a name")
    }

    async fn error_of(status: &'static str, headers: &'static str, body: String) -> (ErrorKind, bool, String) {
        let provider = with_server(move |_| response(status, headers, &body)).await;
        let error = provider.get(&path(), None).await.expect_err("an error was answered");
        (error.kind, error.retryable, with_causes(&error))
    }

    #[tokio::test]
    async fn every_answer_has_its_kind() {
        let wait = |seconds| ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(seconds)) };
        for (status, headers, code, kind, retryable) in [
            ("403 Forbidden", "", "AccessDenied", ErrorKind::PermissionDenied, false),
            ("401 Unauthorized", "", "", ErrorKind::PermissionDenied, false),
            ("404 Not Found", "", "NoSuchKey", ErrorKind::NotFound, false),
            ("404 Not Found", "", "NoSuchBucket", ErrorKind::InvalidConfig, false),
            ("301 Moved Permanently", "", "PermanentRedirect", ErrorKind::InvalidConfig, false),
            ("400 Bad Request", "", "AuthorizationHeaderMalformed", ErrorKind::InvalidConfig, false),
            ("400 Bad Request", "", "BadDigest", ErrorKind::Corrupt, true),
            ("400 Bad Request", "", "Whatever", ErrorKind::Other, false),
            ("409 Conflict", "", "ConditionalRequestConflict", ErrorKind::Other, true),
            ("412 Precondition Failed", "", "PreconditionFailed", ErrorKind::AlreadyExists, false),
            ("416 Range Not Satisfiable", "", "InvalidRange", ErrorKind::Corrupt, false),
            ("429 Too Many Requests", "", "", ErrorKind::RateLimited { retry_after: None }, true),
            ("429 Too Many Requests", "Retry-After: 3\r\n", "", wait(3), true),
            ("503 Slow Down", "", "SlowDown", ErrorKind::RateLimited { retry_after: None }, true),
            ("503 Slow Down", "Retry-After: 120\r\n", "SlowDown", wait(120), true),
            ("503 Service Unavailable", "Retry-After: 5\r\n", "", wait(5), true),
            ("503 Service Unavailable", "", "ServiceUnavailable", ErrorKind::Unreachable, true),
            ("500 Internal Server Error", "", "InternalError", ErrorKind::Unreachable, true),
            ("507 Insufficient Storage", "", "XMinioStorageFull", ErrorKind::NoSpace, false),
            ("507 Insufficient Storage", "", "", ErrorKind::NoSpace, false),
        ] {
            let body = if code.is_empty() { "<html>".to_owned() } else { xml(code, "what it says") };
            let (found, found_retryable, text) = error_of(status, headers, body).await;
            assert_eq!((found, found_retryable), (kind, retryable), "{status} {code}: {text}");
            assert!(text.contains("\"object\"") && text.contains("s3://bucket/prefix"), "{text}");
            assert!(text.contains(if code.is_empty() { &status[..3] } else { "what it says" }), "{text}");
        }
    }

    #[tokio::test]
    async fn no_error_repeats_a_secret_whatever_the_server_says() {
        // Some servers answer a wrong signature with all that was sent, and proxies with pages of their own.
        let echoes: [fn(&str) -> String; 3] = [
            |request| response("403 Forbidden", "", &format!("<html>{request} {SECRET}</html>")),
            |request| response("403 Forbidden", "", &xml("SignatureDoesNotMatch", &format!("{ID} {TOKEN} {request}"))),
            |_| "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".into(),
        ];
        for echo in echoes {
            let provider = with_server(echo).await;
            let range = Some(0..50);
            for error in [
                provider.get(&path(), range).await.expect_err("fails"),
                provider.put(&path(), Bytes::from_static(b"x"), PutMode::IfAbsent).await.map_or_else(
                    |e| e,
                    |()| {
                        ProviderError::new(
                            ErrorKind::Other,
                            "put",
                            provider.name(),
                            "the short answer is none to a put",
                        )
                    },
                ),
                provider.list("", None).await.expect_err("fails"),
            ] {
                let text = format!("{} {error} {error:?} {error:#?}", with_causes(&error));
                for secret in [ID, SECRET, TOKEN, "Signature="] {
                    assert!(!text.contains(secret), "{secret} in {text}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_broken_off_answer_is_unreachable_and_a_short_one_corrupt() {
        let broken = |_: &str| "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_owned();
        let error = with_server(broken).await.get(&path(), None).await.expect_err("broken off");
        assert_eq!((error.kind, error.retryable), (ErrorKind::Unreachable, true), "{}", with_causes(&error));
        let short = |_: &str| response("206 Partial Content", "Content-Range: bytes 0-4/5\r\n", "short");
        let error = with_server(short).await.get(&path(), Some(0..10)).await.expect_err("too short");
        assert_eq!((error.kind, error.retryable), (ErrorKind::Corrupt, false), "{}", with_causes(&error));
    }

    #[tokio::test]
    async fn a_range_that_is_ignored_is_not_taken_for_the_range() {
        let whole = |_: &str| response("200 OK", "", "0123456789");
        let error = with_server(whole).await.get(&path(), Some(5..8)).await.expect_err("not the range");
        assert_eq!(error.kind, ErrorKind::Corrupt, "{}", with_causes(&error));
        let error =
            with_server(whole).await.get(&path(), Some(5..15)).await.expect_err("not the range, as long as it is");
        assert_eq!(error.kind, ErrorKind::Corrupt, "{}", with_causes(&error));
    }

    /// A provider whose server sends this, and after it zeros for as long as somebody reads them.
    async fn with_endless_answer(head: &'static str) -> S3Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    // What is asked does not matter, but must be taken.
                    let _ = connection.read(&mut request).await;
                    let mut sent = connection.write_all(head.as_bytes()).await;
                    while sent.is_ok() {
                        sent = connection.write_all(&[b'0'; 65536]).await;
                    }
                });
            }
        });
        provider_at(address)
    }

    #[tokio::test]
    async fn no_more_is_read_than_can_come() {
        const HUGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\nConnection: close\r\n\r\n";
        const ENDLESS: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        for head in [HUGE, ENDLESS] {
            let provider = with_endless_answer(head).await;
            let error = provider.get(&path(), Some(0..100)).await.expect_err("the range is ignored");
            let text = with_causes(&error);
            assert_eq!((error.kind, error.retryable), (ErrorKind::Corrupt, false), "{text}");
            assert!(text.contains("\"object\"") && text.contains("longer than it can be"), "{text}");
            let error = provider.list("log/", None).await.expect_err("no listing is as long");
            assert_eq!(error.kind, ErrorKind::Corrupt, "{}", with_causes(&error));
        }
        let refused = with_endless_answer("HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n").await;
        let error = refused.get(&path(), Some(0..100)).await.expect_err("the error has no end");
        assert_eq!(error.kind, ErrorKind::Other, "{}", with_causes(&error));
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable_and_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let url = format!("s3://bucket?endpoint=http://{address}&region=nowhere");
        let Ok(RemoteUrl::S3(location)) = RemoteUrl::parse(&url) else { panic!("a valid URL") };
        let key = AccessKey {
            access_key_id: ID.to_owned().into(),
            secret_access_key: SECRET.to_owned().into(),
            session_token: None,
        };
        let provider = S3Provider::new(&location, Some(&key), Duration::from_secs(30)).expect("complete");
        let error = provider.head(&path()).await.expect_err("nobody there");
        assert_eq!((error.kind, error.retryable), (ErrorKind::Unreachable, true));
        assert!(with_causes(&error).contains("refused"), "{}", with_causes(&error));
    }

    #[test]
    fn a_region_is_needed_on_amazon_only() {
        let region_of = |url: &str, set: Option<&str>| match RemoteUrl::parse(url) {
            Ok(RemoteUrl::S3(location)) => {
                region(&location, |name| set.filter(|_| name == "AWS_REGION").map(str::to_owned))
            }
            _ => panic!("a valid URL"),
        };
        assert_eq!(region_of("s3://b?region=one", Some("two")), Some("one".into()));
        assert_eq!(region_of("s3://b", Some("two")), Some("two".into()));
        assert_eq!(region_of("s3://b", None), None);
        assert_eq!(region_of("s3://b?endpoint=http://host", None), Some(DEFAULT_REGION.into()));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:00 GMT").expect("a date");
        assert_eq!(parse_retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now), Some(Duration::from_secs(59)));
        assert_eq!(parse_retry_after("Fri, 31 Dec 1999 23:58:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("-1", now), None);
        assert_eq!(parse_retry_after("soon", now), None);
    }

    #[test]
    fn an_answer_is_read_back_from_its_debug_text() {
        let text = r#"S3Error { code: "A", message: "it's \"b\" \\ c", resource: "r", request_id: "i" }"#;
        let answer = S3Answer::from_message(text).expect("an answer");
        assert_eq!((answer.code.as_str(), answer.message.as_str()), ("A", r#"it's "b" \ c"#));
        for text in ["", "S3Error { code: \"", "S3Error { code: \"\", message: \"x\" }", "<html>S3Error"] {
            assert!(S3Answer::from_message(text).is_none(), "{text}");
        }
    }
}
