//! The daemon's unix socket: the CNI plugin's notices and the CLI's requests,
//! one line of JSON each way (`flows` answers with a line per flow).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proxy_ebpf::record::{Answer, Notice};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream, unix::OwnedWriteHalf};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tracing::debug;

/// Connections served at a time; others wait in the socket's backlog.
const CONNECTIONS: usize = 64;

/// A request is some hundred bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How long a connection may stay silent between requests.
const IDLE: Duration = Duration::from_mins(1);

/// Flow lines that wait for a slow follower; it is told how many it missed.
pub const FLOW_LINES: usize = 4096;

/// What the CLI asks; the plugin's [`Notice`]s share the `op` field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Report,
    Endpoints,
    Services,
    Policies,
    Explain {
        /// `namespace/pod`.
        from: String,
        /// `namespace/pod` or an address.
        to: String,
        /// `80/tcp`, or a protocol alone.
        port: String,
    },
    /// The flows that are tracked now.
    Tracked,
    /// Answered by one line per flow until the connection ends.
    Flows,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Response {
    Ok { value: Value },
    Failed { message: String },
}

/// What a connection hands to the daemon.
#[derive(Debug)]
pub enum Command {
    Notice(Notice, oneshot::Sender<Answer>),
    Request(Request, oneshot::Sender<Response>),
    /// Somebody began or ceased to follow flows.
    FollowersChanged,
}

/// Commands that wait for the daemon.
pub const QUEUE_COMMANDS: usize = 128;

/// Binds the socket (mode 0600), replacing what a dead daemon left.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut staged = path.as_os_str().to_owned();
    staged.push("-next");
    let staged = PathBuf::from(staged);
    match std::fs::remove_file(&staged) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&staged)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
    // Renamed only now: nobody connects to a socket that is open to all.
    std::fs::rename(&staged, path)?;
    Ok(listener)
}

/// What connections need.
#[derive(Clone, Debug)]
pub struct Service {
    pub commands: mpsc::Sender<Command>,
    /// Flow lines; its number of receivers is the number of followers.
    pub flows: broadcast::Sender<Arc<str>>,
}

/// Serves until the daemon goes.
pub async fn serve(listener: UnixListener, service: Service) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: give others time to close.
                debug!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &service).await {
                debug!(%error, "a control connection ended");
            }
            drop(permit);
        });
    }
}

async fn converse(stream: UnixStream, service: &Service) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX);
        let read = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line));
        match read.await {
            Ok(Ok(0)) | Err(_) => return Ok(()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
        if line.last() != Some(&b'\n') && line.len() as u64 >= LINE_BYTES_MAX {
            let message = format!("the line is longer than {LINE_BYTES_MAX} bytes");
            return write_line(&mut writer, &Response::Failed { message }).await;
        }
        match parse(&line) {
            Ok(Line::Request(Request::Flows)) => {
                let flows = service.flows.subscribe();
                announce(service).await;
                let result = follow(&mut reader, &mut writer, flows).await;
                announce(service).await;
                return result;
            }
            Ok(Line::Request(request)) => {
                let response = ask(service, |reply| Command::Request(request, reply)).await;
                let gone = || Response::Failed {
                    message: STOPPING.to_owned(),
                };
                write_line(&mut writer, &response.unwrap_or_else(gone)).await?;
            }
            Ok(Line::Notice(notice)) => {
                let answer = ask(service, |reply| Command::Notice(notice, reply)).await;
                let gone = || Answer::Failed {
                    message: STOPPING.to_owned(),
                };
                write_line(&mut writer, &answer.unwrap_or_else(gone)).await?;
            }
            Err(message) => write_line(&mut writer, &Response::Failed { message }).await?,
        }
    }
}

const STOPPING: &str = "the daemon is stopping\nhint: try again when it has started";

async fn ask<T>(
    service: &Service,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    service.commands.send(command(sender)).await.ok()?;
    receiver.await.ok()
}

async fn announce(service: &Service) {
    if service
        .commands
        .send(Command::FollowersChanged)
        .await
        .is_err()
    {
        debug!("the daemon is stopping");
    }
}

/// Streams until the follower hangs up.
async fn follow(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    writer: &mut OwnedWriteHalf,
    mut flows: broadcast::Receiver<Arc<str>>,
) -> io::Result<()> {
    let mut byte = [0];
    loop {
        tokio::select! {
            line = flows.recv() => match line {
                Ok(line) => {
                    writer.write_all(line.as_bytes()).await?;
                    writer.write_all(b"\n").await?;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let line = format!("{{\"missed\":{missed}}}\n");
                    writer.write_all(line.as_bytes()).await?;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            read = reader.read(&mut byte) => if read? == 0 {
                return Ok(());
            },
        }
    }
}

async fn write_line<T: Serialize>(writer: &mut OwnedWriteHalf, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Notice(Notice),
    Request(Request),
}

/// Notices and requests differ by their `op`.
fn parse(line: &[u8]) -> Result<Line, String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("not a line of JSON: {error}"))?;
    let op = value.get("op").and_then(Value::as_str).unwrap_or_default();
    let result = match op {
        "endpoint-added" | "endpoint-removed" | "status" => {
            serde_json::from_value(value).map(Line::Notice)
        }
        _ => serde_json::from_value(value).map(Line::Request),
    };
    result.map_err(|error| format!("not a request: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_and_requests_are_told_apart() {
        let notice = br#"{"op":"endpoint-added","container_id":"c","ifname":"e","timeout_ms":5}"#;
        assert!(matches!(
            parse(notice),
            Ok(Line::Notice(Notice::EndpointAdded { .. }))
        ));
        assert!(matches!(
            parse(br#"{"op":"status"}"#),
            Ok(Line::Notice(Notice::Status))
        ));
        assert!(matches!(
            parse(br#"{"op":"report"}"#),
            Ok(Line::Request(Request::Report))
        ));
    }

    #[test]
    fn a_bad_line_is_answered_by_its_fault() {
        for (line, fault) in [
            ("{", "not a line of JSON"),
            ("[]", "not a request"),
            (r#"{"op":"no-such"}"#, "unknown variant"),
            (r#"{"op":"explain","from":"a/b"}"#, "missing field"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(fault), "{line}: {error}");
        }
    }

    struct Bench {
        path: PathBuf,
        commands: mpsc::Receiver<Command>,
        flows: broadcast::Sender<Arc<str>>,
        stream: BufReader<UnixStream>,
    }

    impl Bench {
        async fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fl-{name}-{}.sock", std::process::id()));
            let (commands_sender, commands) = mpsc::channel(1);
            let flows = broadcast::Sender::new(4);
            let service = Service {
                commands: commands_sender,
                flows: flows.clone(),
            };
            tokio::spawn(serve(bind(&path).unwrap(), service));
            let stream = BufReader::new(UnixStream::connect(&path).await.unwrap());
            Self {
                path,
                commands,
                flows,
                stream,
            }
        }

        async fn send(&mut self, line: &str) {
            let line = format!("{line}\n");
            self.stream
                .get_mut()
                .write_all(line.as_bytes())
                .await
                .unwrap();
        }

        async fn line(&mut self) -> String {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            line
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_replaces_a_dead_one() {
        let bench = Bench::new("mode").await;
        let mode = std::fs::metadata(&bench.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(bind(&bench.path).unwrap());
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_connection_serves_another() {
        let mut bench = Bench::new("ask").await;
        for number in 0..2 {
            bench.send(r#"{"op":"report"}"#).await;
            let Some(Command::Request(Request::Report, reply)) = bench.commands.recv().await else {
                panic!("no request arrived");
            };
            let value = number.into();
            reply.send(Response::Ok { value }).unwrap();
            assert_eq!(
                bench.line().await,
                format!("{{\"result\":\"ok\",\"value\":{number}}}\n")
            );
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let mut bench = Bench::new("long").await;
        let long = "x".repeat(usize::try_from(LINE_BYTES_MAX).unwrap());
        bench
            .stream
            .get_mut()
            .write_all(long.as_bytes())
            .await
            .unwrap();
        assert!(bench.line().await.contains("longer than"));
    }

    #[tokio::test]
    async fn a_follower_gets_lines_and_is_told_what_it_missed() {
        let mut bench = Bench::new("follow").await;
        bench.send(r#"{"op":"flows"}"#).await;
        assert!(matches!(
            bench.commands.recv().await,
            Some(Command::FollowersChanged)
        ));
        for number in 0..7 {
            bench.flows.send(format!("{number}").into()).unwrap();
        }
        assert_eq!(bench.line().await, "{\"missed\":3}\n");
        assert_eq!(bench.line().await, "3\n");
    }
}
