//! Values seen as fields that can be owned: which fields one sets, how two differ, how one merges
//! into another, and a value without some of its fields.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::fields::{FieldSet, shown};
use crate::schema::{Kind, ObjectType, Topology, schema};

/// How a value is owned.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// As a whole.
    Leaf,
    /// By field.
    Object(&'a ObjectType),
    /// By key.
    Map(&'a Kind),
    /// A list of distinct scalars, owned one by one.
    Set,
    /// A list of objects told apart by these fields.
    Keyed(&'a Kind, &'a [&'static str]),
}

impl<'a> Shape<'a> {
    fn of(kind: &'a Kind, topology: &'a Topology) -> Self {
        match (kind, topology) {
            (_, Topology::Atomic) => Self::Leaf,
            (Kind::Object(index), _) => Self::object(schema().object(*index)),
            (Kind::Map(of), _) => Self::Map(of),
            (Kind::List(_), Topology::Set) => Self::Set,
            (Kind::List(of), Topology::Map(keys)) => Self::Keyed(of, keys),
            _ => Self::Leaf,
        }
    }

    fn object(object: &'a ObjectType) -> Self {
        if object.atomic {
            Self::Leaf
        } else {
            Self::Object(object)
        }
    }

    fn field(self, name: &str) -> Self {
        match self {
            Self::Object(object) => object
                .field(name)
                .map_or(Self::Leaf, |field| Self::of(&field.kind, &field.topology)),
            Self::Map(of) => Self::of(of, &Topology::Default),
            _ => Self::Leaf,
        }
    }

    fn item(self) -> Self {
        match self {
            Self::Keyed(of, _) => Self::of(of, &Topology::Default),
            _ => Self::Leaf,
        }
    }

    /// The path element of a list item; `Err` names the key it lacks.
    fn element(self, item: &Value) -> Result<String, &'static str> {
        let Self::Keyed(_, keys) = self else {
            return Ok(format!("v:{item}"));
        };
        let mut found = Map::new();
        for key in keys {
            let value = match (item.get(*key), *key) {
                (Some(value), _) => value.clone(),
                // The one key that upstream's types give a default.
                (None, "protocol") => "TCP".into(),
                (None, key) => return Err(key),
            };
            found.insert((*key).to_owned(), value);
        }
        Ok(format!("k:{}", Value::Object(found)))
    }
}

/// The fields that a value sets.
pub(super) fn fields_of(shape: Shape<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (shape, value) {
        (Shape::Leaf, _) => set.member = true,
        (Shape::Object(_) | Shape::Map(_), Value::Object(fields)) => {
            for (name, value) in fields {
                let mut below = fields_of(shape.field(name), value);
                let empty = value.as_object().is_some_and(Map::is_empty);
                below.member |= value.is_null() || empty || matches!(shape, Shape::Map(_));
                set.put(format!("f:{name}"), below);
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            for item in items {
                let Ok(element) = shape.element(item) else {
                    continue;
                };
                // Of items that are there twice, only that they are there is owned.
                let twice = set.below.contains_key(&element);
                let mut below = if twice {
                    FieldSet::default()
                } else {
                    fields_of(shape.item(), item)
                };
                below.member = true;
                set.put(element, below);
            }
        }
        _ => {}
    }
    set
}

/// Refuses lists whose items cannot be told apart.
pub(super) fn check(shape: Shape<'_>, value: &Value, path: &str) -> Result<(), String> {
    match (shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(fields)) => {
            for (name, value) in fields {
                check(shape.field(name), value, &format!("{path}.{name}"))?;
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for (at, item) in items.iter().enumerate() {
                let element = shape.element(item).map_err(|key| {
                    format!(
                        "{path}: element {at}: associative list with keys has an element that \
                         omits key field {key:?} (and doesn't have default value)"
                    )
                })?;
                let shown = shown(&element);
                if !seen.insert(element) {
                    return Err(format!("{path}: duplicate entries for key {shown}"));
                }
                check(shape.item(), item, &format!("{path}{shown}"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// How one value differs from another.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    /// The fields that are new or have a new value.
    pub(super) fn set(&self) -> FieldSet {
        let mut set = self.added.clone();
        set.union(&self.modified);
        set
    }

    /// As [`Self::set`], and the fields that are gone.
    pub(super) fn into_changed_and_removed(self) -> (FieldSet, FieldSet) {
        let mut set = self.added;
        set.absorb(self.modified);
        (set, self.removed)
    }

    pub(super) fn exclude(&mut self, path: &[&str]) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.exclude(path);
        }
    }

    fn put(&mut self, mut element: String, below: Self) {
        let sets = [
            (&mut self.added, below.added),
            (&mut self.modified, below.modified),
            (&mut self.removed, below.removed),
        ];
        let mut left = sets.iter().filter(|(_, below)| !below.is_empty()).count();
        for (set, below) in sets {
            if !below.is_empty() {
                left -= 1;
                // Most often there is one, which takes the name as it is.
                let name = match left {
                    0 => std::mem::take(&mut element),
                    _ => element.clone(),
                };
                set.below.insert(name, below);
            }
        }
    }

    /// Compares maps and objects field by field; of what is as it was, not even the name is made.
    fn put_fields(&mut self, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>) {
        let empty = Map::new();
        let old = old.and_then(Value::as_object).unwrap_or(&empty);
        let new = new.and_then(Value::as_object).unwrap_or(&empty);
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        for name in new.keys().chain(gone) {
            let (old, new) = (old.get(name), new.get(name));
            if old != new {
                let below = compare(shape.field(name), old, new);
                self.put(format!("f:{name}"), below);
            }
        }
    }
}

/// Compares two values of one shape; `None` is one that is not there.
pub(super) fn compare(shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>) -> Comparison {
    let mut found = Comparison::default();
    // Most of what an update touches is as it was.
    if old.is_some() && old == new {
        return found;
    }
    let empty = |value: Option<&Value>| match (shape, value) {
        (Shape::Object(_) | Shape::Map(_), Some(Value::Object(fields))) => fields.is_empty(),
        (Shape::Set | Shape::Keyed(..), Some(Value::Array(items))) => items.is_empty(),
        _ => true,
    };
    if matches!(shape, Shape::Leaf) || (empty(old) && empty(new)) {
        found.modified.member = old.is_some() && new.is_some() && old != new;
    } else if matches!(shape, Shape::Object(_) | Shape::Map(_)) {
        found.put_fields(shape, old, new);
    } else {
        for (element, (shape, old, new)) in pairs(shape, old, new) {
            found.put(element, compare_all(shape, &old, &new));
        }
    }
    found.added.member = old.is_none() && new.is_some();
    found.removed.member = new.is_none() && old.is_some();
    found
}

/// Compares what two lists have under one key: items there more than once compare as one.
fn compare_all(shape: Shape<'_>, old: &[&Value], new: &[&Value]) -> Comparison {
    if old.len() <= 1 && new.len() <= 1 {
        return compare(shape, old.first().copied(), new.first().copied());
    }
    let mut found = match (old, new) {
        ([_, _, ..], [first]) => compare(shape, None, Some(first)),
        ([first], [_, _, ..]) => compare(shape, Some(first), None),
        _ => Comparison::default(),
    };
    found.modified.member |= old.len() > 1 && new.len() > 1 && old != new;
    found.removed.member |= new.len() < 2;
    found.added.member |= old.len() < 2;
    found
}

type Pair<'a> = (Shape<'a>, Vec<&'a Value>, Vec<&'a Value>);

/// The items of two lists, matched by path element.
fn pairs<'a>(
    shape: Shape<'a>,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
) -> BTreeMap<String, Pair<'a>> {
    let mut pairs: BTreeMap<String, Pair<'a>> = BTreeMap::new();
    for (value, is_new) in [(old, false), (new, true)] {
        let mut put = |element: String, shape, value| {
            let pair = pairs
                .entry(element)
                .or_insert_with(|| (shape, Vec::new(), Vec::new()));
            let side = if is_new { &mut pair.2 } else { &mut pair.1 };
            side.push(value);
        };
        for item in value.and_then(Value::as_array).into_iter().flatten() {
            if let Ok(element) = shape.element(item) {
                put(element, shape.item(), item);
            }
        }
    }
    pairs
}

/// Merges `config` into `live`: what `config` does not mention stays.
pub(super) fn merge(shape: Shape<'_>, live: &mut Value, config: Value) {
    match (shape, live, config) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            for (name, value) in config {
                merge(
                    shape.field(&name),
                    live.entry(name).or_insert(Value::Null),
                    value,
                );
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(live), Value::Array(config)) => {
            *live = merge_list(shape, std::mem::take(live), config);
        }
        (_, live, config) => *live = config,
    }
}

/// Items of both lists: the shared ones in the order of `config`, the others where they were.
fn merge_list(shape: Shape<'_>, live: Vec<Value>, config: Vec<Value>) -> Vec<Value> {
    let id = |item: &Value| shape.element(item).unwrap_or_default();
    let mut old: HashMap<String, Value> = HashMap::with_capacity(live.len());
    let applied: BTreeSet<String> = config.iter().map(id).collect();
    let mut order = Vec::with_capacity(live.len());
    for item in live {
        let id = id(&item);
        // Of items that are there twice, those that are applied become one.
        if !applied.contains(&id) {
            order.push((id, Some(item)));
        } else if old.insert(id.clone(), item).is_none() {
            order.push((id, None));
        }
    }
    let shared = config.iter().map(id).filter(|id| old.contains_key(id));
    let mut shared = shared.collect::<Vec<_>>().into_iter().peekable();
    let mut wanted = config.into_iter();
    let mut merged = Vec::with_capacity(order.len() + wanted.len());
    let mut take = |item: Value, merged: &mut Vec<Value>| {
        let id = id(&item);
        let mut slot = old.remove(&id).unwrap_or(Value::Null);
        merge(shape.item(), &mut slot, item);
        merged.push(slot);
        id
    };
    for (own, item) in order {
        if let Some(item) = item {
            merged.push(item);
        } else if shared.next_if_eq(&own).is_some() {
            while wanted
                .next()
                .is_some_and(|item| take(item, &mut merged) != own)
            {}
        }
    }
    for item in wanted {
        take(item, &mut merged);
    }
    merged
}

/// `value` without the fields in `gone`; `None` if nothing is left of it.
pub(super) fn without(shape: Shape<'_>, value: Value, gone: &FieldSet) -> Option<Value> {
    match (shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(fields)) if !fields.is_empty() => {
            let kept: Map<String, Value> = fields
                .into_iter()
                .filter_map(|(name, value)| match gone.below.get(&format!("f:{name}")) {
                    None => Some((name, value)),
                    Some(gone) if gone.member => None,
                    Some(gone) => {
                        let left = without(shape.field(&name), value, gone)?;
                        Some((name, left))
                    }
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) if !items.is_empty() => {
            let kept: Vec<Value> = items
                .into_iter()
                .filter_map(|item| {
                    let element = shape.element(&item).unwrap_or_default();
                    match gone.below.get(&element) {
                        None => Some(item),
                        Some(gone) if gone.member => None,
                        Some(gone) => without(shape.item(), item, gone),
                    }
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        (_, value) => Some(value),
    }
}

/// The set with every struct field on the way to a member made a member too.
pub(super) fn with_parents(shape: Shape<'_>, set: &FieldSet) -> FieldSet {
    let mut full = FieldSet {
        member: set.member,
        below: BTreeMap::new(),
    };
    for (element, below) in &set.below {
        let (shape, is_field) = match (shape, element.strip_prefix("f:")) {
            (Shape::Object(object), Some(name)) => {
                (shape.field(name), object.field(name).is_some())
            }
            (_, Some(name)) => (shape.field(name), false),
            (_, None) => (shape.item(), false),
        };
        let mut below = with_parents(shape, below);
        below.member |= is_field;
        full.put(element.clone(), below);
    }
    full
}
