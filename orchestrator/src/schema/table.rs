//! Reads the generated table of schema facts.
//!
//! One line a fact: `>name` starts a type, `=group version kind` says that it is a kind, `~` that
//! apply owns it as a whole, and anything else is a field: `name type [number] [marks..]`.
//! Types are `s`tring `b`ool `i`nt32 `l`(int64) `d`ouble b`y`tes `t`ime `u`(microsecond time)
//! `q`uantity `x`(int or string) `f`(ownership set) `r`(any object) `@type` `[list]` `{map}`.
//! A number `1.4` is field 4 of the inlined message that is field 1. Marks: `!` required,
//! `*` pointer, `wrap`, `merge[=key]`, `retainKeys`, `atomic`, `granular`, `set`, `map=keys`.

use std::collections::HashMap;

use thiserror::Error;

use super::{Field, Gvk, Kind, ObjectType, Schema, Strategy, Topology};

/// A line of the table that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line} of the schema table is not understood: {text}")]
pub(super) struct TableError {
    line: usize,
    text: &'static str,
}

type Names = HashMap<&'static str, u16>;

impl Schema {
    pub(super) fn parse(text: &'static str) -> Result<Self, TableError> {
        let heads = text.lines().filter_map(|line| line.strip_prefix('>'));
        let mut names: Vec<&'static str> = heads.collect();
        names.sort_unstable();
        let index: Names = names.iter().copied().zip(0..).collect();
        let mut types: Vec<ObjectType> = names
            .iter()
            .map(|name| ObjectType {
                name,
                fields: Vec::new(),
                atomic: false,
            })
            .collect();
        let mut kinds = Vec::new();
        let mut current = 0;
        for (at, line) in text.lines().enumerate() {
            let fail = || TableError {
                line: at + 1,
                text: line,
            };
            match line.split_at_checked(1) {
                Some((">", name)) => current = *index.get(name).ok_or_else(fail)?,
                Some(("=", gvk)) => kinds.push((parse_gvk(gvk).ok_or_else(fail)?, current)),
                Some(("~", _)) => types[usize::from(current)].atomic = true,
                Some(("#", _)) | None => {}
                Some(_) => {
                    let field = parse_field(line, &index).ok_or_else(fail)?;
                    types
                        .get_mut(usize::from(current))
                        .ok_or_else(fail)?
                        .fields
                        .push(field);
                }
            }
        }
        for object in &mut types {
            object.fields.sort_unstable_by_key(|field| field.name);
            object.fields.shrink_to_fit();
        }
        kinds.sort_unstable();
        Ok(Self { types, kinds })
    }
}

fn parse_gvk(text: &'static str) -> Option<Gvk> {
    let mut words = text.split(' ');
    let (group, version, kind) = (words.next()?, words.next()?, words.next()?);
    Some(Gvk {
        group,
        version,
        kind,
    })
}

fn parse_field(line: &'static str, names: &Names) -> Option<Field> {
    let mut words = line.split(' ');
    let mut field = Field {
        name: words.next()?,
        kind: parse_kind(words.next()?, names)?,
        required: false,
        pointer: false,
        wrapped: false,
        number: 0,
        outer: 0,
        strategy: Strategy::default(),
        topology: Topology::Default,
    };
    for word in words {
        match word {
            "!" => field.required = true,
            "*" => field.pointer = true,
            "wrap" => field.wrapped = true,
            "retainKeys" => field.strategy.retain_keys = true,
            "merge" => field.strategy.merge_key = Some(""),
            "replace" => field.strategy.merge_key = None,
            "atomic" => field.topology = Topology::Atomic,
            "granular" => field.topology = Topology::Granular,
            "set" => field.topology = Topology::Set,
            _ => parse_valued_mark(word, &mut field)?,
        }
    }
    Some(field)
}

fn parse_valued_mark(word: &'static str, field: &mut Field) -> Option<()> {
    if let Some(key) = word.strip_prefix("merge=") {
        field.strategy.merge_key = Some(key);
    } else if let Some(keys) = word.strip_prefix("map=") {
        field.topology = Topology::Map(keys.split(',').collect());
    } else if let Some((outer, number)) = word.split_once('.') {
        field.outer = outer.parse().ok()?;
        field.number = number.parse().ok()?;
    } else {
        field.number = word.parse().ok()?;
    }
    Some(())
}

fn parse_kind(text: &'static str, names: &Names) -> Option<Kind> {
    Some(match text.split_at_checked(1)? {
        ("s", "") => Kind::String,
        ("b", "") => Kind::Bool,
        ("i", "") => Kind::Int32,
        ("l", "") => Kind::Int64,
        ("d", "") => Kind::Double,
        ("y", "") => Kind::Bytes,
        ("t", "") => Kind::Time,
        ("u", "") => Kind::MicroTime,
        ("q", "") => Kind::Quantity,
        ("x", "") => Kind::IntOrString,
        ("f", "") => Kind::Fields,
        ("r", "") => Kind::Raw,
        ("@", name) => Kind::Object(*names.get(name)?),
        ("[", rest) => Kind::List(Box::new(parse_kind(rest.strip_suffix(']')?, names)?)),
        ("{", rest) => Kind::Map(Box::new(parse_kind(rest.strip_suffix('}')?, names)?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let error = Schema::parse(">a\nfield @missing\n").expect_err("no such type");
        assert_eq!(
            error,
            TableError {
                line: 2,
                text: "field @missing"
            }
        );
        assert!(Schema::parse(">a\nfield s sideways\n").is_err());
        assert!(Schema::parse("=one two\n").is_err());
    }

    #[test]
    fn types_refer_to_one_another_in_any_order() {
        let schema = Schema::parse(">b\nx [@a] 3.4 * map=k,l\n>a\n=g v1 A\nk s 1 !\n").expect("ok");
        let field = schema.named("b").and_then(|b| b.field("x")).expect("there");
        assert_eq!(field.kind, Kind::List(Box::new(Kind::Object(0))));
        assert_eq!((field.outer, field.number, field.pointer), (3, 4, true));
        assert_eq!(schema.kind("g", "v1", "A").map(|a| a.name), Some("a"));
    }
}
