//! Controllers in this process, on the real API, by a clock that the test moves.

use std::{sync::Arc, time::Duration};

use fairlead::{
    cache::Query,
    controller::{
        Controllers,
        batch::cronjob::CronJobController,
        runtime::{Clock, Context, Controller, Runtime},
        storage::{binder::VolumeBinder, local_path::LocalPathProvisioner},
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    scheduler,
    server::Server,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Cluster, Folder, config, wait_until};

/// A server without controllers, and the tools to run some of them.
pub(crate) struct Stage {
    cluster: Cluster,
    pub(crate) clock: Clock,
    runtime: Runtime,
    pub(crate) client: Client,
}

impl Stage {
    pub(crate) async fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let mut config = config(&folder.0);
        config.disabled_controllers = Controllers::names().map(str::to_owned).collect();
        let server = Server::start(config, |_| {}).await.unwrap();
        let clock = Clock::manual(Timestamp::now());
        let runtime = Runtime::new(Arc::clone(&server.registry), clock.clone());
        let cluster = Cluster { folder, server };
        let client = cluster.client();
        let account = json!({"metadata": {"name": "default"}});
        let accounts = found("", "serviceaccounts");
        client
            .create_value(accounts, "default", account)
            .await
            .unwrap();
        Self {
            cluster,
            clock,
            runtime,
            client,
        }
    }

    pub(crate) fn run<C: Controller>(&mut self, name: &'static str, new: impl Fn(&Context) -> C) {
        let context = self.runtime.context(name);
        let controller = new(&context);
        self.runtime.run(&context, controller);
    }

    /// Runs the scheduler.
    pub(crate) fn schedule(&mut self) {
        let context = self.runtime.context("default-scheduler");
        self.runtime
            .spawn(scheduler::run(context, scheduler::Measures::default()));
    }

    pub(crate) async fn stop(self) {
        self.runtime.stop().await;
        self.cluster.server.stop().await;
    }

    pub(crate) async fn create(&self, what: &'static Resource, namespace: &str, object: Value) {
        let made = self.client.create_value(what, namespace, object).await;
        made.unwrap();
    }

    pub(crate) async fn set_status(
        &self,
        what: &'static Resource,
        namespace: &str,
        name: &str,
        status: Value,
    ) {
        let target = Target::status(what, namespace, name);
        let change = |current: &Value| {
            let mut new = current.clone();
            new["status"] = status.clone();
            Ok(new)
        };
        self.client.change(target, &change).await.unwrap();
    }

    pub(crate) async fn delete(&self, what: &'static Resource, namespace: &str, name: &str) {
        let options = DeleteOptions::default();
        let gone = self.client.delete_of(what, namespace, name, &options).await;
        gone.unwrap();
    }

    pub(crate) fn get(&self, what: &'static Resource, key: &str) -> Value {
        let entry = self.client.cache_of(what).get(key);
        entry.map_or(Value::Null, |entry| entry.value())
    }

    pub(crate) fn names(&self, what: &'static Resource) -> Vec<String> {
        let page = self.client.cache_of(what).list(&Query::default()).unwrap();
        page.entries.iter().map(|e| e.name().to_owned()).collect()
    }

    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        wait_until(what, || done(self));
    }

    pub(crate) fn has_event(&self, reason: &str) -> bool {
        self.objects(found("", "events"))
            .iter()
            .any(|event| event["reason"] == reason)
    }

    /// What an event of this reason about this kind says.
    pub(crate) fn told(&self, kind: &str, reason: &str) -> Option<String> {
        let events = self.objects(found("", "events"));
        let event = events
            .iter()
            .find(|e| e["reason"] == reason && e["involvedObject"]["kind"] == kind);
        event.map(|event| event["message"].as_str().unwrap().to_owned())
    }

    pub(crate) fn objects(&self, what: &'static Resource) -> Vec<Value> {
        let page = self.client.cache_of(what).list(&Query::default()).unwrap();
        page.entries.iter().map(|entry| entry.value()).collect()
    }
}

pub(crate) fn found(group: &str, plural: &str) -> &'static Resource {
    fairlead::resource::find(group, "v1", plural).unwrap()
}

fn cron_job(name: &str, policy: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "schedule": "0 * * * *",
            "concurrencyPolicy": policy,
            "successfulJobsHistoryLimit": 1,
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "c", "image": "x"}],
            }}}},
        },
    })
}

const HOUR: Duration = Duration::from_hours(1);

/// Name of the Job of the hour in which the clock now is.
fn job_of(name: &str, clock: &Clock) -> String {
    let hour = clock.now().as_second() / 3600 * 60;
    format!("{name}-{hour}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_forbids_forgets_and_suspends_by_the_clock() {
    let mut stage = Stage::new("cron-forbid").await;
    stage.run("cronjob-controller", CronJobController::new);
    let (jobs, cron_jobs) = (found("batch", "jobs"), found("batch", "cronjobs"));
    stage
        .create(cron_jobs, "default", cron_job("a", "Forbid"))
        .await;
    let mut done = Vec::new();
    for _ in 0..3 {
        stage.clock.advance(HOUR);
        let name = job_of("a", &stage.clock);
        stage.wait("the hour's job", |stage| stage.names(jobs).contains(&name));
        stage.wait("its mention", |stage| {
            stage.get(cron_jobs, "default/a")["status"]["active"][0]["name"] == name.as_str()
        });
        // While it runs, the next hour makes none.
        stage.clock.advance(HOUR);
        stage.wait("a refusal", |stage| stage.has_event("JobAlreadyActive"));
        assert!(!stage.names(jobs).contains(&job_of("a", &stage.clock)));
        let end = stage.clock.now().to_string();
        let condition = json!({"type": "Complete", "status": "True"});
        let status = json!({"startTime": end, "completionTime": end, "conditions": [condition]});
        stage.set_status(jobs, "default", &name, status).await;
        done.push(name);
        // The hour that was refused is made up for.
        let name = job_of("a", &stage.clock);
        stage.wait("the job made up for", |stage| {
            stage.names(jobs).contains(&name)
        });
        stage
            .set_status(
                jobs,
                "default",
                &name,
                json!({"startTime": end, "completionTime": end,
            "conditions": [{"type": "Complete", "status": "True"}]}),
            )
            .await;
        done.push(name);
        let kept = done[done.len() - 1..].to_vec();
        stage.wait("the history", |stage| stage.names(jobs) == kept);
        stage.wait("an empty list", |stage| {
            stage.get(cron_jobs, "default/a")["status"]["active"].is_null()
        });
    }
    assert!(stage.get(cron_jobs, "default/a")["status"]["lastSuccessfulTime"].is_string());
    let target = Target::object(cron_jobs, "default", "a");
    let suspend = |current: &Value| {
        let mut new = current.clone();
        new["spec"]["suspend"] = true.into();
        Ok(new)
    };
    stage.client.change(target, &suspend).await.unwrap();
    // Another one shows that the controller has looked.
    stage
        .create(cron_jobs, "default", cron_job("b", "Allow"))
        .await;
    stage.clock.advance(HOUR);
    let other = job_of("b", &stage.clock);
    stage.wait("the other's job", |stage| {
        stage.names(jobs).contains(&other)
    });
    assert!(!stage.names(jobs).contains(&job_of("a", &stage.clock)));
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacing_cron_job_deletes_what_runs() {
    let mut stage = Stage::new("cron-replace").await;
    stage.run("cronjob-controller", CronJobController::new);
    let (jobs, cron_jobs) = (found("batch", "jobs"), found("batch", "cronjobs"));
    stage
        .create(cron_jobs, "default", cron_job("a", "Replace"))
        .await;
    for _ in 0..3 {
        stage.clock.advance(HOUR);
        let only = vec![job_of("a", &stage.clock)];
        stage.wait("the hour's job alone", |stage| stage.names(jobs) == only);
    }
    assert!(stage.has_event("SuccessfulDelete"));
    stage.stop().await;
}

fn volume(name: &str, policy: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": policy,
            "hostPath": {"path": "/srv"},
        },
    })
}

fn claim(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "storageClassName": class,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_volumes_find_and_lose_each_other() {
    let mut stage = Stage::new("binder").await;
    stage.run("persistent-volume-binder", VolumeBinder::new);
    let (claims, volumes) = (
        found("", "persistentvolumeclaims"),
        found("", "persistentvolumes"),
    );
    let phase = |stage: &Stage, what: &'static Resource, key: &str, phase: &str| {
        stage.wait(&format!("{key} {phase}"), |stage| {
            stage.get(what, key)["status"]["phase"] == phase
        });
    };
    stage.create(claims, "default", claim("early", "")).await;
    phase(&stage, claims, "default/early", "Pending");
    stage.wait("a word", |stage| stage.has_event("FailedBinding"));
    for (name, policy) in [("v", "Retain"), ("w", "Delete")] {
        stage.create(volumes, "", volume(name, policy)).await;
        phase(&stage, claims, "default/early", "Bound");
    }
    phase(&stage, volumes, "v", "Bound");
    phase(&stage, volumes, "w", "Available");
    stage.create(claims, "default", claim("late", "")).await;
    phase(&stage, claims, "default/late", "Bound");
    assert_eq!(
        stage.get(claims, "default/late")["status"]["capacity"]["storage"],
        "1Gi"
    );
    for name in ["early", "late"] {
        // Nothing here protects claims.
        let target = Target::object(claims, "default", name);
        let free = |current: &Value| {
            let mut new = current.clone();
            new["metadata"]["finalizers"] = json!([]);
            Ok(new)
        };
        stage.client.change(target, &free).await.unwrap();
        stage.delete(claims, "default", name).await;
    }
    phase(&stage, volumes, "v", "Released");
    // No provisioner made it, so nobody can delete it.
    phase(&stage, volumes, "w", "Failed");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_waits_for_its_node_and_gets_a_directory_there() {
    let mut stage = Stage::new("local-path").await;
    stage.run("persistent-volume-binder", VolumeBinder::new);
    stage.run("local-path-provisioner", LocalPathProvisioner::new);
    let (claims, volumes) = (
        found("", "persistentvolumeclaims"),
        found("", "persistentvolumes"),
    );
    stage
        .create(claims, "default", claim("data", "local-path"))
        .await;
    stage.wait("a word", |stage| stage.has_event("WaitForFirstConsumer"));
    assert!(stage.names(volumes).is_empty());
    let select = async |node: &str| {
        let target = Target::object(claims, "default", "data");
        let change = |current: &Value| {
            let mut new = current.clone();
            new["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] = node.into();
            Ok(new)
        };
        stage.client.change(target, &change).await.unwrap();
    };
    // A node that is gone is given back to the scheduler.
    select("gone").await;
    stage.wait("a word", |stage| stage.has_event("ProvisioningFailed"));
    stage.wait("no node", |stage| {
        let claim = stage.get(claims, "default/data");
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null()
    });
    let labels = json!({"kubernetes.io/hostname": "host-1"});
    stage
        .create(
            found("", "nodes"),
            "",
            json!({"metadata": {"name": "one", "labels": labels}}),
        )
        .await;
    select("one").await;
    stage.wait("a bound claim", |stage| {
        stage.get(claims, "default/data")["status"]["phase"] == "Bound"
    });
    let volume = stage.get(volumes, &stage.names(volumes)[0]);
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["host-1"]));
    assert_eq!(volume["spec"]["claimRef"]["name"], "data");
    stage.stop().await;
}
