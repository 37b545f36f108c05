//! The review kinds: questions about identities and rights that are answered, never stored.
//!
//! Each takes the decoded object (defaults not needed) and returns it with its status.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::identity::{Attributes, ResourceTarget, Target, User};
use super::rule::Rule;
use super::{Auth, objects, spec_of};
use crate::status::{Cause, Status};

/// Group of TokenReview and `SelfSubjectReview`.
pub const AUTHENTICATION: &str = "authentication.k8s.io";
/// Group of the access reviews.
pub const AUTHORIZATION: &str = "authorization.k8s.io";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AccessSpec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<PathAttributes>,
    user: String,
    groups: Option<Vec<String>>,
    uid: String,
    extra: Option<std::collections::BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: Option<FieldSelector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FieldSelector {
    raw_selector: String,
    requirements: Option<Vec<Requirement>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenSpec {
    token: String,
    audiences: Option<Vec<String>>,
}

/// Whether an access review is for its sender or for somebody it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// `SelfSubjectAccessReview`.
    Own(&'a User),
    /// SubjectAccessReview.
    Named,
    /// `LocalSubjectAccessReview` in this namespace.
    NamedIn(&'a str),
}

// === impl Auth: reviews ===

impl Auth {
    /// Answers one of the three access reviews.
    pub fn review_access(&self, mut review: Value, whose: Whose<'_>) -> Result<Value, Status> {
        let spec: AccessSpec = spec_of(&review)?;
        let causes = problems(&spec, &review, whose);
        if !causes.is_empty() {
            let kind = review["kind"].as_str().unwrap_or("SubjectAccessReview");
            return Err(Status::invalid(AUTHORIZATION, kind, "", causes));
        }
        let attributes = attributes(&spec);
        let decision = match whose {
            Whose::Own(user) => self.authorize(user, &attributes),
            Whose::Named | Whose::NamedIn(_) => {
                let user = User {
                    name: spec.user.clone(),
                    uid: spec.uid.clone(),
                    groups: spec.groups.clone().unwrap_or_default(),
                    extra: spec.extra.clone().unwrap_or_default(),
                };
                self.authorize(&user, &attributes)
            }
        };
        let mut status = Map::from_iter([("allowed".to_owned(), decision.allowed().into())]);
        if !decision.reason().is_empty() {
            status.insert("reason".to_owned(), decision.reason().into());
        }
        review["status"] = Value::Object(status);
        Ok(review)
    }

    /// Answers a `SelfSubjectRulesReview`.
    pub fn review_rules(&self, mut review: Value, user: &User) -> Result<Value, Status> {
        let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.rules_of(user, namespace);
        let (paths, resources): (Vec<&Rule>, Vec<&Rule>) = rules
            .iter()
            .partition(|rule| !rule.non_resource_urls.is_empty());
        let is_node = user.node().is_some();
        let mut status = json!({
            "resourceRules": resources, "nonResourceRules": paths, "incomplete": is_node,
        });
        if is_node {
            status["evaluationError"] =
                "node authorizer does not support user rule resolution".into();
        }
        review["status"] = status;
        Ok(review)
    }

    /// Answers a `SelfSubjectReview`: who the sender is.
    pub fn review_self(&self, mut review: Value, user: &User) -> Value {
        review["status"] = json!({"userInfo": user_info(user)});
        review
    }

    /// Answers a TokenReview.
    pub fn review_token(&self, mut review: Value) -> Result<Value, Status> {
        let TokenSpec { token, audiences } = spec_of(&review)?;
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let audiences = audiences.filter(|list| !list.is_empty());
        let wanted = audiences.as_deref().unwrap_or(&self.settings.audiences);
        review["status"] = match self.token_user(&token, wanted) {
            Ok((user, shared)) => {
                json!({"authenticated": true, "user": user_info(&user), "audiences": shared})
            }
            Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
        };
        Ok(review)
    }

    /// UID of a live object of the core group, if it is not being deleted.
    pub(super) fn live_uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
        let alive = objects::alive(&*objects::get(&self.cache, resource, namespace, name)?);
        alive.deleted_at.is_none().then_some(alive.uid)
    }
}

fn problems(spec: &AccessSpec, review: &Value, whose: Whose<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(_)) => causes.push(Cause::invalid(
            "spec.nonResourceAttributes",
            &review["spec"]["nonResourceAttributes"],
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => causes.push(Cause::invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let named = !matches!(whose, Whose::Own(_));
    if named && spec.user.is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
        causes.push(Cause::invalid(
            "spec.user",
            &json!(""),
            "at least one of user or group must be specified",
        ));
    }
    if let Whose::NamedIn(namespace) = whose {
        match &spec.resource_attributes {
            Some(attributes) if attributes.namespace == namespace => {}
            _ => causes.push(Cause::invalid(
                "spec.resourceAttributes.namespace",
                &json!(
                    spec.resource_attributes
                        .as_ref()
                        .map_or("", |a| &*a.namespace)
                ),
                format!("must be the namespace of the review, {namespace:?}"),
            )),
        }
    }
    causes
}

fn attributes(spec: &AccessSpec) -> Attributes<'_> {
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(asked), _) => Attributes {
            verb: &asked.verb,
            target: Target::Resource(ResourceTarget {
                group: &asked.group,
                resource: &asked.resource,
                subresource: &asked.subresource,
                namespace: &asked.namespace,
                name: &asked.name,
                node_name: asked
                    .field_selector
                    .as_ref()
                    .map_or("", FieldSelector::node_name),
            }),
        },
        (None, Some(asked)) => Attributes::path(&asked.verb, &asked.path),
        (None, None) => Attributes::path("", ""),
    }
}

// === impl FieldSelector ===

impl FieldSelector {
    fn node_name(&self) -> &str {
        let raw = self.raw_selector.split(',').find_map(|term| {
            let value = term.strip_prefix("spec.nodeName=")?;
            Some(value.strip_prefix('=').unwrap_or(value))
        });
        let listed = self.requirements.iter().flatten().find_map(|requirement| {
            match (
                &*requirement.key,
                &*requirement.operator,
                requirement.values.as_deref(),
            ) {
                ("spec.nodeName", "In", Some([one])) => Some(one.as_str()),
                _ => None,
            }
        });
        raw.or(listed).unwrap_or_default()
    }
}

/// `UserInfo` of a user.
pub fn user_info(user: &User) -> Value {
    let mut info = Map::from_iter([("username".to_owned(), json!(user.name))]);
    if !user.uid.is_empty() {
        info.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        info.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".to_owned(), json!(user.extra));
    }
    Value::Object(info)
}
