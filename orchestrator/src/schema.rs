//! Facts about every type the API serves: fields, types, patch strategies, list and map keys,
//! protobuf numbers, group-version-kinds. One generated table drives decoding, `fieldValidation`,
//! every kind of patch, field ownership, protobuf bodies and OpenAPI.
//!
//! Pure: no I/O, no clock. The table is text embedded in the binary and parsed once, on first use.

mod convert;
mod parse;
pub mod quantity;
mod table;
mod timestamp;

use std::sync::LazyLock;

pub use convert::{ConvertError, Converted, FieldValidation, canonicalise, convert, strict_error};
pub use parse::{ParseError, Parsed, parse_json};
pub use quantity::{Quantity, QuantityError};
pub use timestamp::{Timestamp, TimestampError};

/// All types, sorted by name, and the kinds among them.
#[derive(Debug)]
pub struct Schema {
    types: Vec<ObjectType>,
    /// (group, version, kind) -> index into `types`, sorted.
    kinds: Vec<(Gvk, u16)>,
}

/// A group, version and kind; the group of core kinds is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gvk {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// A type that is a JSON object with named fields.
#[derive(Debug)]
pub struct ObjectType {
    /// Short name, such as `core.v1.Pod`.
    pub name: &'static str,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Server-side apply owns the object as a whole, never single fields of it.
    pub atomic: bool,
}

/// One field of an [`ObjectType`].
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// A zero value is meant, not merely Go's way to say nothing.
    pub pointer: bool,
    /// In protobuf each value is a message whose field 1 holds the list.
    pub wrapped: bool,
    /// Protobuf number, 0 where none is known.
    pub number: u16,
    /// Number of the message that Go inlines here, or 0.
    pub outer: u16,
    pub strategy: Strategy,
    /// How server-side apply sees a list or map.
    pub topology: Topology,
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strategy {
    /// Lists merge by this key; `Some("")` merges scalars as a set; `None` replaces.
    pub merge_key: Option<&'static str>,
    /// Clients send `$retainKeys` here.
    pub retain_keys: bool,
}

/// How server-side apply owns what is in a list or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// What the type says by itself: lists as a whole, maps and objects by key.
    Default,
    Atomic,
    Granular,
    /// A list of distinct scalars.
    Set,
    /// A list of objects told apart by these fields.
    Map(Vec<&'static str>),
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// An ownership set (`fieldsV1`): any object.
    Fields,
    /// Any object.
    Raw,
    /// Index of an [`ObjectType`]; see [`Schema::object`].
    Object(u16),
    List(Box<Self>),
    Map(Box<Self>),
}

const TABLE: &str = include_str!("schema/table.txt");

/// A hash of the table's text: it changes when any fact does.
pub static TABLE_HASH: LazyLock<u64> = LazyLock::new(|| fingerprint(TABLE));

/// FNV-1a.
pub fn fingerprint(text: &str) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse(TABLE).expect("the embedded table was checked by test"));

/// The schema of everything this server knows.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

/// Longest path that a complaint shows, in bytes.
const PATH_SHOWN: usize = 1024;

/// A path as complaints show it: whoever chooses the keys in it chooses its length, and a hundred
/// complaints may repeat it.
pub fn clip(path: &str) -> &str {
    path.get(..path.floor_char_boundary(PATH_SHOWN))
        .unwrap_or(path)
}

impl Schema {
    /// The type of a kind that is served or accepted.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&ObjectType> {
        let found = self.kinds.binary_search_by(|(gvk, _)| {
            (gvk.group, gvk.version, gvk.kind).cmp(&(group, version, kind))
        });
        found.ok().map(|at| self.object(self.kinds[at].1))
    }

    /// As [`Self::kind`], from an object's `apiVersion` and `kind`.
    pub fn api_kind(&self, api_version: &str, kind: &str) -> Option<&ObjectType> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kind(group, version, kind)
    }

    /// A type by its short name, such as `meta.v1.DeleteOptions`.
    pub fn named(&self, name: &str) -> Option<&ObjectType> {
        let at = self
            .types
            .binary_search_by(|object| object.name.cmp(name))
            .ok()?;
        self.types.get(at)
    }

    /// The type a [`Kind::Object`] refers to.
    pub fn object(&self, index: u16) -> &ObjectType {
        &self.types[usize::from(index)]
    }

    /// Every type, sorted by name.
    pub fn objects(&self) -> &[ObjectType] {
        &self.types
    }

    /// Every kind with its type, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = (Gvk, &ObjectType)> {
        self.kinds
            .iter()
            .map(|(gvk, index)| (*gvk, self.object(*index)))
    }
}

impl ObjectType {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self
            .fields
            .binary_search_by(|field| field.name.cmp(name))
            .ok()?;
        self.fields.get(at)
    }

    /// The name OpenAPI knows the type by, such as `io.k8s.api.core.v1.Pod`.
    pub fn full_name(&self) -> String {
        let prefix = match self.name.split('.').next() {
            Some("meta") => "io.k8s.apimachinery.pkg.apis",
            _ => "io.k8s.api",
        };
        format!("{prefix}.{}", self.name)
    }

    /// The name Go gives the type, such as `PodSpec`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_table_parses_and_knows_every_kind_served() {
        for (group, version, kinds) in [
            (
                "",
                "v1",
                "Pod Service Node Namespace ConfigMap Secret Endpoints Event Binding",
            ),
            (
                "",
                "v1",
                "ServiceAccount PersistentVolume PersistentVolumeClaim Status",
            ),
            (
                "apps",
                "v1",
                "Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision",
            ),
            ("batch", "v1", "Job CronJob"),
            ("networking.k8s.io", "v1", "NetworkPolicy"),
            ("discovery.k8s.io", "v1", "EndpointSlice"),
            ("coordination.k8s.io", "v1", "Lease"),
            ("events.k8s.io", "v1", "Event"),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "Role RoleBinding ClusterRole ClusterRoleBinding",
            ),
            (
                "authentication.k8s.io",
                "v1",
                "TokenRequest TokenReview SelfSubjectReview",
            ),
            (
                "authorization.k8s.io",
                "v1",
                "SubjectAccessReview SelfSubjectRulesReview",
            ),
            ("storage.k8s.io", "v1", "StorageClass"),
            ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
            ("autoscaling", "v1", "Scale HorizontalPodAutoscaler"),
            ("policy", "v1", "Eviction"),
        ] {
            for kind in kinds.split(' ') {
                assert!(
                    schema().kind(group, version, kind).is_some(),
                    "{group}/{version} {kind}"
                );
            }
        }
        assert!(schema().named("meta.v1.DeleteOptions").is_some());
        assert!(schema().kind("", "v1", "Nonsense").is_none());
    }

    #[test]
    fn a_container_port_list_carries_both_of_its_keys() {
        let container = schema().named("core.v1.Container").expect("in the table");
        let ports = container.field("ports").expect("in the table");
        assert_eq!(ports.strategy.merge_key, Some("containerPort"));
        assert_eq!(
            ports.topology,
            Topology::Map(vec!["containerPort", "protocol"])
        );
        assert_eq!(ports.number, 6);
    }

    #[test]
    fn a_volume_source_is_found_inside_the_message_go_inlines() {
        let volume = schema().named("core.v1.Volume").expect("in the table");
        let secret = volume.field("secret").expect("in the table");
        assert_eq!((secret.outer, secret.number), (2, 6));
    }
}
