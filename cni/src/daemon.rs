//! Telling the node daemon what has happened, one line of JSON each way. The
//! daemon may be absent: then nobody is told, and what the plugin left in the
//! state directory tells it later.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use proxy_ebpf::record::{Answer, Notice};

/// How much longer than asked the daemon may take to answer.
const SLACK: Duration = Duration::from_secs(1);
/// An answer is one short line.
const ANSWER_BYTES: u64 = 65_536;

/// What became of a notice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Answered(Answer),
    /// No daemon listens.
    Absent,
    /// A daemon listens but gives no answer; why.
    Silent(String),
}

/// Tells the daemon and waits for its answer, `patience` and a second at most.
pub(crate) fn tell(socket: &Path, notice: &Notice, patience: Duration) -> Told {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Told::Absent,
                _ => Told::Silent(error.to_string()),
            };
        }
    };
    match ask(stream, notice, patience + SLACK) {
        Ok(answer) => Told::Answered(answer),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Told::Silent("it timed out".into()),
        Err(error) => Told::Silent(error.to_string()),
    }
}

fn ask(mut stream: UnixStream, notice: &Notice, limit: Duration) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut line = serde_json::to_vec(notice)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut text = String::new();
    BufReader::new(stream.take(ANSWER_BYTES)).read_line(&mut text)?;
    if text.is_empty() {
        return Err(std::io::Error::from(ErrorKind::UnexpectedEof));
    }
    Ok(serde_json::from_str(&text)?)
}
