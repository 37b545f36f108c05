//! Reading a kubeconfig: server, CA and how to prove who one is.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// What the current context says.
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// The CA in PEM.
    pub ca: Vec<u8>,
    /// Client certificate and key in PEM.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token.
    pub token: Option<String>,
}

impl std::fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and tokens stay out of logs.
        f.debug_struct("Kubeconfig")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file cannot be read.
    #[error("cannot read {path}; hint: pass --kubeconfig, the server prints where it is")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no kubeconfig.
    #[error("{path} is no kubeconfig: {why}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    context: Option<Context>,
    cluster: Option<Cluster>,
    user: Option<User>,
}

#[derive(Clone, Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

impl Kubeconfig {
    /// Reads the current context of a file.
    ///
    /// # Errors
    /// [`KubeconfigError`] naming the file and what is missing.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let wrong = |why: &str| KubeconfigError::Malformed {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let text = String::from_utf8(file(path)?).map_err(|_not_text| wrong("it is not text"))?;
        let parsed: File =
            serde_saphyr::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
        let find = |list: &[Named], name: &str| list.iter().position(|named| named.name == name);
        let context = find(&parsed.contexts, &parsed.current_context)
            .and_then(|index| parsed.contexts[index].context.clone())
            .ok_or_else(|| wrong("current-context names no context"))?;
        let cluster = find(&parsed.clusters, &context.cluster)
            .and_then(|index| parsed.clusters[index].cluster.clone())
            .ok_or_else(|| wrong("the context's cluster is missing"))?;
        let user = find(&parsed.users, &context.user)
            .and_then(|index| parsed.users[index].user.clone())
            .unwrap_or_default();
        let base = path.parent().unwrap_or(Path::new("."));
        let either = |data: Option<&String>, at: Option<&PathBuf>| match (data, at) {
            (Some(data), _) => STANDARD
                .decode(data)
                .map(Some)
                .map_err(|error| wrong(&format!("base64: {error}"))),
            (None, Some(at)) => file(&base.join(at)).map(Some),
            (None, None) => Ok(None),
        };
        let ca = either(
            cluster.certificate_authority_data.as_ref(),
            cluster.certificate_authority.as_ref(),
        )?
        .ok_or_else(|| wrong("the cluster has no certificate-authority"))?;
        let certificate = either(
            user.client_certificate_data.as_ref(),
            user.client_certificate.as_ref(),
        )?;
        let key = either(user.client_key_data.as_ref(), user.client_key.as_ref())?;
        let token = match (user.token, user.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(at)) => String::from_utf8(file(&base.join(at))?).ok(),
            (None, None) => None,
        };
        Ok(Self {
            server: cluster.server,
            ca,
            certificate: certificate.zip(key),
            token: token.map(|token| token.trim().to_owned()),
        })
    }
}

fn file(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    std::fs::read(path).map_err(|source| KubeconfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}
