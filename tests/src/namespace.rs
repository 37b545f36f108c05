//! Network namespaces, joined by veth pairs and by nothing else: no default
//! route leads out of them.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A named network namespace (`ip netns`), removed on drop with all in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Removed on drop.
    owned: bool,
}

impl Namespace {
    /// Makes `fl-t-<pid>-<number>-<tag>` with its loopback up.
    pub fn new(tag: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("fl-t-{}-{number}-{tag}", std::process::id());
        process::run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name, owned: true };
        namespace.ip("link set lo up");
        namespace
    }

    /// One that another guard owns, for use on another thread.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            owned: false,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `program` inside the namespace. Mounts stay as they are (`ip netns exec`
    /// would hide cgroups and BPF file systems below `/sys`).
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// `ip <words>` inside the namespace; panics on failure.
    pub fn ip(&self, words: &str) -> String {
        process::run(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(words.split_whitespace()),
        )
    }

    /// Sets `/proc/sys/<path>` inside the namespace.
    pub fn sysctl(&self, path: &str, value: &str) {
        let file = format!("/proc/sys/{path}");
        let value = value.to_owned();
        self.enter(move || std::fs::write(&file, value).unwrap_or_else(|e| panic!("{file}: {e}")));
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made
    /// there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(
                        std::os::fd::AsFd::as_fd(&file),
                        Some(LinkNameSpaceType::Network),
                    )
                    .unwrap();
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Index of a link inside the namespace.
    pub fn ifindex(&self, link: &str) -> u32 {
        let text = self.ip(&format!("-o link show dev {link}"));
        text.split(':')
            .next()
            .and_then(|number| number.trim().parse().ok())
            .unwrap()
    }

    /// MAC address of a link inside the namespace.
    pub fn mac(&self, link: &str) -> [u8; 6] {
        let text = self.ip(&format!("-o link show dev {link}"));
        let mut words = text.split_whitespace();
        words.find(|word| *word == "link/ether").unwrap();
        parse_mac(words.next().unwrap())
    }

    /// Adds an address; IPv6 without waiting for duplicate detection.
    pub fn add_address(&self, link: &str, address: IpAddr, prefix: u8) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        self.ip(&format!("address add {address}/{prefix} dev {link}{nodad}"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let output = process::output(Command::new("ip").args(["netns", "delete", &self.name]));
        if !output.status.success() {
            eprintln!(
                "namespace {} stays: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// Joins two namespaces with a veth pair, both ends up.
pub fn join(one: (&Namespace, &str), other: (&Namespace, &str)) {
    one.0.ip(&format!(
        "link add {} type veth peer name {} netns {}",
        one.1,
        other.1,
        other.0.name()
    ));
    one.0.ip(&format!("link set {} up", one.1));
    other.0.ip(&format!("link set {} up", other.1));
}

/// `aa:bb:cc:dd:ee:ff`
pub fn parse_mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().unwrap(), 16).unwrap();
    }
    mac
}
