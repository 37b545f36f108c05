//! What every namespace has from its first moment: the `default`
//! ServiceAccount and the ConfigMap with the cluster's CA.

use serde_json::{Value, json};

use crate::{
    controller::runtime::{Again, Change, Context, Controller, Key, Source, object::served},
    registry::{Target, client::Client},
    resource::core::{CONFIG_MAP, NAMESPACE},
    status::Status,
};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Makes the ServiceAccount.
#[derive(Debug)]
pub struct ServiceAccountController {
    client: Client,
}

/// Makes the ConfigMap and keeps it right.
#[derive(Debug)]
pub struct RootCaPublisher {
    client: Client,
    certificate: String,
}

impl ServiceAccountController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
        }
    }
}

impl RootCaPublisher {
    /// Over its context; `certificate` is the CA in PEM.
    pub fn new(context: &Context, certificate: String) -> Self {
        Self {
            client: context.client.clone(),
            certificate,
        }
    }
}

/// The namespace of an object of this name.
fn namespace_of(name: &'static str) -> impl Fn(&Change<'_>) -> Vec<Key> {
    move |change| {
        let ours = change.entry.name() == name && (change.deleted || change.previous.is_some());
        ours.then(|| change.entry.namespace().into())
            .into_iter()
            .collect()
    }
}

fn is_open(client: &Client, namespace: &str) -> bool {
    let entry = client.cache_of(&NAMESPACE).get(namespace);
    entry.is_some_and(|entry| {
        entry
            .fields
            .first()
            .is_none_or(|phase| &**phase != "Terminating")
    })
}

/// The namespace may end, or another make the object, in between.
fn settle(result: Result<(), Status>) -> Result<Again, Status> {
    match result {
        Err(status) if ["AlreadyExists", "NotFound", "Forbidden"].contains(&status.reason) => {
            Ok(None)
        }
        other => other.map(|()| None),
    }
}

impl Controller for ServiceAccountController {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(&NAMESPACE),
            Source::new(served("", "serviceaccounts"), namespace_of(ACCOUNT)),
        ]
    }

    async fn reconcile(&self, namespace: &str) -> Result<Again, Status> {
        let accounts = served("", "serviceaccounts");
        let key = accounts.object_key(namespace, ACCOUNT);
        if !is_open(&self.client, namespace) || self.client.cache_of(accounts).get(&key).is_some() {
            return Ok(None);
        }
        let account = json!({"metadata": {"name": ACCOUNT}});
        settle(
            self.client
                .create_value(accounts, namespace, account)
                .await
                .map(drop),
        )
    }
}

impl Controller for RootCaPublisher {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(&NAMESPACE),
            Source::new(&CONFIG_MAP, namespace_of(ROOT_CA)),
        ]
    }

    async fn reconcile(&self, namespace: &str) -> Result<Again, Status> {
        if !is_open(&self.client, namespace) {
            return Ok(None);
        }
        let key = CONFIG_MAP.object_key(namespace, ROOT_CA);
        let data = json!({"ca.crt": self.certificate});
        let Some(entry) = self.client.cache_of(&CONFIG_MAP).get(&key) else {
            let map = json!({
                "metadata": {
                    "name": ROOT_CA,
                    "annotations": {"kubernetes.io/description": DESCRIPTION},
                },
                "data": data,
            });
            return settle(
                self.client
                    .create_value(&CONFIG_MAP, namespace, map)
                    .await
                    .map(drop),
            );
        };
        if entry.value()["data"] == data {
            return Ok(None);
        }
        let change = |current: &Value| {
            let mut new = current.clone();
            new["data"] = data.clone();
            Ok(new)
        };
        let target = Target::object(&CONFIG_MAP, namespace, ROOT_CA);
        settle(self.client.change(target, &change).await.map(drop))
    }
}
