//! Responses.

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::{
    Response, StatusCode,
    body::{Frame, SizeHint},
    header::{self, HeaderValue},
};
use serde_json::Value;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crate::status::Status;

/// Longest warning text that is sent.
const WARNING_BYTES_MAX: usize = 1024;
/// Most warnings of one response.
const WARNINGS_MAX: usize = 100;
/// Bytes of one frame of a streamed list.
const CHUNK: usize = 64 << 10;

/// JSON bytes with a code.
pub(super) fn json(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// A JSON tree.
pub(super) fn value(code: StatusCode, value: &Value) -> Response<Body> {
    json(
        code,
        serde_json::to_vec(value).expect("JSON trees always serialize"),
    )
}

/// A refusal.
pub(super) fn refusal(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, &status.to_value());
    let retry = status
        .details
        .as_ref()
        .map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

/// Adds `Warning` headers.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings.iter().take(WARNINGS_MAX) {
        let clean: String = text
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| {
                let escape = matches!(c, '"' | '\\').then_some('\\');
                escape.into_iter().chain([c])
            })
            .take(WARNING_BYTES_MAX)
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// A list: head, objects and tail, put together as the client reads.
pub(super) struct ListBody<I> {
    head: Bytes,
    objects: I,
    tail: Bytes,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    First,
    Later,
    Done,
}

impl<I: Iterator<Item = Bytes> + Unpin + Send + 'static> ListBody<I> {
    pub(super) fn response(head: Bytes, objects: I, tail: Bytes) -> Response<Body> {
        let mut response = json(StatusCode::OK, Bytes::new());
        *response.body_mut() = Body::new(Self {
            head,
            objects,
            tail,
            state: State::Head,
        });
        response
    }

    fn chunk(&mut self) -> Option<Bytes> {
        if self.state == State::Done {
            return None;
        }
        let mut chunk = BytesMut::with_capacity(CHUNK + (4 << 10));
        if self.state == State::Head {
            chunk.put_slice(&self.head);
            self.state = State::First;
        }
        while chunk.len() < CHUNK {
            let Some(object) = self.objects.next() else {
                chunk.put_slice(&self.tail);
                self.state = State::Done;
                break;
            };
            if self.state == State::Later {
                chunk.put_u8(b',');
            }
            self.state = State::Later;
            chunk.put_slice(&object);
        }
        Some(chunk.freeze())
    }
}

impl<I: Iterator<Item = Bytes> + Unpin + Send + 'static> hyper::body::Body for ListBody<I> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.chunk().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Done
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
