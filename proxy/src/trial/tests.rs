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
fn a_manifest_that_is_not_understood_stops_the_trial() {
    let bad = document(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingres": []}}),
    );
    let error = Trial::read([bad]).unwrap_err().to_string();
    assert!(error.contains("spec.ingres: unknown field"), "{error}");
}
