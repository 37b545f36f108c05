//! Bends what was valid: bytes, and the nodes of a tree.

use serde_json::{Map, Value, json};

use super::Random;

/// Texts that some parser takes for something special.
pub(super) const WORDS: [&str; 72] = [
    "",
    "a",
    "b",
    "web",
    "default",
    "kube-system",
    "n",
    "x.y/z",
    "A_b",
    "-",
    ".",
    "..",
    "/",
    "%",
    "ä",
    "\u{0}",
    "\u{1f600}",
    "0",
    "1",
    "-1",
    "80",
    "65536",
    "2147483648",
    "-9223372036854775808",
    "18446744073709551616",
    "1e309",
    "1.5Gi",
    "100m",
    "-100m",
    "1n",
    "9223372036854775807Ei",
    "0.0000000001",
    "+5",
    "1E",
    "50%",
    "101%",
    "-1%",
    "%s",
    "2026-01-02T03:04:05Z",
    "9999-12-31T23:59:60Z",
    "0000-01-01T00:00:00+23:59",
    "0001-01-01T00:00:00.000000001Z",
    "* * * * *",
    "*/0 * * * *",
    "0 0 31 2 *",
    "@every 1h",
    "TZ=UTC 1 1 1 1 1",
    "Europe/Berlin",
    "10.96.0.10",
    "10.96.255.255",
    "0.0.0.0/0",
    "10.0.0.0/33",
    "fd00::1",
    "::/0",
    "::ffff:1.2.3.4",
    "TCP",
    "SCTP",
    "http",
    "Always",
    "Never",
    "In",
    "Exists",
    "NotIn",
    "Gt",
    "Local",
    "None",
    "ClusterIP",
    "ExternalName",
    "aGk=",
    "a===",
    "$patch",
    "null",
];

/// Field names that do something in some patch or on many kinds.
const NAMES: [&str; 26] = [
    "metadata",
    "spec",
    "status",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "resourceVersion",
    "uid",
    "deletionTimestamp",
    "generateName",
    "apiVersion",
    "kind",
    "$patch",
    "$retainKeys",
    "$setElementOrder/ports",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "template",
    "replicas",
    "selector",
    "containers",
    "data",
];

/// A value that nests so deep.
pub(super) fn nested(random: &mut Random, levels: usize) -> Value {
    let lists = random.chance(50);
    let wrap = |inner: Value, _| {
        if lists {
            json!([inner])
        } else {
            json!({"a": inner})
        }
    };
    (0..levels).fold(json!({}), wrap)
}

/// Any small value.
pub(super) fn leaf(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.chance(50)),
        2 => json!(random.pick(&[
            0,
            1,
            -1,
            2,
            80,
            65_535,
            65_536,
            i64::MAX,
            i64::MIN,
            2_147_483_647,
            -2_147_483_648,
            4_294_967_296
        ])),
        3 => json!(u64::MAX),
        4 => json!(random.pick(&[0.5, -0.0, 1e308, 1e-308, 9.3e18])),
        5 => json!([]),
        6 => json!({}),
        7 if random.chance(20) => {
            let levels = *random.pick(&[3, 90, 101, 124, 140, 300]);
            nested(random, levels)
        }
        7 => json!("x".repeat(*random.pick(&[64, 254, 300, 2000]))),
        _ => json!(random.pick(&WORDS)),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'v>(value: &'v mut Value, rest: &mut usize) -> Option<&'v mut Value> {
    if *rest == 0 {
        return Some(value);
    }
    *rest -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, rest)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, rest)),
        _ => None,
    }
}

/// Any node of a tree.
pub(super) fn any_node<'v>(random: &mut Random, value: &'v mut Value) -> &'v mut Value {
    let mut rest = random.below(count(value));
    nth(value, &mut rest).expect("there are that many")
}

/// Changes a few nodes of a tree; `other` lends some of its own.
pub(super) fn nodes(random: &mut Random, value: &mut Value, other: &Value) {
    for _ in 0..=random.below(3) {
        let mut lent = other.clone();
        let lent = any_node(random, &mut lent).take();
        let fresh = if random.chance(30) {
            lent
        } else {
            leaf(random)
        };
        let name = *random.pick(&NAMES);
        match (any_node(random, value), random.below(5)) {
            (Value::Array(items), 0 | 1) if !items.is_empty() => {
                let item = items[random.below(items.len())].clone();
                items.push(item);
            }
            (Value::Array(items), 2) if !items.is_empty() => drop(items.pop()),
            (Value::Array(items), 3) => items.push(fresh),
            (Value::Object(fields), 0 | 1) if !fields.is_empty() => {
                let name = fields
                    .keys()
                    .nth(random.below(fields.len()))
                    .unwrap()
                    .clone();
                fields.remove(&name);
            }
            (Value::Object(fields), 2 | 3) => drop(fields.insert(name.to_owned(), fresh)),
            (node, _) => *node = fresh,
        }
    }
}

/// Changes a few bytes; `other` lends some of its own.
pub(super) fn bytes(random: &mut Random, text: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(16)).min(text.len());
        match random.below(8) {
            0 if at < text.len() => text[at] ^= 1 << random.below(8),
            1 if at < text.len() => {
                text[at] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\\']);
            }
            2 => drop(text.splice(at..end, [])),
            3 => drop(text.splice(at..at, vec![random.byte(); 1 + random.below(20)])),
            4 => text.truncate(at),
            5 => {
                let twice = text[at..end].repeat(1 + random.below(3));
                drop(text.splice(at..at, twice));
            }
            6 if !other.is_empty() => {
                let from = random.below(other.len());
                let to = (from + random.below(64)).min(other.len());
                drop(text.splice(at..end, other[from..to].iter().copied()));
            }
            _ => drop(text.splice(at..end, random.pick(&WORDS).bytes())),
        }
    }
}

/// A JSON pointer to some node, now and then to none.
pub(super) fn pointer(random: &mut Random, mut value: &Value) -> String {
    let mut path = String::new();
    while random.chance(85) {
        let step = match value {
            Value::Object(fields) if !fields.is_empty() => {
                let name = fields.keys().nth(random.below(fields.len())).unwrap();
                value = &fields[name];
                name.replace('~', "~0").replace('/', "~1")
            }
            Value::Array(items) if !items.is_empty() => {
                let at = random.below(items.len());
                value = &items[at];
                at.to_string()
            }
            _ => break,
        };
        path.push('/');
        path.push_str(&step);
    }
    if random.chance(15) {
        const ENDS: [&str; 8] = [
            "/-",
            "/0",
            "/x",
            "/~",
            "/18446744073709551615",
            "//",
            "/metadata",
            "x",
        ];
        path.push_str(random.pick::<&str>(&ENDS));
    }
    path
}

/// A JSON patch with operations on nodes of `target`.
pub(super) fn json_patch(random: &mut Random, target: &Value) -> Value {
    let operation = |random: &mut Random| {
        let mut lent = target.clone();
        let value = if random.chance(50) {
            leaf(random)
        } else {
            any_node(random, &mut lent).take()
        };
        json!({
            "op": random.pick(&["add", "remove", "replace", "move", "copy", "test", "sing"]),
            "path": pointer(random, target),
            "from": pointer(random, target),
            "value": value,
        })
    };
    (0..random.below(6)).map(|_| operation(random)).collect()
}

/// A part of `target`, bent: a merge patch, or a configuration to apply.
pub(super) fn part(random: &mut Random, target: &Value, other: &Value) -> Value {
    let mut part = target.clone();
    thin(random, &mut part);
    nodes(random, &mut part, other);
    part
}

fn thin(random: &mut Random, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let kept = |fields: &mut Map<String, Value>, random: &mut Random| {
                fields.retain(|_, _| random.chance(70));
            };
            kept(fields, random);
            for field in fields.values_mut() {
                thin(random, field);
            }
        }
        Value::Array(items) => {
            items.retain(|_| random.chance(80));
            for item in items {
                thin(random, item);
            }
        }
        _ => {}
    }
}
