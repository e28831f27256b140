//! What a real store in trouble looks like through a provider.

use std::time::Duration;

use bytes::Bytes;
use cairnfs::config::credentials::{AccessKey, Credentials};
use cairnfs::provider::error::with_causes;
use cairnfs::provider::timeout::TimeoutSettings;
use cairnfs::provider::{ErrorKind, ObjectPath, ProviderSettings, PutMode, RemoteUrl, open};

use super::conformance::{Store, conforms};
use super::{hasty, patient};
use crate::servers::proxy::{FaultProxy, ProxyFaults};
use crate::servers::{self, Kind, S3Server, remote_at, unique_prefix};

fn object() -> ObjectPath {
    ObjectPath::new("object").expect("a name")
}

#[tokio::test]
async fn an_unreliable_line_conforms() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let proxy = FaultProxy::start(server.address(), 1);
    proxy.set(ProxyFaults {
        unavailable: 0.1,
        applied_but_error: 0.1,
        cut_reply: 0.1,
        cut_upload: 0.05,
        latency: Duration::from_millis(5),
        ..ProxyFaults::default()
    });
    let remote = remote_at(proxy.address(), &unique_prefix());
    conforms(open(&remote, &servers::credentials(), &patient()).expect("opens"), Store::SMALL).await;
    assert!(proxy.faulty() > 20 && proxy.requests() > proxy.faulty(), "the faults were there");
}

#[tokio::test]
async fn retry_after_of_a_busy_store_is_known() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let proxy = FaultProxy::start(server.address(), 1);
    let remote = remote_at(proxy.address(), &unique_prefix());
    let provider = open(&remote, &servers::credentials(), &hasty()).expect("opens");
    proxy.set(ProxyFaults { unavailable: 1.0, retry_after: Some(7), ..ProxyFaults::default() });
    let error = provider.put(&object(), Bytes::from_static(b"x"), PutMode::Overwrite).await.expect_err("busy");
    let wanted = ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(7)) };
    assert_eq!((error.kind, error.retryable), (wanted, true));
    assert_eq!(provider.head(&object()).await.expect_err("busy").kind, wanted);
    proxy.set(ProxyFaults { unavailable: 1.0, ..ProxyFaults::default() });
    let error = provider.get(&object(), None).await.expect_err("busy");
    assert_eq!((error.kind, error.retryable), (ErrorKind::Unreachable, true));
}

#[tokio::test]
async fn a_cut_reply_is_an_error_and_never_short() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let proxy = FaultProxy::start(server.address(), 1);
    let remote = remote_at(proxy.address(), &unique_prefix());
    let patient = open(&remote, &servers::credentials(), &patient()).expect("opens");
    patient.put(&object(), vec![7; 100_000].into(), PutMode::Overwrite).await.expect("stored");
    let provider = open(&remote, &servers::credentials(), &hasty()).expect("opens");
    proxy.set(ProxyFaults { cut_reply: 1.0, ..ProxyFaults::default() });
    for range in [None, Some(0..50_000), Some(90_000..100_000)] {
        let error = provider.get(&object(), range).await.expect_err("cut");
        assert_eq!((error.kind, error.retryable), (ErrorKind::Unreachable, true), "{}", with_causes(&error));
    }
}

#[tokio::test]
async fn a_cut_upload_leaves_nothing_torn() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let proxy = FaultProxy::start(server.address(), 1);
    let remote = remote_at(proxy.address(), &unique_prefix());
    let patient = open(&remote, &servers::credentials(), &patient()).expect("opens");
    patient.put(&object(), Bytes::from_static(b"before"), PutMode::Overwrite).await.expect("stored");
    let provider = open(&remote, &servers::credentials(), &hasty()).expect("opens");
    proxy.set(ProxyFaults { cut_upload: 1.0, ..ProxyFaults::default() });
    let error = provider.put(&object(), vec![7; 100_000].into(), PutMode::Overwrite).await.expect_err("cut");
    assert!(error.retryable, "{}", with_causes(&error));
    proxy.set(ProxyFaults::default());
    assert_eq!(patient.get(&object(), None).await.expect("there"), Bytes::from_static(b"before"));
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_given_up_and_comes_back() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let proxy = FaultProxy::start(server.address(), 1);
    let remote = remote_at(proxy.address(), &unique_prefix());
    let timeout = TimeoutSettings { base: Duration::from_millis(200), ..TimeoutSettings::default() };
    let settings = ProviderSettings { timeout, ..hasty() };
    let impatient = open(&remote, &servers::credentials(), &settings).expect("opens");
    let provider = open(&remote, &servers::credentials(), &patient()).expect("opens");
    provider.put(&object(), Bytes::from_static(b"x"), PutMode::Overwrite).await.expect("stored");

    proxy.set(ProxyFaults { stall: true, ..ProxyFaults::default() });
    assert_eq!(impatient.head(&object()).await.expect_err("stalled").kind, ErrorKind::Timeout);
    assert!(settings.metrics.snapshot().unreachable_since.is_some());
    proxy.set(ProxyFaults { refuse: true, ..ProxyFaults::default() });
    let error = impatient.head(&object()).await.expect_err("refused");
    assert!(matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Timeout), "{error}");

    proxy.set(ProxyFaults::default());
    assert_eq!(provider.get(&object(), None).await.expect("back"), Bytes::from_static(b"x"));
}

#[tokio::test]
async fn a_server_that_stops_is_unreachable_and_keeps_what_it_acknowledged() {
    let Some(server) = S3Server::start(Kind::SeaweedFs) else { return };
    let remote = server.remote(&unique_prefix());
    let patient = open(&remote, &servers::credentials(), &patient()).expect("opens");
    patient.put(&object(), Bytes::from_static(b"kept"), PutMode::IfAbsent).await.expect("stored");
    server.stop();
    let settings = hasty();
    let provider = open(&remote, &servers::credentials(), &settings).expect("opens");
    for error in [
        provider.head(&object()).await.expect_err("stopped"),
        provider.get(&object(), None).await.expect_err("stopped"),
        provider.list("", None).await.expect_err("stopped"),
        provider.delete(&object()).await.expect_err("stopped"),
        provider.put(&object(), Bytes::new(), PutMode::Overwrite).await.expect_err("stopped"),
    ] {
        assert_eq!((error.kind, error.retryable), (ErrorKind::Unreachable, true), "{}", with_causes(&error));
    }
    let metrics = settings.metrics.snapshot();
    assert!(metrics.unreachable_since.is_some() && metrics.last_error.is_some() && metrics.errors == 5, "{metrics:?}");
    server.start_again();
    assert_eq!(patient.get(&object(), None).await.expect("there"), Bytes::from_static(b"kept"));
}

#[tokio::test]
async fn wrong_keys_and_buckets_are_named_and_no_secret_is_told() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let remote = server.remote(&unique_prefix());
    let key = |id: &str, secret: &str| {
        let mut credentials = Credentials::default();
        let (access_key_id, secret_access_key) = (id.to_owned().into(), secret.to_owned().into());
        credentials.insert("s3://", AccessKey { access_key_id, secret_access_key, session_token: None });
        credentials
    };
    for credentials in [key("testkey", "WRONG-SECRET"), key("WRONG-ID", "WRONG-SECRET")] {
        let provider = open(&remote, &credentials, &hasty()).expect("opens");
        let error = provider.get(&object(), None).await.expect_err("refused");
        let text = format!("{} {error:?}", with_causes(&error));
        assert_eq!((error.kind, error.retryable), (ErrorKind::PermissionDenied, false), "{text}");
        assert!(!text.contains("WRONG") && !text.contains(servers::SECRET_ACCESS_KEY), "{text}");
        assert!(text.contains("credentials"), "{text}");
    }
    let remote = format!("s3://no-such-bucket/x?endpoint=http://{}&region=us-east-1", server.address());
    let remote = RemoteUrl::parse(&remote).expect("valid");
    let provider = open(&remote, &servers::credentials(), &hasty()).expect("opens");
    let error = provider.get(&object(), None).await.expect_err("no such bucket");
    assert_eq!((error.kind, error.retryable), (ErrorKind::InvalidConfig, false), "{}", with_causes(&error));
    assert!(error.to_string().contains("no-such-bucket"), "{error}");
}

#[tokio::test]
async fn without_a_key_access_is_denied_and_the_way_out_named() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    if std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        crate::skip::skipped("the environment holds AWS settings");
        return;
    }
    // Nor does the machine that this runs on get one from its cloud.
    let remote = format!("{}&imds=false", server.remote(&unique_prefix()));
    let remote = RemoteUrl::parse(&remote).expect("valid");
    let provider = open(&remote, &Credentials::default(), &hasty()).expect("opens");
    let error = provider.put(&object(), Bytes::new(), PutMode::Overwrite).await.expect_err("no key");
    assert_eq!((error.kind, error.retryable), (ErrorKind::PermissionDenied, false), "{}", with_causes(&error));
    assert!(error.to_string().contains("credentials"), "{error}");
}
