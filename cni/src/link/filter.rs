//! Programs as filters of an interface (tc-bpf(8)): a `clsact` qdisc and on it
//! one direct-action filter a direction.

use std::os::fd::{AsRawFd, OwnedFd};

use proxy_ebpf::record::filter::{HANDLE, PRIORITY};

use super::Result;
use super::netlink::{Attributes, Batch, CREATE, DUMP, Socket};
use crate::bpf::Hook;

/// `TC_H_CLSACT`, `TC_H_MAKE(TC_H_CLSACT, 0)` and the two sides of it, of `linux/pkt_sched.h`.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
/// `ETH_P_ALL`
const ALL_PROTOCOLS: u16 = 3;
const TCMSG_BYTES: usize = 20;
// enum of linux/pkt_cls.h.
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is the verdict.
const DIRECT: u32 = 1;

fn side(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => CLSACT_INGRESS,
        Hook::Egress => CLSACT_EGRESS,
    }
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG_BYTES] {
    let mut bytes = [0; TCMSG_BYTES];
    let words = [0, ifindex, handle, parent, info];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Makes each program the filter of its side; it stays while the interface does.
pub(crate) fn filter(
    socket: &Socket,
    ifindex: u32,
    programs: &[(&str, Hook, OwnedFd)],
) -> Result<()> {
    let mut batch = Batch::default();
    // Not exclusive: one that is there already serves as well.
    batch
        .message(
            "add the clsact qdisc",
            libc::RTM_NEWQDISC,
            CREATE,
            &tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0),
        )
        .put_text(libc::TCA_KIND, "clsact");
    let info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    for (name, hook, program) in programs {
        batch
            .message(
                format!("add the filter {name}"),
                libc::RTM_NEWTFILTER,
                CREATE,
                &tcmsg(ifindex, HANDLE, side(*hook), info),
            )
            .put_text(libc::TCA_KIND, "bpf")
            .nest(libc::TCA_OPTIONS, &[], |options| {
                options
                    .put(BPF_FD, &program.as_raw_fd().to_ne_bytes())
                    .put_text(BPF_NAME, name)
                    .put_u32(BPF_FLAGS, DIRECT);
            });
    }
    socket.send(batch).map(drop)
}

/// Whether the program of that name is the filter of its side.
pub(crate) fn is_filtered(socket: &Socket, ifindex: u32, hook: Hook, name: &str) -> Result<bool> {
    let mut batch = Batch::default();
    batch.message(
        "list the filters",
        libc::RTM_GETTFILTER,
        DUMP,
        &tcmsg(ifindex, 0, side(hook), 0),
    );
    let answers = socket.send(batch)?;
    Ok(answers.iter().any(|answer| {
        let attributes = answer.attributes(TCMSG_BYTES);
        let options = Attributes(attributes.find(libc::TCA_OPTIONS).unwrap_or_default());
        answer.kind == libc::RTM_NEWTFILTER
            && attributes.find_text(libc::TCA_KIND) == Some("bpf")
            && options.find_text(BPF_NAME) == Some(name)
            && options.find_u32(BPF_FLAGS) == Some(DIRECT)
    }))
}
