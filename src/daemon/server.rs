//! Answers control connections. Knows the protocol, not the drive: orders go to a [`Handler`].
//!
//! Everybody on this machine can connect. Who has not shown the token yet holds one of few places, so that nobody can use up
//! the file descriptors that the drive needs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::control::{Envelope, LONGEST_LINE, Reply, Request, Token};

/// A client that says nothing for so long is not one of ours.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at a time that have not shown the token; the others wait in the system's queue.
const STRANGERS: usize = 32;

/// Carries out orders.
pub trait Handler: Send + Sync + 'static {
    /// Carries out `request` and sends replies, the result last.
    fn handle(self: Arc<Self>, request: Request, replies: Replies) -> BoxFuture<'static, ()>;
}

/// The way back to a client. Keeps the connection open; a client that waits for the end of the process waits for that.
pub struct Replies {
    stream: OwnedWriteHalf,
}

impl Replies {
    /// Sends one reply.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply).expect("replies have only strings and numbers");
        line.push(b'\n');
        self.stream.write_all(&line).await
    }
}

/// Accepts connections for as long as the runtime lives.
pub async fn serve(listener: TcpListener, token: Token, handler: Arc<dyn Handler>) {
    serve_patiently(listener, token, handler, PATIENCE).await;
}

async fn serve_patiently(listener: TcpListener, token: Token, handler: Arc<dyn Handler>, patience: Duration) {
    let places = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let conversation = converse(stream, token.clone(), Arc::clone(&handler), place, patience);
                tokio::spawn(conversation);
            }
            Err(error) => {
                // Out of file descriptors, mostly: others will be closed.
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(
    stream: TcpStream,
    token: Token,
    handler: Arc<dyn Handler>,
    place: OwnedSemaphorePermit,
    patience: Duration,
) {
    let (reader, writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader).take(LONGEST_LINE as u64);
    let read = tokio::time::timeout(patience, reader.read_until(b'\n', &mut line)).await;
    if !matches!(read, Ok(Ok(1..))) {
        return;
    }
    // Whoever has no token learns nothing, not even that this is Cairn.
    let Ok(envelope) = serde_json::from_slice::<Envelope>(&line) else { return };
    if !envelope.token.matches(&token) {
        // Nothing that others can make the log grow with.
        tracing::debug!("a control connection with a wrong token was closed");
        return;
    }
    drop(place);
    handler.handle(envelope.request, Replies { stream: writer }).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::client::{Client, ClientError};
    use crate::daemon::control::ControlFile;
    use crate::replicate::DrainProgress;

    struct Echo;

    impl Handler for Echo {
        fn handle(self: Arc<Self>, request: Request, mut replies: Replies) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                let result = match request {
                    Request::Drain { .. } => {
                        let progress =
                            Reply::Draining { left: DrainProgress::default(), sent: 3, rate: 1, trouble: None };
                        replies.send(&progress).await.expect("the client listens");
                        Reply::Done
                    }
                    Request::Pause => Reply::Failed { message: "no".to_owned() },
                    _ => Reply::Done,
                };
                replies.send(&result).await.expect("the client listens");
            })
        }
    }

    fn start(directory: &std::path::Path) -> (tokio::runtime::Runtime, ControlFile) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runs");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let file = ControlFile {
            port: listener.local_addr().expect("bound").port(),
            token: Token::random().expect("random numbers"),
            process: 1,
            mountpoint: "/mnt".to_owned(),
        };
        std::mem::forget(file.publish(directory).expect("written"));
        runtime.spawn(serve(listener, file.token.clone(), Arc::new(Echo)));
        (runtime, file)
    }

    #[test]
    fn orders_are_carried_out_and_progress_arrives() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let (_runtime, _file) = start(temporary.path());
        let client = Client::find(temporary.path()).expect("reads").expect("there");
        assert_eq!(client.ask(Request::Resume, |_| ()).expect("done"), Reply::Done);
        let mut seen = Vec::new();
        let result = client.ask(Request::Drain { timeout_ms: None }, |reply| seen.push(reply.clone()));
        assert_eq!(result.expect("done"), Reply::Done);
        assert!(matches!(seen.as_slice(), [Reply::Draining { sent: 3, .. }]));
        let refused = client.ask(Request::Pause, |_| ()).expect_err("refused");
        assert_eq!(refused.to_string(), "no");
    }

    /// Sends an order; the connection that the answer comes on.
    async fn order(file: &ControlFile, request: Request) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", file.port)).await.expect("somebody listens");
        let envelope = Envelope { token: file.token.clone(), request };
        let mut line = serde_json::to_vec(&envelope).expect("JSON");
        line.push(b'\n');
        stream.write_all(&line).await.expect("sent");
        stream
    }

    /// Nothing where the connection was closed without.
    async fn answer(stream: &mut TcpStream) -> Option<Reply> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Keeps everybody waiting but who wants to resume.
    struct Waits;

    impl Handler for Waits {
        fn handle(self: Arc<Self>, request: Request, mut replies: Replies) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                if request == Request::Resume {
                    replies.send(&Reply::Done).await.expect("the client listens");
                } else {
                    std::future::pending().await
                }
            })
        }
    }

    /// With less patience than a busy machine may need to say a word: then our client, too, is sent away, and comes again.
    #[tokio::test]
    async fn who_shows_no_token_keeps_nobody_away_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (port, token) = (listener.local_addr().expect("bound").port(), Token::random().expect("random numbers"));
        let file = ControlFile { port, token, process: 1, mountpoint: "/mnt".to_owned() };
        let patience = Duration::from_millis(100);
        tokio::spawn(serve_patiently(listener, file.token.clone(), Arc::new(Waits), patience));
        // Who has shown the token holds no place, however long the order takes.
        let mut patient = Vec::new();
        for _ in 0..=STRANGERS {
            patient.push(order(&file, Request::Pull).await);
        }
        let mut silent = Vec::new();
        for _ in 0..3 * STRANGERS {
            silent.push(TcpStream::connect(("127.0.0.1", port)).await.expect("somebody listens"));
        }
        let answered = async {
            loop {
                let mut client = order(&file, Request::Resume).await;
                if let Some(reply) = answer(&mut client).await {
                    return reply;
                }
            }
        };
        let reply = tokio::time::timeout(Duration::from_secs(600), answered).await;
        assert_eq!(reply.expect("strangers lose their places"), Reply::Done);
    }

    #[test]
    fn wrong_token_and_dead_process_are_told_apart_from_a_mounted_drive() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        assert!(Client::find(temporary.path()).expect("reads").is_none());
        let (_runtime, mut file) = start(temporary.path());
        file.token = Token::random().expect("random numbers");
        std::mem::forget(file.publish(temporary.path()).expect("written"));
        let client = Client::find(temporary.path()).expect("reads").expect("somebody listens");
        assert!(matches!(client.ask(Request::Status, |_| ()), Err(ClientError::NotMounted)));
        // A port that nobody listens on, and nobody else is given meanwhile.
        let silent = tokio::net::TcpSocket::new_v4().expect("a socket");
        silent.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        file.port = silent.local_addr().expect("bound").port();
        std::mem::forget(file.publish(temporary.path()).expect("written"));
        assert!(Client::find(temporary.path()).expect("reads").is_none(), "nobody listens");
    }
}
