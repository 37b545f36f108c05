//! Random histories against a naive model of ownership.

use super::*;

type Data = std::collections::BTreeMap<String, String>;

fn any_data() -> impl Strategy<Value = Data> {
    prop::collection::btree_map("[a-e]", "[x-z]", 0..4)
}

/// Who applied what last: the model of a ConfigMap's life.
#[derive(Default)]
struct Model {
    data: Data,
    owned: std::collections::BTreeMap<usize, Data>,
}

impl Model {
    /// None: refused.
    fn apply(&mut self, manager: usize, config: &Data, force: bool) -> Option<()> {
        let changes = |key: &String| self.data.get(key) != config.get(key);
        let others = |key: &String| {
            self.owned
                .iter()
                .any(|(other, keys)| *other != manager && keys.contains_key(key))
        };
        if !force && config.keys().any(|key| changes(key) && others(key)) {
            return None;
        }
        let taken: Vec<String> = config.keys().filter(|key| changes(key)).cloned().collect();
        for (other, keys) in &mut self.owned {
            if *other != manager {
                keys.retain(|key, _| !taken.contains(key));
            }
        }
        let last = self
            .owned
            .insert(manager, config.clone())
            .unwrap_or_default();
        for key in last.keys().filter(|key| !config.contains_key(*key)) {
            if !self.owned.values().any(|keys| keys.contains_key(key)) {
                self.data.remove(key);
            }
        }
        self.data.extend(config.clone());
        Some(())
    }
}

fn data_of(object: Option<&Value>) -> Data {
    let map = object
        .and_then(|object| object.get("data"))
        .and_then(Value::as_object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect()
}

proptest! {
    #[test]
    fn appliers_live_together_as_a_naive_model_says(
        steps in prop::collection::vec((0_usize..3, any_data(), any::<bool>()), 1..12),
    ) {
        let managers = ["one", "two", "three"];
        let mut model = Model::default();
        let mut live: Option<Value> = None;
        for (manager, config, force) in steps {
            let mut object = json!({"metadata": {"name": "c"}});
            if !config.is_empty() {
                object["data"] = json!(config);
            }
            let result = applied(CONFIG_MAP, managers[manager], live.as_ref(), object, force);
            prop_assert_eq!(model.apply(manager, &config, force).is_some(), result.is_ok());
            if let Ok(object) = result {
                for (key, value) in &config {
                    prop_assert_eq!(object["data"][key].as_str(), Some(&**value));
                }
                live = Some(object);
            }
            prop_assert_eq!(data_of(live.as_ref()), model.data.clone());
        }
    }

    #[test]
    fn random_field_sets_never_panic_and_come_back(
        text in "[{}\":,fk.v0-9a]{0,60}",
    ) {
        if let Ok(value) = serde_json::from_str::<Value>(&text)
            && let Some(set) = FieldSet::from_json(&value)
        {
            let again = FieldSet::from_json(&set.to_json());
            prop_assert_eq!(again.map(|set| set.to_json()), Some(set.to_json()));
        }
    }

    #[test]
    fn any_configuration_is_applied_or_refused_without_a_panic(
        live in prop_oneof![Just(json!({})), Just(json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}, {}]}}))],
        config in prop_oneof![Just(json!({"spec": null})), Just(json!({"spec": {"containers": null}})),
            Just(json!({"spec": {"containers": []}})), Just(json!({"metadata": {"labels": {}}})),
            Just(json!([])), Just(json!({"spec": {"containers": [{"name": null}]}})),
            Just(json!({"metadata": {"finalizers": ["a", "b"]}}))],
        force: bool,
    ) {
        if let Ok(object) = applied(POD, "m", Some(&live), config.clone(), force) {
            drop(applied(POD, "m", Some(&object), config.clone(), force));
        }
        let mut new = config;
        track_update(&writer(POD, "m", "2026-01-01T00:00:00Z"), Some(&live), &mut new);
    }
}
