//! What makes pods: deployments, sets, jobs.

use super::*;

fn a_workload(default: fn(&mut Value)) -> Value {
    let mut object = json!({"metadata": {"name": "w"}, "spec": {
        "selector": {"matchLabels": {"app": "w"}},
        "template": {"metadata": {"labels": {"app": "w"}},
            "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    default(&mut object);
    object
}

#[test]
fn deployments_are_refused_in_upstreams_words() {
    check(
        deployment,
        &a_workload(defaults::deployment),
        &[
            (
                "/spec/selector",
                Value::Null,
                &["spec.selector: Required value"],
            ),
            (
                "/spec/replicas",
                json!(-1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "/spec/template/metadata/labels",
                json!({"app": "x"}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does \
                   not match template `labels`",
                ],
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported \
                   values: \"Always\"",
                ],
            ),
            (
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": "0%"}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 \
                   when `maxSurge` is 0",
                ],
            ),
            (
                "/spec/strategy/type",
                json!("Recreate"),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy \
                   `type` is 'Recreate'",
                ],
            ),
            (
                "/spec/progressDeadlineSeconds",
                json!(0),
                &[
                    "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than \
                   minReadySeconds",
                ],
            ),
        ],
    );
    let old = a_workload(defaults::deployment);
    let new = with(&old, "/spec/selector", json!({"matchLabels": {"app": "x"}}));
    assert_eq!(
        changed(deployment_update, &new, &old),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"]
    );
}

#[test]
fn stateful_and_daemon_sets_are_refused_in_upstreams_words() {
    let mut set = a_workload(defaults::stateful_set);
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/d"}]);
    check(
        stateful_set,
        &set,
        &[(
            "/spec/podManagementPolicy",
            json!("x"),
            &[
                "spec.podManagementPolicy: Unsupported value: \"x\": supported values: \
               \"OrderedReady\", \"Parallel\"",
            ],
        )],
    );
    let scaled = with(&set, "/spec/replicas", json!(3));
    assert_eq!(
        changed(stateful_set_update, &scaled, &set),
        Vec::<String>::new()
    );
    let renamed = with(&set, "/spec/serviceName", json!("s"));
    assert_eq!(
        changed(stateful_set_update, &renamed, &set),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', \
          'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
          'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ]
    );
    check(
        daemon_set,
        &a_workload(defaults::daemon_set),
        &[(
            "/spec/updateStrategy/rollingUpdate",
            json!({"maxUnavailable": 0, "maxSurge": 0}),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0 \
               when maxSurge is 0",
            ],
        )],
    );
    check(replica_set, &a_workload(defaults::replica_set), &[]);
}

#[test]
fn jobs_and_cron_jobs_are_refused_in_upstreams_words() {
    let mut job_ = json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "x"}]}}}});
    defaults::job(&mut job_);
    check(
        job,
        &job_,
        &[
            (
                "/spec/template/spec/restartPolicy",
                json!("Always"),
                &[
                    "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \
                   \"Never\"",
                ],
            ),
            (
                "/spec/completions",
                json!(-1),
                &["spec.completions: Invalid value: -1: must be greater than or equal to 0"],
            ),
        ],
    );
    let mut indexed = job_.clone();
    indexed["spec"]["completionMode"] = json!("Indexed");
    indexed["spec"]["completions"] = json!(4);
    check(
        job,
        &indexed,
        &[
            (
                "/spec/maxFailedIndexes",
                json!(1),
                &["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"],
            ),
            (
                "/spec/successPolicy",
                json!({"rules": [{"succeededIndexes": "0-1,3", "succeededCount": 4}]}),
                &[
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 \
                   (the number of indexes in the specified succeededIndexes field)",
                ],
            ),
            (
                "/spec/successPolicy",
                json!({"rules": [{"succeededIndexes": "2-4"}]}),
                &[
                    "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"2-4\": error parsing \
                   succeededIndexes: too large index: \"2-4\"",
                ],
            ),
            (
                "/spec/podFailurePolicy",
                json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [0]}}]}),
                &[
                    "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the \
                     backoffLimitPerIndex to be set",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
                    "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": supported values: \"Failed\"",
                ],
            ),
        ],
    );
    let grown = with(&job_, "/spec/completions", json!(2));
    assert_eq!(
        changed(job_update, &grown, &job_),
        ["spec.completions: Invalid value: 2: field is immutable"]
    );
    let wider = with(&job_, "/spec/parallelism", json!(2));
    assert_eq!(changed(job_update, &wider, &job_), Vec::<String>::new());

    let mut cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * *",
        "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure",
            "containers": [{"name": "c", "image": "x"}]}}}}}});
    defaults::cron_job(&mut cron);
    check(
        cron_job,
        &cron,
        &[
            (
                "/spec/schedule",
                json!("often"),
                &[
                    "spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1: [often]",
                ],
            ),
            (
                "/spec/timeZone",
                json!("Europe/Atlantis"),
                &[
                    "spec.timeZone: Invalid value: \"Europe/Atlantis\": unknown time zone Europe/Atlantis",
                ],
            ),
            ("/spec/timeZone", json!("Europe/Berlin"), &[]),
            (
                "/spec/jobTemplate/spec/template/spec/containers",
                json!([]),
                &["spec.jobTemplate.spec.template.spec.containers: Required value"],
            ),
        ],
    );
}
