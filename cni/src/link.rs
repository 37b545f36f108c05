//! Links, addresses, routes, neighbours and qdiscs: what is said over netlink.
//! Nothing else in this crate speaks it.
//!
//! ```text
//! node  fl…   no address; host routes to the pod's addresses, a permanent
//!             neighbour entry for each
//! pod   eth0  /32 and /128; default routes over the link-local gateway, which
//!             a permanent neighbour entry resolves to the host side's address
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use proxy_ebpf::addr::{Addr, V4, V6};
use rustix::io::Errno;

use crate::config::Shape;
use crate::mac::Mac;
use crate::netns::NetNs;

mod filter;
mod netlink;
mod seen;

pub(crate) use filter::{filter, is_filtered};
use netlink::{Answer, Batch, CREATE, EXCLUSIVE, REPLACE};
pub(crate) use netlink::{NetlinkError, Socket};
pub(crate) use seen::{Seen, look};

type Result<T> = std::result::Result<T, NetlinkError>;

/// What a veth pair can have.
const MTU_MAX: u32 = 65_535;
/// Ethernet's, where no uplink is found.
const MTU_DEFAULT: u32 = 1500;
const IFINFO_BYTES: usize = 16;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `VETH_INFO_PEER` of linux/veth.h.
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE` and its value "none" of `linux/if_link.h`.
const ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
const IFF_UP: u32 = 1;
/// The number of every namespace's loopback interface.
const LOOPBACK: u32 = 1;
/// `IF_OPER_UP` of `linux/if.h`.
const OPER_UP: u8 = 6;
/// `RTNH_F_ONLINK` of linux/rtnetlink.h: the gateway is on the link, whatever the addresses say.
const ON_LINK: u32 = 4;

/// A veth pair to be made.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) host_ifname: &'a str,
    pub(crate) pod_ifname: &'a str,
    pub(crate) netns: &'a NetNs,
    pub(crate) host_mac: Mac,
    pub(crate) pod_mac: Mac,
    pub(crate) mtu: u32,
}

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    /// The other side's index in its own namespace, for a veth.
    pub(crate) peer: u32,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// It carries packets: both sides are up and the kernel has taken note.
    pub(crate) carries: bool,
}

impl Link {
    fn read(answer: &Answer) -> Option<Self> {
        if answer.kind != libc::RTM_NEWLINK {
            return None;
        }
        let attributes = answer.attributes(IFINFO_BYTES);
        let mac = attributes
            .find(libc::IFLA_ADDRESS)
            .and_then(<[u8]>::first_chunk::<6>);
        Some(Self {
            name: attributes
                .find_text(libc::IFLA_IFNAME)
                .unwrap_or_default()
                .to_owned(),
            ifindex: answer.word(4),
            peer: attributes.find_u32(libc::IFLA_LINK).unwrap_or_default(),
            mac: mac.map(|octets| Mac::from_octets(*octets)),
            mtu: attributes.find_u32(libc::IFLA_MTU).unwrap_or_default(),
            up: answer.word(8) & IFF_UP != 0,
            carries: attributes.find(libc::IFLA_OPERSTATE) == Some(&[OPER_UP]),
        })
    }
}

/// `struct ifinfomsg`.
fn ifinfo(ifindex: u32, flags: u32) -> [u8; IFINFO_BYTES] {
    let mut bytes = [0; IFINFO_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip([0, ifindex, flags, flags]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The gateway that every pod has, of the family of `ip`.
pub(crate) fn gateway(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::from(V4::GATEWAY.octets()).into(),
        IpAddr::V6(_) => Ipv6Addr::from(V6::GATEWAY.octets()).into(),
    }
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv6() { AF_INET6 } else { AF_INET }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Bits of a whole address.
pub(crate) fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv6() { 128 } else { 32 }
}

/// Makes the pair, both sides down, the pod's in its own namespace from the
/// beginning. `EEXIST`: one of the names is taken.
pub(crate) fn create(socket: &Socket, pair: &Pair<'_>) -> Result<Link> {
    let mut batch = Batch::default();
    let step = format!(
        "make the veth pair {} - {}",
        pair.host_ifname, pair.pod_ifname
    );
    batch
        .message(step, libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &ifinfo(0, 0))
        .put_text(libc::IFLA_IFNAME, pair.host_ifname)
        .put(libc::IFLA_ADDRESS, &pair.host_mac.octets())
        .put_u32(libc::IFLA_MTU, pair.mtu)
        .nest(libc::IFLA_LINKINFO, &[], |info| {
            info.put_text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, &[], |data| {
                data.nest(VETH_INFO_PEER, &ifinfo(0, 0), |peer| {
                    peer.put_text(libc::IFLA_IFNAME, pair.pod_ifname)
                        .put(libc::IFLA_ADDRESS, &pair.pod_mac.octets())
                        .put_u32(libc::IFLA_MTU, pair.mtu)
                        .put(
                            libc::IFLA_NET_NS_FD,
                            &pair.netns.fd().as_raw_fd().to_ne_bytes(),
                        );
                });
            });
        });
    ask_link(&mut batch, pair.host_ifname);
    let answers = socket.send(batch)?;
    answers
        .iter()
        .find_map(Link::read)
        .ok_or(NetlinkError::Malformed)
}

fn ask_link(batch: &mut Batch, name: &str) {
    batch
        .message(format!("find {name}"), libc::RTM_GETLINK, 0, &ifinfo(0, 0))
        .put_text(libc::IFLA_IFNAME, name);
}

/// The link of that name, if there is one.
pub(crate) fn find(socket: &Socket, name: &str) -> Result<Option<Link>> {
    let mut batch = Batch::default();
    ask_link(&mut batch, name);
    match socket.send(batch) {
        Ok(answers) => Ok(answers.iter().find_map(Link::read)),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The link of that number, if there is one.
fn find_index(socket: &Socket, ifindex: u32) -> Result<Option<Link>> {
    let mut batch = Batch::default();
    batch.message("ask for a link", libc::RTM_GETLINK, 0, &ifinfo(ifindex, 0));
    match socket.send(batch) {
        Ok(answers) => Ok(answers.iter().find_map(Link::read)),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until packets pass both ways. What the kernel does in the background,
/// within microseconds: it takes note that the host side, which went up first,
/// has a carrier, and enters the pod's IPv6 addresses in its routing table.
/// Packets before that are lost. Gives up silently: it comes, only later.
pub(crate) fn settle(host: &Socket, name: &str, pod: &Socket, ips: &[IpAddr]) -> Result<()> {
    const STEP: Duration = Duration::from_micros(50);
    const STEPS: u32 = 2000;
    for _ in 0..STEPS {
        let carries = find(host, name)?.is_none_or(|link| link.carries);
        if carries && ips.iter().all(|ip| is_local(pod, *ip)) {
            break;
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Whether packets to `ip` are for this namespace.
fn is_local(socket: &Socket, ip: IpAddr) -> bool {
    ask_route(socket, ip).is_ok_and(|answers| {
        answers
            .iter()
            .any(|answer| answer.body.get(7) == Some(&libc::RTN_LOCAL))
    })
}

/// The route to `ip`. Asks the routing table, sends nothing.
fn ask_route(socket: &Socket, ip: IpAddr) -> Result<Vec<Answer>> {
    let mut fixed = [0; 12];
    fixed[0] = family(ip);
    fixed[1] = whole(ip);
    let mut batch = Batch::default();
    batch
        .message("ask for a route", libc::RTM_GETROUTE, 0, &fixed)
        .put(libc::RTA_DST, &octets(ip));
    socket.send(batch)
}

/// Removes a link and with it its other side, routes, neighbours and attached
/// programs. `false`: there is none.
pub(crate) fn delete(socket: &Socket, name: &str) -> Result<bool> {
    let mut batch = Batch::default();
    batch
        .message(
            format!("remove {name}"),
            libc::RTM_DELLINK,
            0,
            &ifinfo(0, 0),
        )
        .put_text(libc::IFLA_IFNAME, name);
    match socket.send(batch) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The MTU of the interface that the default route goes through; Ethernet's
/// where there is none. The destinations are documentation addresses.
pub(crate) fn uplink_mtu(socket: &Socket) -> Result<u32> {
    let destinations = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    for ip in destinations {
        let Ok(answers) = ask_route(socket, ip) else {
            continue;
        };
        let uplink = answers
            .iter()
            .find_map(|a| a.attributes(12).find_u32(libc::RTA_OIF));
        let Some(uplink) = uplink else {
            continue;
        };
        // The loopback interface's, where the destination happens to be the node's own
        // address, is more than a veth pair can have.
        let link = find_index(socket, uplink)?;
        if let Some(link) = link.filter(|link| link.mtu <= MTU_MAX) {
            return Ok(link.mtu);
        }
    }
    Ok(MTU_DEFAULT)
}

/// Brings the host side up, with a host route and a permanent neighbour entry
/// per address of the pod; `shape` limits what goes to the pod.
pub(crate) fn connect_host(
    socket: &Socket,
    ifindex: u32,
    ips: &[IpAddr],
    pod_mac: Mac,
    shape: Option<Shape>,
) -> Result<()> {
    let mut batch = Batch::default();
    batch
        .message(
            "turn IPv6 address generation off",
            libc::RTM_SETLINK,
            0,
            &ifinfo(ifindex, 0),
        )
        .nest(libc::IFLA_AF_SPEC, &[], |spec| {
            spec.nest(u16::from(AF_INET6), &[], |inet6| {
                inet6.put(ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
            });
        });
    if let Some(shape) = shape {
        limit(&mut batch, ifindex, shape);
    }
    up(&mut batch, ifindex);
    for ip in ips {
        neighbour(&mut batch, ifindex, *ip, pod_mac);
        let step = format!("route {ip} to the pod");
        let scope = if ip.is_ipv6() {
            libc::RT_SCOPE_UNIVERSE
        } else {
            libc::RT_SCOPE_LINK
        };
        batch
            .message(
                step,
                libc::RTM_NEWROUTE,
                CREATE | REPLACE,
                &route(*ip, whole(*ip), scope, 0),
            )
            .put(libc::RTA_DST, &octets(*ip))
            .put_u32(libc::RTA_OIF, ifindex);
    }
    socket.send(batch).map(drop)
}

/// Brings the pod's side up, with its addresses and default routes, and the
/// pod's loopback interface, which some runtimes leave down. `socket` is one to
/// the pod's namespace; `shape` limits what leaves the pod.
pub(crate) fn connect_pod(
    socket: &Socket,
    ifindex: u32,
    ips: &[IpAddr],
    host_mac: Mac,
    shape: Option<Shape>,
) -> Result<()> {
    let mut batch = Batch::default();
    if let Some(shape) = shape {
        limit(&mut batch, ifindex, shape);
    }
    up(&mut batch, LOOPBACK);
    up(&mut batch, ifindex);
    for ip in ips {
        let mut fixed = [0; 8];
        let head = [family(*ip), whole(*ip), 0, libc::RT_SCOPE_UNIVERSE];
        let (left, right) = fixed.split_at_mut(4);
        left.copy_from_slice(&head);
        right.copy_from_slice(&ifindex.to_ne_bytes());
        batch
            .message(
                format!("add the address {ip}"),
                libc::RTM_NEWADDR,
                CREATE | EXCLUSIVE,
                &fixed,
            )
            .put(libc::IFA_LOCAL, &octets(*ip))
            .put(libc::IFA_ADDRESS, &octets(*ip))
            .put_u32(libc::IFA_FLAGS, libc::IFA_F_PERMANENT | libc::IFA_F_NODAD);
        let gateway = gateway(*ip);
        neighbour(&mut batch, ifindex, gateway, host_mac);
        let fixed = route(*ip, 0, libc::RT_SCOPE_UNIVERSE, ON_LINK);
        batch
            .message(
                format!("add the default route by {gateway}"),
                libc::RTM_NEWROUTE,
                CREATE | EXCLUSIVE,
                &fixed,
            )
            .put(libc::RTA_GATEWAY, &octets(gateway))
            .put_u32(libc::RTA_OIF, ifindex);
    }
    socket.send(batch).map(drop)
}

fn up(batch: &mut Batch, ifindex: u32) {
    batch.message(
        "bring the interface up",
        libc::RTM_SETLINK,
        0,
        &ifinfo(ifindex, IFF_UP),
    );
}

fn neighbour(batch: &mut Batch, ifindex: u32, ip: IpAddr, mac: Mac) {
    // struct ndmsg
    let mut fixed = vec![family(ip), 0, 0, 0];
    fixed.extend(ifindex.to_ne_bytes());
    fixed.extend(libc::NUD_PERMANENT.to_ne_bytes());
    fixed.extend([0, 0]);
    batch
        .message(
            format!("add the neighbour {ip}"),
            libc::RTM_NEWNEIGH,
            CREATE | REPLACE,
            &fixed,
        )
        .put(libc::NDA_DST, &octets(ip))
        .put(libc::NDA_LLADDR, &mac.octets());
}

/// `struct rtmsg` of a unicast route in the main table.
fn route(ip: IpAddr, prefix: u8, scope: u8, flags: u32) -> Vec<u8> {
    let mut fixed = vec![
        family(ip),
        prefix,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        scope,
        libc::RTN_UNICAST,
    ];
    fixed.extend(flags.to_ne_bytes());
    fixed
}

/// A token bucket (tbf) as the root qdisc: packets wait up to 25 ms for their
/// turn, then they are dropped.
fn limit(batch: &mut Batch, ifindex: u32, shape: Shape) {
    const LATENCY_MS: u64 = 25;
    const ROOT: u32 = u32::MAX;
    const HANDLE: u32 = 0x0001_0000;
    /// `TC_LINKLAYER_ETHERNET`: rates are exact, no table is needed.
    const ETHERNET: u8 = 1;
    const TBF_PARMS: u16 = 1;
    const TBF_RATE64: u16 = 4;
    const TBF_BURST: u16 = 6;
    let queue = shape.bytes_per_second.saturating_mul(LATENCY_MS) / 1000;
    let limit = queue.saturating_add(u64::from(shape.burst_bytes));
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let rate = u32::try_from(shape.bytes_per_second).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: rate, peak rate (none), limit, buffer and mtu (given by TBF_BURST).
    let mut options = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    options.extend(rate.to_ne_bytes());
    options.extend([0; 12]);
    options.extend(limit.to_ne_bytes());
    options.extend([0; 8]);
    // struct tcmsg
    let mut fixed = Vec::new();
    for word in [0, ifindex, HANDLE, ROOT, 0] {
        fixed.extend(word.to_ne_bytes());
    }
    batch
        .message(
            "limit the bandwidth",
            libc::RTM_NEWQDISC,
            CREATE | REPLACE,
            &fixed,
        )
        .put_text(libc::TCA_KIND, "tbf")
        .nest(libc::TCA_OPTIONS, &[], |tbf| {
            tbf.put(TBF_PARMS, &options)
                .put_u32(TBF_BURST, shape.burst_bytes);
            if shape.bytes_per_second > u64::from(u32::MAX) {
                tbf.put(TBF_RATE64, &shape.bytes_per_second.to_ne_bytes());
            }
        });
}
