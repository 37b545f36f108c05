//! A gRPC client of one kind of call, enough to be a kubelet to containerd:
//! unary, over a unix socket, with protobuf messages written by hand. Field
//! numbers: `runtime.v1` of the Container Runtime Interface.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// A message being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub(crate) fn number(mut self, field: u32, value: u64) -> Self {
        varint(&mut self.0, u64::from(field << 3));
        varint(&mut self.0, value);
        self
    }

    pub(crate) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        varint(&mut self.0, u64::from(field << 3 | 2));
        varint(&mut self.0, value.len() as u64);
        self.0.extend(value);
        self
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a complete message");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// All values of a length-delimited field.
pub(crate) fn fields(mut bytes: &[u8], wanted: u32) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = read_varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                read_varint(&mut bytes);
                continue;
            }
            1 => 8,
            2 => usize::try_from(read_varint(&mut bytes)).unwrap(),
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        let (value, rest) = bytes.split_at(length);
        bytes = rest;
        if tag >> 3 == u64::from(wanted) {
            found.push(value);
        }
    }
    found
}

/// The first value of a text field; empty if there is none.
pub(crate) fn text(bytes: &[u8], field: u32) -> String {
    let value = fields(bytes, field).into_iter().next().unwrap_or_default();
    String::from_utf8(value.to_vec()).unwrap()
}

/// A server at a unix socket.
#[derive(Debug)]
pub(crate) struct Server(pub(crate) PathBuf);

impl Server {
    /// Calls a method and returns its response, or the status message.
    pub(crate) fn call(&self, method: &str, request: &Message) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(call(&self.0, method, &request.0))
    }
}

async fn call(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    // One frame: not compressed, length, message.
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let request = hyper::Request::post(format!(
        "http://localhost/runtime.v1.RuntimeService/{method}"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(Full::new(Bytes::from(body)))
    .unwrap();
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let early = response.headers().clone();
    let collected = response
        .into_body()
        .collect()
        .await
        .map_err(|e| e.to_string())?;
    let trailers = collected.trailers().cloned().unwrap_or(early);
    let body = collected.to_bytes();
    match trailers
        .get("grpc-status")
        .map(hyper::header::HeaderValue::as_bytes)
    {
        Some(b"0") => Ok(body.get(5..).unwrap_or_default().to_vec()),
        _ => Err(format!("{:?}", trailers.get("grpc-message"))),
    }
}
