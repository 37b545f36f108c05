//! What of a pod the scheduler acts on: tolerations, affinity, topology spread.

use std::collections::BTreeSet;

use super::At;
use crate::cache::selector::label_value_problem;
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

pub(super) fn scheduling(spec: &At<'_>, causes: &mut Causes) {
    for toleration in spec.field("tolerations").items() {
        self::toleration(&toleration, causes);
    }
    let affinity = spec.field("affinity");
    node_affinity(&affinity.field("nodeAffinity"), causes);
    for kind in ["podAffinity", "podAntiAffinity"].map(|kind| affinity.field(kind)) {
        for term in kind
            .field("requiredDuringSchedulingIgnoredDuringExecution")
            .items()
        {
            pod_term(&term, causes);
        }
        for term in kind
            .field("preferredDuringSchedulingIgnoredDuringExecution")
            .items()
        {
            weight(&term, causes);
            pod_term(&term.field("podAffinityTerm"), causes);
        }
    }
    spread(&spec.field("topologySpreadConstraints"), causes);
}

fn toleration(at: &At<'_>, causes: &mut Causes) {
    let (key, operator, value) = (at.field("key"), at.field("operator"), at.field("value"));
    if key.is_set() {
        key.qualified_name(causes);
    } else if operator.text() != "Exists" {
        operator.invalid(
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            causes,
        );
    }
    let effect = at.field("effect");
    if at.field("tolerationSeconds").value.is_number() && effect.text() != "NoExecute" {
        effect.invalid(
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
            causes,
        );
    }
    match operator.text() {
        "" | "Equal" => {
            if let Some(why) = label_value_problem(value.text()) {
                operator.invalid(why, causes);
            }
        }
        "Exists" => {
            if value.is_set() {
                operator.invalid("value must be empty when `operator` is 'Exists'", causes);
            }
        }
        _ => operator.choose_if_set(&["Equal", "Exists"], causes),
    }
    effect.choose_if_set(&["NoSchedule", "PreferNoSchedule", "NoExecute"], causes);
}

fn weight(at: &At<'_>, causes: &mut Causes) {
    let weight = at.field("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        weight.invalid("must be in the range 1-100", causes);
    }
}

fn node_affinity(at: &At<'_>, causes: &mut Causes) {
    let required = at.field("requiredDuringSchedulingIgnoredDuringExecution");
    if required.value.is_object() {
        node_selector(&required, causes);
    }
    for term in at
        .field("preferredDuringSchedulingIgnoredDuringExecution")
        .items()
    {
        weight(&term, causes);
        node_term(&term.field("preference"), causes);
    }
}

/// A node selector, of a pod or of a volume.
pub(super) fn node_selector(at: &At<'_>, causes: &mut Causes) {
    let terms = at.field("nodeSelectorTerms");
    if !terms.is_set() {
        causes.push(Cause::required(
            &terms.path,
            "must have at least one node selector term",
        ));
    }
    for term in terms.items() {
        node_term(&term, causes);
    }
}

fn node_term(at: &At<'_>, causes: &mut Causes) {
    for expression in at.field("matchExpressions").items() {
        expression.field("key").qualified_name(causes);
        requirement(&expression, causes);
    }
    for expression in at.field("matchFields").items() {
        let key = expression.field("key");
        let values = expression
            .field("values")
            .value
            .as_array()
            .map_or(0, Vec::len);
        if values != 1 {
            let why =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            causes.push(Cause::required(expression.field("values").path, why));
        }
        expression
            .field("operator")
            .choose_if_set(&["In", "NotIn"], causes);
        if key.text() != "metadata.name" {
            key.invalid("not a valid field selector key", causes);
        }
    }
}

fn requirement(at: &At<'_>, causes: &mut Causes) {
    let (operator, values) = (at.field("operator"), at.field("values"));
    let count = values.value.as_array().map_or(0, Vec::len);
    match operator.text() {
        "In" | "NotIn" if count == 0 => causes.push(Cause::required(
            &values.path,
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if count > 0 => values.forbid(
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            causes,
        ),
        "Gt" | "Lt" if count != 1 => causes.push(Cause::required(
            &values.path,
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        )),
        "Gt" | "Lt" => {
            for value in values
                .items()
                .filter(|value| value.text().parse::<i64>().is_err())
            {
                value.invalid(
                    "for 'Gt', 'Lt' operators, the value must be an integer",
                    causes,
                );
            }
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {
            for value in values.items() {
                if let Some(why) = label_value_problem(value.text()) {
                    value.invalid(why, causes);
                }
            }
        }
        _ => operator.invalid("not a valid selector operator", causes),
    }
}

fn pod_term(at: &At<'_>, causes: &mut Causes) {
    at.field("labelSelector").selector(causes);
    at.field("namespaceSelector").selector(causes);
    for namespace in at.field("namespaces").items() {
        namespace.name_if_set(NameRule::Label, causes);
    }
    let topology = at.field("topologyKey");
    if topology.is_set() {
        topology.qualified_name(causes);
    } else {
        causes.push(Cause::required(&topology.path, "can not be empty"));
    }
}

fn spread(list: &At<'_>, causes: &mut Causes) {
    let mut seen = BTreeSet::new();
    for constraint in list.items() {
        let skew = constraint.field("maxSkew");
        if skew.int().unwrap_or(0) <= 0 {
            skew.invalid("must be greater than zero", causes);
        }
        let topology = constraint.field("topologyKey");
        if topology.is_set() {
            topology.qualified_name(causes);
        } else {
            causes.push(Cause::required(&topology.path, "can not be empty"));
        }
        let action = constraint.field("whenUnsatisfiable");
        action.choose(&["DoNotSchedule", "ScheduleAnyway"], causes);
        let domains = constraint.field("minDomains");
        if domains.int().is_some_and(|count| count <= 0) {
            domains.invalid("must be greater than zero", causes);
        }
        if domains.value.is_number() && action.text() != "DoNotSchedule" {
            let why =
                "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            domains.invalid(why, causes);
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint
                .field(policy)
                .choose_if_set(&["Honor", "Ignore"], causes);
        }
        let pair = format!("{{{}, {}}}", topology.text(), action.text());
        if !seen.insert(pair.clone()) {
            let path = format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path);
            causes.push(Cause::duplicate(path, &pair.into()));
        }
        constraint.field("labelSelector").selector(causes);
    }
}
