//! Debian's containerd in a node's namespace, with everything it keeps in a
//! private directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fairlead_tests::files::Directory;
use fairlead_tests::node::Node;
use fairlead_tests::process::{self, Process};
use serde_json::json;

use crate::grpc::Server;

/// The sandbox's image, made here of busybox.
const IMAGE: &str = "fairlead.test/pause:1";

pub(crate) struct Containerd {
    pub(crate) server: Server,
    process: Process,
    directory: Directory,
}

impl Containerd {
    /// Starts containerd with the plugin as its only network.
    pub(crate) fn start(node: &Node) -> Self {
        let directory = Directory::new("containerd");
        let at = directory.path().to_owned();
        let bin = at.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, from) in [
            ("fairlead-cni", process::program("fairlead-cni")),
            ("loopback", PathBuf::from("/usr/lib/cni/loopback")),
        ] {
            std::os::unix::fs::symlink(from, bin.join(name)).unwrap();
        }
        let mut plugin = node.network();
        plugin["capabilities"] = json!({"portMappings": true, "bandwidth": true});
        // The newest version that this containerd knows.
        let list = json!({"cniVersion": "1.0.0", "name": "fairlead", "plugins": [plugin]});
        directory.write("net.d/10-fairlead.conflist", &list.to_string());
        let config = directory.write("config.toml", &config(&at));
        let mut command = node.namespace.command("containerd");
        command.arg("--config").arg(&config);
        let mut process = Process::start("containerd", &mut command);
        process.wait_for_output("containerd successfully booted", Duration::from_secs(30));
        let server = Server(at.join("containerd.sock"));
        let image = image(&at);
        process::run(
            Command::new("ctr")
                .arg("--address")
                .arg(&server.0)
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(image),
        );
        Self {
            server,
            process,
            directory,
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process.stop();
        // Mounts that a failed test left.
        let at = self.directory.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines().rev() {
            let target = line.split(' ').nth(1).unwrap_or_default();
            if target.starts_with(&at) {
                drop(process::output(
                    Command::new("umount").args(["--lazy", target]),
                ));
            }
        }
    }
}

/// No privilege beyond a container's: no negative OOM score, no `AppArmor`.
fn config(at: &Path) -> String {
    let at = at.display();
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/run"
[grpc]
address = "{at}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
disable_cgroup = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{at}/bin"
conf_dir = "{at}/net.d"
"#
    )
}

/// An image archive with busybox in it that sleeps, as `docker save` writes one.
fn image(at: &Path) -> PathBuf {
    let build = at.join("image");
    std::fs::create_dir_all(build.join("layer/bin")).unwrap();
    std::fs::copy("/bin/busybox", build.join("layer/bin/busybox")).unwrap();
    let tar = |archive: &Path, directory: &Path, names: &[&str]| {
        process::run(
            Command::new("tar")
                .arg("-C")
                .arg(directory)
                .arg("-cf")
                .arg(archive)
                .args(names),
        );
    };
    let layer = build.join("layer.tar");
    tar(&layer, &build.join("layer"), &["bin"]);
    let sum = process::run(Command::new("sha256sum").arg(&layer));
    let digest = sum.split(' ').next().unwrap();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "3600"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(build.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    std::fs::write(build.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = at.join("image.tar");
    tar(
        &archive,
        &build,
        &["manifest.json", "config.json", "layer.tar"],
    );
    archive
}
