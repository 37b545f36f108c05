//! Request bodies: bounded, and decoded from JSON, YAML or protobuf.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hyper::{HeaderMap, body::Body as _, header};
use serde_json::Value;

use crate::{proto, registry::encode, resource::join, schema, status::Status};

/// Largest body that is read.
pub(super) const BODY_BYTES_MAX: usize = encode::OBJECT_BYTES_MAX;
/// Of a body that is too large, this much is read on and thrown away: a client
/// that is still sending would otherwise see a broken pipe instead of the 413.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// A body must have arrived after this time.
const BODY_TIME_MAX: Duration = Duration::from_mins(1);

/// A decoded body.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) value: Value,
    /// Fields that were given twice.
    pub(super) duplicates: Vec<String>,
}

/// Reads a body to its end.
///
/// # Errors
/// 413 if it is too large, 400 if it breaks off or takes too long.
pub(super) async fn read(body: Body) -> Result<Bytes, Status> {
    if body.size_hint().lower() > DISCARD_BYTES_MAX as u64 {
        return Err(Status::too_large(BODY_BYTES_MAX));
    }
    tokio::time::timeout(BODY_TIME_MAX, collect(body))
        .await
        .map_err(|_elapsed| Status::bad_request("the request body did not arrive within 60 s"))?
}

async fn collect(body: Body) -> Result<Bytes, Status> {
    let mut body = std::pin::pin!(body);
    let mut all = BytesMut::new();
    let mut seen = 0;
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
    {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("the request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        seen += data.len();
        if seen > DISCARD_BYTES_MAX {
            break;
        }
        if seen <= BODY_BYTES_MAX {
            all.extend_from_slice(&data);
        }
    }
    if seen > BODY_BYTES_MAX {
        return Err(Status::too_large(BODY_BYTES_MAX));
    }
    Ok(all.freeze())
}

/// Takes no body that is compressed: what it unpacks to has no bound.
///
/// # Errors
/// 415 for a `Content-Encoding` other than `identity`.
pub(super) fn plain(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Status::unsupported_content_encoding(coding))
        }
        _ => Ok(()),
    }
}

/// The media type without parameters, lower case.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Decodes an object of this group, version and kind.
///
/// # Errors
/// 415 for an unknown media type, 400 for a body that does not fit.
pub(super) fn decode(
    headers: &HeaderMap,
    body: &[u8],
    (group, version, kind): (&str, &str, &str),
) -> Result<Decoded, Status> {
    let decoded = any(headers, body)?;
    let api_version = join(group, version);
    let given = |field: &str| {
        decoded.value[field]
            .as_str()
            .filter(|text| !text.is_empty())
    };
    if let Some(other) = given("apiVersion")
        && other != api_version
    {
        return Err(Status::bad_request(format!(
            "the API version in the data ({other}) does not match the expected API version ({api_version})"
        )));
    }
    if let Some(other) = given("kind")
        && other != kind
    {
        return Err(Status::bad_request(format!(
            "{other} in version {version:?} cannot be handled as a {kind}"
        )));
    }
    Ok(decoded)
}

/// Decodes a body of any kind.
///
/// # Errors
/// 415 for an unknown media type, 400 for a body that does not parse.
pub(super) fn any(headers: &HeaderMap, body: &[u8]) -> Result<Decoded, Status> {
    let decoded = match content_type(headers).as_str() {
        "application/json" | "" => json(body)?,
        "application/yaml" => yaml(body)?,
        proto::MEDIA_TYPE => protobuf(body)?,
        _ => {
            return Err(Status::unsupported_media_type(
                "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            ));
        }
    };
    if decoded.value.is_object() {
        return Ok(decoded);
    }
    Err(Status::bad_request("the body must be one object"))
}

pub(super) fn json(body: &[u8]) -> Result<Decoded, Status> {
    let parsed = schema::parse_json(body)
        .map_err(|error| Status::bad_request(format!("the body is not valid JSON: {error}")))?;
    Ok(Decoded {
        value: parsed.value,
        duplicates: parsed.duplicates,
    })
}

pub(super) fn yaml(body: &[u8]) -> Result<Decoded, Status> {
    let value = serde_saphyr::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the body is not valid YAML: {error}")))?;
    Ok(Decoded {
        value,
        duplicates: Vec::new(),
    })
}

fn protobuf(body: &[u8]) -> Result<Decoded, Status> {
    let decoded = proto::decode(body)
        .map_err(|error| Status::bad_request(format!("the body is not valid: {error}")))?;
    if !decoded.unknown.is_empty() {
        tracing::warn!(fields = ?decoded.unknown, "unknown protobuf fields are dropped");
    }
    Ok(Decoded {
        value: decoded.value,
        duplicates: Vec::new(),
    })
}
