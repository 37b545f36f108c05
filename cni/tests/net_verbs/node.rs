//! A node in a network namespace of its own, with a private bpffs and state
//! directory, and a runtime that calls the plugin as the specification says.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proxy_ebpf::abi::pin;
use proxy_ebpf::addr::{V4, V6};
use serde_json::{Value, json};

use crate::pins;

pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_fairlead-cni");

/// Runs a command and returns its standard output; panics if it fails.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The test needs root; without it, it passes with a note, or fails in CI.
pub(crate) fn is_root() -> bool {
    let root = sh("id -u").trim() == "0";
    assert!(
        root || std::env::var_os("CI").is_none(),
        "CI must run this as root"
    );
    if !root {
        println!("not checked: this test makes network namespaces and needs root");
    }
    root
}

/// Waits until `condition` holds; panics after ten seconds.
pub(crate) fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) ok: bool,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Reply {
    fn read(output: &Output) -> Self {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        Self {
            ok: output.status.success(),
            json,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The result; panics with the error if it is one.
    #[track_caller]
    pub(crate) fn good(self) -> Value {
        assert!(self.ok, "{} {}", self.json, self.stderr);
        self.json
    }

    /// The error code and everything the error says; panics if it is none.
    #[track_caller]
    pub(crate) fn bad(self) -> (u64, String) {
        assert!(!self.ok, "should have failed: {}", self.json);
        (self.json["code"].as_u64().unwrap(), self.json.to_string())
    }
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) config: Value,
    /// Variables beside those that every call has.
    pub(crate) variables: Vec<(String, String)>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Node {
    /// A node with stand-in programs and both address families.
    pub(crate) fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fl-cni-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        let at = directory.display();
        sh(&format!(
            "ip netns add {name}; ip -n {name} link set lo up; \
             ip -n {name} addr add 192.168.77.1/32 dev lo; ip -n {name} addr add fd78::1/128 dev lo"
        ));
        sh(&format!("mkdir -p {at}/bpf; mount -t bpf none {at}/bpf"));
        pins::install(&directory.join("bpf"));
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "fairlead-cni",
            "podCIDRs": ["10.77.0.0/24", "fd77::/64"],
            "stateDir": directory.join("state"),
            "bpffs": directory.join("bpf"),
            "socket": directory.join("fairlead.sock"),
        });
        Self {
            name,
            directory,
            config,
            variables: Vec::new(),
        }
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The network namespace of a container; made where it is missing.
    pub(crate) fn netns(&self, id: &str) -> String {
        let name = format!("{}-{id}", self.name);
        if !Path::new("/run/netns").join(&name).exists() {
            sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        }
        name
    }

    pub(crate) fn remove_netns(&self, id: &str) {
        sh(&format!("ip netns del {}-{id}", self.name));
    }

    fn command(&self, verb: &str, id: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !id.is_empty() {
            command
                .env("CNI_CONTAINERID", id)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", format!("/run/netns/{}-{id}", self.name));
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command
    }

    pub(crate) fn spawn(&self, verb: &str, id: &str, config: &Value) -> Child {
        let mut child = self.command(verb, id, PLUGIN).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        child
    }

    /// Calls a plugin with text on stdin.
    pub(crate) fn raw(&self, verb: &str, id: &str, program: &str, stdin: &str) -> Reply {
        let mut child = self.command(verb, id, program).spawn().unwrap();
        // A plugin may fail before it reads.
        drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
        Reply::read(&child.wait_with_output().unwrap())
    }

    pub(crate) fn call(&self, verb: &str, id: &str) -> Reply {
        self.raw(verb, id, PLUGIN, &self.config.to_string())
    }

    /// Calls with more members in the configuration.
    pub(crate) fn call_with(&self, verb: &str, id: &str, members: &Value) -> Reply {
        let mut config = self.config.clone();
        for (name, value) in members.as_object().unwrap() {
            config[name] = value.clone();
        }
        self.raw(verb, id, PLUGIN, &config.to_string())
    }

    /// ADD to a namespace that is made for it.
    #[track_caller]
    pub(crate) fn add(&self, id: &str) -> Value {
        self.netns(id);
        self.call("ADD", id).good()
    }

    /// The output of a command in the node's namespace, or in a container's.
    pub(crate) fn run(&self, line: &str) -> String {
        sh(&format!("nsenter --net=/run/netns/{} {line}", self.name))
    }

    pub(crate) fn run_in(&self, id: &str, line: &str) -> String {
        sh(&format!(
            "nsenter --net=/run/netns/{}-{id} {line}",
            self.name
        ))
    }

    /// Everything that could be left behind, by name. Empty after all DELs.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let links = proxy_ebpf::record::path::pins(&self.bpffs()).join("links");
        for directory in [
            self.state().join("endpoints"),
            self.state().join("addresses"),
            links,
        ] {
            for entry in fs::read_dir(&directory).into_iter().flatten() {
                found.push(entry.unwrap().path().display().to_string());
            }
        }
        for line in self.run("ip -o link show type veth").lines() {
            found.push(line.to_owned());
        }
        let bpffs = self.bpffs();
        let slots = pins::slots_in_use(&bpffs);
        found.extend(slots.iter().map(|slot| format!("endpoint slot {slot}")));
        let v4 = pins::keys::<V4>(&bpffs, pin::ADDRESSES_V4);
        found.extend(v4.iter().map(|ip| format!("address {:?}", ip.octets())));
        let v6 = pins::keys::<V6>(&bpffs, pin::ADDRESSES_V6);
        found.extend(v6.iter().map(|ip| format!("address {:?}", ip.octets())));
        found
    }

    /// Waits until the node has as many veth interfaces: the kernel removes
    /// those of a deleted namespace a little later.
    pub(crate) fn wait_for_links(&self, count: usize) {
        wait("the links are gone", || {
            self.run("ip -o link show type veth").lines().count() == count
        });
    }

    /// Removes all pins, as a reboot would, and pins anew.
    pub(crate) fn forget_pins(&self) {
        let at = self.bpffs().display().to_string();
        sh(&format!("umount {at}; mount -t bpf none {at}"));
        pins::install(&self.bpffs());
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (name, at) = (&self.name, self.directory.display());
        let line = format!(
            "for n in $(ip netns list | cut -d' ' -f1 | grep '^{name}\\(-\\|$\\)'); do \
             ip netns del $n; done; umount {at}/bpf; rm -rf {at}"
        );
        let status = Command::new("sh").args(["-c", &line]).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
