//! A proxy for HTTP/1.1 that makes trouble on demand.
//!
//! It understands requests and responses well enough to know where each ends, so connections stay open across requests, and a
//! fault concerns one request. Every request goes to the server over a connection of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What goes wrong. Probabilities are from 0 to 1, of each request by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProxyFaults {
    /// The server is not there: connections are closed, those that are open, too.
    pub refuse: bool,
    /// Requests are held until this is over.
    pub stall: bool,
    /// Every request waits this long.
    pub latency: Duration,
    /// Answered with 503 and not forwarded.
    pub unavailable: f64,
    /// What a 503 says in `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Forwarded and done, and answered with 500.
    pub applied_but_error: f64,
    /// The response is cut after some bytes of its body, where it has one.
    pub cut_reply: f64,
    /// The request is cut after some bytes of its body, where it has one.
    pub cut_upload: f64,
}

/// How many bytes of a body pass before it is cut; of a shorter one half.
const CUT_AFTER: u64 = 1000;

/// A running proxy; dropping it closes everything.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    target: SocketAddr,
    faults: watch::Sender<ProxyFaults>,
    random: Mutex<u64>,
    requests: AtomicU64,
    faulty: AtomicU64,
    faulty_puts: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    Unavailable,
    AppliedButError,
    CutReply,
    CutUpload,
}

/// How a message's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Framing {
    /// How many bytes of it pass when it is cut.
    fn cut(self) -> u64 {
        match self {
            Self::Length(0) => u64::MAX,
            Self::Length(length) => CUT_AFTER.min(length / 2),
            Self::Chunked | Self::UntilClose => CUT_AFTER / 10,
        }
    }
}

struct Head {
    bytes: Vec<u8>,
    first_line: String,
    framing: Option<Framing>,
}

impl FaultProxy {
    /// A proxy before `target` without faults; the same seed gives the same faults.
    pub fn start(target: SocketAddr, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("possible");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            target,
            faults: watch::Sender::new(ProxyFaults::default()),
            random: Mutex::new(seed),
            requests: AtomicU64::new(0),
            faulty: AtomicU64::new(0),
            faulty_puts: AtomicU64::new(0),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what goes wrong, from the next request on; `refuse` and `stall` at once.
    pub fn set(&self, faults: ProxyFaults) {
        self.shared.faults.send_replace(faults);
    }

    /// Requests seen so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests that a fault has met so far.
    pub fn faulty(&self) -> u64 {
        self.shared.faulty.load(Ordering::Relaxed)
    }

    /// Those of them that would have stored something.
    pub fn faulty_puts(&self) -> u64 {
        self.shared.faulty_puts.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would wait, which an asynchronous test must not.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.faults.borrow().refuse {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut faults = shared.faults.subscribe();
            tokio::select! {
                // A connection that breaks is what this proxy is for.
                _ = serve(client, &shared) => {}
                _ = faults.wait_for(|faults| faults.refuse) => {}
            }
        });
    }
}

/// Serves the requests of one connection until it ends, by itself or by a fault.
async fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut client = BufReader::new(client);
    while let Some(request) = read_head(&mut client).await? {
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut faults = shared.faults.subscribe();
        let faults = *faults.wait_for(|faults| !faults.stall).await.map_err(io::Error::other)?;
        tokio::time::sleep(faults.latency).await;
        let fate = shared.decide(&faults, &request);
        let framing = request.framing.unwrap_or(Framing::Length(0));
        if fate == Fate::Unavailable {
            pass_body(&mut client, &mut tokio::io::sink(), framing, u64::MAX).await?;
            let retry_after = faults.retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
            answer(&mut client, "503 Service Unavailable", &retry_after.unwrap_or_default()).await?;
            continue;
        }
        let mut server = BufReader::new(TcpStream::connect(shared.target).await?);
        server.write_all(&request.bytes).await?;
        let limit = if fate == Fate::CutUpload { framing.cut() } else { u64::MAX };
        pass_body(&mut client, &mut server, framing, limit).await?;
        server.flush().await?;
        let response = read_head(&mut server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let framing = response_framing(&request, &response);
        if fate == Fate::AppliedButError {
            pass_body(&mut server, &mut tokio::io::sink(), framing, u64::MAX).await?;
            answer(&mut client, "500 Internal Server Error", "").await?;
            continue;
        }
        client.write_all(&response.bytes).await?;
        let limit = if fate == Fate::CutReply { framing.cut() } else { u64::MAX };
        pass_body(&mut server, &mut client, framing, limit).await?;
        client.flush().await?;
        if framing == Framing::UntilClose {
            return Ok(());
        }
    }
    Ok(())
}

impl Shared {
    fn decide(&self, faults: &ProxyFaults, request: &Head) -> Fate {
        let mut left = self.fraction();
        let table = [
            (faults.unavailable, Fate::Unavailable),
            (faults.applied_but_error, Fate::AppliedButError),
            (faults.cut_reply, Fate::CutReply),
            (faults.cut_upload, Fate::CutUpload),
        ];
        for (probability, fate) in table {
            left -= probability;
            if left < 0.0 {
                self.faulty.fetch_add(1, Ordering::Relaxed);
                self.faulty_puts.fetch_add(request.first_line.starts_with("put ").into(), Ordering::Relaxed);
                return fate;
            }
        }
        Fate::Works
    }

    /// The next number from 0 up to 1, by SplitMix64.
    fn fraction(&self) -> f64 {
        let mut state = self.random.lock().expect("not poisoned");
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

async fn answer(client: &mut BufReader<TcpStream>, status: &str, headers: &str) -> io::Result<()> {
    let text = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n\r\n");
    client.write_all(text.as_bytes()).await?;
    client.flush().await
}

/// Reads up to the empty line; `None` at the end of the connection.
async fn read_head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Head>> {
    let mut head = Head { bytes: Vec::new(), first_line: String::new(), framing: None };
    loop {
        let start = head.bytes.len();
        if from.read_until(b'\n', &mut head.bytes).await? == 0 {
            return if start == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let line = String::from_utf8_lossy(&head.bytes[start..]).trim().to_ascii_lowercase();
        if start == 0 {
            head.first_line = line;
        } else if line.is_empty() {
            return Ok(Some(head));
        } else if let Some(length) = line.strip_prefix("content-length:") {
            head.framing = Some(Framing::Length(length.trim().parse().map_err(io::Error::other)?));
        } else if line.starts_with("transfer-encoding:") && line.ends_with("chunked") {
            head.framing = Some(Framing::Chunked);
        }
    }
}

fn response_framing(request: &Head, response: &Head) -> Framing {
    let status = response.first_line.split(' ').nth(1).unwrap_or_default();
    if request.first_line.starts_with("head ") || matches!(status, "204" | "304") {
        return Framing::Length(0);
    }
    response.framing.unwrap_or(Framing::UntilClose)
}

/// Passes a body on, and fails once more than `limit` bytes would have passed.
async fn pass_body(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    framing: Framing,
    mut limit: u64,
) -> io::Result<()> {
    match framing {
        Framing::Length(length) => pass(from, to, length, &mut limit).await,
        Framing::UntilClose => {
            let mut rest = Vec::new();
            from.read_to_end(&mut rest).await?;
            let length = rest.len() as u64;
            pass(&mut rest.as_slice(), to, length, &mut limit).await
        }
        Framing::Chunked => loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line).await?;
            to.write_all(&line).await?;
            let text = String::from_utf8_lossy(&line);
            let digits = text.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
            // The line end behind a chunk; behind the last one, that of the (empty) trailer.
            pass(from, to, size + 2, &mut limit).await?;
            if size == 0 {
                return Ok(());
            }
        },
    }
}

async fn pass(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    length: u64,
    limit: &mut u64,
) -> io::Result<()> {
    let passing = length.min(*limit);
    let passed = tokio::io::copy(&mut from.take(passing), to).await?;
    *limit -= passed;
    to.flush().await?;
    if passed == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
