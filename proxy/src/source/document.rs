//! From the text of a manifest file to its documents. Pure.
//!
//! A document with a syntax error does not take its neighbours with it. If it
//! still shows which object it was meant to be, it is passed on with a spec that
//! no kind accepts, so that it is rejected by name (and a NetworkPolicy closes).

use serde_json::{Value, json};

use super::Fault;
use crate::model::manifest::Document;

/// What a file's text is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    pub documents: Vec<Document>,
    pub faults: Vec<Fault>,
    /// A document is broken and does not show what it was meant to be.
    pub is_unclear: bool,
}

/// Reads all documents of a YAML or JSON text. `origin`: the file's name.
pub fn read(origin: &str, text: &str) -> Documents {
    let mut all = Documents::default();
    for (index, part) in split(text).into_iter().enumerate() {
        let place = format!("{origin}, document {}", index + 1);
        match serde_saphyr::from_str::<Value>(part) {
            Ok(Value::Null) => {}
            Ok(value @ Value::Object(_)) => all.documents.push(Document {
                origin: place.into(),
                value,
            }),
            Ok(_) => all.faults.push(Fault {
                origin: place,
                reason: "is not an object".to_owned(),
                hint: "start it with apiVersion and kind".to_owned(),
            }),
            Err(error) => {
                // The first line names the place; the rest quotes the text.
                let text = error.to_string();
                let reason = text.lines().next().unwrap_or("is not YAML").to_owned();
                match salvage(part, &reason) {
                    Some(value) => all.documents.push(Document {
                        origin: place.clone().into(),
                        value,
                    }),
                    None => all.is_unclear = true,
                }
                all.faults.push(Fault {
                    origin: place,
                    reason,
                    hint: "correct the YAML".to_owned(),
                });
            }
        }
    }
    all
}

/// The parts between `---` lines (and after `...`); those of comments and blank
/// lines only are left out.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut position) = (0, 0);
    for line in text.split_inclusive('\n') {
        let next = position + line.len();
        let content = line.trim_end();
        if is_marker(content) {
            parts.push(text.get(start..position).unwrap_or_default());
            // `--- {a: b}` may carry content.
            start = position + 3;
        }
        position = next;
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts.retain(|part| {
        part.lines()
            .map(str::trim)
            .any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%'))
    });
    parts
}

fn is_marker(line: &str) -> bool {
    line == "..."
        || line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// Kind and name of a block-style document that has an error elsewhere.
fn salvage(text: &str, reason: &str) -> Option<Value> {
    let top = |field: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(plain))
            .filter(|value| !value.is_empty())
    };
    let below_metadata = |field: &str| {
        text.lines()
            .skip_while(|line| line.trim_end() != "metadata:")
            .skip(1)
            .take_while(|line| line.starts_with(' ') || line.trim().is_empty())
            .find_map(|line| {
                let rest = line.trim_start().strip_prefix(field)?;
                rest.strip_prefix(':').map(plain)
            })
            .filter(|value| !value.is_empty())
    };
    Some(json!({
        "apiVersion": top("apiVersion")?,
        "kind": top("kind")?,
        "metadata": {
            "name": below_metadata("name")?,
            "namespace": below_metadata("namespace"),
        },
        "spec": format!("not YAML: {reason}"),
    }))
}

/// A scalar without quotes and comment.
fn plain(text: &str) -> &str {
    let text = text.split(" #").next().unwrap_or_default().trim();
    text.trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<String> {
        read("f.yaml", text)
            .documents
            .iter()
            .map(|d| d.value["kind"].as_str().unwrap_or("?").to_owned())
            .collect()
    }

    #[test]
    fn documents_are_told_apart_and_numbered() {
        let text = "# head\n---\nkind: A\n---\n\n---\nkind: B\n...\n--- {kind: C}\n";
        assert_eq!(kinds(text), ["A", "B", "C"]);
        let read = read("f.yaml", text);
        assert_eq!(&*read.documents[1].origin, "f.yaml, document 2");
        assert_eq!(read.faults, []);
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(kinds("{\"kind\": \"A\",\n \"x\": [1, 2]}"), ["A"]);
    }

    #[test]
    fn dashes_inside_a_text_do_not_split() {
        assert_eq!(kinds("kind: A\ntext: |\n  ---\n  x\n--x: 1\n"), ["A"]);
    }

    #[test]
    fn a_broken_document_spares_its_neighbours_and_is_named() {
        let text = "kind: A\n---\nkind: [\n---\nkind: B\n";
        let read = read("f.yaml", text);
        assert_eq!(read.documents.len(), 2);
        assert_eq!(read.faults[0].origin, "f.yaml, document 2");
        assert!(read.is_unclear);
    }

    #[test]
    fn a_broken_policy_keeps_its_name_and_has_no_valid_spec() {
        let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy # x\nmetadata:\n  \
                    namespace: \"shop\"\n  name: db\nspec:\n  podSelector: {\n";
        let read = read("f.yaml", text);
        assert!(!read.is_unclear);
        let value = &read.documents[0].value;
        assert_eq!(value["metadata"]["name"], "db");
        assert_eq!(value["metadata"]["namespace"], "shop");
        assert!(value["spec"].is_string());
        assert_eq!(read.faults.len(), 1);
    }

    #[test]
    fn a_scalar_is_not_a_document() {
        assert_eq!(read("f", "hello").faults[0].reason, "is not an object");
    }
}
