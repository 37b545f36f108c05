//! From the text of a manifest file to its documents. Pure.
//!
//! A document with a syntax error does not take its neighbours with it. If it
//! still shows which object it was meant to be, it is passed on with a spec that
//! no kind accepts, so that it is rejected by name (and a NetworkPolicy closes).

use serde_json::{Value, json};
use serde_saphyr::{Budget, Options};

use super::Fault;
use crate::model::Kind;
use crate::model::manifest::Document;

/// What a file's text is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    pub documents: Vec<Document>,
    pub faults: Vec<Fault>,
    /// A document is broken and does not show what it was meant to be.
    pub is_unclear: bool,
}

/// Keys and values in one document: some 10,000 pods with their status, in a list.
const NODES_MAX: usize = 4_000_000;

/// What aliases may add to a document.
const REPLAYED_MAX: usize = 100_000;

fn parse(text: &str) -> Result<Value, serde_saphyr::Error> {
    let mut budget = Budget::default();
    budget.max_nodes = NODES_MAX;
    budget.max_events = 2 * NODES_MAX;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = REPLAYED_MAX;
    serde_saphyr::from_str_with_options(text, options)
}

/// Reads all documents of a YAML or JSON text. `origin`: the file's name.
pub fn read(origin: &str, text: &str) -> Documents {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut all = Documents::default();
    for (index, Part { line, text: part }) in split(text).into_iter().enumerate() {
        let place = format!("{origin}, document {}", index + 1);
        match parse(part) {
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
                let reason = reason(&error, line);
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

/// Some editors begin a file with it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What the parser says, its line counted from the beginning of the file, which
/// has `before` lines before the part.
fn reason(error: &serde_saphyr::Error, before: usize) -> String {
    let text = error.to_string();
    // The first line names the place; the rest quotes the text.
    let first = text.lines().next().unwrap_or("is not YAML");
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let place = first.strip_prefix("line ").and_then(|rest| {
        let (line, rest) = rest.split_once(' ')?;
        Some((line.parse::<usize>().ok()?, rest))
    });
    match place {
        Some((line, rest)) => format!("line {} {rest}", before.saturating_add(line)),
        None => first.to_owned(),
    }
}

/// A document's text and the number of lines before it.
struct Part<'a> {
    line: usize,
    text: &'a str,
}

/// The parts between `---` lines (and after `...`); those of comments and blank
/// lines only are left out.
fn split(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut position) = ((0, 0), 0);
    for (line, content) in text.split_inclusive('\n').enumerate() {
        if is_marker(content.trim_end()) {
            parts.push((start, position));
            // `--- {a: b}` may carry content.
            start = (line, position + 3);
        }
        position += content.len();
    }
    parts.push((start, position));
    let parts = parts.into_iter().map(|((line, from), to)| Part {
        line,
        text: text.get(from..to).unwrap_or_default(),
    });
    let is_blank = |part: &Part<'_>| {
        let mut lines = part.text.lines().map(str::trim);
        lines.all(|line| line.is_empty() || line.starts_with(['#', '%']))
    };
    parts.filter(|part| !is_blank(part)).collect()
}

fn is_marker(line: &str) -> bool {
    line == "..."
        || line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// Kind and name of a document that has an error elsewhere, block style or
/// JSON on several lines. A policy may lack its name: it isolates all the same.
fn salvage(text: &str, reason: &str) -> Option<Value> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let named = |line: &str| !matches!(line.trim(), "" | "{" | "---") && !line.starts_with('#');
    let top_depth = text.lines().find(|line| named(line)).map(depth)?;
    let top = |field: &str| {
        let mut lines = text.lines().filter(|line| depth(line) == top_depth);
        lines.find_map(|line| value_of(line, field))
    };
    let below_metadata = |field: &str| {
        let mut lines = text
            .lines()
            .skip_while(|line| depth(line) != top_depth || value_of(line, "metadata").is_none())
            .skip(1)
            .take_while(|line| depth(line) > top_depth || line.trim().is_empty());
        lines
            .find_map(|line| value_of(line, field))
            .filter(|value| !value.is_empty())
    };
    let kind = top("kind").filter(|kind| !kind.is_empty())?;
    let (api_version, name) = (top("apiVersion"), below_metadata("name"));
    let is_whole = api_version.is_some() && name.is_some();
    if !is_whole && kind != Kind::NetworkPolicy.name() {
        return None;
    }
    Some(json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": { "name": name, "namespace": below_metadata("namespace") },
        "spec": format!("not YAML: {reason}"),
    }))
}

/// What a line gives `field`, without quotes and comment.
fn value_of<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    let line = line.trim_start();
    let rest = line.strip_prefix('"').unwrap_or(line).strip_prefix(field)?;
    let rest = rest.strip_prefix('"').unwrap_or(rest).strip_prefix(':')?;
    let value = rest.split(" #").next().unwrap_or_default().trim();
    Some(value.trim_end_matches(',').trim_matches(['"', '\'']))
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
    fn a_fault_is_told_by_its_line_in_the_file() {
        let read = read("f.yaml", "kind: A\n---\nkind: B\n---\nkind: C\nspec: [\n");
        assert!(
            read.faults[0].reason.starts_with("line 6 "),
            "{:?}",
            read.faults
        );
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
    fn a_broken_policy_in_json_or_without_a_name_is_told_too() {
        let json = "{\n  \"apiVersion\": \"networking.k8s.io/v1\",\n  \"kind\": \"NetworkPolicy\",\n  \
                    \"metadata\": {\n    \"name\": \"db\",\n    \"namespace\": \"shop\"\n  },\n  \
                    \"spec\": {\"podSelector\": {}\n";
        let value = &read("f.json", json).documents[0].value;
        assert_eq!(value["apiVersion"], "networking.k8s.io/v1");
        assert_eq!(
            value["metadata"],
            json!({"name": "db", "namespace": "shop"})
        );
        let nameless = "kind: NetworkPolicy\nmetadata:\n  namespace: shop\nspec: [\n";
        let read = read("f.yaml", nameless);
        assert!(!read.is_unclear);
        assert_eq!(read.documents[0].value["metadata"]["namespace"], "shop");
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_do_no_harm() {
        let text = "\u{feff}---\r\nkind: A\r\n---\r\nkind: B\r\n";
        assert_eq!(kinds(text), ["A", "B"]);
        assert_eq!(kinds("\u{feff}kind: A\n"), ["A"]);
    }

    #[test]
    fn a_list_of_ten_thousand_objects_is_one_document() {
        // More than 250,000 keys and values.
        let item = "- {kind: Pod, metadata: {name: a, labels: {a: b, c: d, e: f}}, spec: {x: [1, 2, 3]}}\n";
        let text = format!("kind: List\nitems:\n{}", item.repeat(10_000));
        let read = read("f.yaml", &text);
        assert_eq!(read.faults, []);
        assert_eq!(
            read.documents[0].value["items"].as_array().unwrap().len(),
            10_000
        );
    }

    #[test]
    fn aliases_cannot_blow_a_small_text_up() {
        let mut lines = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned()];
        lines.extend((1..9).map(|level| {
            let inner = format!("*a{}, ", level - 1).repeat(10);
            format!("a{level}: &a{level} [{inner}]")
        }));
        let text = lines.join("\n");
        let read = read("f.yaml", &text);
        assert_eq!((read.documents.len(), read.faults.len()), (0, 1));
    }

    #[test]
    fn a_scalar_is_not_a_document() {
        assert_eq!(read("f", "hello").faults[0].reason, "is not an object");
    }
}
