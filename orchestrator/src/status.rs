//! `Status`, the one shape of every refusal, and the causes inside it.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

/// A refusal as Kubernetes clients read it (`kind: Status`, `status: Failure`).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, `NotFound` and the like.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// About which object, and why.
    pub details: Option<Box<Details>>,
    /// For a list that expired between its pages: where to go on inconsistently.
    pub continue_token: Option<Box<str>>,
}

/// The object a [`Status`] is about.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Object name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (plural) or, in validation errors, the kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One per field that is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again; 0 is omitted.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// `FieldValueInvalid` and the like.
    pub reason: Cow<'static, str>,
    /// Without the field's path.
    pub message: String,
    /// Path, as in `spec.ports[0].port`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Cause {
    /// The field's value is wrong: `Invalid value: VALUE: WHY`.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> Self {
        let shown = shown(value);
        Self::new(
            "FieldValueInvalid",
            field,
            format!("Invalid value: {shown}: {}", why.as_ref()),
        )
    }

    /// The field must be there.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Self::new("FieldValueRequired", field, message)
    }

    /// The field's value is none of those supported.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list = supported
            .iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!(
            "Unsupported value: {}: supported values: {list}",
            shown(value)
        );
        Self::new("FieldValueNotSupported", field, message)
    }

    /// Something else has this value already.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {}", shown(value)),
        )
    }

    /// The field must not be set here, or not be changed.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {why}"))
    }

    /// Longer than allowed.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let message = format!("Too long: may not be more than {max} bytes");
        Self::new("FieldValueTooLong", field, message)
    }

    /// Names something that does not exist.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            "FieldValueNotFound",
            field,
            format!("Not found: {}", shown(value)),
        )
    }

    /// Any other reason.
    pub fn new(
        reason: impl Into<Cow<'static, str>>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        }
    }
}

/// A value inside a message, cut so that a message stays readable.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 256 {
        let end = (0..=256)
            .rev()
            .find(|&i| text.is_char_boundary(i))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Group and resource (or kind) that a refusal names.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
}

impl Subject<'_> {
    /// `deployments.apps`, `pods`.
    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    fn details(&self, name: &str) -> Details {
        Details {
            name: name.to_owned(),
            group: self.group.to_owned(),
            kind: self.resource.to_owned(),
            ..Details::default()
        }
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: who are you?
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: you may not; `why` follows a colon.
    pub fn forbidden(subject: Subject<'_>, name: &str, why: impl AsRef<str>) -> Self {
        let what = if name.is_empty() {
            format!("{} is forbidden: {}", subject.qualified(), why.as_ref())
        } else {
            format!(
                "{} {name:?} is forbidden: {}",
                subject.qualified(),
                why.as_ref()
            )
        };
        Self {
            details: Some(Box::new(subject.details(name))),
            ..Self::new(403, "Forbidden", what)
        }
    }

    /// 403 for a path outside the resource API.
    pub fn forbidden_path(why: impl AsRef<str>) -> Self {
        let message = format!("forbidden: {}", why.as_ref());
        Self {
            details: Some(Box::default()),
            ..Self::new(403, "Forbidden", message)
        }
    }

    /// 404 for an object.
    pub fn not_found(subject: Subject<'_>, name: &str) -> Self {
        let message = format!("{} {name:?} not found", subject.qualified());
        Self {
            details: Some(Box::new(subject.details(name))),
            ..Self::new(404, "NotFound", message)
        }
    }

    /// 404 for a path or a kind that does not exist here.
    pub fn no_such_resource(message: impl Into<String>) -> Self {
        Self {
            details: Some(Box::default()),
            ..Self::new(404, "NotFound", message)
        }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self {
            details: Some(Box::default()),
            ..Self::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 406: none of the accepted encodings is offered.
    pub fn not_acceptable(offered: &str) -> Self {
        let message = format!("only the following media types are accepted: {offered}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: a create met an existing object.
    pub fn already_exists(subject: Subject<'_>, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", subject.qualified());
        Self {
            details: Some(Box::new(subject.details(name))),
            ..Self::new(409, "AlreadyExists", message)
        }
    }

    /// 409: the object has changed, or is not in a state for this.
    pub fn conflict(subject: Subject<'_>, name: &str, why: impl AsRef<str>) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {}",
            subject.qualified(),
            why.as_ref()
        );
        Self {
            details: Some(Box::new(subject.details(name))),
            ..Self::new(409, "Conflict", message)
        }
    }

    /// 409 of a stale write.
    pub fn modified(subject: Subject<'_>, name: &str) -> Self {
        Self::conflict(
            subject,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of an apply: other managers own these fields.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, "Conflict", message).with_causes(causes)
    }

    /// 410: the revision is no longer known; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: too many bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit} bytes");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 413: the object that a write makes is too large to be kept.
    pub fn object_too_large(bytes: usize, limit: usize) -> Self {
        let message =
            format!("the object would have {bytes} bytes, more than the limit of {limit} bytes");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub fn unsupported_media_type(supported: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {supported}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 415: the body is compressed or the like.
    pub fn unsupported_content_encoding(coding: &impl std::fmt::Debug) -> Self {
        let message = format!(
            "the body of the request has the Content-Encoding {coding:?}; hint: send it as it is, unencoded"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object is wrong; each cause names a field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let each: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let list = match each.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind_group = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(
                422,
                "Invalid",
                format!("{kind_group} {name:?} is invalid: {list}"),
            )
        }
    }

    /// 422 without causes: a patch that does not fit the object.
    pub fn unprocessable(why: &str) -> Self {
        Self::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {why}"),
        )
    }

    /// 413: a patch with too many operations.
    pub fn too_many_operations(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 429: too much at once, or (eviction) not now.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self {
            details: Some(Box::new(Details {
                retry_after_seconds,
                ..Details::default()
            })),
            ..Self::new(429, "TooManyRequests", message)
        }
    }

    /// 500: our fault.
    pub fn internal(message: impl AsRef<str>) -> Self {
        let message = format!("Internal error occurred: {}", message.as_ref());
        Self::new(500, "InternalError", message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: a revision from the future was asked for.
    pub fn too_large_resource_version(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let details = Details {
            causes: vec![Cause::new(
                "ResourceVersionTooLarge",
                "",
                "Too large resource version",
            )],
            retry_after_seconds: 1,
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(504, "Timeout", format!("Timeout: {message}"))
        }
    }

    /// The same refusal with these causes.
    #[must_use]
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    /// Whether the refusal is of this reason, e.g. `NotFound`.
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    /// The JSON document.
    pub fn to_value(&self) -> Value {
        let mut metadata = serde_json::Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".to_owned(), Value::from(&**token));
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let (Some(details), Value::Object(map)) = (&self.details, &mut status) {
            map.insert("details".to_owned(), json!(details));
        }
        status
    }
}
