//! Decoding against two encoders that are not the decoder: prost and a hand-written one.

use k8s_pb::api::{
    apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
    core::v1 as core, events::v1 as events,
};
use k8s_pb::apimachinery::pkg::{
    api::resource::Quantity, apis::meta::v1 as meta, runtime::RawExtension, util::intstr,
};
use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::*;
use crate::schema::convert;

/// A field as the wire has it: key, then length-prefixed bytes.
fn put_bytes(number: u16, bytes: &[u8], into: &mut Vec<u8>) {
    prost::encoding::encode_key(
        number.into(),
        prost::encoding::WireType::LengthDelimited,
        into,
    );
    prost::encoding::encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

fn put_varint(number: u16, value: i64, into: &mut Vec<u8>) {
    prost::encoding::encode_key(number.into(), prost::encoding::WireType::Varint, into);
    prost::encoding::encode_varint(value.cast_unsigned(), into);
}

fn message(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(&mut bytes);
    bytes
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut body = MAGIC.to_vec();
    let meta = message(|into| {
        put_bytes(1, api_version.as_bytes(), into);
        put_bytes(2, kind.as_bytes(), into);
    });
    put_bytes(1, &meta, &mut body);
    put_bytes(2, raw, &mut body);
    put_bytes(3, b"", &mut body);
    put_bytes(4, b"", &mut body);
    body
}

/// Decodes and converts, as a request does; nothing may be unknown on the way.
fn decoded(api_version: &str, kind: &str, raw: &[u8]) -> Value {
    let decoded = decode(&envelope(api_version, kind, raw)).expect("decodes");
    assert_eq!(decoded.unknown, Vec::<String>::new());
    let mut value = decoded.value;
    let outcome = convert(decoded.object, &mut value).expect("the types fit");
    assert_eq!(outcome.unknown, Vec::<String>::new());
    value
}

fn named(name: &str) -> meta::ObjectMeta {
    let labels = [("app".to_owned(), "web".to_owned())].into();
    meta::ObjectMeta {
        name: Some(name.into()),
        labels,
        ..Default::default()
    }
}

fn container() -> core::Container {
    let quantity = Quantity {
        string: Some("1.5Gi".into()),
    };
    core::Container {
        name: Some("c".into()),
        image: Some("nginx".into()),
        env: vec![core::EnvVar {
            name: Some("A".into()),
            value: Some(String::new()),
            ..Default::default()
        }],
        ports: vec![core::ContainerPort {
            container_port: Some(80),
            ..Default::default()
        }],
        resources: Some(core::ResourceRequirements {
            limits: [("memory".to_owned(), quantity)].into(),
            ..Default::default()
        }),
        liveness_probe: Some(core::Probe {
            handler: Some(core::ProbeHandler {
                http_get: Some(core::HttpGetAction {
                    port: Some(intstr::IntOrString {
                        r#type: Some(1),
                        int_val: Some(0),
                        str_val: Some("http".into()),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_deployment_built_by_another_encoder_arrives_whole() {
    let deployment = apps::Deployment {
        metadata: Some(named("web")),
        spec: Some(apps::DeploymentSpec {
            replicas: Some(0),
            min_ready_seconds: Some(0),
            selector: Some(meta::LabelSelector::default()),
            template: Some(core::PodTemplateSpec {
                metadata: Some(named("web")),
                spec: Some(core::PodSpec {
                    containers: vec![container()],
                    node_name: Some(String::new()),
                    automount_service_account_token: Some(false),
                    volumes: vec![core::Volume {
                        name: Some("v".into()),
                        volume_source: Some(core::VolumeSource {
                            empty_dir: Some(core::EmptyDirVolumeSource::default()),
                            ..Default::default()
                        }),
                    }],
                    ..Default::default()
                }),
            }),
            strategy: Some(apps::DeploymentStrategy::default()),
            ..Default::default()
        }),
        status: Some(apps::DeploymentStatus::default()),
    };
    assert_eq!(
        decoded("apps/v1", "Deployment", &deployment.encode_to_vec()),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 0, "selector": {}, "strategy": {},
                "template": {
                    "metadata": {"name": "web", "labels": {"app": "web"}},
                    "spec": {
                        "automountServiceAccountToken": false,
                        "volumes": [{"name": "v", "emptyDir": {}}],
                        "containers": [{
                            "name": "c", "image": "nginx", "env": [{"name": "A"}],
                            "ports": [{"containerPort": 80}],
                            "resources": {"limits": {"memory": "1536Mi"}},
                            "livenessProbe": {"httpGet": {"port": "http"}},
                        }],
                    },
                },
            },
            "status": {},
        })
    );
}

#[test]
fn bytes_times_raw_json_and_wrapped_lists_arrive_whole() {
    let secret = core::Secret {
        metadata: Some(named("s")),
        data: [("k".to_owned(), vec![0, 1, 255])].into(),
        immutable: Some(false),
        ..Default::default()
    };
    let value = decoded("v1", "Secret", &secret.encode_to_vec());
    assert_eq!(value["data"], json!({"k": "AAH/"}));
    assert_eq!(value["immutable"], json!(false));

    let event = events::Event {
        event_time: Some(meta::MicroTime {
            seconds: Some(1_700_000_000),
            nanos: Some(1000),
        }),
        deprecated_first_timestamp: Some(meta::Time::default()),
        ..Default::default()
    };
    let value = decoded("events.k8s.io/v1", "Event", &event.encode_to_vec());
    assert_eq!(value["eventTime"], json!("2023-11-14T22:13:20.000001Z"));
    assert_eq!(value.get("deprecatedFirstTimestamp"), None);

    let revision = apps::ControllerRevision {
        data: Some(RawExtension {
            raw: Some(br#"{"spec":{"x":[1]}}"#.to_vec()),
        }),
        revision: Some(i64::MAX),
        ..Default::default()
    };
    let value = decoded("apps/v1", "ControllerRevision", &revision.encode_to_vec());
    assert_eq!(value["data"], json!({"spec": {"x": [1]}}));
    assert_eq!(value["revision"], json!(i64::MAX));

    let review = authorization::SubjectAccessReview {
        spec: Some(authorization::SubjectAccessReviewSpec {
            user: Some("jane".into()),
            extra: [(
                "scopes".to_owned(),
                authorization::ExtraValue {
                    items: vec!["a".to_owned(), "b".to_owned()],
                },
            )]
            .into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let value = decoded(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &review.encode_to_vec(),
    );
    assert_eq!(
        value["spec"],
        json!({"user": "jane", "extra": {"scopes": ["a", "b"]}})
    );
}

#[test]
fn delete_options_and_token_requests_arrive_whole() {
    let options = meta::DeleteOptions {
        grace_period_seconds: Some(0),
        propagation_policy: Some("Foreground".into()),
        preconditions: Some(meta::Preconditions {
            uid: Some("u".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    for api_version in ["v1", "apps/v1", "policy/v1", "meta.k8s.io/v1"] {
        let value = decoded(api_version, "DeleteOptions", &options.encode_to_vec());
        assert_eq!(value["gracePeriodSeconds"], json!(0));
        assert_eq!(value["preconditions"], json!({"uid": "u"}));
    }
    let request = authentication::TokenRequest {
        spec: Some(authentication::TokenRequestSpec {
            audiences: vec!["api".to_owned()],
            expiration_seconds: Some(600),
            ..Default::default()
        }),
        ..Default::default()
    };
    let value = decoded(
        "authentication.k8s.io/v1",
        "TokenRequest",
        &request.encode_to_vec(),
    );
    assert_eq!(
        value["spec"],
        json!({"audiences": ["api"], "expirationSeconds": 600})
    );
}

/// A value of each kind that Go would not leave out, and its encoding.
fn sample(kind: &Kind) -> (Value, Vec<u8>) {
    match kind {
        Kind::String => (json!("text"), b"text".to_vec()),
        Kind::Bytes => (json!("AQI="), vec![1, 2]),
        Kind::Quantity => (json!("7"), message(|into| put_bytes(1, b"7", into))),
        Kind::Time => (
            json!("1970-01-01T00:00:09Z"),
            message(|into| put_varint(1, 9, into)),
        ),
        Kind::MicroTime => (
            json!("1970-01-01T00:00:09.000000Z"),
            message(|into| put_varint(1, 9, into)),
        ),
        Kind::IntOrString => (json!(-3), message(|into| put_varint(2, -3, into))),
        Kind::Fields | Kind::Raw => (
            json!({"f:x": {}}),
            message(|into| put_bytes(1, br#"{"f:x":{}}"#, into)),
        ),
        Kind::Object(index) => object_sample(schema().object(*index)),
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double | Kind::List(_) | Kind::Map(_) => {
            unreachable!("encoded by the caller")
        }
    }
}

fn put_sample(field: &Field, into: &mut Vec<u8>) -> Value {
    let number = field.number;
    match &field.kind {
        Kind::Bool => {
            put_varint(number, 1, into);
            json!(true)
        }
        Kind::Int32 => {
            put_varint(number, -5, into);
            json!(-5)
        }
        Kind::Int64 => {
            put_varint(number, i64::MIN, into);
            json!(i64::MIN)
        }
        Kind::List(of) if matches!(**of, Kind::Int32 | Kind::Int64) => {
            put_varint(number, 4, into);
            put_varint(number, -4, into);
            json!([4, -4])
        }
        Kind::List(of) => {
            let (value, bytes) = sample(of);
            put_bytes(number, &bytes, into);
            put_bytes(number, &bytes, into);
            json!([value, value])
        }
        Kind::Map(of) => {
            let (value, bytes) = match &**of {
                Kind::List(of) => {
                    let (value, bytes) = sample(of);
                    (json!([value]), message(|into| put_bytes(1, &bytes, into)))
                }
                of => sample(of),
            };
            let entry = message(|into| {
                put_bytes(1, b"key", into);
                put_bytes(2, &bytes, into);
            });
            put_bytes(number, &entry, into);
            json!({"key": value})
        }
        kind => {
            let (value, bytes) = sample(kind);
            put_bytes(number, &bytes, into);
            value
        }
    }
}

/// A value with every field set whose number is known.
fn object_sample(object: &ObjectType) -> (Value, Vec<u8>) {
    let mut fields = Map::new();
    let mut bytes = Vec::new();
    for field in object.fields.iter().filter(|field| field.number != 0) {
        let mut single = Vec::new();
        fields.insert(field.name.to_owned(), put_sample(field, &mut single));
        if field.outer == 0 {
            bytes.extend(single);
        } else {
            put_bytes(field.outer, &single, &mut bytes);
        }
    }
    (Value::Object(fields), bytes)
}

#[test]
fn every_field_of_every_kind_survives() {
    let mut kinds = 0;
    for (gvk, object) in schema().kinds() {
        let (mut expected, bytes) = object_sample(object);
        let version = if gvk.group.is_empty() {
            gvk.version.to_owned()
        } else {
            format!("{}/{}", gvk.group, gvk.version)
        };
        expected["apiVersion"] = version.clone().into();
        expected["kind"] = gvk.kind.into();
        assert_eq!(decoded(&version, gvk.kind, &bytes), expected, "{gvk:?}");
        kinds += 1;
    }
    assert!(kinds > 60, "{kinds}");
}

#[test]
fn every_field_that_can_be_sent_has_a_number() {
    let type_meta = ["apiVersion", "kind"];
    let missing: Vec<String> = schema()
        .objects()
        .iter()
        .flat_map(|object| object.fields.iter().map(move |field| (object, field)))
        .filter(|(_, field)| field.number == 0 && !type_meta.contains(&field.name))
        .map(|(object, field)| format!("{}.{}", object.name, field.name))
        .collect();
    // Younger than any published list of numbers; set by kubelets only.
    assert_eq!(missing, ["core.v1.NodeSystemInfo.runningInUserNamespace"]);
}

#[test]
fn unknown_numbers_are_listed_and_wrong_types_refused() {
    let spec = message(|into| put_varint(99, 1, into));
    let pod = message(|into| put_bytes(2, &spec, into));
    let decoded = decode(&envelope("v1", "Pod", &pod)).expect("decodes");
    assert_eq!(decoded.unknown, ["spec.#99"]);

    let pod = message(|into| put_varint(2, 7, into));
    let error = decode(&envelope("v1", "Pod", &pod)).expect_err("a number for a message");
    assert_eq!(
        error.to_string(),
        "spec: the wire type does not fit the field"
    );
}

#[test]
fn what_is_no_body_is_refused_by_name() {
    let text = |body: &[u8]| decode(body).expect_err("refused").to_string();
    assert!(text(b"{}").contains("expected prefix"));
    assert!(text(&envelope("v1", "Nonsense", &[])).contains("no kind \"Nonsense\""));
    assert!(text(b"k8s\0\xff").contains("unexpected end"));
    let mut gzip = envelope("v1", "Pod", &[]);
    put_bytes(3, b"gzip", &mut gzip);
    assert!(text(&gzip).contains("\"gzip\""));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(decode(&bytes));
        for kind in ["Pod", "Secret", "Event", "DeleteOptions"] {
            drop(decode(&envelope("v1", kind, &bytes)));
        }
    }

    #[test]
    fn a_damaged_pod_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut: bool) {
        let (_, mut bytes) = object_sample(schema().kind("", "v1", "Pod").unwrap());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(mut decoded) = decode(&envelope("v1", "Pod", &bytes)) {
            drop(convert(decoded.object, &mut decoded.value));
        }
    }
}

/// A key is as long as its sender likes, and each unknown field below it takes two bytes.
#[test]
fn unknown_fields_of_a_map_entry_are_bounded_in_number_and_length() {
    let key = "k".repeat(100_000);
    let entry = message(|entry| {
        put_bytes(1, key.as_bytes(), entry);
        let list = message(|list| (0..1000).for_each(|_| put_varint(9, 0, list)));
        put_bytes(2, &list, entry);
    });
    let extra = schema()
        .named("authorization.v1.SubjectAccessReviewSpec")
        .and_then(|spec| spec.field("extra"))
        .expect("in the table");
    let spec = message(|spec| put_bytes(extra.number, &entry, spec));
    let raw = message(|raw| put_bytes(2, &spec, raw));
    let body = envelope("authorization.k8s.io/v1", "SubjectAccessReview", &raw);
    let unknown = decode(&body).expect("decodes").unknown;
    assert_eq!(unknown.len(), UNKNOWN_MAX);
    assert!(unknown.iter().all(|path| path.len() < 1100));
}
