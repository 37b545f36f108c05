//! Content negotiation: which shape of JSON the client wants.

use hyper::{HeaderMap, header};

use crate::status::Status;

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As they are.
    Plain,
    /// As rows of a table.
    Table,
    /// Their metadata only.
    Metadata,
}

/// One media type of an `Accept` header.
#[derive(Debug)]
pub(super) struct Media<'a> {
    pub(super) kind: &'a str,
    pub(super) parameters: Vec<(&'a str, &'a str)>,
}

impl Media<'_> {
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    }

    pub(super) fn is_json(&self) -> bool {
        matches!(self.kind, "application/json" | "application/*" | "*/*" | "")
    }
}

/// The accepted media types, in the client's order.
pub(super) fn media(headers: &HeaderMap) -> Vec<Media<'_>> {
    let values = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let parts = values.flat_map(|value| value.split(',')).map(|part| {
        let mut fields = part.split(';').map(str::trim);
        let kind = fields.next().unwrap_or_default();
        let parameters = fields.filter_map(|field| field.split_once('=')).collect();
        Media { kind, parameters }
    });
    parts.take(16).collect()
}

/// Picks the first shape that is offered.
///
/// # Errors
/// 406 if none is; protobuf responses are not offered.
pub(super) fn shape(headers: &HeaderMap) -> Result<Shape, Status> {
    let media = media(headers);
    if media.is_empty() {
        return Ok(Shape::Plain);
    }
    for one in media.iter().filter(|one| one.is_json()) {
        match (one.parameter("as"), one.parameter("g"), one.parameter("v")) {
            ("", ..) => return Ok(Shape::Plain),
            ("Table", "meta.k8s.io", "v1") => return Ok(Shape::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                return Ok(Shape::Metadata);
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable("application/json"))
}
