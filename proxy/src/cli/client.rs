//! Talking to the running daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::control::{Request, Response};

/// An answer may list a hundred thousand Services.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, Error)]
pub(super) enum ClientError {
    #[error(
        "no daemon answers on {}\nhint: start it with `fairlead-proxy run`, or name its socket with --socket",
        socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("cannot talk to the daemon on {}", socket.display())]
    Io {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{message}")]
    Refused { message: String },
}

pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket }
            }
            _ => ClientError::Io { socket, source },
        }
    }

    fn send(&self, request: &Request) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(stream)
    }

    pub(super) fn ask(&self, request: &Request) -> Result<Value, ClientError> {
        let answer = || -> io::Result<Response> {
            let stream = self.send(request)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut line = String::new();
            BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&line)?)
        };
        match answer().map_err(|source| self.failed(source))? {
            Response::Ok { value } => Ok(value),
            Response::Failed { message } => Err(ClientError::Refused { message }),
        }
    }

    /// The lines of a stream, until the daemon or the reader ends it.
    pub(super) fn follow(
        &self,
        request: &Request,
        mut line: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let stream = self.send(request).map_err(|source| self.failed(source))?;
        for text in BufReader::new(stream).lines() {
            let text = text.map_err(|source| self.failed(source))?;
            match line(&text) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }
}
