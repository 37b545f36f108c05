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
    let exposed = |spec: &Value| spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
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
}
