//! RBAC rules: what one rule allows, and when one set of rules covers another.
//! Pure; the meaning of each field is that of rbac.authorization.k8s.io/v1.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::identity::{Attributes, Target};

/// Stands for everything in verbs, groups, resources and paths.
pub const ALL: &str = "*";

/// A `PolicyRule`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, or `*`.
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
    /// API groups, empty text for core, or `*`.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*`, `*/scale`.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Object names; empty for all.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths outside the resource API; a final `*` matches any rest.
    #[serde(
        rename = "nonResourceURLs",
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_resource_urls: Vec<String>,
}

/// A list that may be written `null`.
fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == value)
}

fn has_or_all(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == value || own == ALL)
}

// === impl Rule ===

impl Rule {
    /// A rule on resources, each list separated by commas; `""` is the core group.
    pub fn on(verbs: &str, groups: &str, resources: &str) -> Self {
        Self {
            verbs: split(verbs),
            api_groups: groups.split(',').map(str::to_owned).collect(),
            resources: split(resources),
            ..Self::default()
        }
    }

    /// The same rule for these object names only.
    #[must_use]
    pub fn named(mut self, names: &str) -> Self {
        self.resource_names = split(names);
        self
    }

    /// A rule on paths.
    pub fn urls(verbs: &str, paths: &str) -> Self {
        Self {
            verbs: split(verbs),
            non_resource_urls: split(paths),
            ..Self::default()
        }
    }

    /// Whether this rule allows the request.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has_or_all(&self.verbs, attributes.verb) {
            return false;
        }
        match &attributes.target {
            Target::Path(path) => self
                .non_resource_urls
                .iter()
                .any(|own| path_matches(own, path)),
            Target::Resource(target) => {
                has_or_all(&self.api_groups, target.group)
                    && self
                        .resources
                        .iter()
                        .any(|own| resource_matches(own, target.resource, target.subresource))
                    && (self.resource_names.is_empty() || has(&self.resource_names, target.name))
            }
        }
    }

    /// Whether everything that `part`, an atom, allows is allowed by this rule.
    fn covers_atom(&self, part: &Self) -> bool {
        let all = |own: &[String], wanted: &[String]| {
            has(own, ALL) || wanted.iter().all(|value| has(own, value))
        };
        if !all(&self.verbs, &part.verbs) {
            return false;
        }
        if !part.non_resource_urls.is_empty() {
            return part.non_resource_urls.iter().all(|path| {
                self.non_resource_urls
                    .iter()
                    .any(|own| path_matches(own, path))
            });
        }
        let names = self.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part
                    .resource_names
                    .iter()
                    .all(|name| has(&self.resource_names, name)));
        let resources = part.resources.iter().all(|wanted| {
            self.resources
                .iter()
                .any(|own| resource_covers(own, wanted))
        });
        names && resources && all(&self.api_groups, &part.api_groups)
    }

    /// This rule taken apart: one verb, group, resource and name (or one verb and path) each.
    fn atoms(&self) -> Vec<Self> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        atoms.extend(self.resource_names.iter().map(|name| Self {
                            resource_names: vec![name.clone()],
                            ..atom.clone()
                        }));
                    }
                }
            }
            atoms.extend(self.non_resource_urls.iter().map(|path| Self {
                verbs: vec![verb.clone()],
                non_resource_urls: vec![path.clone()],
                ..Self::default()
            }));
        }
        atoms
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',')
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn resource_matches(own: &str, resource: &str, subresource: &str) -> bool {
    if own == ALL {
        return true;
    }
    match own.split_once('/') {
        None => subresource.is_empty() && own == resource,
        Some((of, sub)) => {
            !subresource.is_empty() && sub == subresource && (of == ALL || of == resource)
        }
    }
}

/// As [`resource_matches`], the wanted side being a rule's own notation.
fn resource_covers(own: &str, wanted: &str) -> bool {
    own == ALL
        || own == wanted
        || matches!((own.split_once('/'), wanted.split_once('/')),
            (Some((ALL, own)), Some((_, wanted))) if own == wanted)
}

/// Whether a path, or a whole pattern of paths, lies within the pattern `own`.
fn path_matches(own: &str, path: &str) -> bool {
    own == path
        || own
            .strip_suffix(ALL)
            .is_some_and(|prefix| path.starts_with(prefix))
}

/// What of `wanted` is not covered by `held`, in a compact form; empty if all is.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for atom in wanted.iter().flat_map(Rule::atoms) {
        if held.iter().any(|rule| rule.covers_atom(&atom)) {
            continue;
        }
        let same = missing.iter_mut().find(|known| {
            known.api_groups == atom.api_groups
                && known.resources == atom.resources
                && known.resource_names == atom.resource_names
                && known.non_resource_urls == atom.non_resource_urls
        });
        match same {
            Some(known) => {
                let new: Vec<_> = atom
                    .verbs
                    .into_iter()
                    .filter(|verb| !has(&known.verbs, verb))
                    .collect();
                known.verbs.extend(new);
            }
            None => missing.push(atom),
        }
    }
    missing.sort_by_cached_key(Rule::to_string);
    missing
}

/// The rules of several roles, each once, in order: what an aggregated role allows.
pub fn unite(roles: impl IntoIterator<Item = Vec<Rule>>) -> Vec<Rule> {
    let mut union: Vec<Rule> = Vec::new();
    for rule in roles.into_iter().flatten() {
        if !union.contains(&rule) {
            union.push(rule);
        }
    }
    union
}

/// As upstream writes a rule in refusals: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("APIGroups", &self.api_groups),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Resources", &self.resources),
            ("Verbs", &self.verbs),
        ];
        f.write_str("{")?;
        let mut first = true;
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            if !first {
                f.write_str(", ")?;
            }
            first = false;
            write!(f, "{name}:[")?;
            for (index, value) in list.iter().enumerate() {
                let separator = if index == 0 { "" } else { " " };
                write!(f, "{separator}{value:?}")?;
            }
            f.write_str("]")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::ResourceTarget;
    use super::*;

    fn target<'a>(
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    ) -> Target<'a> {
        Target::Resource(ResourceTarget {
            group,
            resource,
            subresource,
            name,
            ..Default::default()
        })
    }

    #[track_caller]
    fn check(rule: &Rule, verb: &str, target: Target<'_>, expected: bool) {
        assert_eq!(
            rule.allows(&Attributes { verb, target }),
            expected,
            "{rule} {verb} {target:?}"
        );
    }

    #[test]
    fn a_resource_does_not_include_its_subresources() {
        let rule = Rule::on("get", "", "pods");
        check(&rule, "get", target("", "pods", "", "a"), true);
        check(&rule, "get", target("", "pods", "log", "a"), false);
        check(&rule, "get", target("apps", "pods", "", "a"), false);
        check(&rule, "list", target("", "pods", "", ""), false);
        check(&rule, "get", Target::Path("pods"), false);
    }

    #[test]
    fn a_star_takes_all_resources_and_star_slash_one_subresource_of_all() {
        check(
            &Rule::on("*", "*", "*"),
            "eat",
            target("x", "pods", "log", ""),
            true,
        );
        check(
            &Rule::on("get", "*", "*/scale"),
            "get",
            target("apps", "deployments", "scale", ""),
            true,
        );
        check(
            &Rule::on("get", "*", "*/scale"),
            "get",
            target("apps", "deployments", "", ""),
            false,
        );
        check(
            &Rule::on("get", "*", "pods/*"),
            "get",
            target("", "pods", "log", ""),
            false,
        );
    }

    #[test]
    fn names_limit_a_rule_and_so_exclude_requests_without_a_name() {
        let rule = Rule::on("get,list", "", "secrets").named("a,b");
        check(&rule, "get", target("", "secrets", "", "b"), true);
        check(&rule, "get", target("", "secrets", "", "c"), false);
        check(&rule, "list", target("", "secrets", "", ""), false);
    }

    #[test]
    fn paths_match_whole_or_by_a_final_star() {
        let rule = Rule::urls("get", "/healthz,/apis/*");
        check(&rule, "get", Target::Path("/healthz"), true);
        check(&rule, "get", Target::Path("/healthz/etcd"), false);
        check(&rule, "get", Target::Path("/apis/apps"), true);
        check(&rule, "get", Target::Path("/apis"), false);
        check(&Rule::urls("*", "*"), "put", Target::Path("/x"), true);
    }

    #[test]
    fn what_is_missing_is_named_compactly() {
        let held = [Rule::on("get,list", "", "pods,services")];
        let wanted = [
            Rule::on("get,list,watch,delete", "", "pods"),
            Rule::urls("get", "/x"),
        ];
        let missing: Vec<_> = missing(&held, &wanted)
            .iter()
            .map(Rule::to_string)
            .collect();
        assert_eq!(
            missing,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch" "delete"]}"#,
                r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#,
            ]
        );
    }

    /// (held, wanted, whether held covers wanted)
    #[test]
    fn the_escalation_table_holds() {
        let pods = |verbs| Rule::on(verbs, "", "pods");
        let table: &[(&[Rule], Rule, bool)] = &[
            (&[], pods("get"), false),
            (&[pods("get")], pods("get"), true),
            (&[pods("*")], pods("get"), true),
            (&[pods("get")], pods("*"), false),
            (&[pods("get"), pods("list")], pods("get,list"), true),
            (
                &[Rule::on("get", "", "*")],
                Rule::on("get", "", "pods/log"),
                true,
            ),
            (
                &[Rule::on("get", "", "pods")],
                Rule::on("get", "", "pods/log"),
                false,
            ),
            (
                &[Rule::on("get", "*", "*/scale")],
                Rule::on("get", "apps", "deployments/scale"),
                true,
            ),
            (
                &[Rule::on("get", "", "pods").named("a")],
                pods("get"),
                false,
            ),
            (&[pods("get")], pods("get").named("a"), true),
            (
                &[pods("get").named("a"), pods("get").named("b")],
                pods("get").named("a,b"),
                true,
            ),
            (
                &[Rule::on("get", "apps", "*")],
                Rule::on("get", "*", "deployments"),
                false,
            ),
            (
                &[Rule::urls("get", "/api/*")],
                Rule::urls("get", "/api/v1/*"),
                true,
            ),
            (
                &[Rule::urls("get", "/api/v1/*")],
                Rule::urls("get", "/api/*"),
                false,
            ),
            (&[Rule::urls("get", "*")], Rule::urls("get", "/x"), true),
            (&[Rule::on("*", "*", "*")], Rule::urls("get", "/x"), false),
        ];
        for (held, wanted, covered) in table {
            let missing = missing(held, std::slice::from_ref(wanted));
            assert_eq!(missing.is_empty(), *covered, "{held:?} covers {wanted}");
        }
    }
}
