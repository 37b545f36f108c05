//! Deletion of objects that finalizers hold and that own others, in all orders.

use serde_json::{Value, json};

use crate::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Of the owner.
    Delete,
    FreeOwner,
    FreeDependent,
}

const ORDERS: [[Step; 3]; 6] = {
    use Step::{Delete, FreeDependent, FreeOwner};
    [
        [Delete, FreeOwner, FreeDependent],
        [Delete, FreeDependent, FreeOwner],
        [FreeOwner, Delete, FreeDependent],
        [FreeDependent, Delete, FreeOwner],
        [FreeOwner, FreeDependent, Delete],
        [FreeDependent, FreeOwner, Delete],
    ]
};

/// What is there of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Lives,
    /// Deleted, and held by a finalizer.
    Ends,
    Gone,
}

impl Life {
    fn when(deleted: bool, held: bool) -> Self {
        match (deleted, held) {
            (false, _) => Self::Lives,
            (true, true) => Self::Ends,
            (true, false) => Self::Gone,
        }
    }
}

/// Owner, dependent, and whether the dependent still names its owner.
type Lives = (Life, Life, bool);

/// What must come of the steps so far: the rules of
/// <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.
fn expected(policy: &str, blocks: bool, done: &[Step]) -> Lives {
    let is_done = |step| done.contains(&step);
    let deleted = is_done(Step::Delete);
    let (held, dependent_held) = (!is_done(Step::FreeOwner), !is_done(Step::FreeDependent));
    match policy {
        "Orphan" => (Life::when(deleted, held), Life::Lives, !deleted),
        "Foreground" => {
            let dependent = Life::when(deleted, dependent_held);
            let waits = blocks && dependent != Life::Gone;
            let owner = Life::when(deleted, held || waits);
            (owner, dependent, dependent != Life::Gone)
        }
        _ => {
            let owner = Life::when(deleted, held);
            let dependent = Life::when(owner == Life::Gone, dependent_held);
            (owner, dependent, dependent != Life::Gone)
        }
    }
}

/// An owner and its dependent, each with a finalizer.
struct Family<'a> {
    cluster: &'a Cluster,
    owner: String,
    dependent: String,
}

impl<'a> Family<'a> {
    async fn make(cluster: &'a Cluster, name: &str, blocks: bool) -> Self {
        let [owner, dependent] = ["owner", "dependent"].map(|role| format!("{name}-{role}"));
        let object = json!({"metadata": {"name": owner, "finalizers": ["a.b/mine"]}});
        let (code, made) = cluster.post(MAPS, &object).await;
        assert_eq!(code, 201, "{made}");
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner,
            "uid": made["metadata"]["uid"], "blockOwnerDeletion": blocks});
        let object = json!({"metadata": {"name": dependent, "finalizers": ["a.b/mine"],
            "ownerReferences": [reference]}});
        let (code, made) = cluster.post(MAPS, &object).await;
        assert_eq!(code, 201, "{made}");
        Self {
            cluster,
            owner: format!("{MAPS}/{owner}"),
            dependent: format!("{MAPS}/{dependent}"),
        }
    }

    /// Does a step, which must find its object still there.
    async fn step(&self, step: Step, policy: &str) {
        let (method, path, kind, body) = match step {
            Step::Delete => {
                let path = format!("{}?propagationPolicy={policy}", self.owner);
                ("DELETE", path, "", Vec::new())
            }
            Step::FreeOwner => ("PATCH", self.owner.clone(), PATCH, FREE.into()),
            Step::FreeDependent => ("PATCH", self.dependent.clone(), PATCH, FREE.into()),
        };
        let (code, answer) = self.cluster.send(method, &path, kind, body).await;
        assert_eq!(code, 200, "{step:?} of {path}: {answer}");
    }

    async fn life(&self, path: &str) -> (Life, Value) {
        let (code, object) = self.cluster.get(path).await;
        let life = match code {
            404 => Life::Gone,
            _ if object["metadata"]["deletionTimestamp"].is_string() => Life::Ends,
            _ => Life::Lives,
        };
        (life, object)
    }

    async fn lives(&self) -> Lives {
        let (owner, _) = self.life(&self.owner).await;
        let (dependent, object) = self.life(&self.dependent).await;
        let names_owner = !object["metadata"]["ownerReferences"].is_null();
        (owner, dependent, names_owner)
    }

    /// Waits until it is as it must be: the garbage collector takes its time.
    async fn expect(&self, what: &str, expected: Lives) {
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let found = self.lives().await;
            if found == expected {
                return;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "{what}: {found:?}, not {expected:?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

const PATCH: &str = "application/json-patch+json";
/// Takes away our finalizer, which comes first, and leaves those of the collector.
const FREE: &str = r#"[{"op": "test", "path": "/metadata/finalizers/0", "value": "a.b/mine"},
    {"op": "remove", "path": "/metadata/finalizers/0"}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_dependents_go_as_their_finalizers_let_them_in_every_order() {
    let cluster = Cluster::start("deletion").await;
    let mut number = 0;
    for policy in ["Background", "Foreground", "Orphan"] {
        for blocks in [false, true] {
            for order in ORDERS {
                number += 1;
                let family = Family::make(&cluster, &format!("f{number}"), blocks).await;
                for (count, step) in order.into_iter().enumerate() {
                    family.step(step, policy).await;
                    let done = &order[..=count];
                    let what = format!("{policy}, blocks: {blocks}, {done:?}");
                    family.expect(&what, expected(policy, blocks, done)).await;
                }
            }
        }
    }
    cluster.server.stop().await;
}
