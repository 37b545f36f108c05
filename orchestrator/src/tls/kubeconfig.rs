//! The kubeconfig of the person who started the cluster: one file, mode 0600,
//! owned by the invoking user even under sudo, rewritten when its certificate is renewed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::authority::Issued;
use super::disk::{DiskError, private_directory, write_private_for};

/// Why the kubeconfig could not be written.
#[derive(Debug, Error)]
pub enum KubeconfigError {
    /// The file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Under sudo the directory must belong to the user, or root would write where they point.
    #[error("{} is not a directory of user {owner}; pass another path with --kubeconfig", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// The invoking user's id.
        owner: u32,
    },
}

/// The user on whose behalf the process runs, when that is not the process's own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvokingUser {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

impl InvokingUser {
    /// Reads `SUDO_UID` and `SUDO_GID` through `variable`; `None` unless both are numbers.
    pub fn from_sudo(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name| variable(name)?.parse().ok();
        Some(Self {
            user: number("SUDO_UID")?,
            group: number("SUDO_GID")?,
        })
    }
}

/// The text of a kubeconfig for one cluster and one certificate user.
pub fn render(server: &str, ca_pem: &str, client: &Issued) -> String {
    let [ca, certificate, key] =
        [ca_pem, &client.certificate_pem, &client.key_pem].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: fairlead\n  \
           cluster:\n    \
             server: {server}\n    \
             certificate-authority-data: {ca}\n\
         users:\n\
         - name: fairlead-admin\n  \
           user:\n    \
             client-certificate-data: {certificate}\n    \
             client-key-data: {key}\n\
         contexts:\n\
         - name: fairlead\n  \
           context:\n    \
             cluster: fairlead\n    \
             user: fairlead-admin\n\
         current-context: fairlead\n"
    )
}

/// Writes a kubeconfig whole, mode 0600, for `owner` if the process acts for somebody else.
pub fn write(
    path: &Path,
    content: &str,
    owner: Option<InvokingUser>,
) -> Result<(), KubeconfigError> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        prepare(directory, owner)?;
    }
    let owner = owner.map(|owner| (owner.user, owner.group));
    Ok(write_private_for(path, content.as_bytes(), owner)?)
}

fn prepare(directory: &Path, owner: Option<InvokingUser>) -> Result<(), KubeconfigError> {
    let io = |doing| {
        move |source| DiskError::Io {
            doing,
            path: directory.to_owned(),
            source,
        }
    };
    match (std::fs::symlink_metadata(directory), owner) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => {
            private_directory(directory)?;
            if let Some(owner) = owner {
                std::os::unix::fs::chown(directory, Some(owner.user), Some(owner.group))
                    .map_err(io("change the owner of"))?;
            }
            Ok(())
        }
        (Err(error), _) => Err(io("inspect")(error).into()),
        (Ok(found), Some(owner)) if !found.is_dir() || ![0, owner.user].contains(&found.uid()) => {
            Err(KubeconfigError::ForeignDirectory {
                path: directory.to_owned(),
                owner: owner.user,
            })
        }
        (Ok(_), _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::tls::authority::{Authority, LEAF_LIFE, Leaf};

    #[test]
    fn sudo_ids_count_only_when_both_are_numbers() {
        let both = |name: &str| Some(if name == "SUDO_UID" { "1000" } else { "100" }.to_owned());
        assert_eq!(
            InvokingUser::from_sudo(both),
            Some(InvokingUser {
                user: 1000,
                group: 100
            })
        );
        assert_eq!(InvokingUser::from_sudo(|_| None), None);
        assert_eq!(InvokingUser::from_sudo(|_| Some("root".into())), None);
    }

    #[test]
    fn the_file_is_yaml_that_carries_the_certificates() {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        let leaf = Leaf::Client {
            common_name: "a".into(),
            organizations: vec![],
        };
        let issued = authority.issue(&leaf, now, LEAF_LIFE).unwrap();
        let text = render(
            "https://127.0.0.1:6443",
            authority.certificate_pem(),
            &issued,
        );
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            parsed["clusters"][0]["cluster"]["server"],
            "https://127.0.0.1:6443"
        );
        let key = parsed["users"][0]["user"]["client-key-data"]
            .as_str()
            .unwrap();
        assert_eq!(STANDARD.decode(key).unwrap(), issued.key_pem.as_bytes());
        assert_eq!(parsed["current-context"], "fairlead");
    }

    #[test]
    fn a_link_planted_in_place_of_the_directory_is_refused_for_another_user() {
        let base = std::env::temp_dir().join(format!("fl-auth-kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(base.join("target")).unwrap();
        std::os::unix::fs::symlink(base.join("target"), base.join("link")).unwrap();
        let owner = Some(InvokingUser {
            user: 1000,
            group: 1000,
        });
        let refused = write(&base.join("link/config"), "x", owner).unwrap_err();
        assert!(
            matches!(refused, KubeconfigError::ForeignDirectory { .. }),
            "{refused}"
        );
        std::fs::remove_dir_all(base).unwrap();
    }
}
