//! When two pod templates are the same, and a short name for one. Pure.

use serde_json::{Map, Value};

use super::HASH;

/// Letters of a hash: no vowels, nothing that looks like another.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates make the same pods; the hash label does not count.
pub fn same_template(a: &Value, b: &Value) -> bool {
    plain(a) == plain(b)
}

/// A name for a template, different after each collision.
pub fn hash(template: &Value, collisions: i64) -> String {
    let mut text = plain(template).to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut left = text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let letters = u64::try_from(ALPHABET.len()).expect("27 letters");
    let mut name = String::new();
    for _ in 0..10 {
        let letter = usize::try_from(left % letters).expect("below 27");
        name.push(char::from(ALPHABET[letter]));
        left /= letters;
    }
    name
}

/// The template without its hash label and without anything empty.
fn plain(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    without_nothing(&template).unwrap_or(Value::Null)
}

fn without_nothing(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), without_nothing(value)?)))
                .collect();
            // `emptyDir: {}` says something, `labels: {}` does not.
            let said = map.is_empty() || !kept.is_empty();
            said.then_some(Value::Object(kept))
        }
        Value::Array(list) if list.is_empty() => None,
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hash_label_and_nulls_make_no_difference() {
        let a = json!({"metadata": {"labels": {"app": "x"}, "creationTimestamp": null}, "spec": {"containers": [{"name": "c"}]}});
        let mut b = a.clone();
        b["metadata"]["labels"][HASH] = json!("abc");
        b["spec"]["tolerations"] = json!([]);
        assert!(same_template(&a, &b));
        assert_eq!(hash(&a, 0), hash(&b, 0));
        assert_ne!(hash(&a, 0), hash(&a, 1));
        b["spec"]["containers"][0]["image"] = json!("new");
        assert!(!same_template(&a, &b));
    }
}
