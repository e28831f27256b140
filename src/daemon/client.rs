//! The side of the control connection that gives orders.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::control::{ControlFile, Envelope, LONGEST_LINE, Reply, Request};

/// Loopback answers at once or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest silence of a process that carries out an order: what takes long either reports (drain) or syncs a disk (unmount) or
/// asks the remote (pull).
const SILENCE: Duration = Duration::from_secs(600);
/// Longest silence of a process that only has to look.
const GLANCE: Duration = Duration::from_secs(30);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process answers for the drive.
    #[error("the drive is not mounted")]
    NotMounted,
    /// The process hangs or went away meanwhile.
    #[error("the process of the drive did not answer; see its log")]
    Lost(#[source] io::Error),
    /// The process said no, and why.
    #[error("{0}")]
    Refused(String),
}

/// A process that has a drive mounted.
#[derive(Debug)]
pub struct Client {
    file: ControlFile,
}

impl Client {
    /// The process that has the drive in `drive_dir` mounted; `None` when there is none.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub fn find(drive_dir: &Path) -> io::Result<Option<Self>> {
        let Some(file) = ControlFile::read(drive_dir)? else { return Ok(None) };
        let client = Self { file };
        Ok(client.connect().is_ok().then_some(client))
    }

    /// Where the drive is mounted.
    pub fn mountpoint(&self) -> &str {
        &self.file.mountpoint
    }

    /// Gives an order; `progress` sees the replies before the last, which is returned.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&self, request: Request, mut progress: impl FnMut(&Reply)) -> Result<Reply, ClientError> {
        let mut lines = self.send(request)?;
        let mut heard = false;
        loop {
            match next_reply(&mut lines) {
                Ok(reply @ Reply::Draining { .. }) => progress(&reply),
                Ok(Reply::Failed { message }) => return Err(ClientError::Refused(message)),
                Ok(reply) => return Ok(reply),
                // Whoever has the port now closes at the sight of a token that is not its own.
                Err(error) if !heard && is_closed(&error) => return Err(ClientError::NotMounted),
                Err(error) => return Err(ClientError::Lost(error)),
            }
            heard = true;
        }
    }

    /// Gives an order that ends the process, and waits for that end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_to_end(&self, request: Request) -> Result<(), ClientError> {
        let mut lines = self.send(request)?;
        match next_reply(&mut lines) {
            Ok(Reply::Failed { message }) => return Err(ClientError::Refused(message)),
            Ok(_) => {}
            Err(error) if is_closed(&error) => return Err(ClientError::NotMounted),
            Err(error) => return Err(ClientError::Lost(error)),
        }
        match next_reply(&mut lines) {
            Ok(Reply::Failed { message }) => Err(ClientError::Refused(message)),
            // The system closes the connection when the process is gone, whatever way it went.
            _ => Ok(()),
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.file.port));
        TcpStream::connect_timeout(&address, CONNECT_DEADLINE)
    }

    fn send(&self, request: Request) -> Result<BufReader<TcpStream>, ClientError> {
        let mut stream = self.connect().map_err(|_| ClientError::NotMounted)?;
        let envelope = Envelope { token: self.file.token.clone(), request };
        let mut line = serde_json::to_vec(&envelope).expect("requests have only strings and numbers");
        line.push(b'\n');
        let silence = match request {
            Request::Drain { .. } | Request::Pull | Request::Unmount { .. } => SILENCE,
            Request::Status | Request::Pause | Request::Resume | Request::Limits { .. } => GLANCE,
        };
        stream.set_read_timeout(Some(silence)).map_err(ClientError::Lost)?;
        stream.write_all(&line).map_err(ClientError::Lost)?;
        Ok(BufReader::new(stream))
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe)
}

fn next_reply(lines: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = Vec::new();
    lines.take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
