//! Strategic merge against the documented examples and a naive model.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn merged(kind: (&str, &str), mut target: Value, patch: Value) -> Result<Value, PatchError> {
    let object = schema().api_kind(kind.0, kind.1).expect("a known kind");
    strategic_merge(object, &mut target, patch).map(|()| target)
}

const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
const POD: (&str, &str) = ("v1", "Pod");
const SERVICE: (&str, &str) = ("v1", "Service");

fn template(spec: impl Into<Value>) -> Value {
    json!({"spec": {"template": {"spec": spec.into()}}})
}

#[test]
fn containers_merge_by_name() {
    let target =
        template(json!({"containers": [{"name": "nginx", "image": "nginx", "tty": true}]}));
    let patch = template(json!({"containers": [{"name": "redis", "image": "redis"}]}));
    assert_eq!(
        merged(DEPLOYMENT, target, patch),
        Ok(template(json!({"containers": [
            {"name": "redis", "image": "redis"},
            {"name": "nginx", "image": "nginx", "tty": true}]})))
    );
}

#[test]
fn a_container_of_the_same_name_is_changed_in_place() {
    let target = template(json!({"containers": [{"name": "a", "image": "1", "env": [
        {"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]}));
    let patch = template(json!({"containers": [{"name": "a", "image": "2", "env": [
        {"name": "Y", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]}));
    assert_eq!(
        merged(DEPLOYMENT, target, patch),
        Ok(template(
            json!({"containers": [{"name": "a", "image": "2", "env": [
            {"name": "X", "value": "1"},
            {"name": "Y", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]})
        ))
    );
}

#[test]
fn tolerations_have_no_key_and_are_replaced() {
    let target = template(json!({"tolerations": [{"key": "dedicated", "value": "test-team"}]}));
    let patch = template(json!({"tolerations": [{"key": "disktype", "value": "ssd"}]}));
    assert_eq!(merged(DEPLOYMENT, target, patch.clone()), Ok(patch));
}

#[test]
fn retain_keys_drops_the_other_members_of_a_union() {
    let target = json!({"spec": {"strategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        merged(DEPLOYMENT, target.clone(), patch),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );
    let wrong = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert_eq!(
        merged(DEPLOYMENT, target, wrong),
        Err(malformed("invalid patch format of retainKeys"))
    );
}

#[test]
fn an_item_marked_delete_goes() {
    let target = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
    let patch = json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}});
    assert_eq!(
        merged(POD, target.clone(), patch),
        Ok(json!({"spec": {"containers": [{"name": "b"}]}}))
    );
    let keyless = json!({"spec": {"containers": [{"$patch": "delete"}]}});
    let error = merged(POD, target, keyless)
        .expect_err("no key")
        .to_string();
    assert!(
        error.ends_with("does not contain declared merge key: name"),
        "{error}"
    );
}

#[test]
fn a_list_marked_replace_is_replaced() {
    let target = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
    let patch =
        json!({"spec": {"containers": [{"name": "c", "image": null}, {"$patch": "replace"}]}});
    assert_eq!(
        merged(POD, target, patch),
        Ok(json!({"spec": {"containers": [{"name": "c"}]}}))
    );
}

#[test]
fn an_object_marked_replace_or_delete_is_replaced_or_emptied() {
    let target = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
    let replace = json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}});
    assert_eq!(
        merged(POD, target.clone(), replace),
        Ok(json!({"metadata": {"labels": {"c": "3"}}}))
    );
    let delete = json!({"metadata": {"labels": {"$patch": "delete"}}});
    assert_eq!(
        merged(POD, target.clone(), delete),
        Ok(json!({"metadata": {"labels": {}}}))
    );
    let nonsense = json!({"metadata": {"labels": {"$patch": "sing"}}});
    assert!(matches!(
        merged(POD, target, nonsense),
        Err(PatchError::Malformed(_))
    ));
}

#[test]
fn finalizers_merge_as_a_set_and_leave_one_by_one() {
    let target = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"],
        "finalizers": ["d", "a"]}});
    assert_eq!(
        merged(POD, target, patch),
        Ok(json!({"metadata": {"finalizers": ["d", "a", "c"]}}))
    );
}

#[test]
fn set_element_order_puts_the_named_first_and_keeps_the_rest_in_place() {
    let names = |names: &[&str]| -> Value {
        names
            .iter()
            .map(|name| json!({"name": name}))
            .collect::<Vec<_>>()
            .into()
    };
    let target = json!({"spec": {"containers": names(&["1", "2", "3", "server"])}});
    let patch = json!({"spec": {"$setElementOrder/containers": names(&["3", "1"]),
        "containers": names(&["1"])}});
    let order: Vec<String> =
        merged(POD, target.clone(), patch).expect("applies")["spec"]["containers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|item| item["name"].as_str().unwrap_or_default().to_owned())
            .collect();
    assert_eq!(order, ["2", "3", "1", "server"]);

    let wrong = json!({"spec": {"$setElementOrder/containers": names(&["1", "2"]),
        "containers": names(&["2", "1"])}});
    let error = merged(POD, target, wrong)
        .expect_err("wrong order")
        .to_string();
    assert!(error.starts_with("The order in patch list:"), "{error}");
}

#[test]
fn service_ports_merge_by_port_and_the_selector_by_key() {
    let target = json!({"spec": {"selector": {"a": "1", "b": "2"},
        "ports": [{"port": 80, "name": "x"}, {"port": 443}]}});
    let patch = json!({"spec": {"selector": {"b": null, "c": "3"},
        "ports": [{"port": 443, "name": "y"}]}});
    assert_eq!(
        merged(SERVICE, target, patch),
        Ok(json!({"spec": {"selector": {"a": "1", "c": "3"},
            "ports": [{"port": 80, "name": "x"}, {"port": 443, "name": "y"}]}}))
    );
}

#[test]
fn directives_never_reach_the_object() {
    let patch = json!({"spec": {"containers": [{"name": "a", "$patch": "merge", "env": [
        {"$patch": "delete", "name": "x"}, {"name": "y"}], "$setElementOrder/env": [{"name": "y"}],
        "securityContext": {"$retainKeys": ["x"]}}]}});
    assert!(merged(POD, json!({"spec": {"containers": []}}), patch.clone()).is_err());
    let mut patch = patch;
    patch["spec"]["containers"][0]
        .as_object_mut()
        .expect("an object")
        .remove("$patch");
    let result = merged(POD, json!({}), patch).expect("applies");
    assert!(!result.to_string().contains('$'), "{result}");
}

#[test]
fn a_list_as_long_as_a_body_allows_merges_in_linear_time() {
    let items = |from: usize| -> Value {
        let item = |at| json!({"name": format!("v{at}"), "value": "x"});
        (from..from + 60_000).map(item).collect::<Vec<_>>().into()
    };
    let pod = |env: &Value| json!({"spec": {"containers": [{"name": "c", "env": env}]}});
    let result = merged(POD, pod(&items(0)), pod(&items(30_000))).expect("applies");
    let merged = result["spec"]["containers"][0]["env"]
        .as_array()
        .map(Vec::len);
    assert_eq!(merged, Some(90_000));
}

/// What strategic merge means for lists keyed by name, without directives: an independent model.
fn model(old: &[(String, u8)], new: &[(String, u8)]) -> Vec<(String, u8)> {
    let mut all: Vec<(String, u8)> = old.to_vec();
    for (name, value) in new {
        match all.iter_mut().find(|(other, _)| other == name) {
            Some(item) => item.1 = *value,
            None => all.push((name.clone(), *value)),
        }
    }
    all.sort();
    all
}

fn unique(items: Vec<(String, u8)>) -> Vec<(String, u8)> {
    let mut seen = std::collections::BTreeSet::new();
    items
        .into_iter()
        .filter(|(name, _)| seen.insert(name.clone()))
        .collect()
}

fn env(items: &[(String, u8)]) -> Value {
    let items: Vec<Value> = items
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value.to_string()}))
        .collect();
    json!({"spec": {"containers": [{"name": "c", "env": items}]}})
}

fn items_of(value: &Value) -> Vec<(String, u8)> {
    let items = value["spec"]["containers"][0]["env"]
        .as_array()
        .expect("a list");
    items
        .iter()
        .map(|item| {
            let text = |key: &str| item[key].as_str().expect("a string").to_owned();
            (text("name"), text("value").parse().expect("a number"))
        })
        .collect()
}

fn any_items() -> impl Strategy<Value = Vec<(String, u8)>> {
    prop::collection::vec(("[a-f]", any::<u8>()), 0..6).prop_map(unique)
}

proptest! {
    #[test]
    fn keyed_lists_merge_like_a_naive_model(old in any_items(), new in any_items()) {
        let result = merged(POD, env(&old), env(&new)).expect("applies");
        let mut items = items_of(&result);
        // The patch's items keep the patch's order, the others theirs.
        let order = |items: &[(String, u8)], of: &[(String, u8)]| -> Vec<String> {
            let names = items.iter().map(|(name, _)| name.clone());
            names.filter(|name| of.iter().any(|(other, _)| other == name)).collect()
        };
        let names = |items: &[(String, u8)]| -> Vec<String> {
            items.iter().map(|(name, _)| name.clone()).collect()
        };
        prop_assert_eq!(order(&items, &new), names(&new));
        let others: Vec<_> =
            old.iter().filter(|(name, _)| !new.iter().any(|(n, _)| n == name)).cloned().collect();
        prop_assert_eq!(order(&items, &others), names(&others));
        items.sort();
        prop_assert_eq!(items, model(&old, &new));
    }

    #[test]
    fn deleting_and_ordering_gives_exactly_the_wanted_list(old in any_items(), new in any_items()) {
        // The patch that kubectl makes: delete what is gone, give the order, name all items.
        let mut patch = env(&new);
        let container = &mut patch["spec"]["containers"][0];
        container["$setElementOrder/env"] =
            new.iter().map(|(name, _)| json!({"name": name})).collect::<Vec<_>>().into();
        let gone = old.iter().filter(|(name, _)| !new.iter().any(|(n, _)| n == name));
        let deletions = gone.map(|(name, _)| json!({"name": name, "$patch": "delete"}));
        container["env"].as_array_mut().expect("a list").extend(deletions);
        let result = merged(POD, env(&old), patch).expect("applies");
        prop_assert_eq!(items_of(&result), new);
    }

    #[test]
    fn any_patch_is_applied_or_refused_without_a_panic(
        target in "[a-z{}\\[\\]\":,$0-9]{0,60}",
        directive in "\\$patch|\\$retainKeys|\\$setElementOrder/containers|containers|x",
        value in prop_oneof![Just(json!(null)), Just(json!(["a"])), Just(json!([{"name": 1}])),
            Just(json!("delete")), Just(json!({"$patch": "replace"})), Just(json!([null, 3]))],
    ) {
        let target: Value = serde_json::from_str(&target).unwrap_or_else(|_| json!({"containers": [{}]}));
        let patch = json!({"spec": {directive: value}});
        drop(merged(POD, json!({"spec": target}), patch));
    }
}
