//! What CHECK looks at: the addresses, default routes and neighbours that an
//! interface really has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::netlink::{Answer, Attributes, Batch, DUMP, Socket};
use super::{AF_INET, AF_INET6, Mac, Result};

/// The state of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// With the length of the prefix.
    pub(crate) addresses: BTreeSet<(IpAddr, u8)>,
    /// Destination, length of the prefix, gateway; only routes of the main table.
    pub(crate) routes: BTreeSet<(IpAddr, u8, Option<IpAddr>)>,
    /// Permanent ones only.
    pub(crate) neighbours: Vec<(IpAddr, Mac)>,
}

/// Asks for all that `interface` has.
pub(crate) fn look(socket: &Socket, ifindex: u32) -> Result<Seen> {
    let mut seen = Seen::default();
    for answer in dump(socket, "list the addresses", libc::RTM_GETADDR, 8)? {
        if answer.kind == libc::RTM_NEWADDR && answer.word(4) == ifindex {
            seen.addresses.extend(address(&answer));
        }
    }
    for answer in dump(socket, "list the routes", libc::RTM_GETROUTE, 12)? {
        let out = answer.attributes(12).find_u32(libc::RTA_OIF);
        if answer.kind == libc::RTM_NEWROUTE && out == Some(ifindex) {
            seen.routes.extend(route(&answer));
        }
    }
    for answer in dump(socket, "list the neighbours", libc::RTM_GETNEIGH, 12)? {
        if answer.kind == libc::RTM_NEWNEIGH && answer.word(4) == ifindex {
            seen.neighbours.extend(neighbour(&answer));
        }
    }
    Ok(seen)
}

/// All objects of a kind, of both families; `fixed` is the length of the header.
fn dump(socket: &Socket, step: &str, kind: u16, fixed: usize) -> Result<Vec<Answer>> {
    let mut batch = Batch::default();
    batch.message(step, kind, DUMP, &vec![0; fixed]);
    socket.send(batch)
}

/// The address of four or sixteen bytes in network order.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn find_ip(attributes: &Attributes<'_>, kind: u16) -> Option<IpAddr> {
    attributes.find(kind).and_then(ip)
}

fn address(answer: &Answer) -> Option<(IpAddr, u8)> {
    let attributes = answer.attributes(8);
    let ip = find_ip(&attributes, libc::IFA_LOCAL)
        .or_else(|| find_ip(&attributes, libc::IFA_ADDRESS))?;
    Some((ip, *answer.body.get(1)?))
}

fn route(answer: &Answer) -> Option<(IpAddr, u8, Option<IpAddr>)> {
    let [family, prefix, _, _, table, _, _, kind] = *answer.body.first_chunk::<8>()?;
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    let attributes = answer.attributes(12);
    let any = match family {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let destination = find_ip(&attributes, libc::RTA_DST).unwrap_or(any);
    Some((destination, prefix, find_ip(&attributes, libc::RTA_GATEWAY)))
}

fn neighbour(answer: &Answer) -> Option<(IpAddr, Mac)> {
    let state = answer.body.get(8..).and_then(<[u8]>::first_chunk::<2>)?;
    if u16::from_ne_bytes(*state) & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let attributes = answer.attributes(12);
    let mac = attributes.find(libc::NDA_LLADDR)?.first_chunk::<6>()?;
    Some((find_ip(&attributes, libc::NDA_DST)?, Mac::from_octets(*mac)))
}
