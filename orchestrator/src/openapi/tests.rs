//! The documents as clients read them.

use super::*;

fn read(group: &str) -> Value {
    let text = document(group, "v1", "v1.37.0").expect("a document");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn the_root_names_each_groups_document() {
    let root: Value = serde_json::from_slice(&root("v1.37.0")).expect("JSON");
    let url = root["paths"]["api/v1"]["serverRelativeURL"]
        .as_str()
        .expect("a URL");
    assert!(url.starts_with("/openapi/v3/api/v1?hash="), "{url}");
    let groups = resource::groups().len();
    assert_eq!(root["paths"].as_object().map(Map::len), Some(groups));
}

#[test]
fn the_old_document_is_a_message_that_says_nothing() {
    let message = old_protobuf("v1.37.0");
    let info = b"\x0a\x0aKubernetes\x12\x07v1.37.0";
    let expected = [&b"\x0a\x032.0\x12\x15"[..], info, b"\x42\0\x4a\0"].concat();
    assert_eq!(info.len(), 0x15);
    assert_eq!(message, expected);
    assert_eq!(old("v1.37.0")["paths"], json!({}));
}

#[test]
fn a_patch_says_that_it_takes_field_validation_and_for_which_kind() {
    let document = read("");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]["patch"];
    assert_eq!(
        patch[GVK],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|parameter| parameter["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["dryRun", "fieldManager", "fieldValidation", "force"]
    );
    let content = &patch["requestBody"]["content"];
    assert!(
        content
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                into.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, into));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }
    for (group, version) in resource::groups() {
        let text = document(group, version, "v1.37.0").expect("a document");
        let document: Value = serde_json::from_slice(&text).expect("JSON");
        let mut all = Vec::new();
        references(&document, &mut all);
        assert!(!all.is_empty(), "{group}");
        for reference in all {
            let pointer = reference.strip_prefix('#').expect("in this document");
            assert!(document.pointer(pointer).is_some(), "{group}: {reference}");
        }
    }
}

#[test]
fn types_carry_what_client_side_apply_merges_by() {
    let document = read("");
    let schemas = &document["components"]["schemas"];
    let meta = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"];
    assert_eq!(
        meta["ownerReferences"]["x-kubernetes-patch-merge-key"],
        json!("uid")
    );
    assert_eq!(meta["finalizers"]["x-kubernetes-list-type"], json!("set"));
    assert_eq!(
        meta["finalizers"]["x-kubernetes-patch-strategy"],
        json!("merge")
    );
    let config_map = &schemas["io.k8s.api.core.v1.ConfigMap"];
    assert_eq!(
        config_map[GVK],
        json!([{"group": "", "version": "v1", "kind": "ConfigMap"}])
    );
}

#[test]
fn a_group_without_resources_has_no_document() {
    assert_eq!(document("nonsense.example", "v1", "v1.37.0"), None);
}
