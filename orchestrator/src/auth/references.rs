//! What a pod refers to: the secrets, config maps and claims that its node may read for it. Pure.

use serde::Deserialize;

/// What a pod refers to, as far as nodes ask.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// ServiceAccount.
    pub service_account_name: String,
    /// Pull secrets.
    pub image_pull_secrets: Vec<Name>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Containers.
    pub containers: Vec<Container>,
    /// Init containers.
    pub init_containers: Vec<Container>,
    /// Ephemeral containers.
    pub ephemeral_containers: Vec<Container>,
}

/// `{name: ..}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Name {
    name: String,
}

/// A volume's references.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    secret: Option<SecretName>,
    config_map: Option<Name>,
    persistent_volume_claim: Option<ClaimName>,
    projected: Option<Projected>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretName {
    secret_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimName {
    claim_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Vec<Source>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    secret: Option<Name>,
    config_map: Option<Name>,
}

/// A container's references.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    env: Vec<EnvVar>,
    env_from: Vec<EnvFrom>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvVar {
    value_from: Option<ValueFrom>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Option<Name>,
    config_map_key_ref: Option<Name>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    secret_ref: Option<Name>,
    config_map_ref: Option<Name>,
}

// === impl PodSpec ===

impl PodSpec {
    fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .chain(&self.init_containers)
            .chain(&self.ephemeral_containers)
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.volumes
            .iter()
            .filter_map(|volume| volume.projected.as_ref())
            .flat_map(|all| &all.sources)
    }

    pub fn claims(&self) -> impl Iterator<Item = &str> {
        let claims = self
            .volumes
            .iter()
            .filter_map(|volume| volume.persistent_volume_claim.as_ref());
        claims.map(|claim| claim.claim_name.as_str())
    }

    /// Whether the pod refers to this secret.
    pub fn uses_secret(&self, name: &str) -> bool {
        let is = |own: &Option<Name>| own.as_ref().is_some_and(|own| own.name == name);
        self.image_pull_secrets.iter().any(|own| own.name == name)
            || self.sources().any(|source| is(&source.secret))
            || self
                .volumes
                .iter()
                .filter_map(|v| v.secret.as_ref())
                .any(|s| s.secret_name == name)
            || self.containers().any(|container| {
                container.env_from.iter().any(|from| is(&from.secret_ref))
                    || values(container).any(|value| is(&value.secret_key_ref))
            })
    }

    /// Whether the pod refers to this config map.
    pub fn uses_config_map(&self, name: &str) -> bool {
        let is = |own: &Option<Name>| own.as_ref().is_some_and(|own| own.name == name);
        self.sources().any(|source| is(&source.config_map))
            || self.volumes.iter().any(|volume| is(&volume.config_map))
            || self.containers().any(|container| {
                container
                    .env_from
                    .iter()
                    .any(|from| is(&from.config_map_ref))
                    || values(container).any(|value| is(&value.config_map_key_ref))
            })
    }
}

fn values(container: &Container) -> impl Iterator<Item = &ValueFrom> {
    container
        .env
        .iter()
        .filter_map(|env| env.value_from.as_ref())
}
