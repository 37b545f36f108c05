//! Netlink: this node's own addresses, and routes, neighbours, filters and
//! sockets of its pods.
//!
//! The only place in the daemon that speaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use netlink_packet_route::{AddressFamily, link::LinkFlags};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;

mod filter;
pub mod udp;

pub use filter::{Filter, Side};

#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    #[error("netlink: cannot {what}")]
    Request {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Request { what, source }
}

/// Requests; answers come through a task of their own.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

/// What the node's network stack says of its own addresses and interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Without loopback and link-local ones.
    pub addresses: BTreeSet<IpAddr>,
    /// Interface name -> index.
    pub interfaces: BTreeMap<String, u32>,
}

/// A pod's way through the host's stack: one route and one permanent neighbour
/// per address, on the host side of its veth pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPath {
    pub address: IpAddr,
    pub ifindex: u32,
    pub mac: [u8; 6],
}

impl Netlink {
    /// Must be called within a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub async fn node(&self) -> Result<Node, NetlinkError> {
        let mut node = Node::default();
        let mut loopback = BTreeSet::new();
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list interfaces"))?;
        for link in links {
            if link.header.flags.contains(LinkFlags::Loopback) {
                loopback.insert(link.header.index);
            }
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    node.interfaces.insert(name, link.header.index);
                }
            }
        }
        let addresses: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        for message in addresses {
            if loopback.contains(&message.header.index) {
                continue;
            }
            // On point-to-point interfaces `Address` is the peer's.
            let (mut own, mut other) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => own = Some(address),
                    AddressAttribute::Address(address) => other = Some(address),
                    _ => {}
                }
            }
            node.addresses
                .extend(own.or(other).filter(|address| !is_link_local(*address)));
        }
        Ok(node)
    }

    /// The paths that exist, of those that look like a pod's.
    pub async fn pod_paths(&self) -> Result<BTreeSet<PodPath>, NetlinkError> {
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let found: Vec<_> = self
                .handle
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await
                .map_err(failed("list routes"))?;
            routes.extend(found.iter().filter_map(host_route));
        }
        let neighbours: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list neighbours"))?;
        Ok(neighbours
            .iter()
            .filter_map(permanent_neighbour)
            .filter(|path| routes.contains(&(path.address, path.ifindex)))
            .collect())
    }

    /// Makes or replaces a pod's route and neighbour.
    pub async fn add_pod_path(&self, path: &PodPath) -> Result<(), NetlinkError> {
        let route = match path.address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .output_interface(path.ifindex)
                .scope(RouteScope::Link)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .output_interface(path.ifindex)
                .build(),
        };
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(failed("add a pod's route"))?;
        self.handle
            .neighbours()
            .add(path.ifindex, path.address)
            .link_layer_address(&path.mac)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(failed("add a pod's neighbour entry"))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A route to one address through one interface, in the main table.
fn host_route(message: &RouteMessage) -> Option<(IpAddr, u32)> {
    if !matches!(message.header.destination_prefix_length, 32 | 128) {
        return None;
    }
    let (mut address, mut ifindex) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some((*v4).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some((*v6).into()),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            // Through a gateway: not a pod of ours.
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    Some((address?, ifindex?))
}

fn permanent_neighbour(message: &NeighbourMessage) -> Option<PodPath> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some((*v4).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some((*v6).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(PodPath {
        address: address?,
        ifindex: message.header.ifindex,
        mac: mac?,
    })
}

/// Tells that interfaces, addresses, routes, neighbours or filters changed.
pub struct Monitor {
    socket: TokioSocket,
}

/// What has changed, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Somebody took a filter or a qdisc away.
    Unfiltered,
    /// Anything else.
    Other,
}

impl Changed {
    /// `message`: one of the kernel, its type at byte 4 (`struct nlmsghdr`).
    fn of(message: &[u8]) -> Self {
        let kind = message.get(4..).and_then(<[u8]>::first_chunk::<2>);
        match kind.map(|kind| u16::from_ne_bytes(*kind)) {
            Some(libc::RTM_DELQDISC | libc::RTM_DELTFILTER) => Self::Unfiltered,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Monitor")
    }
}

impl Monitor {
    /// Must be called within a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Tc,
        ]
        .into_iter()
        .fold(0, |mask, group| mask | 1 << (group as u32 - 1));
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, groups))
            .map_err(NetlinkError::Open)?;
        Ok(Self { socket })
    }

    /// Waits for a change. An overflow of the socket's buffer is one of
    /// everything.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        match self.socket.recv_from_full().await {
            Ok((message, _)) => Ok(Changed::of(&message)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Changed::Unfiltered),
            Err(error) => Err(error),
        }
    }
}
