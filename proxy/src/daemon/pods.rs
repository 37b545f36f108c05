//! From the plugin's records to what the compilers and the kernel need of them.
//! Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use proxy_ebpf::abi::{Endpoint, SET_CLOSED, SET_NONE};
use proxy_ebpf::addr::{V4, V6};
use proxy_ebpf::record::{DefaultPolicy, EndpointRecord};

use crate::compile::tables::EndpointPolicy;
use crate::compile::{Attachment, Attachments, Input};
use crate::endpoints::{Stored, parse_mac};
use crate::model::{ObjectName, Pod, State};
use crate::netlink::PodPath;

/// The records whose kernel objects exist, by slot.
pub(super) type Live<'a> = BTreeMap<u32, &'a Stored>;

/// Chooses the records that count. Those of another boot, those without an
/// interface yet, and settled ones whose interface is gone do not.
pub(super) fn live<'a>(
    records: &'a BTreeMap<String, Stored>,
    interfaces: &BTreeMap<String, u32>,
    boot_id: &str,
    now: SystemTime,
) -> Live<'a> {
    let mut live = Live::new();
    for stored in records.values() {
        let record = &stored.record;
        if record.slot == 0 || record.host_ifindex == 0 || record.boot_id != boot_id {
            continue;
        }
        // Before the first look at the node nothing counts as gone.
        let exists = interfaces.is_empty()
            || interfaces.get(&record.host_ifname) == Some(&record.host_ifindex);
        if !exists && stored.is_settled(now) {
            continue;
        }
        // Two records of one slot: the kernel has given the interface number anew
        // and the older record is a leftover.
        let newer = |other: &&Stored| other.written < stored.written;
        if live.get(&record.slot).is_none_or(newer) {
            live.insert(record.slot, stored);
        }
    }
    live
}

/// Is `pod` the one that the record was made for? A new pod may have an old
/// one's name.
pub(super) fn is_of(record: &EndpointRecord, pod: &Pod) -> bool {
    let wanted = record.pod.as_ref().and_then(|pod| pod.uid.as_ref());
    match (wanted, &pod.uid) {
        (Some(wanted), Some(uid)) => wanted == uid || pod.static_uid.as_ref() == Some(wanted),
        _ => true,
    }
}

/// The record's pod, if a source knows it.
pub(super) fn known_pod<'a>(record: &EndpointRecord, state: &'a State) -> Option<&'a Pod> {
    let named = record.pod.as_ref()?;
    let pod = state
        .pods
        .get(&ObjectName::new(&named.namespace, &named.name))?;
    is_of(record, pod).then_some(pod)
}

/// What the compilers shall know of a record. Until the very pod is known its
/// name is withheld: its predecessor's policies are not its own.
fn attachment(
    record: &EndpointRecord,
    find: impl Fn(&ObjectName) -> Option<Arc<Pod>>,
) -> Attachment {
    let is_other = |name: &ObjectName| find(name).is_some_and(|pod| !is_of(record, &pod));
    let pod = record.pod.as_ref();
    let pod = pod.map(|pod| ObjectName::new(&pod.namespace, &pod.name));
    Attachment {
        pod: pod.filter(|pod| !is_other(pod)),
        ips: record.ips.clone(),
        starts_open: record.default_policy == DefaultPolicy::Open,
    }
}

/// The inputs that lead from `attached` to the live records. `find`: a pod as
/// the sources know it.
pub(super) fn changes(
    attached: &Attachments,
    live: &Live<'_>,
    find: impl Fn(&ObjectName) -> Option<Arc<Pod>>,
) -> Vec<Input> {
    let gone = attached.keys().filter(|slot| !live.contains_key(slot));
    let mut inputs: Vec<_> = gone.map(|slot| Input::Detach { slot: *slot }).collect();
    for (slot, stored) in live {
        let attachment = attachment(&stored.record, &find);
        if attached.get(slot) != Some(&attachment) {
            inputs.push(Input::Attach {
                slot: *slot,
                attachment,
            });
        }
    }
    inputs
}

/// The whole endpoint, as plugin and daemon write it together.
pub(super) fn endpoint(record: &EndpointRecord, policy: Option<EndpointPolicy>) -> Endpoint {
    let default = match record.default_policy {
        DefaultPolicy::Closed => SET_CLOSED,
        DefaultPolicy::Open => SET_NONE,
    };
    let policy = policy.unwrap_or(EndpointPolicy {
        ingress_set: default,
        egress_set: default,
        ..EndpointPolicy::default()
    });
    let mut endpoint = Endpoint {
        ifindex: record.host_ifindex,
        ingress_set: policy.ingress_set,
        egress_set: policy.egress_set,
        class_v4: policy.class_v4,
        class_v6: policy.class_v6,
        mac: parse_mac(&record.mac).unwrap_or_default(),
        gateway_mac: parse_mac(&record.host_mac).unwrap_or_default(),
        flags: if record.shaped { Endpoint::SHAPED } else { 0 },
        ..Endpoint::default()
    };
    for ip in &record.ips {
        match ip {
            IpAddr::V4(ip) => endpoint.v4 = V4::new(ip.octets()),
            IpAddr::V6(ip) => endpoint.v6 = V6::new(ip.octets()),
        }
    }
    endpoint
}

/// The ways through the host's stack that a record's pod must have.
pub(super) fn paths(record: &EndpointRecord) -> impl Iterator<Item = PodPath> {
    let mac = parse_mac(&record.mac);
    record.ips.iter().filter_map(move |address| {
        Some(PodPath {
            address: *address,
            ifindex: record.host_ifindex,
            mac: mac?,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxy_ebpf::record::{Hooks, PodRef};

    use super::*;

    fn stored(slot: u32, name: &str, uid: Option<&str>, age: u64) -> Stored {
        Stored {
            record: EndpointRecord {
                version: 1,
                network: "pods".to_owned(),
                container_id: format!("c{slot}"),
                ifname: "eth0".to_owned(),
                netns: String::new(),
                slot,
                host_ifname: format!("fl{slot}"),
                host_ifindex: slot,
                mac: "02:00:00:00:00:01".to_owned(),
                host_mac: "02:00:00:00:00:02".to_owned(),
                ips: vec![IpAddr::from([10, 1, 0, 2])],
                pod: Some(PodRef {
                    namespace: "a".to_owned(),
                    name: name.to_owned(),
                    uid: uid.map(str::to_owned),
                }),
                default_policy: DefaultPolicy::Closed,
                shaped: false,
                hooks: Hooks::Filters,
                port_mappings: Vec::new(),
                boot_id: "now".to_owned(),
            },
            written: now() - Duration::from_secs(age),
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000)
    }

    fn slots(records: &[Stored], interfaces: &[(&str, u32)]) -> Vec<u32> {
        let records = records.iter().enumerate();
        let records = records.map(|(i, s)| (i.to_string(), s.clone())).collect();
        let interfaces = interfaces
            .iter()
            .map(|(n, i)| ((*n).to_owned(), *i))
            .collect();
        live(&records, &interfaces, "now", now())
            .into_keys()
            .collect()
    }

    #[test]
    fn a_settled_record_without_its_interface_does_not_count_a_fresh_one_does() {
        let records = [
            stored(1, "x", None, 60),
            stored(2, "y", None, 60),
            stored(3, "z", None, 1),
        ];
        assert_eq!(slots(&records, &[("fl1", 1), ("fl2", 9)]), [1, 3]);
    }

    #[test]
    fn a_record_of_another_boot_does_not_count() {
        let mut old = stored(1, "x", None, 60);
        old.record.boot_id = "before".to_owned();
        assert_eq!(slots(&[old], &[("fl1", 1)]), [] as [u32; 0]);
    }

    fn state(uid: &str) -> State {
        let mut state = State::default();
        let name = ObjectName::new("a", "x");
        let pod = Pod {
            name: name.clone(),
            uid: Some(uid.to_owned()),
            ..Pod::default()
        };
        state.pods.insert(name, Arc::new(pod));
        state
    }

    #[test]
    fn a_new_pod_does_not_get_the_policies_of_its_predecessor() {
        let stored = stored(1, "x", Some("new"), 60);
        let find = |uid| move |name: &ObjectName| state(uid).pods.get(name).cloned();
        assert_eq!(attachment(&stored.record, find("old")).pod, None);
        assert!(known_pod(&stored.record, &state("old")).is_none());
        let known = attachment(&stored.record, find("new"));
        assert_eq!(known.pod, Some(ObjectName::new("a", "x")));
        assert!(known_pod(&stored.record, &state("new")).is_some());
    }

    #[test]
    fn a_static_pod_is_known_by_its_kubelets_uid() {
        let stored = stored(1, "x", Some("hash"), 60);
        let mut mirror = (*state("of-the-mirror").pods[&ObjectName::new("a", "x")]).clone();
        assert!(!is_of(&stored.record, &mirror));
        mirror.static_uid = Some("hash".to_owned());
        assert!(is_of(&stored.record, &mirror));
    }

    #[test]
    fn only_what_changed_is_told_to_the_compilers() {
        let stored = stored(1, "x", None, 60);
        let live = Live::from([(1, &stored)]);
        let unknown = |_: &ObjectName| None;
        let inputs = changes(&Attachments::new(), &live, unknown);
        let [
            Input::Attach {
                slot: 1,
                attachment,
            },
        ] = inputs.as_slice()
        else {
            panic!("{inputs:?}");
        };
        let attached = Attachments::from([(1, attachment.clone())]);
        assert_eq!(changes(&attached, &live, unknown), []);
        assert_eq!(
            changes(&attached, &Live::new(), unknown),
            [Input::Detach { slot: 1 }]
        );
    }

    #[test]
    fn an_endpoint_without_computed_policy_has_the_records_default() {
        let mut stored = stored(1, "x", None, 60);
        assert_eq!(endpoint(&stored.record, None).ingress_set, SET_CLOSED);
        stored.record.default_policy = DefaultPolicy::Open;
        assert_eq!(endpoint(&stored.record, None).egress_set, SET_NONE);
        assert_eq!(endpoint(&stored.record, None).v4, V4::new([10, 1, 0, 2]));
    }
}
