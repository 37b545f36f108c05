//! The state directory: one record per attachment, one link per address.
//!
//! ```text
//! lock                              held while addresses and endpoint slots are chosen
//! boot_id                           of the boot that the records were last swept in
//! last                              the addresses given last, one per family
//! endpoints/<id>-<ifname>.json      the record
//! addresses/<ip> -> <record's name> who has an address
//! ```
//!
//! A record appears before the kernel objects it describes and goes after
//! them, so whatever is killed and whenever, the records name all there is to
//! clean up. An address is taken while its link stands; it is made before the
//! record and removed before it, so a link to no record is nobody's.
//!
//! Nothing is synced to disk: what a record describes dies with the kernel
//! that holds it, and a record that a power loss tore belongs to an earlier boot.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use proxy_ebpf::record::{EndpointRecord, path};

use crate::env::Attachment;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

type Result<T> = std::result::Result<T, StateError>;

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError {
        action,
        path,
        source,
    }
}

/// The state directory; made where it is missing.
#[derive(Debug)]
pub(crate) struct State {
    root: PathBuf,
}

/// The same, while no other plugin process chooses addresses or slots.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    state: &'a State,
    _lock: File,
}

/// A record's file: the record, unless it cannot be read.
#[derive(Debug)]
pub(crate) struct Entry {
    file: String,
    pub(crate) record: Option<EndpointRecord>,
}

/// The name of an attachment's record.
fn file_name(attachment: &Attachment) -> String {
    format!("{}-{}.json", attachment.container_id, attachment.ifname)
}

fn is_of(record: &EndpointRecord, attachment: &Attachment) -> bool {
    record.container_id == attachment.container_id && record.ifname == attachment.ifname
}

/// The running kernel's, changed by every boot.
pub(crate) fn boot_id() -> Result<String> {
    let path = Path::new(BOOT_ID);
    let text = fs::read_to_string(path).map_err(at("read", path))?;
    Ok(text.trim_end().to_owned())
}

impl State {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let state = Self {
            root: root.to_owned(),
        };
        if !state.addresses().is_dir() || !state.endpoints().is_dir() {
            for directory in [state.addresses(), state.endpoints()] {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&directory)
                    .map_err(at("make", &directory))?;
            }
        }
        Ok(state)
    }

    fn endpoints(&self) -> PathBuf {
        self.root.join(path::ENDPOINTS)
    }

    fn addresses(&self) -> PathBuf {
        self.root.join(path::ADDRESSES)
    }

    /// Waits for the lock. The kernel drops it with the process, however that ends.
    pub(crate) fn lock(&self) -> Result<Locked<'_>> {
        let path = self.root.join(path::LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at("open", &path))?;
        file.lock().map_err(at("lock", &path))?;
        Ok(Locked {
            state: self,
            _lock: file,
        })
    }

    /// The record of an attachment. `Ok(None)`: there is none, or none that can be read.
    pub(crate) fn record(&self, attachment: &Attachment) -> Result<Option<EndpointRecord>> {
        let path = self.endpoints().join(file_name(attachment));
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .ok()
                .filter(|record| is_of(record, attachment))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("read", &path)(error)),
        }
    }

    /// All records. Files that are not named like one are left alone.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let directory = self.endpoints();
        let mut entries = Vec::new();
        for file in names(&directory)? {
            if file.starts_with('.') || Path::new(&file).extension() != Some("json".as_ref()) {
                continue;
            }
            let path = directory.join(&file);
            let record = match fs::read(&path) {
                Ok(bytes) => serde_json::from_slice(&bytes).ok(),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(at("read", &path)(error)),
            };
            entries.push(Entry { file, record });
        }
        Ok(entries)
    }

    /// The addresses that are taken.
    pub(crate) fn taken(&self) -> Result<HashSet<IpAddr>> {
        let names = names(&self.addresses())?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

impl Locked<'_> {
    /// The addresses given last. A missing or torn file only means that the
    /// search starts at the beginning.
    pub(crate) fn last(&self) -> Vec<IpAddr> {
        let text = fs::read_to_string(self.state.root.join(path::LAST)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Takes `ips` for an attachment, before its record stands.
    pub(crate) fn take(&self, ips: &[IpAddr], attachment: &Attachment) -> Result<()> {
        let target = file_name(attachment);
        for ip in ips {
            let path = self.state.addresses().join(ip.to_string());
            symlink(&target, &path).map_err(at("make", &path))?;
        }
        let mut text = String::new();
        for ip in ips {
            text.push_str(&ip.to_string());
            text.push('\n');
        }
        let path = self.state.root.join(path::LAST);
        overwrite(&path, text.as_bytes()).map_err(at("write", &path))
    }

    /// Writes the record at once or not at all.
    pub(crate) fn write(&self, record: &EndpointRecord) -> Result<()> {
        let name = format!("{}-{}.json", record.container_id, record.ifname);
        let directory = self.state.endpoints();
        let temporary = directory.join(format!(".{name}"));
        let bytes = serde_json::to_vec(record).expect("a record has only string keys");
        fs::write(&temporary, bytes).map_err(at("write", &temporary))?;
        let path = directory.join(name);
        fs::rename(&temporary, &path).map_err(at("write", &path))
    }

    /// Gives up an attachment's addresses, then its record.
    pub(crate) fn release(&self, attachment: &Attachment) -> Result<()> {
        let record = self.state.record(attachment)?;
        let file = file_name(attachment);
        self.give_up(&file, record.as_ref().map(|record| record.ips.as_slice()))?;
        let directory = self.state.endpoints();
        remove(&directory.join(format!(".{file}")))?;
        let path = directory.join(&file);
        // Another attachment's record may have the same name: `a-b` + `c`, `a` + `b-c`.
        if record.is_none() && is_of_another(&path, attachment)? {
            return Ok(());
        }
        remove(&path)
    }

    /// Removes the address links that lead to `file`; `ips`: the only ones
    /// that can, if known.
    fn give_up(&self, file: &str, ips: Option<&[IpAddr]>) -> Result<()> {
        let directory = self.state.addresses();
        let names = match ips {
            Some(ips) => ips.iter().map(ToString::to_string).collect(),
            None => names(&directory)?,
        };
        for name in names {
            let path = directory.join(name);
            if fs::read_link(&path).is_ok_and(|target| target == Path::new(file)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes an entry whose kernel objects are gone.
    pub(crate) fn forget(&self, entry: &Entry) -> Result<()> {
        let ips = entry.record.as_ref().map(|record| record.ips.as_slice());
        self.give_up(&entry.file, ips)?;
        remove(&self.state.endpoints().join(&entry.file))
    }

    /// Removes what a killed process left beside the records: links to no
    /// record, half-written records.
    pub(crate) fn sweep_litter(&self) -> Result<()> {
        let (addresses, endpoints) = (self.state.addresses(), self.state.endpoints());
        for name in names(&addresses)? {
            let path = addresses.join(name);
            if let Ok(target) = fs::read_link(&path)
                && !endpoints.join(target).exists()
            {
                remove(&path)?;
            }
        }
        for name in names(&endpoints)?
            .iter()
            .filter(|name| name.starts_with('.'))
        {
            remove(&endpoints.join(name))?;
        }
        Ok(())
    }

    /// After a boot: forgets all records of earlier ones, whose links, pins and
    /// map entries went with the kernel. One small read otherwise.
    pub(crate) fn sweep_after_boot(&self, boot_id: &str) -> Result<()> {
        let path = self.state.root.join(path::BOOT_ID);
        if fs::read_to_string(&path).is_ok_and(|swept| swept == boot_id) {
            return Ok(());
        }
        for entry in self.state.entries()? {
            let current = entry
                .record
                .as_ref()
                .is_some_and(|record| record.boot_id == boot_id);
            if !current {
                self.forget(&entry)?;
            }
        }
        self.sweep_litter()?;
        fs::write(&path, boot_id).map_err(at("write", &path))
    }
}

/// Whether `path` is a record, but not the attachment's.
fn is_of_another(path: &Path, attachment: &Attachment) -> Result<bool> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at("read", path)(error)),
    };
    let record: Option<EndpointRecord> = serde_json::from_slice(&bytes).ok();
    Ok(record.is_some_and(|record| !is_of(&record, attachment)))
}

/// Writes over a file that may have been longer, without the dear truncation
/// to nothing before.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.write_all(bytes)?;
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() != length {
        file.set_len(length)?;
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(at("list", directory))? {
        let name = entry.map_err(at("list", directory))?.file_name();
        names.extend(name.into_string().ok());
    }
    Ok(names)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}
