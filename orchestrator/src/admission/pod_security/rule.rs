//! The pod security levels at work: refusals, warnings, and a look at existing pods when a
//! namespace becomes stricter.

use serde_json::Value;

use super::{Policies, Policy, is_significant, label_problems, template, violations};
use crate::admission::{concerns, text};
use crate::cache::Query;
use crate::registry::{Admission, Operation, Request};
use crate::resource;
use crate::resource::core::NAMESPACE;
use crate::status::{Cause, Status};

/// Most existing pods looked at when a namespace becomes stricter.
const PODS_MAX: usize = 3000;

/// The rule.
#[derive(Debug)]
pub struct PodSecurity;

impl Admission for PodSecurity {
    fn admit(&self, _request: &mut Request<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    fn review(&self, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
        if request.operation == Operation::Delete {
            return Ok(());
        }
        if concerns(request, "", "namespaces") {
            return namespace(request, object);
        }
        let resource = request.target.resource;
        let ephemeral = request.target.subresource == "ephemeralcontainers";
        if concerns(request, "", "pods") || (resource.key == "pods" && ephemeral) {
            return pod(request, object);
        }
        let template = template(resource.group, resource.plural, object);
        if let Some(template) = template.filter(|_| request.target.subresource.is_empty()) {
            let policies = policies(request);
            let found = violations(
                policies.warn.level,
                &template["metadata"],
                &template["spec"],
            );
            warn(request, &policies.warn, found);
        }
        Ok(())
    }
}

/// What the request's namespace demands.
fn policies(request: &Request<'_>) -> Policies {
    let namespace = request.cache.of(&NAMESPACE).get(request.target.namespace);
    Policies::of(|key| namespace.as_ref()?.label(key).map(str::to_owned))
}

fn warn(request: &mut Request<'_>, policy: &Policy, found: Option<String>) {
    if let Some(found) = found {
        request.warnings.push(format!(
            "would violate PodSecurity {:?}: {found}",
            policy.to_string()
        ));
    }
}

fn pod(request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
    if request.old.is_some_and(|old| !is_significant(object, old)) {
        return Ok(());
    }
    let policies = policies(request);
    let judge = |policy: &Policy| violations(policy.level, &object["metadata"], &object["spec"]);
    if let Some(found) = judge(&policies.enforce) {
        let why = format!(
            "violates PodSecurity {:?}: {found}",
            policies.enforce.to_string()
        );
        let name = text(object, "/metadata/name");
        return Err(Status::forbidden(
            request.target.resource.subject(),
            name,
            why,
        ));
    }
    let found = judge(&policies.warn);
    warn(request, &policies.warn, found);
    Ok(())
}

/// Refuses labels that mean nothing; names the pods that a stricter level would refuse.
fn namespace(request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
    let name = text(object, "/metadata/name");
    let causes: Vec<Cause> = label_problems(&object["metadata"]["labels"])
        .into_iter()
        .map(|(label, value, why)| {
            Cause::invalid(format!("metadata.labels[{label}]"), &value.into(), why)
        })
        .collect();
    if !causes.is_empty() {
        return Err(Status::invalid("", "Namespace", name, causes));
    }
    let of = |namespace: &Value| {
        Policies::of(|key| {
            namespace["metadata"]["labels"][key]
                .as_str()
                .map(str::to_owned)
        })
        .enforce
    };
    let Some(old) = request.old else {
        return Ok(());
    };
    let (now, before) = (of(object), of(old));
    let Some(pods) = resource::find("", "v1", "pods").filter(|_| now.level > before.level) else {
        return Ok(());
    };
    let query = Query {
        namespace: Some(name.to_owned()),
        limit: PODS_MAX,
        ..Query::default()
    };
    let Ok(page) = request.cache.of(pods).list(&query) else {
        return Ok(());
    };
    let mut found: Vec<String> = page
        .entries
        .iter()
        .filter_map(|entry| {
            let pod = entry.value();
            let why = violations(now.level, &pod["metadata"], &pod["spec"])?;
            Some(format!("{}: {}", entry.name(), reasons(&why)))
        })
        .collect();
    if !found.is_empty() {
        let summary = format!(
            "existing pods in namespace {name:?} violate the new PodSecurity enforce level {:?}",
            now.to_string()
        );
        found.truncate(20);
        request.warnings.push(summary);
        request.warnings.append(&mut found);
    }
    Ok(())
}

/// The reasons of a finding without their details in parentheses.
fn reasons(found: &str) -> String {
    let mut depth = 0_usize;
    let mut quoted = false;
    let outside = found.chars().filter(|&c| {
        match c {
            '"' if depth > 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth = depth.saturating_sub(1);
                return false;
            }
            _ => {}
        }
        depth == 0
    });
    let outside: String = outside.collect();
    outside
        .split(',')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_what_stands_outside_parentheses() {
        let found =
            r#"host namespaces (hostNetwork=true), privileged (container "a(b" must not), x"#;
        assert_eq!(reasons(found), "host namespaces, privileged, x");
    }
}
