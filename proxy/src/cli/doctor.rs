//! `doctor`: what the data path needs of this machine, found by looking and
//! trying; cause and fix for each thing that is missing.

use std::error::Error;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use proxy_ebpf::abi::pin;
use serde::Serialize;

use super::table;
use super::{Outcome, Output, PlaceArgs};
use crate::datapath::load::LoadError;
use crate::datapath::mount;
use crate::datapath::probe::{self, Probe};
use crate::netlink::udp::UdpSockets;
use crate::netlink::{Filter, Netlink, Side};

/// The oldest kernel with TCX links.
const KERNEL_MIN: (u32, u32) = (6, 6);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Good,
    /// Works, with a loss.
    Warning,
    Bad,
}

#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: &'static str,
    grade: Grade,
    /// What was found; of something bad, the cause.
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            grade: Grade::Good,
            found: found.into(),
            fix: None,
        }
    }

    fn not(what: &'static str, grade: Grade, found: impl Into<String>, fix: &str) -> Self {
        Self {
            what,
            grade,
            found: found.into(),
            fix: Some(fix.to_owned()),
        }
    }
}

pub(super) fn doctor(place: &PlaceArgs, output: Output) -> Outcome {
    let probe = Probe::load(crate::OBJECT);
    let findings = [
        kernel(&release()),
        btf(Path::new("/sys/kernel/btf/vmlinux")),
        privileges(),
        bpffs(&place.bpffs),
        cgroup(place.cgroup.as_deref()),
        programs(&probe),
        sockets(probe.as_ref().ok()),
        filters(probe.ok()),
        forwarding(
            "IPv4 forwarding",
            Path::new("/proc/sys/net/ipv4/ip_forward"),
        ),
        forwarding(
            "IPv6 forwarding",
            Path::new("/proc/sys/net/ipv6/conf/all/forwarding"),
        ),
        jit(Path::new("/proc/sys/net/core/bpf_jit_enable")),
    ];
    let mut out = io::stdout().lock();
    if output == Output::Json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        drop(out);
        let rows = findings.iter().map(|finding| {
            let grade = match finding.grade {
                Grade::Good => "ok",
                Grade::Warning => "warning",
                Grade::Bad => "MISSING",
            };
            let mut found = finding.found.clone();
            if let Some(fix) = &finding.fix {
                found.push_str("; fix: ");
                found.push_str(fix);
            }
            vec![finding.what.to_owned(), grade.to_owned(), found]
        });
        table::print(&["NEED", "STATE", "FOUND"], &rows.collect::<Vec<_>>())?;
    }
    let is_well = findings.iter().all(|finding| finding.grade != Grade::Bad);
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn kernel(release: &str) -> Finding {
    let what = "kernel 6.6 or newer";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    if (next(), next()) >= KERNEL_MIN {
        Finding::good(what, release)
    } else {
        let fix = "run a kernel with TCX links (Linux 6.6)";
        Finding::not(what, Grade::Bad, format!("this is {release}"), fix)
    }
}

fn btf(path: &Path) -> Finding {
    let what = "kernel type information (BTF)";
    match std::fs::metadata(path) {
        Ok(_) => Finding::good(what, path.display().to_string()),
        Err(error) => Finding::not(
            what,
            Grade::Bad,
            format!("{}: {error}", path.display()),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount sysfs",
        ),
    }
}

/// Bits of `CapEff` in /proc/self/status, include/uapi/linux/capability.h.
fn privileges() -> Finding {
    const NEEDED: [(u32, &str); 3] = [
        (12, "CAP_NET_ADMIN"),
        (21, "CAP_SYS_ADMIN"),
        (39, "CAP_BPF"),
    ];
    let what = "privileges";
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.unwrap_or(0);
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Finding::good(what, "NET_ADMIN, SYS_ADMIN, BPF")
    } else {
        let found = format!("without {}", missing.join(", "));
        Finding::not(
            what,
            Grade::Bad,
            found,
            "run as root, or grant these capabilities",
        )
    }
}

fn bpffs(path: &Path) -> Finding {
    let what = "BPF file system";
    match mount::file_system(path) {
        Ok(mount::magic::BPFFS) => Finding::good(what, format!("mounted at {}", path.display())),
        _ => Finding::not(
            what,
            Grade::Warning,
            format!("not mounted at {}", path.display()),
            "none needed: `run` mounts it; in a container, mount it on the host and share it",
        ),
    }
}

fn cgroup(path: Option<&Path>) -> Finding {
    let what = "cgroup v2";
    let Some(path) = path else {
        return match ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|path| is_cgroup2(Path::new(path)))
        {
            Some(path) => Finding::not(
                what,
                Grade::Warning,
                format!("no --cgroup is given; there is one at {path}"),
                &format!("give --cgroup {path} to `run`, so that sockets are translated once"),
            ),
            None => Finding::not(
                what,
                Grade::Warning,
                "none is mounted: Services are translated packet by packet",
                "mount -t cgroup2 none /sys/fs/cgroup/unified",
            ),
        };
    };
    if is_cgroup2(path) {
        Finding::good(what, path.display().to_string())
    } else {
        let found = format!("{} is not in a cgroup2 file system", path.display());
        Finding::not(
            what,
            Grade::Bad,
            found,
            "give --cgroup a directory of cgroup2",
        )
    }
}

fn is_cgroup2(path: &Path) -> bool {
    mount::file_system(path).is_ok_and(|kind| kind == mount::magic::CGROUP2)
}

fn programs(probe: &Result<Probe, LoadError>) -> Finding {
    let what = "kernel programs load";
    match probe {
        Ok(probe) => Finding::good(what, probe.names().join(", ")),
        Err(error) => {
            let fix =
                "put right what is missing above; if nothing is, report this with `--log debug`";
            Finding::not(what, Grade::Bad, causes(error), fix)
        }
    }
}

/// The first line of an error and of each of its causes.
fn causes(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    match error.source() {
        Some(cause) => format!("{line}: {}", causes(cause)),
        None => line.to_owned(),
    }
}

/// Looks for UDP sockets as the daemon does, and ends one that is not there: in a
/// network namespace that ends with the attempt.
fn sockets(probe: Option<&Probe>) -> Finding {
    let what = "UDP sockets can be ended";
    let Some(probe) = probe else {
        let fix = "let the programs load first";
        return Finding::not(what, Grade::Warning, "not tried", fix);
    };
    let attempt = || {
        probe::leave_network()?;
        UdpSockets::open()?.probe()
    };
    let failure = match (probe.lacks_survey(), std::thread::spawn(attempt).join()) {
        (Some(error), _) => causes(error),
        (None, Ok(Ok(()))) => return Finding::good(what, "udp_diag, SOCK_DESTROY, iterator"),
        (None, Ok(Err(error))) => error.to_string(),
        (None, Err(_)) => "the attempt broke off".to_owned(),
    };
    let found = format!("{failure}; connected UDP sockets stay with a backend that has gone");
    let fix =
        "modprobe udp_diag, or a kernel with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY";
    Finding::not(what, Grade::Warning, found, fix)
}

/// Makes a program the filter of an interface, as the plugin does with a pod's:
/// the loopback interface of a network namespace that ends with the attempt.
fn filters(probe: Option<Probe>) -> Finding {
    let what = "programs as filters (clsact)";
    let Some(probe) = probe else {
        let fix = "let the programs load first";
        return Finding::not(what, Grade::Warning, "not tried", fix);
    };
    let tried = std::thread::spawn(move || try_filter(&probe)).join();
    match tried {
        Ok(Ok(())) => Finding::good(what, "sch_ingress, cls_bpf"),
        Ok(Err(error)) => Finding::not(
            what,
            Grade::Warning,
            format!(
                "{}; pods get TCX links, which take some 20 ms longer",
                causes(&*error)
            ),
            "modprobe sch_ingress cls_bpf, or a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        ),
        Err(_) => Finding::not(what, Grade::Warning, "the attempt broke off", "report this"),
    }
}

fn try_filter(probe: &Probe) -> Result<(), Box<dyn Error + Send + Sync>> {
    /// The number of every network namespace's loopback interface.
    const LOOPBACK: u32 = 1;
    probe::leave_network()?;
    let name = pin::POD_OUT;
    let (program, id) = probe.program(name)?;
    let filter = Filter {
        side: Side::Ingress,
        name,
        program: program.as_fd(),
        id,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Netlink::open()?.ensure_filter(LOOPBACK, &filter).await })?;
    Ok(())
}

fn forwarding(what: &'static str, path: &Path) -> Finding {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == "1" => Finding::good(what, "on"),
        Ok(_) => Finding::not(
            what,
            Grade::Warning,
            "off: pods reach pods of this node, and nothing beyond",
            &format!("echo 1 > {}", path.display()),
        ),
        Err(error) => {
            let found = format!("{}: {error}", path.display());
            Finding::not(
                what,
                Grade::Warning,
                found,
                "none, if this family is not used",
            )
        }
    }
}

fn jit(path: &Path) -> Finding {
    let what = "BPF compiler (JIT)";
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == "0" => Finding::not(
            what,
            Grade::Warning,
            "off: programs are interpreted",
            "echo 1 > /proc/sys/net/core/bpf_jit_enable",
        ),
        // Kernels that always compile may hide the switch.
        _ => Finding::good(what, "on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_number() {
        for (release, grade) in [
            ("6.6.0", Grade::Good),
            ("6.18.44-fc", Grade::Good),
            ("7.0-rc1", Grade::Good),
            ("6.5.13-generic", Grade::Bad),
            ("5.15", Grade::Bad),
            ("", Grade::Bad),
        ] {
            assert_eq!(kernel(release).grade, grade, "{release}");
        }
    }

    #[test]
    fn what_is_missing_comes_with_a_fix() {
        let missing = btf(Path::new("/no/such/file"));
        assert_eq!(missing.grade, Grade::Bad);
        assert!(missing.fix.is_some());
        let off = cgroup(Some(Path::new("/proc")));
        assert_eq!(off.grade, Grade::Bad);
    }
}
