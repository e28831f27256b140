//! Certificates that a test makes for itself, and a proxy that speaks TLS with them in front of a server that does not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// An authority that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    itself: Identity,
}

/// A certificate, and its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now, and for long.
    Now,
    /// Long ago.
    Past,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new([Ipv4Addr::LOCALHOST.to_string()]).expect("a name");
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.distinguished_name.push(DnType::CommonName, "Authority of a test");
        let certificate = wanted.self_signed(&key).expect("signed");
        let itself = Identity { certificate: certificate.der().clone(), key: key.serialize_der() };
        Self { issuer: Issuer::new(wanted, key), pem: certificate.pem(), itself }
    }

    /// Its own certificate, as some use it for a server.
    pub fn itself(&self) -> &Identity {
        &self.itself
    }

    /// Its own certificate, as people keep it in a file.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate of a server of this name.
    pub fn sign(&self, name: &str, validity: Validity) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new([name.to_owned()]).expect("a name");
        wanted.distinguished_name.push(DnType::CommonName, "Server of a test");
        if validity == Validity::Past {
            (wanted.not_before, wanted.not_after) =
                (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        }
        let certificate = wanted.signed_by(&key, &self.issuer).expect("signed");
        Identity { certificate: certificate.der().clone(), key: key.serialize_der() }
    }
}

impl Identity {
    fn config(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has them").with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![self.certificate.clone()], key).expect("they belong together"))
    }
}

/// A running proxy; dropping it closes everything.
pub struct TlsProxy {
    address: SocketAddr,
    config: watch::Sender<Arc<ServerConfig>>,
    runtime: Option<Runtime>,
}

impl TlsProxy {
    /// A proxy before `target` that proves itself by `identity`.
    pub fn start(target: SocketAddr, identity: &Identity) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("possible");
        let address = listener.local_addr().expect("bound");
        let (config, current) = watch::channel(identity.config());
        runtime.spawn(accept(listener, target, current));
        Self { address, config, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Proves itself by another identity; connections that are open end.
    pub fn become_another(&self, identity: &Identity) {
        self.config.send_replace(identity.config());
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would wait, which an asynchronous test must not.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, target: SocketAddr, config: watch::Receiver<Arc<ServerConfig>>) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let mut config = config.clone();
        tokio::spawn(async move {
            let current = Arc::clone(&config.borrow_and_update());
            tokio::select! {
                _ = serve(client, target, current) => {}
                _ = config.changed() => {}
            }
        });
    }
}

async fn serve(client: TcpStream, target: SocketAddr, config: Arc<ServerConfig>) -> std::io::Result<()> {
    let mut client = TlsAcceptor::from(config).accept(client).await?;
    let mut server = TcpStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
