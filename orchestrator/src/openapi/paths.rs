//! The operations of a document, each with the query parameters it takes.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::schemas::reference;
use super::{GVK, gvk};
use crate::resource::Resource;
use crate::schema::schema;

/// The paths of one group and version.
pub(super) struct Paths<'a> {
    /// `/api/v1`, `/apis/apps/v1`.
    pub(super) prefix: String,
    pub(super) resources: &'a [&'static Resource],
}

impl Serialize for Paths<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for resource in self.resources {
            let scope = if resource.namespaced {
                "/namespaces/{namespace}"
            } else {
                ""
            };
            let all = format!("{}{scope}/{}", self.prefix, resource.plural);
            let collection = [
                ("get", "list"),
                ("post", "create"),
                ("delete", "deletecollection"),
            ];
            map.serialize_entry(&all, &item(resource, &collection, &[scope]))?;
            if resource.namespaced && resource.verbs.contains(&"list") {
                let path = format!("{}/{}", self.prefix, resource.plural);
                map.serialize_entry(&path, &item(resource, &[("get", "list")], &[]))?;
            }
            if resource.verbs.contains(&"get") {
                let one = [
                    ("get", "get"),
                    ("put", "update"),
                    ("patch", "patch"),
                    ("delete", "delete"),
                ];
                let path = format!("{all}/{{name}}");
                map.serialize_entry(&path, &item(resource, &one, &[scope, "/{name}"]))?;
            }
            for sub in resource.subresources {
                let kind = (sub.group, sub.version, sub.kind);
                let methods = [
                    ("get", "get"),
                    ("post", "create"),
                    ("put", "update"),
                    ("patch", "patch"),
                ];
                let methods: Vec<_> = methods
                    .into_iter()
                    .filter(|(_, verb)| sub.verbs.contains(verb))
                    .collect();
                let path = format!("{all}/{{name}}/{}", sub.name);
                map.serialize_entry(&path, &operations(kind, &methods, &[scope, "/{name}"]))?;
            }
        }
        map.end()
    }
}

/// (HTTP method, verb) pairs.
type Methods<'a> = [(&'a str, &'a str)];

fn item(resource: &Resource, methods: &Methods<'_>, scope: &[&str]) -> Value {
    let served: Vec<_> = methods
        .iter()
        .copied()
        .filter(|(_, verb)| resource.verbs.contains(verb))
        .collect();
    operations(
        (resource.group, resource.version, resource.kind),
        &served,
        scope,
    )
}

fn operations(kind: (&str, &str, &str), methods: &Methods<'_>, scope: &[&str]) -> Value {
    let mut item = Map::new();
    for (method, verb) in methods {
        item.insert((*method).to_owned(), operation(kind, verb));
    }
    let in_path: Vec<Value> = scope
        .iter()
        .filter_map(|part| part.split_once('{')?.1.strip_suffix('}'))
        .map(|name| {
            json!({"name": name, "in": "path", "required": true,
                "schema": {"type": "string", "uniqueItems": true}})
        })
        .collect();
    if !in_path.is_empty() {
        item.insert("parameters".to_owned(), in_path.into());
    }
    Value::Object(item)
}

/// The query parameters of a verb: name and type.
fn parameters(verb: &str) -> &'static [(&'static str, &'static str)] {
    match verb {
        "create" | "update" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
        ],
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        "list" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "deletecollection" => &[
            ("continue", "string"),
            ("dryRun", "string"),
            ("fieldSelector", "string"),
            ("gracePeriodSeconds", "integer"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("propagationPolicy", "string"),
            ("resourceVersion", "string"),
        ],
        _ => &[],
    }
}

fn operation(kind: (&str, &str, &str), verb: &str) -> Value {
    let (group, version, name) = kind;
    let query: Vec<Value> = parameters(verb)
        .iter()
        .map(|(name, of)| {
            json!({"name": name, "in": "query", "schema": {"type": of, "uniqueItems": true}})
        })
        .collect();
    let answer = match verb {
        "list" => type_of(group, version, &format!("{name}List")),
        "delete" | "deletecollection" => type_of("", "v1", "Status"),
        _ => type_of(group, version, name),
    };
    let mut operation = json!({
        "parameters": query,
        "responses": {"200": {
            "description": "OK",
            "content": {"application/json": {"schema": answer}},
        }},
        "x-kubernetes-action": action(verb),
        GVK: gvk(group, version, name),
    });
    let body = match verb {
        "create" | "update" => Some(json!({"*/*": {"schema": type_of(group, version, name)}})),
        "delete" | "deletecollection" => Some(json!({"*/*": {"schema": reference(
                "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")}})),
        "patch" => {
            let any = json!({"schema": {"type": "object"}});
            Some(json!({
                "application/apply-patch+yaml": any,
                "application/json-patch+json": any,
                "application/merge-patch+json": any,
                "application/strategic-merge-patch+json": any,
            }))
        }
        _ => None,
    };
    if let Some(content) = body {
        let required = !verb.starts_with("delete");
        operation["requestBody"] = json!({"content": content, "required": required});
    }
    operation
}

/// A reference to a kind's type; any object where the table has none.
fn type_of(group: &str, version: &str, kind: &str) -> Value {
    schema().kind(group, version, kind).map_or_else(
        || json!({"type": "object"}),
        |object| reference(&object.full_name()),
    )
}

/// The name upstream gives a verb here.
fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}
