//! The secrets that must survive a restart: the CA and the ServiceAccount key,
//! under `<data>/pki` (directory 0700, keys 0600), written whole or not at all.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::KeyPair;
use thiserror::Error;

use super::authority::{Authority, PkiError};

/// Why the keys on disk could not be read or written.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A file operation failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was tried: "read", "write".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Of a pair, one file is there and the other is not.
    #[error("{} is missing beside its pair; restore both from one backup", path.display())]
    Half {
        /// The missing file.
        path: PathBuf,
    },
    /// The content cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What `<data>/pki` holds.
#[derive(Debug)]
pub struct Secrets {
    /// The cluster CA.
    pub authority: Authority,
    /// ServiceAccount signing key, PKCS#8 PEM (ECDSA P-256).
    pub service_account_key: SecretPem,
}

/// A private key in PEM that does not print itself.
#[derive(Clone)]
pub struct SecretPem(String);

impl SecretPem {
    /// The PEM text. Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretPem {
    fn from(pem: String) -> Self {
        Self(pem)
    }
}

impl std::fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretPem(..)")
    }
}

/// Opens `<data>/pki`, making the CA and the ServiceAccount key where there are none yet.
pub fn open(data: &Path, now: SystemTime) -> Result<Secrets, DiskError> {
    let directory = data.join("pki");
    private_directory(&directory)?;
    Ok(Secrets {
        authority: open_authority(&directory, now)?,
        service_account_key: open_service_account_key(&directory)?,
    })
}

fn open_authority(directory: &Path, now: SystemTime) -> Result<Authority, DiskError> {
    let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
    match (read(&certificate)?, read(&key)?) {
        (Some(certificate), Some(key)) => Ok(Authority::load(&certificate, &key)?),
        (Some(_), None) => Err(DiskError::Half { path: key }),
        // The key is written first, so a crash in between leaves a key without a certificate.
        (None, existing) => {
            let authority = match existing {
                Some(pem) => Authority::from_key(&pem, now)?,
                None => Authority::generate(now)?,
            };
            write_private(&key, authority.key_pem().as_bytes())?;
            write_private(&certificate, authority.certificate_pem().as_bytes())?;
            Ok(authority)
        }
    }
}

fn open_service_account_key(directory: &Path) -> Result<SecretPem, DiskError> {
    let path = directory.join("sa.key");
    if let Some(pem) = read(&path)? {
        return Ok(SecretPem(pem));
    }
    let key = KeyPair::generate().map_err(|source| PkiError::Issue {
        subject: "sa.key".to_owned(),
        source,
    })?;
    let pem = key.serialize_pem();
    write_private(&path, pem.as_bytes())?;
    Ok(SecretPem(pem))
}

fn read(path: &Path) -> Result<Option<String>, DiskError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes a directory that only its owner can enter; tightens one that is there already.
pub fn private_directory(path: &Path) -> Result<(), DiskError> {
    let fail = |doing| {
        move |source| DiskError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(fail("create directory"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(fail("set permissions of"))
}

/// Replaces `path` with `content`, mode 0600: a reader or a crash sees the old or the new whole.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    write_private_for(path, content, None)
}

/// As [`write_private`], owned by `owner` (user, group) if one is given.
pub fn write_private_for(
    path: &Path,
    content: &[u8],
    owner: Option<(u32, u32)>,
) -> Result<(), DiskError> {
    let staged = staging_path(path);
    let written = stage(&staged, content, owner)
        .and_then(|()| std::fs::rename(&staged, path))
        .and_then(|()| sync_parent(path));
    written.map_err(|source| {
        // The write failed, so there may be nothing to remove; the cause is what matters.
        drop(std::fs::remove_file(&staged));
        DiskError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        }
    })
}

fn staging_path(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map_or_else(Default::default, |name| name.to_string_lossy());
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn stage(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // create_new: never follows a link that somebody else put there.
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    file.write_all(content)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("fl-auth-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_same_keys_come_back_and_only_their_owner_reads_them() {
        let data = directory("same-keys");
        let first = open(&data, SystemTime::now()).unwrap();
        let second = open(&data, SystemTime::now()).unwrap();
        assert_eq!(
            first.authority.certificate_pem(),
            second.authority.certificate_pem()
        );
        assert_eq!(
            first.service_account_key.expose(),
            second.service_account_key.expose()
        );
        assert_eq!(mode(&data.join("pki")), 0o700);
        for name in ["ca.key", "sa.key", "ca.crt"] {
            assert_eq!(mode(&data.join("pki").join(name)), 0o600, "{name}");
        }
        assert_eq!(
            std::fs::read_dir(data.join("pki")).unwrap().count(),
            3,
            "no staging file"
        );
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_by_name() {
        let data = directory("half");
        drop(open(&data, SystemTime::now()).unwrap());
        std::fs::remove_file(data.join("pki/ca.key")).unwrap();
        let error = open(&data, SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("ca.key is missing"), "{error}");
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_key_of_another_ca_is_refused() {
        let data = directory("mismatch");
        drop(open(&data, SystemTime::now()).unwrap());
        let other = Authority::generate(SystemTime::now()).unwrap();
        write_private(&data.join("pki/ca.key"), other.key_pem().as_bytes()).unwrap();
        let error = open(&data, SystemTime::now()).unwrap_err();
        assert!(
            matches!(error, DiskError::Pki(PkiError::CaMismatch)),
            "{error}"
        );
        std::fs::remove_dir_all(data).unwrap();
    }
}
