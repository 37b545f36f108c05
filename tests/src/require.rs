//! What a test needs of its host. On a developer's machine a missing need ends
//! the test with a printed reason; under `CI` it fails.

use std::path::Path;
use std::process::Command;

/// A condition of the host.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root, with the right to make network namespaces.
    Root,
    /// The BPF system call and the kernel's own type information.
    Bpf,
    /// A program on the path.
    Program(&'static str),
}

impl Need {
    /// Why it is not met.
    fn lacking(self) -> Option<String> {
        match self {
            Self::Root => {
                (!rustix::process::geteuid().is_root()).then(|| "root is needed".to_owned())
            }
            Self::Bpf => {
                if !rustix::process::geteuid().is_root() {
                    return Some("root is needed for BPF".to_owned());
                }
                (!Path::new("/sys/kernel/btf/vmlinux").exists())
                    .then(|| "the kernel has no BTF (/sys/kernel/btf/vmlinux)".to_owned())
            }
            Self::Program(name) => {
                let found = Command::new("sh")
                    .args(["-c", "command -v \"$0\" >/dev/null", name])
                    .status()
                    .is_ok_and(|status| status.success());
                (!found).then(|| format!("{name} is not installed: cargo xtask setup"))
            }
        }
    }
}

/// Whether all needs are met. Panics under `CI` if not.
pub fn met(needs: &[Need]) -> bool {
    for need in needs {
        if let Some(reason) = need.lacking() {
            assert!(std::env::var_os("CI").is_none(), "{reason}");
            eprintln!("not run: {reason}");
            return false;
        }
    }
    true
}

/// `require!(Root, Program("iperf3"))`: returns from the test unless all needs are met.
#[macro_export]
macro_rules! require {
    ($($need:ident $(($argument:expr))?),+ $(,)?) => {
        if !$crate::require::met(&[$($crate::require::Need::$need $(($argument))?),+]) {
            return;
        }
    };
}
