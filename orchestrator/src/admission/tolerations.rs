//! Pods stay five minutes on a node that is not ready or unreachable, unless they say otherwise.

use serde_json::{Value, json};

use super::{concerns, each, list_mut};
use crate::registry::{Admission, Operation, Request};
use crate::status::Status;

/// Seconds a pod stays.
const SECONDS: i64 = 300;

/// The rule.
#[derive(Debug)]
pub struct DefaultTolerations;

impl Admission for DefaultTolerations {
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Delete && concerns(request, "", "pods") {
            tolerate(object);
        }
        Ok(())
    }
}

/// Adds what is missing.
fn tolerate(pod: &mut Value) {
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = each(pod, "/spec/tolerations").any(|toleration| {
            let is = |field: &str, wanted: &str| {
                matches!(toleration[field].as_str(), None | Some("")) || toleration[field] == wanted
            };
            is("key", key) && is("effect", "NoExecute")
        });
        if tolerated {
            continue;
        }
        if let Some(tolerations) = list_mut(&mut pod["spec"], "tolerations") {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": SECONDS,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(tolerations: &Value) -> Vec<String> {
        let mut pod = json!({"spec": {"tolerations": tolerations}});
        tolerate(&mut pod);
        let once = pod.clone();
        tolerate(&mut pod);
        assert_eq!(once, pod, "twice is as once");
        each(&pod, "/spec/tolerations")
            .map(|t| t["key"].as_str().unwrap_or("*").to_owned())
            .collect()
    }

    #[test]
    fn what_a_pod_says_itself_stays() {
        let both = [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ];
        assert_eq!(keys(&Value::Null), both);
        assert_eq!(keys(&json!([{"operator": "Exists"}])), ["*"]);
        let own = json!([{"key": both[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        assert_eq!(keys(&own), both);
        let other = json!([{"key": both[0], "operator": "Exists", "effect": "NoSchedule"}]);
        assert_eq!(keys(&other), [both[0], both[0], both[1]]);
    }
}
