//! Connected UDP sockets of a network namespace, and their end.
//!
//! Speaks `NETLINK_SOCK_DIAG`; layouts are those of the kernel's
//! include/uapi/linux (`inet_diag.h`, `sock_diag.h`). Sockets of other protocols
//! are neither seen nor touched. What programs keep with a socket is not told
//! here: of UDP the kernel leaves that out.

use std::io;

use proxy_ebpf::addr::{BePort, V4, V6};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use rtnetlink::sys::{Socket, SocketAddr, protocols};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Connected: the bit of `TCP_ESTABLISHED`, which UDP borrows.
const CONNECTED: u32 = 1 << 1;
/// `struct inet_diag_sockid`: ports and addresses of both ends, interface, cookie.
const ID_BYTES: usize = 48;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The number that is this socket's alone.
    pub cookie: u64,
    /// Where it sends to; IPv4 is mapped.
    pub peer: V6,
    pub port: BePort,
    family: u8,
    id: [u8; ID_BYTES],
}

/// The UDP sockets of one namespace. Calls block, for as long as the kernel works.
pub struct UdpSockets {
    socket: Socket,
}

impl std::fmt::Debug for UdpSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UdpSockets")
    }
}

impl UdpSockets {
    /// Those of the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(protocols::NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Gives each connected socket to `found`.
    pub fn connected(&self, mut found: impl FnMut(Connected)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).expect("families are small numbers");
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let request = request(BY_FAMILY, flags, family, &[0; ID_BYTES]);
            self.ask(&request, |answer| {
                if let Some(socket) = parse(answer) {
                    found(socket);
                }
            })?;
        }
        Ok(())
    }

    /// Ends a socket's connection: its owner reads `ECONNABORTED`, once, can send
    /// no more, and may connect again. Whether it was still there.
    pub fn destroy(&self, socket: &Connected) -> io::Result<bool> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        match self.ask(&request(DESTROY, flags, socket.family, &socket.id), |_| {}) {
            Ok(()) => Ok(true),
            // Closed since; or the number of another has come to stand for it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel can do both. Looks at all sockets of the namespace, ends none.
    pub fn probe(&self) -> io::Result<()> {
        self.connected(|_| {})?;
        let nobody = Connected {
            cookie: 0,
            peer: V6::default(),
            port: BePort::ZERO,
            family: u8::try_from(libc::AF_INET).expect("families are small numbers"),
            id: [0; ID_BYTES],
        };
        self.destroy(&nobody).map(drop)
    }

    /// Sends a request and takes the answers until the last.
    fn ask(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.socket.send(request, 0)?;
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &datagram[..];
            while let Some((kind, payload, after)) = message(rest) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return outcome(payload),
                    BY_FAMILY => each(payload),
                    _ => {}
                }
                rest = after;
            }
        }
    }
}

/// `struct nlmsghdr`, `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID_BYTES]) -> Vec<u8> {
    const PROTOCOL: u8 = proxy_ebpf::addr::proto::UDP;
    let mut body = vec![family, PROTOCOL, 0, 0];
    body.extend(CONNECTED.to_ne_bytes());
    body.extend(id);
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("some tens of bytes");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The first message of a datagram: its type, its payload, and what follows.
fn message(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
    let payload = datagram.get(HEADER_BYTES..length)?;
    let rest = datagram
        .get(length.next_multiple_of(4)..)
        .unwrap_or_default();
    Some((kind, payload, rest))
}

/// What the last message says: 0 or a negative error number.
fn outcome(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
    if code < 0 {
        return Err(io::Error::from_raw_os_error(-code));
    }
    Ok(())
}

/// `struct inet_diag_msg`, its first members: family, state, timer and
/// retransmits, then the id.
fn parse(answer: &[u8]) -> Option<Connected> {
    let (&[family, ..], rest) = answer.split_first_chunk::<4>()?;
    let id = rest.first_chunk::<ID_BYTES>()?;
    let port = u16::from_ne_bytes(*id.get(2..)?.first_chunk()?);
    let address = id.get(20..)?;
    let peer = if i32::from(family) == libc::AF_INET {
        V4::new(*address.first_chunk()?).mapped()
    } else {
        V6::new(*address.first_chunk()?)
    };
    let [low, high] = [id.get(40..)?, id.get(44..)?].map(|half| {
        let half = half.first_chunk().copied().unwrap_or_default();
        u64::from(u32::from_ne_bytes(half))
    });
    Some(Connected {
        cookie: high << 32 | low,
        peer,
        port: BePort::from_wire(port),
        family,
        id: *id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(family: i32, peer: &[u8]) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(family).unwrap(), 1, 0, 0];
        let mut id = [0; ID_BYTES];
        id[2..4].copy_from_slice(&53_u16.to_be_bytes());
        id[20..20 + peer.len()].copy_from_slice(peer);
        id[40..44].copy_from_slice(&7_u32.to_ne_bytes());
        id[44..48].copy_from_slice(&1_u32.to_ne_bytes());
        bytes.extend(id);
        bytes
    }

    #[test]
    fn a_socket_is_read_with_its_peer_and_cookie() {
        let socket = parse(&answer(libc::AF_INET, &[10, 0, 0, 9])).unwrap();
        assert_eq!(socket.peer, V4::new([10, 0, 0, 9]).mapped());
        assert_eq!((socket.port.host(), socket.cookie), (53, (1 << 32) + 7));
        let peer = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let socket = parse(&answer(libc::AF_INET6, &peer)).unwrap();
        assert_eq!(socket.peer, V6::new(peer));
    }

    #[test]
    fn a_cut_answer_is_none() {
        let whole = answer(libc::AF_INET, &[10, 0, 0, 9]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn messages_of_a_datagram_are_taken_one_by_one() {
        let first = request(BY_FAMILY, 0, 2, &[0; ID_BYTES]);
        let mut second = vec![20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        second.extend((-libc::EOPNOTSUPP).to_ne_bytes());
        let both = [first.clone(), second].concat();
        let (kind, payload, rest) = message(&both).unwrap();
        assert_eq!((kind, payload), (BY_FAMILY, &first[HEADER_BYTES..]));
        let (kind, payload, rest) = message(rest).unwrap();
        assert_eq!((kind, rest), (NLMSG_DONE, &[][..]));
        let error = outcome(payload).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(message(&both[..10]), None);
        outcome(&[0; 4]).unwrap();
    }
}
