//! What the demo consists of outside of the repository, how it is made and how
//! all of it is removed again.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{exec, project, step};

/// Everything but namespaces and the cgroup lies below it.
pub(super) const DIRECTORY: &str = "/run/fairlead-demo";
/// The node's network namespace.
pub(super) const NODE: &str = "fl-demo-node";
/// Below the mount of version 2 cgroups.
const CGROUP: &str = "fl-demo";
/// The port of the web servers.
pub(super) const PORT: u16 = 8080;
const NODE_NAME: &str = "demo";
const NODE_ADDRESSES: [&str; 2] = ["203.0.113.1/32", "2001:db8:77::1/128"];
/// How long a process may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// A pod as deploy/demo/pods.yaml has it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    pub(super) v4: &'static str,
    pub(super) v6: &'static str,
    /// Of the Service in front of it.
    pub(super) service: &'static str,
}

impl Pod {
    pub(super) fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn netns(&self) -> String {
        format!("fl-demo-{}-{}", self.namespace, self.name)
    }
}

/// The demo while it is being made.
#[derive(Debug)]
pub(super) struct Place {
    binaries: PathBuf,
    cgroup: PathBuf,
}

fn below(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// `program` inside a network namespace; the mounts stay visible.
fn inside(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{netns}"))
        .arg("--")
        .arg(program);
    command
}

fn ip(words: &str) -> Result<()> {
    exec::run(Command::new("ip").args(words.split_whitespace()))
}

impl Place {
    pub(super) fn exists() -> bool {
        Path::new(DIRECTORY).exists()
    }

    /// The directory, the BPF file system, the cgroup and the node's namespace.
    pub(super) fn make(binaries: &Path) -> Result<Self> {
        for name in ["bpf", "state", "www"] {
            fs::create_dir_all(below(name)).with_context(|| format!("cannot make {DIRECTORY}"))?;
        }
        exec::run(
            Command::new("mount")
                .args(["-t", "bpf", "none"])
                .arg(below("bpf")),
        )?;
        let cgroup = cgroup_mount()?.join(CGROUP);
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        ip(&format!("netns add {NODE}"))?;
        ip(&format!("-n {NODE} link set lo up"))?;
        for address in NODE_ADDRESSES {
            ip(&format!("-n {NODE} address add {address} dev lo"))?;
        }
        Ok(Self {
            binaries: binaries.to_owned(),
            cgroup,
        })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// How a person calls the daemon's command line.
    pub(super) fn proxy_line(&self) -> String {
        let program = self.program("fairlead-proxy");
        let shown = program.strip_prefix(project::root()).unwrap_or(&program);
        format!("{} --socket {DIRECTORY}/fairlead.sock", shown.display())
    }

    /// The daemon's command line, asked for JSON.
    pub(super) fn ask(&self, words: &[&str]) -> Result<serde_json::Value> {
        let mut command = Command::new(self.program("fairlead-proxy"));
        command
            .arg("--socket")
            .arg(below("fairlead.sock"))
            .args(["-o", "json"])
            .args(words);
        serde_json::from_str(&exec::read(&mut command)?).context("the answer is not JSON")
    }

    pub(super) fn start_daemon(&mut self) -> Result<()> {
        let mut command = inside(NODE, self.program("fairlead-proxy"));
        command
            .arg("--socket")
            .arg(below("fairlead.sock"))
            .arg("run")
            .arg("--source")
            .arg(project::root().join("deploy/demo"))
            .args(["--node-name", NODE_NAME])
            .arg("--state-dir")
            .arg(below("state"))
            .arg("--bpffs")
            .arg(below("bpf"))
            .arg("--cgroup")
            .arg(&self.cgroup);
        start(&mut command, "daemon.log", || self.ask(&["status"]).is_ok())
    }

    fn network(pod: &Pod) -> serde_json::Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "fairlead-demo",
            "type": "fairlead-cni",
            "podCIDRs": ["10.77.0.0/24", "fd77::/64"],
            "stateDir": below("state"),
            "bpffs": below("bpf"),
            "socket": below("fairlead.sock"),
            "runtimeConfig": {"ips": [pod.v4, pod.v6]},
        })
    }

    /// The pod's namespace, connected by the CNI plugin as a container runtime would call it.
    pub(super) fn add_pod(&self, pod: &Pod) -> Result<()> {
        ip(&format!("netns add {}", pod.netns()))?;
        ip(&format!("-n {} link set lo up", pod.netns()))?;
        let mut child = inside(NODE, self.program("fairlead-cni"))
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", pod.netns())
            .env("CNI_NETNS", format!("/run/netns/{}", pod.netns()))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}",
                    pod.namespace, pod.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut stdin = child.stdin.take().context("piped")?;
        stdin.write_all(Self::network(pod).to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "the CNI plugin refused: {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(())
    }

    /// A program inside a pod: its namespace and cgroup.
    pub(super) fn in_pod(&self, pod: &Pod, program: &str) -> Command {
        let mut command = inside(&pod.netns(), "sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.cgroup.join("cgroup.procs"))
            .arg(program);
        command
    }

    /// A web server that answers with the pod's name.
    pub(super) fn start_server(&self, pod: &Pod) -> Result<()> {
        let root = below("www").join(pod.netns());
        fs::create_dir_all(&root)?;
        fs::write(root.join("index.html"), format!("{}\n", pod.title()))?;
        let mut command = self.in_pod(pod, "busybox");
        command
            .args(["httpd", "-f", "-p", &PORT.to_string(), "-h"])
            .arg(&root);
        let answers = || {
            let mut call = self.in_pod(pod, "curl");
            call.args(["--silent", "--fail", "--max-time", "1"])
                .arg(format!("http://127.0.0.1:{PORT}/"));
            exec::read(&mut call).is_ok()
        };
        start(&mut command, &format!("{}.log", pod.netns()), answers)
    }

    /// Removes everything; goes on where something cannot be removed and says so in the end.
    pub(super) fn remove() -> Result<()> {
        let mut left = Vec::new();
        let mut part = |name: &str, work: &dyn Fn() -> Result<String>| {
            if let Err(error) = step::step(name, || Ok(((), work()?))) {
                left.push(format!("{name}: {error:#}"));
            }
        };
        part("processes", &end_processes);
        part("network namespaces", &remove_namespaces);
        part("BPF file system", &|| {
            if is_mounted(&below("bpf"))? {
                exec::run(Command::new("umount").arg(below("bpf")))?;
            }
            Ok(String::new())
        });
        part("cgroup", &|| {
            let cgroup = cgroup_mount()?.join(CGROUP);
            if cgroup.exists() {
                fs::remove_dir(&cgroup)
                    .with_context(|| format!("cannot remove {}", cgroup.display()))?;
            }
            Ok(String::new())
        });
        if !left.is_empty() {
            bail!("not everything is gone:\n{}", left.join("\n"));
        }
        step::step(DIRECTORY, || {
            Ok((fs::remove_dir_all(DIRECTORY)?, String::new()))
        })?;
        step::note("everything is gone");
        Ok(())
    }
}

/// Starts a process that outlives this one, its output in a file; remembers it for `down`.
/// Returns when it is ready.
fn start(command: &mut Command, log: &str, is_ready: impl Fn() -> bool) -> Result<()> {
    let file = fs::File::create(below(log))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{}`", exec::line(command)))?;
    let born = born(child.id()).context("it ended at once")?;
    let mut list = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(below("processes"))?;
    writeln!(list, "{} {born}", child.id())?;
    let end = Instant::now() + READY;
    while !is_ready() {
        if Instant::now() > end {
            bail!(
                "`{}` is not ready after {READY:?}; its log:\n{}",
                exec::line(command),
                fs::read_to_string(below(log)).unwrap_or_default()
            );
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// When a process started, in clock ticks since boot: field 22 of its stat. With
/// it a process is told from a later one of the same number.
fn born(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn end_processes() -> Result<String> {
    let list = fs::read_to_string(below("processes")).unwrap_or_default();
    let mut ended = 0;
    for line in list.lines() {
        let Some((pid, time)) = line.split_once(' ') else {
            continue;
        };
        let (pid, time): (u32, u64) = (pid.parse()?, time.parse()?);
        if born(pid) != Some(time) {
            continue;
        }
        signal(pid, Signal::TERM)?;
        let end = Instant::now() + Duration::from_secs(5);
        while born(pid) == Some(time) && !is_zombie(pid) {
            if Instant::now() > end {
                signal(pid, Signal::KILL)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ended += 1;
    }
    Ok(format!("{ended} ended"))
}

/// A process that has ended meanwhile needs none.
fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match kill_process(pid.context("no number of a process")?, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot end a process"),
    }
}

/// Ended, and only not yet asked about by its parent.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn remove_namespaces() -> Result<String> {
    let mut names: Vec<String> = super::PODS.iter().map(Pod::netns).collect();
    names.push(NODE.to_owned());
    let mut removed = 0;
    for name in names {
        if Path::new("/run/netns").join(&name).exists() {
            ip(&format!("netns delete {name}"))?;
            removed += 1;
        }
    }
    Ok(format!("{removed} removed"))
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let path = path.to_string_lossy();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&*path)))
}

/// Where version 2 cgroups are mounted; on hybrid hosts not at the usual place.
fn cgroup_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .into_iter()
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no version 2 cgroups are mounted")
}
