//! This node's endpoints: the CNI plugin's records on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proxy_ebpf::abi::bound;
use proxy_ebpf::record::EndpointRecord;
use thiserror::Error;

/// The record format this build reads.
pub const RECORD_VERSION: u32 = 1;

/// A record is some hundred bytes; more than this is not one.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Error)]
pub enum RecordError {
    #[error("cannot read endpoint record {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "cannot list the endpoint records in {}: {source}\n\
         hint: pods that were known stay as they are; none comes or goes until it can be read",
        path.display()
    )]
    List { path: PathBuf, source: io::Error },
    #[error("endpoint record {} is longer than {RECORD_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("endpoint record {} is not valid: {source}", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "endpoint record {} has version {version}, this build reads {RECORD_VERSION}\n\
         hint: plugin and daemon are of different releases", path.display()
    )]
    Version { path: PathBuf, version: u32 },
    #[error("endpoint record {} has {field} {value}, which cannot be", path.display())]
    Value {
        path: PathBuf,
        field: &'static str,
        value: String,
    },
}

/// Parses and checks one record.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<EndpointRecord, RecordError> {
    let record: EndpointRecord =
        serde_json::from_slice(bytes).map_err(|source| RecordError::Parse {
            path: path.to_owned(),
            source,
        })?;
    if record.version != RECORD_VERSION {
        return Err(RecordError::Version {
            path: path.to_owned(),
            version: record.version,
        });
    }
    let wrong = |field, value: String| RecordError::Value {
        path: path.to_owned(),
        field,
        value,
    };
    // A record without an interface has no slot yet.
    if record.slot >= bound::ENDPOINT_SLOTS || (record.host_ifindex != 0 && record.slot == 0) {
        return Err(wrong("slot", record.slot.to_string()));
    }
    for (field, mac) in [("mac", &record.mac), ("host_mac", &record.host_mac)] {
        if record.host_ifindex != 0 && parse_mac(mac).is_none() {
            return Err(wrong(field, format!("{mac:?}")));
        }
    }
    if record.host_ifname.contains('/') || record.host_ifname.len() > 15 {
        return Err(wrong("host_ifname", format!("{:?}", record.host_ifname)));
    }
    Ok(record)
}

/// `aa:bb:cc:dd:ee:ff`
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// A record and when its file was last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub record: EndpointRecord,
    pub written: SystemTime,
}

/// How long the plugin may be busy with an endpoint whose record it has written;
/// until then nobody else touches the endpoint's kernel objects.
const SETTLED: Duration = Duration::from_secs(5);

impl Stored {
    /// The plugin has finished (or died over) making it.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        // A clock that was set back settles everything, rather than nothing ever.
        now.duration_since(self.written)
            .is_ok_and(|age| age >= SETTLED)
            || self.written > now + SETTLED
    }
}

/// All records of a directory, by file name.
#[derive(Debug, Default)]
pub struct Records {
    pub records: BTreeMap<String, Stored>,
    /// Files that could not be used, and why; under no name, the directory.
    pub rejected: BTreeMap<String, RecordError>,
}

impl Records {
    /// Reads the directory again. A file that was good and is bad now keeps its
    /// last good record, and if the directory cannot be read all do: the pods
    /// are still there.
    pub fn read(&mut self, directory: &Path) {
        let names = match list(directory) {
            Ok(names) => names,
            Err(source) => {
                let path = directory.to_owned();
                let error = RecordError::List { path, source };
                self.rejected = BTreeMap::from([(String::new(), error)]);
                return;
            }
        };
        let mut previous = std::mem::take(&mut self.records);
        self.rejected.clear();
        for name in names {
            match read_one(&directory.join(&name)) {
                Ok(Some(stored)) => {
                    self.records.insert(name, stored);
                }
                Ok(None) => {}
                Err(error) => {
                    if let Some(stored) = previous.remove(&name) {
                        self.records.insert(name.clone(), stored);
                    }
                    self.rejected.insert(name, error);
                }
            }
        }
    }
}

/// The names of the records' files.
fn list(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.retain(|name| !name.starts_with('.') && is_record(name));
    Ok(names)
}

fn is_record(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "json")
}

/// `None`: it went away meanwhile.
fn read_one(path: &Path) -> Result<Option<Stored>, RecordError> {
    let read = |source| RecordError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let written = metadata.modified().map_err(read)?;
    if metadata.len() > RECORD_BYTES_MAX {
        return Err(RecordError::TooLong {
            path: path.to_owned(),
        });
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Stored {
            record: parse(path, &bytes)?,
            written,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(change: impl FnOnce(&mut serde_json::Value)) -> Result<EndpointRecord, RecordError> {
        let mut value = serde_json::json!({
            "version": 1, "network": "pods", "container_id": "c1", "ifname": "eth0", "netns": "/run/netns/a",
            "slot": 7, "host_ifname": "fl123", "host_ifindex": 7,
            "mac": "02:00:00:00:00:01", "host_mac": "02:00:00:00:00:02",
            "ips": ["10.1.0.2", "fd00::2"], "pod": {"namespace": "a", "name": "b"},
            "default_policy": "closed", "boot_id": "x"
        });
        change(&mut value);
        parse(Path::new("c1-eth0.json"), value.to_string().as_bytes())
    }

    #[test]
    fn a_good_record_is_read() {
        let record = record(|_| {}).unwrap();
        assert_eq!(record.pod.unwrap().name, "b");
        assert_eq!(record.ips.len(), 2);
    }

    #[test]
    fn a_slot_outside_the_table_is_refused_by_name() {
        let error = record(|value| value["slot"] = 4096.into()).unwrap_err();
        assert!(error.to_string().contains("slot 4096"), "{error}");
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let error = record(|value| value["version"] = 2.into()).unwrap_err();
        assert!(matches!(error, RecordError::Version { version: 2, .. }));
    }

    #[test]
    fn an_interface_name_cannot_leave_the_pin_directory() {
        let error = record(|value| value["host_ifname"] = "../x".into()).unwrap_err();
        assert!(error.to_string().contains("host_ifname"), "{error}");
    }

    #[test]
    fn a_mac_address_has_six_bytes() {
        assert_eq!(
            parse_mac("0a:0b:0c:0d:0e:ff"),
            Some([10, 11, 12, 13, 14, 255])
        );
        for bad in [
            "",
            "0a:0b:0c:0d:0e",
            "0a:0b:0c:0d:0e:ff:00",
            "0a:0b:0c:0d:0e:fg",
            "a:b:c:d:e:f",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_record_settles_five_seconds_after_it_was_written() {
        let stored = Stored {
            record: record(|_| {}).unwrap(),
            written: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!stored.is_settled(at(104)));
        assert!(stored.is_settled(at(105)));
        assert!(stored.is_settled(at(50)));
    }

    #[test]
    fn a_record_that_turns_bad_keeps_its_endpoint() {
        let directory = std::env::temp_dir().join(format!("fl-records-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("c1-eth0.json");
        let good = serde_json::to_vec(&record(|_| {}).unwrap()).unwrap();
        std::fs::write(&file, &good).unwrap();
        let mut records = Records::default();
        records.read(&directory);
        std::fs::write(&file, b"{").unwrap();
        records.read(&directory);
        assert_eq!(records.records.len(), 1);
        assert_eq!(records.rejected.len(), 1);
        std::fs::remove_file(&file).unwrap();
        records.read(&directory);
        assert_eq!(records.records.len(), 0);
        std::fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_read_takes_no_endpoint_away() {
        let directory = std::env::temp_dir().join(format!("fl-unread-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let good = serde_json::to_vec(&record(|_| {}).unwrap()).unwrap();
        std::fs::write(directory.join("c1-eth0.json"), &good).unwrap();
        let mut records = Records::default();
        records.read(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        records.read(&directory);
        assert_eq!((records.records.len(), records.rejected.len()), (1, 1));
    }
}
