//! Protobuf field numbers, read out of the generated Rust of the crate `k8s-pb`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::exec;

/// How one JSON field travels in protobuf.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tag {
    /// Number of the message that Go inlines into its parent in JSON, or 0.
    pub(crate) outer: u32,
    pub(crate) number: u32,
    /// A zero on the wire is meant, not merely the Go zero value.
    pub(crate) pointer: bool,
    /// Last path segment of the Rust type of a message field or map value.
    pub(crate) message: String,
}

type Message = BTreeMap<String, Tag>;

/// Field numbers by message, both normalised (lower case, no underscores), as the crate's names
/// are in Rust's case and JSON's in Go's.
#[derive(Debug)]
pub(crate) struct Numbers {
    messages: BTreeMap<String, Message>,
    extra: BTreeMap<String, Message>,
}

fn normal(name: &str) -> String {
    name.chars()
        .filter(|c| *c != '_')
        .flat_map(char::to_lowercase)
        .collect()
}

impl Numbers {
    /// Reads the crate as cargo resolved it, and the hand-kept facts of `wire.txt`.
    pub(crate) fn read(wire: &str) -> Result<Self> {
        let root = crate_source("k8s-pb")?;
        let mut messages = BTreeMap::new();
        for (under, group) in [("api", ""), ("apimachinery/pkg/apis", "")] {
            read_tree(&root.join(under), group, &mut messages)?;
        }
        ensure!(
            messages.contains_key("core.v1.pod"),
            "k8s-pb no longer looks as expected"
        );
        Ok(Self {
            messages,
            extra: read_wire(wire)?,
        })
    }

    /// The numbers of a type's JSON fields; `name` is in the table's short form.
    pub(crate) fn of<'a>(
        &self,
        name: &str,
        fields: impl Iterator<Item = &'a String>,
    ) -> BTreeMap<&'a str, Tag> {
        let empty = Message::new();
        let message = self.messages.get(&normal(name)).unwrap_or(&empty);
        let extra = self.extra.get(name).unwrap_or(&empty);
        let package = name.rsplit_once('.').map_or("", |(package, _)| package);
        let fields: Vec<&'a str> = fields.map(String::as_str).collect();
        let plain: BTreeSet<String> = fields.iter().map(|field| normal(field)).collect();
        let mut tags = BTreeMap::new();
        for field in fields {
            let own = message.get(&normal(field)).cloned();
            let found = own.or_else(|| self.inlined(message, &plain, package, field));
            let more = extra.get(field);
            let mut tag = match (found, more) {
                (Some(tag), _) => tag,
                (None, Some(more)) if more.number != 0 => more.clone(),
                (None, _) => continue,
            };
            tag.pointer = more.is_some_and(|more| more.pointer);
            tags.insert(field, tag);
        }
        tags
    }

    /// Looks for `field` in the messages that Go inlines: those whose own name is no JSON field.
    fn inlined(
        &self,
        message: &Message,
        plain: &BTreeSet<String>,
        package: &str,
        field: &str,
    ) -> Option<Tag> {
        message
            .iter()
            .filter(|(name, _)| !plain.contains(*name))
            .find_map(|(_, outer)| {
                let inner = self
                    .messages
                    .get(&normal(&format!("{package}.{}", outer.message)))?;
                let tag = inner.get(&normal(field))?;
                Some(Tag {
                    outer: outer.number,
                    ..tag.clone()
                })
            })
    }
}

fn read_wire(wire: &str) -> Result<BTreeMap<String, Message>> {
    let mut types = BTreeMap::new();
    for line in wire.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let name = words.next().context("wire.txt: an empty line")?;
        let message: &mut Message = types.entry(name.to_owned()).or_default();
        for word in words {
            if let Some(field) = word.strip_prefix('*') {
                message.entry(field.to_owned()).or_default().pointer = true;
            } else {
                let (field, number) = word.split_once('=').context("wire.txt: field=number")?;
                let (number, kind) = number.split_once(':').unwrap_or((number, ""));
                let tag = message.entry(field.to_owned()).or_default();
                tag.number = number.parse()?;
                kind.clone_into(&mut tag.message);
            }
        }
    }
    Ok(types)
}

/// Where cargo keeps the source of a dependency of this workspace.
fn crate_source(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--locked"];
    let metadata: Value = serde_json::from_str(&exec::read(Command::new(cargo).args(arguments))?)?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package.get("name").and_then(Value::as_str) == Some(name))
        .and_then(|package| package.get("manifest_path"))
        .and_then(Value::as_str)
        .with_context(|| format!("{name} is no dependency of the workspace"))?;
    Ok(Path::new(manifest).with_file_name("src"))
}

fn read_tree(folder: &Path, package: &str, messages: &mut BTreeMap<String, Message>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            let package = if package.is_empty() {
                name
            } else {
                format!("{package}.{name}")
            };
            read_tree(&entry.path(), &package, messages)?;
        } else if name == "mod.rs" {
            read_module(&std::fs::read_to_string(entry.path())?, package, messages)?;
        }
    }
    Ok(())
}

/// Reads `pub struct`s with `#[prost(.., tag = "N")]` fields.
fn read_module(
    source: &str,
    package: &str,
    messages: &mut BTreeMap<String, Message>,
) -> Result<()> {
    let mut message = String::new();
    let mut number = None;
    for line in source.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{', ';']).next().unwrap_or_default();
            message = normal(&format!("{package}.{name}"));
        } else if let Some((_, rest)) = line.split_once("tag = \"") {
            let digits = rest.split('"').next().unwrap_or_default();
            number = Some(
                digits
                    .parse()
                    .with_context(|| format!("{message}: {line}"))?,
            );
        } else if let (Some(rest), Some(tag)) = (line.strip_prefix("pub "), number.take()) {
            let (field, kind) = rest.split_once(':').context("a field without a type")?;
            let kind = kind.trim().trim_end_matches(['>', ',']);
            let last = kind.rsplit([':', '<', ' ']).next().unwrap_or_default();
            let tag = Tag {
                number: tag,
                message: last.to_owned(),
                ..Tag::default()
            };
            let field = normal(field.strip_prefix("r#").unwrap_or(field));
            messages
                .entry(message.clone())
                .or_default()
                .insert(field, tag);
        }
    }
    Ok(())
}
