//! Whether labels, taints and selectors fit together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::node::NodeInfo;

/// Labels of anything.
pub type Labels = BTreeMap<String, String>;

/// Whether a label selector takes these labels; `None` takes nothing.
pub fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else {
        return false;
    };
    let equal = selector.match_labels.iter().flatten();
    let terms = selector.match_expressions.iter().flatten();
    equal
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && terms.into_iter().all(|term| {
            requirement(
                &term.operator,
                term.values.as_deref().unwrap_or_default(),
                labels.get(&term.key),
            )
        })
}

fn requirement(operator: &str, values: &[String], found: Option<&String>) -> bool {
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = || values.first().and_then(number);
    match operator {
        "In" => found.is_some_and(|value| values.contains(value)),
        "NotIn" => found.is_none_or(|value| !values.contains(value)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => found
            .and_then(number)
            .zip(bound())
            .is_some_and(|(value, bound)| value > bound),
        "Lt" => found
            .and_then(number)
            .zip(bound())
            .is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether one term takes the node; an empty term takes none.
pub fn term_takes(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let fits = |r: &NodeSelectorRequirement, found| {
        requirement(&r.operator, r.values.as_deref().unwrap_or_default(), found)
    };
    expressions.iter().all(|r| fits(r, node.labels.get(&r.key)))
        && fields
            .iter()
            .all(|r| fits(r, (r.key == "metadata.name").then_some(&node.name)))
}

/// Whether any term takes the node.
pub fn node_selected(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| term_takes(term, node))
}

/// The names of the only nodes that a selector can take, if each of its terms
/// names some.
pub fn named_nodes(selector: Option<&NodeSelector>) -> Option<BTreeSet<&str>> {
    let mut names = BTreeSet::new();
    for term in &selector?.node_selector_terms {
        let fields = term.match_fields.iter().flatten();
        let named = fields
            .filter(|field| field.key == "metadata.name" && field.operator == "In")
            .map(|field| field.values.iter().flatten().map(String::as_str).collect())
            .reduce(|all: BTreeSet<&str>, more| &all & &more)?;
        names.extend(named);
    }
    Some(names)
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    if !empty(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    if !empty(&toleration.key) && toleration.key.as_deref() != Some(&taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !empty(&toleration.key)
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The first taint with one of `effects` that nothing tolerates.
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}
