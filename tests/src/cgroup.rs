//! A cgroup of the test's own: programs attached to it see its processes only.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::wait;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A version 2 cgroup directly below the mount, removed on drop with the
/// processes that are left in it killed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new(tag: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = mount_point().join(format!("fl-t-{}-{number}-{tag}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A cgroup below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let path = self.path.join(name);
        std::fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub fn add(&self, pid: u32) {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// `command`, started inside the cgroup by a shell that enters it first.
    pub fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.path.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        shell
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(std::fs::write(self.path.join("cgroup.kill"), "1"));
        let gone = || {
            let removed = std::fs::remove_dir(&self.path);
            (removed.is_ok() || !self.path.exists()).then_some(())
        };
        if std::thread::panicking() {
            let _gone: Option<()> = gone();
        } else {
            wait::until("removal of a cgroup", Duration::from_secs(5), gone);
        }
    }
}

/// Where version 2 cgroups are mounted; on hybrid hosts not at the usual place.
pub fn mount_point() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .map_or_else(
            || panic!("no cgroup2 mount"),
            |words| PathBuf::from(words[1]),
        )
}
