//! Whom a client of an `https` remote trusts, and what it says of a server that it does not.
//!
//! Trusted are the authorities of the system, or on Unix those in `SSL_CERT_FILE` and `SSL_CERT_DIR` where these are set; and
//! besides, those in the file that the URL names. They are read when a remote is opened. Nothing switches the checks off.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Once;
use std::time::{Duration, UNIX_EPOCH};

use reqwest::{Certificate, ClientBuilder};
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

use super::ErrorKind;
use super::remote_url::S3Location;

/// The time to reach a server; a dead address must not use up the time of a whole operation.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client for a bucket. Every provider has its own: pooled connections belong to the runtime they were made in.
pub(super) fn client(location: &S3Location) -> Result<reqwest::Client, String> {
    static PROVIDER: Once = Once::new();
    // Fails when the program has chosen one already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let builder = || {
        reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
            .retry(reqwest::retry::never())
    };
    let trusting_nobody = || build(builder().tls_certs_only([]));
    if location.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        // The system may have no authorities at all, and needs none.
        return trusting_nobody();
    }
    match &location.ca_file {
        Some(path) => {
            let authorities = read_authorities(path).map_err(|reason| unusable(path, &reason))?;
            build(builder().tls_certs_merge(authorities)).map_err(|reason| unusable(path, &reason))
        }
        // A system without authorities: each request says whom it cannot trust, and a drive can be mounted meanwhile.
        None => build(builder()).or_else(|_| trusting_nobody()),
    }
}

fn build(builder: ClientBuilder) -> Result<reqwest::Client, String> {
    builder.build().map_err(|error| innermost(&error).to_string())
}

fn unusable(path: &Path, reason: &str) -> String {
    format!("the authorities' certificates in its ca_file {path:?} cannot be used: {reason}")
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    match Certificate::from_pem_bundle(&text) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("it is no PEM file with certificates".to_owned()),
    }
}

/// What a failed request says of TLS, if that is why it failed: the kind of the failure, and the reason in words.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<(ErrorKind, String)> {
    match tls_error(error)? {
        rustls::Error::InvalidCertificate(reason) => Some((ErrorKind::Untrusted, refusal(reason))),
        rustls::Error::InvalidMessage(_) => {
            let reason =
                "what answers there does not speak TLS; if it is a server without, its endpoint begins with http://";
            Some((ErrorKind::Unreachable, reason.to_owned()))
        }
        _ => None,
    }
}

fn refusal(reason: &CertificateError) -> String {
    match reason {
        // A signature is bad, too, where an authority that is trusted and another have the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that this machine trusts has signed it; to trust the one that \
            has, add ca_file=PATH to the URL, or add it to the system's authorities"
                .to_owned()
        }
        CertificateError::Expired => "it has expired; renew it on the server".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "it expired at {}, and this machine's clock says {}; renew it on the server, or set the clock right",
            date(*not_after),
            date(*time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "it is valid from {} on, and this machine's clock says {}; set the clock right, or wait",
            date(*not_before),
            date(*time)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "it is for {}, not for {}; use the name that it is for as the endpoint, or another certificate on the server",
            if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") },
            expected.to_str()
        ),
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => "it is that of an authority \
            (CA:TRUE, as `openssl req -x509` makes it), which is not for servers; let the authority sign one for the server"
            .to_owned(),
        other => format!("{other}; use another certificate on the server"),
    }
}

fn date(time: UnixTime) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        // The source of an I/O error is that of what it wraps, and not what it wraps.
        Some(wrapped) => tls_error(wrapped),
        None => tls_error(error.source()?),
    }
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    match error.source() {
        Some(source) => innermost(source),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_however_deep_it_is_wrapped() {
        let refused = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, refused));
        let (kind, reason) = explain(&wrapped).expect("a TLS error");
        assert_eq!(kind, ErrorKind::Untrusted);
        assert!(reason.contains("ca_file=PATH"), "{reason}");
        assert!(explain(&io::Error::other("another")).is_none());
        assert!(explain(&io::Error::from(io::ErrorKind::ConnectionRefused)).is_none());
    }

    #[test]
    fn dates_of_a_refusal_are_readable() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let text = refusal(&CertificateError::ExpiredContext { time: at(86_400), not_after: at(0) });
        assert!(text.contains("1970-01-01T00:00:00Z") && text.contains("1970-01-02T00:00:00Z"), "{text}");
        let text = refusal(&CertificateError::NotValidYetContext { time: at(0), not_before: at(u64::MAX) });
        assert!(text.contains("clock"), "{text}");
    }
}
