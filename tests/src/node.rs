//! A node as its users have one: a namespace with the daemon, pods made by the
//! CNI plugin, manifests in a directory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::cluster::Cluster;
use crate::files::{BpfFs, Directory};
use crate::namespace::Namespace;
use crate::process::{Process, program};
use crate::wait;

/// How long the daemon may take to start, or to put a change into force.
pub const SOON: Duration = Duration::from_mins(1);

/// A node. What it made is removed on drop, pods first.
#[derive(Debug)]
pub struct Node {
    /// The daemon, while it runs.
    pub daemon: Option<Process>,
    pub name: String,
    pub namespace: Namespace,
    /// Programs at sockets see what runs in here.
    pub cgroup: Cgroup,
    pub bpf: BpfFs,
    directory: Directory,
}

/// A pod: its own namespace, connected to its node by the plugin.
#[derive(Debug)]
pub struct Pod {
    pub namespace: Namespace,
    pub container: String,
    pub ips: Vec<IpAddr>,
}

impl Node {
    /// A node without daemon and pods.
    pub fn new(name: &str) -> Self {
        let node = Self {
            daemon: None,
            name: name.to_owned(),
            namespace: Namespace::new("node"),
            cgroup: Cgroup::new("node"),
            bpf: BpfFs::new(),
            directory: Directory::new("node"),
        };
        std::fs::create_dir_all(node.source()).unwrap();
        node
    }

    /// The directory of manifests that the daemon watches.
    pub fn source(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("fairlead.sock")
    }

    /// Puts `cluster` into the source directory, in one rename.
    pub fn apply(&self, cluster: &Cluster) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": cluster.manifests()});
        self.apply_text("cluster.json", &serde_json::to_string(&list).unwrap());
    }

    /// Writes one manifest file in one rename.
    pub fn apply_text(&self, name: &str, text: &str) {
        let staged = self.directory.write("staged", text);
        std::fs::rename(staged, self.source().join(name)).unwrap();
    }

    /// `fairlead-proxy` in the node's namespace.
    pub fn proxy(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(program("fairlead-proxy"));
        command.args(arguments);
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start_daemon(&mut self) {
        self.start_daemon_with(&[]);
    }

    /// As [`Node::start_daemon`], with more arguments.
    pub fn start_daemon_with(&mut self, arguments: &[&str]) {
        let source = self.source().display().to_string();
        let arguments = [arguments, &["--source", &source]].concat();
        self.start_daemon_from(&[], &arguments);
    }

    /// Starts the daemon with `arguments`, which name its sources, and waits until
    /// it is ready; `around`: a program that runs it, with its arguments.
    pub fn start_daemon_from(&mut self, around: &[&str], arguments: &[&str]) {
        let program = program("fairlead-proxy").display().to_string();
        let words = [around, &[program.as_str(), "run"], arguments].concat();
        let mut command = self.namespace.command(words[0]);
        command
            .args(&words[1..])
            .args(["--node-name", &self.name])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--bpffs")
            .arg(self.bpf.path())
            .arg("--socket")
            .arg(self.socket())
            .arg("--cgroup")
            .arg(self.cgroup.path());
        self.daemon = Some(Process::start("fairlead-proxy", &mut command));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        wait::until("the daemon to be ready", SOON, || {
            let daemon = self.daemon.as_mut().expect("just started");
            assert!(
                daemon.is_running(),
                "the daemon ended:\n{}",
                daemon.output()
            );
            self.is_well().then_some(())
        });
    }

    /// Whether the daemon says that all is in force.
    pub fn is_well(&self) -> bool {
        let mut command = self.proxy(&["status"]);
        command.arg("--socket").arg(self.socket());
        crate::process::output(&mut command).status.success()
    }

    /// `fairlead-proxy <words> -o json` against the daemon.
    pub fn ask(&self, words: &[&str]) -> Value {
        let socket = self.socket();
        let mut command = self.proxy(words);
        command.arg("--socket").arg(socket).args(["-o", "json"]);
        serde_json::from_str(&crate::process::run(&mut command)).unwrap()
    }

    /// What a scraper reads from the daemon.
    pub fn metrics(&self) -> String {
        let address = ("127.0.0.1", 10256);
        let mut stream = self
            .namespace
            .enter(|| TcpStream::connect(address).unwrap());
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Pods' host interfaces and the programs that are their filters:
    /// `<interface>-<program>` -> the program's id.
    pub fn filters(&self) -> BTreeMap<String, u32> {
        let mut filters = BTreeMap::new();
        let links = self.namespace.ip("-j link show type veth");
        let links: Value = serde_json::from_str(&links).unwrap();
        for link in links.as_array().into_iter().flatten() {
            let name = link["ifname"].as_str().unwrap();
            for side in ["ingress", "egress"] {
                let mut command = self.namespace.command("tc");
                command.args(["-j", "filter", "show", "dev", name, side]);
                // One that goes meanwhile has none.
                let text = crate::process::output(&mut command).stdout;
                let found: Value = serde_json::from_slice(&text).unwrap_or_default();
                for filter in found.as_array().into_iter().flatten() {
                    let options = &filter["options"];
                    if let Some(id) = options["prog"]["id"].as_u64() {
                        let program = options["bpf_name"].as_str().unwrap();
                        filters.insert(format!("{name}-{program}"), u32::try_from(id).unwrap());
                    }
                }
            }
        }
        filters
    }

    /// The plugin's configuration.
    pub fn network(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "fairlead",
            "type": "fairlead-cni",
            "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"],
            "stateDir": self.state_dir(),
            "bpffs": self.bpf.path(),
            "socket": self.socket(),
        })
    }

    /// One call of the plugin, as a container runtime makes it.
    pub fn cni(
        &self,
        verb: &str,
        pod: &Namespace,
        container: &str,
        args: &str,
        conf: &Value,
    ) -> Output {
        let mut child = self
            .namespace
            .command(program("fairlead-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().expect("piped");
        // A plugin that ends without reading has its say on stdout.
        drop(stdin.write_all(conf.to_string().as_bytes()));
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// Makes a pod through the plugin; `ips`: the addresses it is to have, none: any.
    pub fn pod(&self, namespace: &str, name: &str, ips: &[IpAddr]) -> Pod {
        self.pod_of(namespace, name, "", ips)
    }

    /// As [`Node::pod`], for the object with this UID; none: one of its own.
    pub fn pod_of(&self, namespace: &str, name: &str, uid: &str, ips: &[IpAddr]) -> Pod {
        let pod = Namespace::new("pod");
        let container = format!("{}-{}", pod.name(), name);
        let mut conf = self.network();
        if !ips.is_empty() {
            conf["runtimeConfig"] = json!({"ips": ips});
        }
        let uid = if uid.is_empty() { &container } else { uid };
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"
        );
        let output = self.cni("ADD", &pod, &container, &args, &conf);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "ADD of {namespace}/{name}: {text}");
        let result: Value = serde_json::from_str(&text).unwrap();
        let ips = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| {
                let text = ip["address"].as_str().unwrap();
                text.split('/').next().unwrap().parse().unwrap()
            })
            .collect();
        Pod {
            namespace: pod,
            container,
            ips,
        }
    }

    /// DEL of a pod; its namespace goes with it.
    pub fn remove(&self, pod: Pod) {
        let output = self.cni("DEL", &pod.namespace, &pod.container, "", &self.network());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        drop(pod);
    }
}

impl Pod {
    /// Its address of a family.
    pub fn ip(&self, v6: bool) -> IpAddr {
        let found = self.ips.iter().find(|ip| ip.is_ipv6() == v6);
        *found.unwrap_or_else(|| panic!("{} has no such address: {:?}", self.container, self.ips))
    }
}
