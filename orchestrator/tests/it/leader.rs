//! Leader election: who holds a Lease, and when another one may.

use std::{sync::Arc, time::Duration};

use fairlead::{
    controller::{
        leader::{Election, Timing},
        runtime::{Clock, Runtime},
    },
    resource::{
        cluster::LEASE,
        core::{CONFIG_MAP, NAMESPACE},
        rbac::CLUSTER_ROLE,
    },
    server::Server,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::harness::{Cluster, Folder, config, wait_until};

fn candidate(cluster: &Cluster, clock: &Clock, identity: &str) -> Election {
    let timing = Timing::default();
    Election::new(
        cluster.client(),
        clock.clone(),
        "test",
        identity.into(),
        timing,
    )
}

fn lease(cluster: &Cluster, name: &str) -> Value {
    let client = cluster.client();
    let entry = client.cache_of(&LEASE).get(&format!("kube-system/{name}"));
    entry.map_or(Value::Null, |entry| entry.value()["spec"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_changes_hands_when_it_has_run_out_or_is_given_up() {
    let cluster = Cluster::start("leases").await;
    let clock = Clock::manual(Timestamp::now());
    let (mut a, mut b) = (
        candidate(&cluster, &clock, "a"),
        candidate(&cluster, &clock, "b"),
    );
    assert!(a.attempt().await.unwrap());
    assert!(!b.attempt().await.unwrap());
    // Renewed in time, it stays where it is.
    clock.advance(Duration::from_secs(14));
    assert!(a.attempt().await.unwrap());
    clock.advance(Duration::from_secs(14));
    assert!(!b.attempt().await.unwrap());
    // The other one has looked at it for as long as it says.
    clock.advance(Duration::from_secs(15));
    assert!(b.attempt().await.unwrap());
    assert!(!a.attempt().await.unwrap());
    let spec = lease(&cluster, "test");
    assert_eq!(spec["holderIdentity"], "b");
    assert_eq!(spec["leaseTransitions"], 1);
    // The same one, started again, goes on at once.
    let mut again = candidate(&cluster, &clock, "b");
    assert!(again.attempt().await.unwrap());
    assert_eq!(lease(&cluster, "test")["leaseTransitions"], 1);
    b.release().await.unwrap();
    assert_eq!(lease(&cluster, "test")["holderIdentity"], "");
    assert!(a.attempt().await.unwrap());
    assert_eq!(lease(&cluster, "test")["leaseTransitions"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_begins_with_the_lease_and_ends_before_it_is_given_up() {
    let cluster = Cluster::start("leading").await;
    assert!(
        !lease(&cluster, "kube-controller-manager")["holderIdentity"]
            .as_str()
            .unwrap()
            .is_empty()
    );
    assert!(
        !lease(&cluster, "kube-scheduler")["holderIdentity"]
            .as_str()
            .unwrap()
            .is_empty()
    );
    let clock = Clock::system();
    let timing = Timing {
        lease: Duration::from_secs(1),
        renew: Duration::from_millis(600),
        retry: Duration::from_millis(50),
    };
    let (stop, stopping) = watch::channel(false);
    let election = |identity: &str| {
        Election::new(
            cluster.client(),
            clock.clone(),
            "work",
            identity.into(),
            timing,
        )
    };
    let (begun, mut begins) = watch::channel(0);
    let registry = Arc::clone(&cluster.server.registry);
    let work = {
        let clock = clock.clone();
        move || {
            begun.send_modify(|count| *count += 1);
            Runtime::new(Arc::clone(&registry), clock.clone())
        }
    };
    let mut rival = election("rival");
    assert!(rival.attempt().await.unwrap());
    let task = tokio::spawn(election("worker").run(false, work, stopping));
    // The rival does not renew, so its lease runs out.
    tokio::time::timeout(
        Duration::from_secs(20),
        begins.wait_for(|count| *count == 1),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(lease(&cluster, "work")["holderIdentity"], "worker");
    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), task)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(lease(&cluster, "work")["holderIdentity"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_united_by_who_leads_and_only_if_told_to() {
    const NAME: &str = "clusterrole-aggregation-controller";
    for disabled in [vec![NAME.to_owned()], Vec::new()] {
        let unites = disabled.is_empty();
        let folder = Folder::new("aggregation");
        let mut config = config(&folder.0);
        config.disabled_controllers = disabled;
        let server = Server::start(config, |_| {}).await.unwrap();
        let cluster = Cluster { folder, server };
        let client = cluster.client();
        let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        let labels = json!({"part": "yes"});
        for role in [
            json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": labels}]}}),
            json!({"metadata": {"name": "part", "labels": labels}, "rules": rules}),
        ] {
            client.create_value(&CLUSTER_ROLE, "", role).await.unwrap();
        }
        let united = || {
            let entry = client.cache_of(&CLUSTER_ROLE).get("all").unwrap();
            entry.value()["rules"] == rules
        };
        // What others do afterwards shows that there was time.
        for name in ["a", "b"] {
            let namespace = json!({"metadata": {"name": name}});
            client
                .create_value(&NAMESPACE, "", namespace)
                .await
                .unwrap();
            let key = format!("{name}/kube-root-ca.crt");
            wait_until("the CA", || {
                client.cache_of(&CONFIG_MAP).get(&key).is_some()
            });
        }
        if unites {
            wait_until("one role", united);
        } else {
            assert!(!united());
        }
        cluster.server.stop().await;
    }
}
