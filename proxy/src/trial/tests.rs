//! Trials whose packets are judged from the tables instead of by programs.
use std::convert::Infallible;

use proxy_ebpf::addr::BePort;
use proxy_ebpf::policy::verdict;
use serde_json::json;

use super::*;

/// The verdict of the compiled tables.
#[derive(Default)]
struct Tables(crate::compile::Tables);

impl Kernel for Tables {
    type Error = Infallible;

    fn load(&mut self, compiler: &Compiler) -> Result<(), Infallible> {
        self.0 = compiler.tables().clone();
        Ok(())
    }

    fn send(
        &mut self,
        packet: Packet,
        from: Option<u32>,
        to: Option<u32>,
    ) -> Result<bool, Infallible> {
        let port = BePort::new(packet.port);
        let judge = |set, other| {
            verdict(&self.0, set, self.0.class_of(other), packet.protocol, port).allowed
        };
        let endpoint = |slot: Option<u32>| slot.and_then(|slot| self.0.endpoints.get(&slot));
        let egress = endpoint(from).is_none_or(|e| judge(e.egress_set, packet.to));
        let ingress = endpoint(to).is_none_or(|e| judge(e.ingress_set, packet.from));
        Ok(from == to || (egress && ingress))
    }
}

fn document(value: Value) -> Document {
    Document {
        origin: "shop.yaml".into(),
        value,
    }
}

fn manifests() -> Vec<Document> {
    let deployment = |name: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c",
                    "ports": [{"name": "sql", "containerPort": 5432}]}]}}}})
    };
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                "ports": [{"port": "sql"}]}]}});
    let documents = [
        deployment("web"),
        deployment("db"),
        deployment("cron"),
        policy,
    ];
    documents.map(document).into()
}

fn test_of(cases: &Value) -> Document {
    document(json!({"apiVersion": "fairlead.io/v1", "kind": "PolicyTest",
        "metadata": {"name": "shop"}, "spec": {"cases": cases}}))
}

fn run(cases: &Value) -> Result<Vec<report::Outcome>, TrialError> {
    let mut documents = manifests();
    documents.push(test_of(cases));
    let trial = Trial::read(documents)?;
    let mut kernel = Tables::default();
    let Ok(()) = kernel.load(&trial.compiler);
    let Ok(outcomes) = trial.run(&mut kernel);
    Ok(outcomes)
}

#[test]
fn expectations_are_judged_in_both_families_with_the_deciding_rule() {
    let outcomes = run(&json!([
        {"from": "shop/web", "to": "shop/db", "port": "5432/tcp", "expect": "allow"},
        {"from": "shop/cron", "to": "shop/db", "port": "5432/tcp", "expect": "deny"},
        {"from": "203.0.113.7", "to": "shop/web", "port": "80/tcp", "expect": "allow"},
        {"from": "shop/web", "to": "shop/db", "port": "80/tcp", "expect": "allow"},
    ]))
    .unwrap();
    let good: Vec<bool> = outcomes.iter().map(report::Outcome::is_good).collect();
    assert_eq!(good, [true, true, true, true, true, false, false]);
    let table = report::table(&outcomes);
    assert!(
        table.contains("ingress: allowed by shop/db, rule 0"),
        "{table}"
    );
    assert!(table.contains("shop/db (rule 0: other ports)"), "{table}");
    assert!(table.ends_with("7 packets, 2 not as expected\n"), "{table}");
    assert_eq!(report::json(&outcomes)["failed"], 2);
    let junit = report::junit(&outcomes);
    assert_eq!(junit.matches("<failure").count(), 2, "{junit}");
}

#[test]
fn the_matrix_shows_who_reaches_whom() {
    let trial = Trial::read(manifests()).unwrap();
    let mut kernel = Tables::default();
    let Ok(()) = kernel.load(&trial.compiler);
    let Ok(matrix) = trial.matrix(&mut kernel, (6, 5432));
    let table = "from \\ to    1 2 3\nshop/cron  1 X . X\nshop/db    2 X X X\nshop/web   3 X X X\n";
    assert_eq!(matrix.table(), table);
    assert_eq!(matrix.json().as_array().map(Vec::len), Some(9));
}

#[test]
fn faults_of_cases_name_the_field() {
    let fault = |cases: Value| run(&cases).unwrap_err().to_string();
    let case = |from: &str, port: &str| json!([{"from": from, "to": "shop/db", "port": port, "expect": "deny"}]);
    assert!(fault(case("shop/nobody", "80/tcp")).contains("spec.cases[0].from"));
    assert!(fault(case("shop/web", "0/tcp")).contains("spec.cases[0].port"));
    let unknown =
        json!([{"from": "shop/web", "too": "shop/db", "port": "1/tcp", "expect": "deny"}]);
    assert!(fault(unknown).contains("spec.cases[0]"));
}

#[test]
fn a_case_that_would_test_nothing_is_refused() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "six"},
        "spec": {"containers": []}, "status": {"podIP": "fd00::6"}});
    let of = |service: &Value, case: &Value| {
        let documents = [pod.clone(), service.clone(), test_of(&json!([case])).value];
        Trial::read(documents.map(document))
            .unwrap_err()
            .to_string()
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "empty"},
        "spec": {"clusterIP": "fd97::1", "selector": {"no": "pod"}, "ports": [{"port": 80}]}});
    let case =
        |from: &str, to: &str| json!({"from": from, "to": to, "port": "80/tcp", "expect": "deny"});
    let error = of(&service, &case("203.0.113.7", "default/six"));
    assert!(
        error.contains("spec.cases[0]: 203.0.113.7 and default/six have no address"),
        "{error}"
    );
    let error = of(&service, &case("203.0.113.7", "203.0.113.8"));
    assert!(
        error.contains("neither 203.0.113.7 nor 203.0.113.8 is a pod"),
        "{error}"
    );
    let error = of(&service, &case("default/six", "fd97::1"));
    assert!(
        error.contains("the Service at fd97::1 has no endpoint for 80/tcp"),
        "{error}"
    );
}

#[test]
fn a_pod_on_its_nodes_network_is_told_from_a_missing_one() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host"},
        "spec": {"hostNetwork": true, "containers": []}});
    let case =
        json!([{"from": "default/host", "to": "shop/db", "port": "1/tcp", "expect": "deny"}]);
    let documents = manifests()
        .into_iter()
        .chain([document(pod), test_of(&case)]);
    let error = Trial::read(documents).unwrap_err().to_string();
    assert!(
        error.contains("spec.cases[0].from: \"default/host\" is on the network"),
        "{error}"
    );
}

#[test]
fn a_test_of_another_version_is_refused_not_passed_over() {
    let mut test = test_of(&json!([]));
    test.value["apiVersion"] = json!("fairlead.io/v2");
    let error = Trial::read([test]).unwrap_err().to_string();
    assert!(
        error.contains("apiVersion: a PolicyTest is of fairlead.io/v1"),
        "{error}"
    );
}

#[test]
fn a_packet_to_a_service_is_explained_by_its_endpoint() {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"clusterIP": "10.97.0.1", "selector": {"app": "db"},
            "ports": [{"port": 80, "targetPort": "sql"}]}});
    let case =
        json!([{"from": "shop/cron", "to": "10.97.0.1", "port": "80/tcp", "expect": "deny"}]);
    let mut documents = manifests();
    documents.extend([document(service), test_of(&case)]);
    let trial = Trial::read(documents).unwrap();
    let mut kernel = Tables::default();
    let Ok(()) = kernel.load(&trial.compiler);
    let packet = trial.packets(&trial.cases[0])[0];
    let Ok((_, explanation)) = trial.send(&mut kernel, packet);
    assert_eq!(explanation.ingress.pod, Some(ObjectName::new("shop", "db")));
}

#[test]
fn a_port_without_a_protocol_is_of_tcp() {
    for port in [
        json!(5432),
        json!("5432"),
        json!("5432/tcp"),
        json!("5432/TCP"),
    ] {
        let case = json!({"from": "shop/web", "to": "shop/db", "port": port, "expect": "allow"});
        let outcomes = run(&json!([case])).unwrap();
        assert!(outcomes.iter().all(report::Outcome::is_good), "{port}");
    }
}

#[test]
fn icmp_is_each_familys_own() {
    let outcomes = run(&json!([
        {"from": "shop/web", "to": "shop/cron", "port": "icmp", "expect": "allow"},
    ]))
    .unwrap();
    let sent: Vec<_> = outcomes
        .iter()
        .map(|o| (o.packet.to.is_ipv6(), o.packet.protocol))
        .collect();
    assert_eq!(sent, [(false, 1), (true, 58)]);
}

#[test]
fn a_manifest_that_is_not_understood_stops_the_trial() {
    let bad = document(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingres": []}}),
    );
    let error = Trial::read([bad]).unwrap_err().to_string();
    assert!(error.contains("spec.ingres: unknown field"), "{error}");
}
