//! Query parameters.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    cache::Selector,
    registry::WriteOptions,
    resource::Resource,
    schema::FieldValidation,
    status::{Cause, Status},
    store::Revision,
};

/// Percent-decodes; with `plus`, `+` is a space. `None` if malformed.
pub(super) fn decode(text: &str, plus: bool) -> Option<String> {
    if !(text.contains('%') || plus && text.contains('+')) {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'+' if plus => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// Refuses a query that cannot be decoded: a selector in it would else count as absent.
///
/// # Errors
/// 400.
pub(super) fn check(query: &str) -> Result<(), Status> {
    if decode(query, true).is_some() {
        return Ok(());
    }
    Err(Status::bad_request("the query holds a bad percent escape"))
}

/// The first value of a parameter, decoded.
pub(super) fn value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode(value, true))?
    })
}

/// Whether a boolean parameter is set; upstream reads all but `false` and `0` as yes.
pub(super) fn flag(query: &str, name: &str) -> bool {
    value(query, name)
        .is_some_and(|text| !matches!(text.to_ascii_lowercase().as_str(), "false" | "0" | "f"))
}

/// A number that may be absent.
///
/// # Errors
/// 400 if it is no number.
pub(super) fn number(query: &str, name: &str) -> Result<Option<i64>, Status> {
    match value(query, name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_not_a_number| Status::bad_request(format!("{name}: {text:?} is no number"))),
    }
}

/// Label and field selector.
///
/// # Errors
/// 400 naming what is wrong.
pub(super) fn selector(query: &str, resource: &Resource) -> Result<Selector, Status> {
    let labels = value(query, "labelSelector").unwrap_or_default();
    let fields = value(query, "fieldSelector").unwrap_or_default();
    Selector::parse(&labels, &fields, resource)
        .map_err(|error| Status::bad_request(error.to_string()))
}

/// Which state a list or a watch is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The newest.
    Newest,
    /// Any; the client said `0`.
    Any,
    /// This one or a newer one.
    NotOlderThan(Revision),
    /// This one.
    Exactly(Revision),
}

/// Reads `resourceVersion`.
///
/// # Errors
/// 400 if it is no revision.
pub(super) fn revision(query: &str) -> Result<Option<Revision>, Status> {
    match value(query, "resourceVersion").filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(|n| Some(Revision(n)))
            .map_err(|_not_a_number| {
                Status::bad_request(format!("invalid resource version {text:?}"))
            }),
    }
}

/// Reads `resourceVersion` and `resourceVersionMatch` of a list.
///
/// # Errors
/// 400 or 422 where they contradict each other.
pub(super) fn wanted(query: &str, limited: bool) -> Result<Wanted, Status> {
    let revision = revision(query)?;
    let rule = value(query, "resourceVersionMatch").unwrap_or_default();
    let forbid = |field: &str, why: &str| {
        let cause = Cause::forbidden(field, why);
        Err(Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            vec![cause],
        ))
    };
    if value(query, "sendInitialEvents").is_some_and(|text| !text.is_empty()) {
        return forbid("sendInitialEvents", "is forbidden for list");
    }
    let refuse = |why: &str| forbid("resourceVersionMatch", why);
    match (revision, rule.as_str()) {
        (None, "") => Ok(Wanted::Newest),
        (None, _) => refuse("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some(Revision(0)), "Exact") => {
            refuse("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        (Some(Revision(0)), "" | "NotOlderThan") => Ok(Wanted::Any),
        (Some(revision), "Exact") => Ok(Wanted::Exactly(revision)),
        (Some(revision), "") if limited => Ok(Wanted::Exactly(revision)),
        (Some(revision), "" | "NotOlderThan") => Ok(Wanted::NotOlderThan(revision)),
        (Some(_), other) => {
            let cause = Cause::not_supported(
                "resourceVersionMatch",
                &other.into(),
                &["Exact", "NotOlderThan"],
            );
            Err(Status::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                vec![cause],
            ))
        }
    }
}

/// Where a list goes on. Opaque to clients.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Continue {
    /// The snapshot's revision; 0 goes on with whatever is newest.
    #[serde(rename = "rv")]
    pub revision: u64,
    /// The last key seen.
    pub after: String,
}

impl Continue {
    pub(super) fn encode(&self) -> String {
        let json = serde_json::to_vec(self).expect("a token always serializes");
        URL_SAFE_NO_PAD.encode(json)
    }

    /// # Errors
    /// 400 for a token this server did not make.
    pub(super) fn decode(text: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid");
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_not_base64| bad())?;
        serde_json::from_slice(&json).map_err(|_not_ours| bad())
    }
}

/// Reads the parameters of a write.
///
/// # Errors
/// 400 for a value that is not offered.
pub(super) fn write(query: &str) -> Result<WriteOptions, Status> {
    let validation = value(query, "fieldValidation").unwrap_or_default();
    let field_validation = FieldValidation::parse(&validation).ok_or_else(|| {
        let supported = &["Ignore", "Strict", "Warn"];
        let cause = Cause::not_supported("fieldValidation", &validation.into(), supported);
        Status::invalid("meta.k8s.io", "CreateOptions", "", vec![cause])
    })?;
    let field_manager = value(query, "fieldManager").unwrap_or_default();
    if field_manager.len() > 128 || !field_manager.chars().all(|c| !c.is_control()) {
        let cause = Cause::too_long("fieldManager", 128);
        return Err(Status::invalid(
            "meta.k8s.io",
            "CreateOptions",
            "",
            vec![cause],
        ));
    }
    let mut options = WriteOptions::default();
    options.dry_run = dry_run(query)?;
    options.field_manager = field_manager;
    options.field_validation = field_validation;
    Ok(options)
}

/// Reads `dryRun`.
///
/// # Errors
/// 422 for anything but `All`.
pub(super) fn dry_run(query: &str) -> Result<bool, Status> {
    match value(query, "dryRun").as_deref() {
        None | Some("") => Ok(false),
        Some("All") => Ok(true),
        Some(other) => {
            let cause = Cause::not_supported("dryRun", &other.into(), &["All"]);
            Err(Status::invalid(
                "meta.k8s.io",
                "CreateOptions",
                "",
                vec![cause],
            ))
        }
    }
}
