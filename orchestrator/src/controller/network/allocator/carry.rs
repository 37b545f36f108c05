//! What an update of a Service need not say again. Pure.

use serde_json::Value;

/// Gives an update the addresses and ports that the Service already has.
pub(super) fn carry_over(spec: &mut Value, old: &Value) {
    let external = |spec: &Value| spec["type"] == "ExternalName";
    if external(spec) {
        if let Some(spec) = spec.as_object_mut() {
            for field in [
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "healthCheckNodePort",
            ] {
                if spec.get(field) == old.get(field) {
                    spec.remove(field);
                }
            }
        }
    } else if !external(old) {
        let unset = spec["clusterIP"].as_str().unwrap_or_default().is_empty();
        if unset {
            spec["clusterIP"] = old["clusterIP"].clone();
            spec["clusterIPs"] = old["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if spec[field].is_null() {
                spec[field] = old[field].clone();
            }
        }
    }
    if old["ipFamilyPolicy"] != "SingleStack" && spec["ipFamilyPolicy"] == "SingleStack" {
        keep_first(spec, old);
    }
    traffic(spec, old);
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let now_exposed = exposed(spec);
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let before = old["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|b| same(b, port));
        let Some(before) = before else { continue };
        let unset = port["nodePort"].as_u64().unwrap_or(0) == 0;
        if now_exposed && exposed(old) && unset && !before["nodePort"].is_null() {
            port["nodePort"] = before["nodePort"].clone();
        } else if !now_exposed && exposed(old) && port["nodePort"] == before["nodePort"] {
            drop(
                port.as_object_mut()
                    .and_then(|port| port.remove("nodePort")),
            );
        }
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

fn exposed(spec: &Value) -> bool {
    spec["type"] == "NodePort" || spec["type"] == "LoadBalancer"
}

/// Of two addresses and families that the client leaves alone, the first stays.
fn keep_first(spec: &mut Value, old: &Value) {
    for field in ["clusterIPs", "ipFamilies"] {
        if spec[field] == old[field]
            && let Some(list) = spec[field].as_array_mut()
        {
            list.truncate(1);
        }
    }
}

/// The health check's port stays while it is needed; it and the traffic policy
/// go when they are not, unless the client has changed them.
fn traffic(spec: &mut Value, old: &Value) {
    let checked =
        |spec: &Value| spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
    let reached = |spec: &Value| {
        let external = spec["externalIPs"].as_array();
        exposed(spec) || external.is_some_and(|all| !all.is_empty())
    };
    let health = "healthCheckNodePort";
    if checked(spec) && checked(old) && spec[health].as_u64().unwrap_or(0) == 0 {
        spec[health] = old[health].clone();
    }
    let mut unneeded = Vec::new();
    if !checked(spec) && checked(old) {
        unneeded.push(health);
    }
    if !reached(spec) && reached(old) {
        unneeded.push("externalTrafficPolicy");
    }
    for field in unneeded {
        if spec[field] == old[field] {
            spec[field] = Value::Null;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_say() {
        let old = json!({
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
        });
        let mut new = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]});
        carry_over(&mut new, &old);
        assert_eq!(
            (&new["clusterIP"], &new["ports"][0]["nodePort"]),
            (&json!("10.96.1.1"), &json!(30080))
        );
        let mut new = json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        carry_over(&mut new, &old);
        assert!(new["ports"][0].get("nodePort").is_none());
        let mut new = json!({"type": "ExternalName", "clusterIP": "10.96.1.1"});
        carry_over(&mut new, &old);
        assert!(new.get("clusterIP").is_none());
    }

    #[test]
    fn what_an_update_does_not_need_any_more_goes_unless_it_is_changed_too() {
        let balancer = |policy: &str, health: Value| {
            json!({
                "type": "LoadBalancer", "externalTrafficPolicy": policy,
                "healthCheckNodePort": health,
            })
        };
        let old = balancer("Local", json!(30100));
        for (policy, before, after) in [
            ("Local", json!(null), json!(30100)),
            ("Local", json!(30101), json!(30101)),
            ("Cluster", json!(30100), json!(null)),
            ("Cluster", json!(30101), json!(30101)),
        ] {
            let mut new = balancer(policy, before);
            carry_over(&mut new, &old);
            assert_eq!(new["healthCheckNodePort"], after);
        }
        let old = json!({"type": "ClusterIP", "externalTrafficPolicy": "Cluster", "externalIPs": ["192.0.2.1"]});
        let mut new = json!({"type": "ClusterIP", "externalTrafficPolicy": "Cluster"});
        carry_over(&mut new, &old);
        assert!(new.get("externalTrafficPolicy").is_none());
        let two = json!(["10.96.1.1", "fd00::1"]);
        let old = json!({
            "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.1.1",
            "clusterIPs": two, "ipFamilies": ["IPv4", "IPv6"],
        });
        let mut new = old.clone();
        new["ipFamilyPolicy"] = "SingleStack".into();
        carry_over(&mut new, &old);
        assert_eq!(new["clusterIPs"], json!(["10.96.1.1"]));
        assert_eq!(new["ipFamilies"], json!(["IPv4"]));
    }
}
