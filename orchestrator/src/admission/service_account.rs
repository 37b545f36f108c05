//! Every pod runs as a ServiceAccount that exists, with its token mounted unless it says no.

use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use super::{creates, each, list_mut, text};
use crate::registry::{Admission, Request};
use crate::resource;
use crate::status::Status;

/// Annotation of the API's image of a pod that a node runs by itself.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Life of the mounted token, seconds; renewed by the kubelet.
const TOKEN_SECONDS: i64 = 3607;

/// The rule.
#[derive(Debug)]
pub struct ServiceAccountAdmission;

impl Admission for ServiceAccountAdmission {
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        if !creates(request, "", "pods") {
            return Ok(());
        }
        let target = request.target;
        let name = text(object, "/metadata/name").to_owned();
        let refuse = |why: &str| Err(Status::forbidden(target.resource.subject(), &name, why));
        if object["metadata"]["annotations"][MIRROR].is_string() {
            return match mirror_problem(object) {
                Some(why) => refuse(why),
                None => Ok(()),
            };
        }
        let account = account_name(object);
        let found = resource::find("", "v1", "serviceaccounts").and_then(|accounts| {
            request
                .cache
                .of(accounts)
                .get(&accounts.object_key(target.namespace, &account))
        });
        let Some(found) = found else {
            let namespace = target.namespace;
            return refuse(&format!(
                "error looking up service account {namespace}/{account}: serviceaccount \
                 {account:?} not found"
            ));
        };
        let Some(suffix) = random_suffix() else {
            return Err(Status::internal("no randomness for a volume name"));
        };
        run_as(object, &found.value(), &account, &suffix);
        Ok(())
    }
}

/// The account that a pod asks for, by the new or the old field, or `default`.
fn account_name(pod: &Value) -> String {
    let asked = [
        text(pod, "/spec/serviceAccountName"),
        text(pod, "/spec/serviceAccount"),
    ];
    asked
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or("default")
        .to_owned()
}

fn mirror_problem(pod: &Value) -> Option<&'static str> {
    if account_name(pod) != "default" || !text(pod, "/spec/serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    let projected =
        each(pod, "/spec/volumes").flat_map(|volume| each(volume, "/projected/sources"));
    let has_token = projected
        .into_iter()
        .any(|source| !source["serviceAccountToken"].is_null());
    has_token.then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// Makes a pod run as an account: names, pull secrets, token volume and mounts.
fn run_as(pod: &mut Value, account: &Value, name: &str, suffix: &str) {
    pod["spec"]["serviceAccountName"] = name.into();
    pod["spec"]["serviceAccount"] = name.into();
    if each(pod, "/spec/imagePullSecrets").next().is_none()
        && let Some(secrets) = account["imagePullSecrets"].as_array()
        && !secrets.is_empty()
    {
        pod["spec"]["imagePullSecrets"] = json!(secrets);
    }
    let mounts = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mounts {
        mount_token(pod, suffix);
    }
}

fn mount_token(pod: &mut Value, suffix: &str) {
    let existing = each(pod, "/spec/volumes")
        .map(|volume| text(volume, "/name"))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let is_new = existing.is_none();
    let volume = existing.unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut mounted = false;
    for list in ["/spec/initContainers", "/spec/containers"] {
        let containers = pod.pointer_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if each(container, "/volumeMounts").any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            if let Some(mounts) = list_mut(container, "volumeMounts") {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted
        && is_new
        && let Some(volumes) = list_mut(&mut pod["spec"], "volumes")
    {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

/// Five characters as generated names have them.
fn random_suffix() -> Option<String> {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).ok()?;
    let letter = |byte: &u8| ALPHABET.get(usize::from(*byte) % ALPHABET.len()).copied();
    bytes
        .iter()
        .map(letter)
        .map(|letter| letter.map(char::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(mut pod: Value, account: &Value) -> Value {
        run_as(&mut pod, account, "robot", "abcde");
        pod
    }

    #[test]
    fn the_token_is_mounted_into_each_container_once() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [
                {"name": "a"},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
            ],
        }});
        let pod = admitted(pod, &json!({"imagePullSecrets": [{"name": "pull"}]}));
        assert_eq!(pod["spec"]["serviceAccountName"], "robot");
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
        assert_eq!(pod["spec"]["volumes"][0]["name"], "kube-api-access-abcde");
        for container in ["/spec/initContainers/0", "/spec/containers/0"] {
            let mount = &pod.pointer(container).unwrap()["volumeMounts"][0];
            assert_eq!(mount["name"], "kube-api-access-abcde");
            assert_eq!(mount["readOnly"], true);
        }
        let own = pod["spec"]["containers"][1]["volumeMounts"]
            .as_array()
            .unwrap();
        assert_eq!(own.len(), 1, "an own mount at that path stays");
        let bare = admitted(json!({"spec": {"containers": [{"name": "a"}]}}), &json!({}));
        assert!(
            bare["spec"].get("initContainers").is_none(),
            "nothing is made up"
        );
    }

    #[test]
    fn the_pod_decides_about_mounting_before_its_account() {
        let pod = |mount: Value| json!({"spec": {"automountServiceAccountToken": mount, "containers": [{"name": "a"}]}});
        let mounts =
            |pod: Value, account: Value| !admitted(pod, &account)["spec"]["volumes"].is_null();
        let account = |mount: bool| json!({"automountServiceAccountToken": mount});
        assert!(mounts(pod(Value::Null), json!({})));
        assert!(!mounts(pod(Value::Null), account(false)));
        assert!(mounts(pod(json!(true)), account(false)));
        assert!(!mounts(pod(json!(false)), account(true)));
    }

    #[test]
    fn a_pods_own_pull_secrets_stay() {
        let pod = json!({"spec": {"imagePullSecrets": [{"name": "mine"}], "containers": []}});
        let pod = admitted(pod, &json!({"imagePullSecrets": [{"name": "pull"}]}));
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "mine"}]));
        assert!(pod["spec"]["volumes"].is_null(), "nothing to mount into");
    }

    #[test]
    fn the_old_field_name_counts_too() {
        assert_eq!(
            account_name(&json!({"spec": {"serviceAccount": "old"}})),
            "old"
        );
        assert_eq!(account_name(&json!({"spec": {}})), "default");
        assert_eq!(random_suffix().unwrap().len(), 5);
    }

    #[test]
    fn a_mirror_pod_has_no_identity() {
        let problem = |spec: Value| mirror_problem(&json!({"spec": spec}));
        assert_eq!(problem(json!({})), None);
        assert!(problem(json!({"serviceAccountName": "a"})).is_some());
        let token = json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]});
        assert!(problem(token).is_some());
    }
}
