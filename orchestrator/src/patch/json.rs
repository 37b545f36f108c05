//! JSON patch (RFC 6902) and JSON merge patch (RFC 7386).

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::PatchError;

/// Most operations in one JSON patch, as upstream.
pub const OPERATIONS_MAX: usize = 10_000;
/// Most bytes that the `copy` operations of one patch may copy.
const COPIED_MAX: usize = 3 * 1024 * 1024;
/// Most list items that the operations of one patch may shift.
const SHIFTED_MAX: usize = 20_000_000;
/// Deepest nesting of what is stored, so that it can be read back (readers stop at 128).
pub const DEPTH_MAX: usize = 100;

/// Applies a JSON patch document to `target`. On an error `target` is undefined.
pub fn json_patch(target: &mut Value, patch: Value) -> Result<(), PatchError> {
    if let Some(count) = patch
        .as_array()
        .map(Vec::len)
        .filter(|count| *count > OPERATIONS_MAX)
    {
        return Err(PatchError::TooManyOperations(count));
    }
    let patch: Patch = serde_json::from_value(patch)
        .map_err(|error| PatchError::Malformed(format!("invalid JSON patch: {error}")))?;
    let mut budget = Budget {
        copied: 0,
        shifted: 0,
    };
    for (at, operation) in patch.0.iter().enumerate() {
        budget.spend(target, operation)?;
        json_patch::patch_unsafe(target, std::slice::from_ref(operation)).map_err(|error| {
            PatchError::Unprocessable(format!("operation {at} failed: {}", error.kind))
        })?;
    }
    Ok(())
}

/// What a patch has used up of its bounds.
struct Budget {
    copied: usize,
    shifted: usize,
}

impl Budget {
    /// Refuses an operation that would nest too deep, copy too much or shift too many items.
    fn spend(&mut self, target: &Value, operation: &PatchOperation) -> Result<(), PatchError> {
        let (path, value) = match operation {
            PatchOperation::Add(add) => (&add.path, Some(&add.value)),
            PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
            PatchOperation::Move(moved) => (&moved.path, moved.from.resolve(target).ok()),
            PatchOperation::Copy(copy) => (&copy.path, copy.from.resolve(target).ok()),
            PatchOperation::Remove(remove) => (&remove.path, None),
            PatchOperation::Test(_) => return Ok(()),
        };
        let list = path.parent().and_then(|parent| parent.resolve(target).ok());
        self.shifted = self
            .shifted
            .saturating_add(list.and_then(Value::as_array).map_or(0, Vec::len));
        let above = path.count();
        let too_deep = |value| above > DEPTH_MAX || deeper_than(value, DEPTH_MAX - above);
        if value.is_some_and(too_deep) {
            let text = format!("the patch nests deeper than {DEPTH_MAX} levels at {path}");
            return Err(PatchError::Unprocessable(text));
        }
        if matches!(operation, PatchOperation::Copy(_)) {
            self.copied = self.copied.saturating_add(value.map_or(0, size));
        }
        if self.copied > COPIED_MAX || self.shifted > SHIFTED_MAX {
            let text = format!(
                "the patch copies more than {COPIED_MAX} bytes or shifts more than {SHIFTED_MAX} list items"
            );
            return Err(PatchError::Unprocessable(text));
        }
        Ok(())
    }
}

/// Whether `value` has more than `levels` levels of nesting below it.
pub fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) if !items.is_empty() => {
            levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1))
        }
        Value::Object(fields) if !fields.is_empty() => {
            levels == 0 || fields.values().any(|field| deeper_than(field, levels - 1))
        }
        _ => false,
    }
}

/// About as many bytes as `value` takes in JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 5,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Value::Object(fields) => {
            fields
                .iter()
                .map(|(name, field)| name.len() + size(field) + 4)
                .sum::<usize>()
                + 2
        }
    }
}

/// Applies a merge patch: objects merge, null removes, anything else replaces.
pub fn merge_patch(target: &mut Value, patch: Value) {
    let Value::Object(changes) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(&name);
        } else {
            merge_patch(fields.entry(name).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(mut target: Value, patch: Value) -> Result<Value, PatchError> {
        json_patch(&mut target, patch).map(|()| target)
    }

    #[test]
    fn the_documented_json_patch_examples_apply() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
        let patch = json!([
            {"op": "test", "path": "/spec/containers/0/name", "value": "a"},
            {"op": "replace", "path": "/spec/containers/0/image", "value": "new image"},
            {"op": "add", "path": "/spec/containers/-", "value": {"name": "b"}},
            {"op": "copy", "from": "/spec/containers/0", "path": "/spec/containers/0"},
            {"op": "remove", "path": "/spec/containers/1"},
            {"op": "move", "from": "/spec/containers/1", "path": "/spec/x"},
        ]);
        assert_eq!(
            patched(pod, patch),
            Ok(
                json!({"spec": {"containers": [{"name": "a", "image": "new image"}],
                "x": {"name": "b"}}})
            )
        );
    }

    #[test]
    fn a_failed_test_and_a_missing_path_are_unprocessable() {
        for patch in [
            json!([{"op": "test", "path": "/a", "value": 2}]),
            json!([{"op": "remove", "path": "/b"}]),
            json!([{"op": "replace", "path": "/b/c", "value": 1}]),
        ] {
            let error = patched(json!({"a": 1}), patch).expect_err("does not fit");
            assert!(matches!(error, PatchError::Unprocessable(_)), "{error}");
        }
    }

    #[test]
    fn what_is_no_patch_is_malformed() {
        for patch in [
            json!({}),
            json!([{"op": "sing"}]),
            json!([{"op": "add", "path": "a"}]),
        ] {
            let error = patched(json!({}), patch).expect_err("no patch");
            assert!(matches!(error, PatchError::Malformed(_)), "{error}");
        }
    }

    #[test]
    fn doubling_nesting_and_sheer_number_are_bounded() {
        let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let error = patched(json!({"a": ["x"]}), Value::Array(vec![double; 60]));
        assert!(
            matches!(error, Err(PatchError::Unprocessable(_))),
            "{error:?}"
        );

        let deep = format!("/{}", vec!["a"; 200].join("/"));
        let error = patched(json!({}), json!([{"op": "add", "path": deep, "value": 1}]));
        assert!(
            matches!(error, Err(PatchError::Unprocessable(_))),
            "{error:?}"
        );

        let test = json!({"op": "test", "path": "", "value": {}});
        let error = patched(json!({}), Value::Array(vec![test; OPERATIONS_MAX + 1]));
        assert_eq!(
            error,
            Err(PatchError::TooManyOperations(OPERATIONS_MAX + 1))
        );
    }

    #[test]
    fn the_examples_of_the_merge_patch_specification_hold() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target;
            merge_patch(&mut merged, patch);
            assert_eq!(merged, expected);
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..5).prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_difference_applied_as_json_patch_gives_the_other_side(
            from in any_value(),
            to in any_value(),
        ) {
            let difference = serde_json::to_value(json_patch::diff(&from, &to)).unwrap();
            prop_assert_eq!(patched(from, difference), Ok(to));
        }

        #[test]
        fn merging_a_value_twice_is_merging_it_once(
            mut target in any_value(),
            patch in any_value(),
        ) {
            merge_patch(&mut target, patch.clone());
            let once = target.clone();
            merge_patch(&mut target, patch);
            prop_assert_eq!(target, once);
        }
    }
}
