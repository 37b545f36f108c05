//! What a pod's failure means to its Job, and when successes are enough. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::controller::batch::plan::parse_ranges;

/// What a failed pod means under its Job's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It counts.
    Counts,
    /// It does not count.
    Ignored,
    /// Its index is lost.
    FailsIndex,
    /// The Job has failed; the text says why.
    FailsJob(String),
}

/// What the first rule that takes the failed pod says of it.
pub(super) fn failure(policy: &Value, pod: &Value) -> Failure {
    let rules = policy["rules"].as_array();
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let Some(what) = matched(rule, pod) else {
            continue;
        };
        let action = rule["action"].as_str().unwrap_or_default();
        return match action {
            "Ignore" => Failure::Ignored,
            "FailIndex" => Failure::FailsIndex,
            "FailJob" => {
                Failure::FailsJob(format!("{what} matching {action} rule at index {index}"))
            }
            _ => Failure::Counts,
        };
    }
    Failure::Counts
}

/// What it is about the pod that a rule takes.
fn matched(rule: &Value, pod: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (
        text(&pod["metadata"]["namespace"]),
        text(&pod["metadata"]["name"]),
    );
    let codes = &rule["onExitCodes"];
    if codes.is_object() {
        let (container, code) = exit(codes, pod)?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let have = pod["status"]["conditions"].as_array();
    let has = |pattern: &&Value| {
        let status = pattern["status"].as_str().unwrap_or("True");
        let mut have = have.into_iter().flatten();
        have.any(|c| c["type"] == pattern["type"] && c["status"] == status)
    };
    let mut wanted = rule["onPodConditions"].as_array().into_iter().flatten();
    let kind = text(&wanted.find(has)?["type"]);
    Some(format!("Pod {namespace}/{name} has condition {kind}"))
}

/// The container whose exit code a rule takes, and the code.
fn exit(codes: &Value, pod: &Value) -> Option<(String, i64)> {
    let values = codes["values"].as_array();
    let listed = |code: i64| {
        values
            .into_iter()
            .flatten()
            .any(|value| value.as_i64() == Some(code))
    };
    let container = codes["containerName"].as_str();
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][*list].as_array().into_iter().flatten())
        .filter(|status| container.is_none_or(|name| status["name"] == name))
        .find_map(|status| {
            let code = status["state"]["terminated"]["exitCode"].as_i64()?;
            let taken = code != 0 && listed(code) == (codes["operator"] == "In");
            taken.then(|| (status["name"].as_str().unwrap_or_default().to_owned(), code))
        })
}

/// Why the indexes done are success enough, if they are.
pub(super) fn success(policy: &Value, done: &BTreeSet<i64>, completions: i64) -> Option<String> {
    let enough = |rule: &Value| {
        let of = rule["succeededIndexes"]
            .as_str()
            .map(|text| parse_ranges(text, completions));
        let count = rule["succeededCount"].as_u64();
        let reached = |have: usize, count: u64| u64::try_from(have).is_ok_and(|have| have >= count);
        match (of, count) {
            (Some(of), Some(count)) => reached(of.intersection(done).count(), count),
            (Some(of), None) => of.is_subset(done),
            (None, Some(count)) => reached(done.len(), count),
            (None, None) => false,
        }
    };
    let rules = policy["rules"].as_array()?;
    let index = rules.iter().position(enough)?;
    Some(format!("Matched rules at index {index}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_takes_a_failure_decides() {
        let policy = json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "NotIn", "values": [1, 2]}},
        ]});
        let pod = |container: &str, code: i64, disrupted: &str| {
            json!({
                "metadata": {"namespace": "n", "name": "p"},
                "status": {
                    "conditions": [{"type": "DisruptionTarget", "status": disrupted}],
                    "containerStatuses": [{"name": container, "state": {"terminated": {"exitCode": code}}}],
                },
            })
        };
        assert_eq!(failure(&policy, &pod("main", 7, "True")), Failure::Ignored);
        assert_eq!(
            failure(&policy, &pod("side", 7, "False")),
            Failure::FailsIndex
        );
        assert_eq!(failure(&policy, &pod("main", 2, "False")), Failure::Counts);
        assert_eq!(failure(&policy, &pod("side", 3, "False")), Failure::Counts);
        let why =
            "Container main for pod n/p failed with exit code 3 matching FailJob rule at index 2";
        assert_eq!(
            failure(&policy, &pod("main", 3, "False")),
            Failure::FailsJob(why.to_owned())
        );
    }

    #[test]
    fn success_needs_all_or_some_of_the_named_indexes() {
        let policy = json!({"rules": [
            {"succeededIndexes": "0,2-3"},
            {"succeededIndexes": "4-9", "succeededCount": 2},
            {"succeededCount": 5},
        ]});
        let check = |done: &[i64], rule: Option<&str>| {
            let done = done.iter().copied().collect();
            assert_eq!(success(&policy, &done, 10).as_deref(), rule);
        };
        check(&[0, 2], None);
        check(&[0, 2, 3], Some("Matched rules at index 0"));
        check(&[4, 9], Some("Matched rules at index 1"));
        check(&[0, 1, 2, 4, 5], Some("Matched rules at index 1"));
        check(&[0, 1, 2, 4], None);
        assert_eq!(success(&Value::Null, &[0].into(), 1), None);
    }
}
