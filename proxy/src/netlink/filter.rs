//! Programs as filters of a pod's host interface: put back where they are
//! missing, replaced in place where they are of another build.

use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use proxy_ebpf::record::filter::{HANDLE, PRIORITY};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use super::{Netlink, NetlinkError, failed};

/// A direction as the host interface sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the pod.
    Ingress,
    /// To the pod.
    Egress,
}

impl Side {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle {
            major: u16::MAX,
            minor,
        }
    }
}

/// A program and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    pub side: Side,
    pub name: &'static str,
    pub program: BorrowedFd<'a>,
    /// The program's, as the kernel numbers it.
    pub id: u32,
}

/// `ETH_P_ALL` in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();
const CLSACT: &str = "clsact";

impl Netlink {
    /// Makes sure that an interface has the filter. Whether it had to be added;
    /// one with another program has that replaced, and no packet misses it.
    pub async fn ensure_filter(
        &self,
        ifindex: u32,
        filter: &Filter<'_>,
    ) -> Result<bool, NetlinkError> {
        let there = self.filter_program(ifindex, filter.side).await?;
        if there == Some(filter.id) {
            return Ok(false);
        }
        if there.is_none() {
            let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex));
            self.tell(message, NLM_F_CREATE | NLM_F_REPLACE)
                .await
                .map_err(failed("add a clsact qdisc"))?;
        }
        let message = RouteNetlinkMessage::NewTrafficFilter(wanted(ifindex, filter));
        self.tell(message, NLM_F_CREATE)
            .await
            .map_err(failed("add a pod's filter"))?;
        Ok(there.is_none())
    }

    /// Removes our filters from every interface of this namespace, and the
    /// qdisc where nobody else's is on it. `<interface>-<program>` of each.
    pub async fn remove_filters(&self, names: &[&str]) -> Result<Vec<String>, NetlinkError> {
        let mut removed = Vec::new();
        for (interface, ifindex) in self.node().await?.interfaces {
            let mut others = false;
            let mut ours = Vec::new();
            for side in [Side::Ingress, Side::Egress] {
                for message in self.filters(ifindex, side).await? {
                    match options(&message).find_map(name) {
                        Some(name) if is_ours(&message) && names.contains(&name) => {
                            ours.push((format!("{interface}-{name}"), side));
                        }
                        // A list begins with the priority itself, under no handle.
                        _ => others |= message.header.handle != TcHandle::UNSPEC,
                    }
                }
            }
            for (name, side) in &ours {
                let message = RouteNetlinkMessage::DelTrafficFilter(place(ifindex, *side));
                self.tell(message, 0)
                    .await
                    .map_err(failed("remove a pod's filter"))?;
                removed.push(name.clone());
            }
            if !ours.is_empty() && !others {
                let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex));
                self.tell(message, 0)
                    .await
                    .map_err(failed("remove a clsact qdisc"))?;
            }
        }
        Ok(removed)
    }

    /// The id of the program that is our filter on a side.
    async fn filter_program(&self, ifindex: u32, side: Side) -> Result<Option<u32>, NetlinkError> {
        let found = self.filters(ifindex, side).await?;
        let ours = found.iter().find(|message| is_ours(message));
        Ok(ours.and_then(|message| {
            options(message).find_map(|option| match option {
                TcFilterBpfOption::ProgId(id) => Some(*id),
                _ => None,
            })
        }))
    }

    /// All filters of a side.
    async fn filters(&self, ifindex: u32, side: Side) -> Result<Vec<TcMessage>, NetlinkError> {
        let request = self.handle.traffic_filter(ifindex.cast_signed()).get();
        let request = match side {
            Side::Ingress => request.ingress(),
            Side::Egress => request.egress(),
        };
        let found = request.execute().try_collect().await;
        found.map_err(failed("list the filters of an interface"))
    }

    /// Sends a request that is only acknowledged.
    async fn tell(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

fn message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = message(ifindex);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message
}

/// Our filter of a side, without what it does.
fn place(ifindex: u32, side: Side) -> TcMessage {
    let mut message = message(ifindex);
    message.header.parent = side.parent();
    message.header.handle = HANDLE.into();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
    message
}

fn wanted(ifindex: u32, filter: &Filter<'_>) -> TcMessage {
    let mut message = place(ifindex, filter.side);
    let program = filter.program.as_raw_fd().cast_unsigned();
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(filter.name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    message
}

/// Whether a message is about what is in our place.
fn is_ours(message: &TcMessage) -> bool {
    let header = &message.header;
    header.handle == HANDLE.into() && header.info >> 16 == u32::from(PRIORITY)
}

/// What a message says of a BPF filter.
fn options(message: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    let options = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().filter_map(|option| match option {
        TcOption::Bpf(option) => Some(option),
        _ => None,
    })
}

fn name(option: &TcFilterBpfOption) -> Option<&str> {
    match option {
        TcFilterBpfOption::ProgName(name) => Some(name),
        _ => None,
    }
}
