//! Route netlink (RFC 3549): messages are written one after the other into a
//! batch, sent at once and answered at once. All numbers are in host order.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER: usize = 16;
/// The kernel's answers to one receive are at most this long.
const RECEIVE_BYTES: usize = 32_768;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;
pub(super) const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;
const DONE: u16 = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    #[error("cannot {step}")]
    Refused {
        step: String,
        #[source]
        errno: Errno,
    },
    #[error("netlink socket: cannot {action}")]
    Socket {
        action: &'static str,
        #[source]
        errno: Errno,
    },
    #[error("the kernel's answer is malformed")]
    Malformed,
}

impl NetlinkError {
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Socket { errno, .. } => Some(*errno),
            Self::Malformed => None,
        }
    }
}

/// Requests to be sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the message being written begins.
    start: usize,
    steps: Vec<String>,
}

impl Batch {
    /// Begins a message with its fixed header `fixed`; `step` completes
    /// "cannot ..." in an error.
    pub(super) fn message(
        &mut self,
        step: impl Into<String>,
        kind: u16,
        flags: u16,
        fixed: &[u8],
    ) -> &mut Self {
        self.finish(0);
        self.start = self.bytes.len();
        self.steps.push(step.into());
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(number(self.steps.len()).to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        self
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes are names and addresses");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a text with its final zero.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds an attribute that holds `fixed` and then the attributes that `fill` adds.
    pub(super) fn nest(
        &mut self,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Self),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        self.bytes.extend(fixed);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a few attributes");
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// Fills in the length of the last message and adds `flags` to it.
    fn finish(&mut self, flags: u16) {
        let length = number(self.bytes.len() - self.start);
        let Some(header) = self.bytes.get_mut(self.start..self.start + HEADER) else {
            return;
        };
        let (head, rest) = header.split_at_mut(4);
        head.copy_from_slice(&length.to_ne_bytes());
        if let [_, _, low, high, ..] = rest {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | flags).to_ne_bytes();
        }
    }
}

fn number(length: usize) -> u32 {
    u32::try_from(length).expect("batches are a few kilobytes")
}

/// A message from the kernel, without its netlink header.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The attributes after a fixed header of `fixed` bytes.
    pub(super) fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.body.get(fixed..).unwrap_or_default())
    }

    /// Four bytes of the fixed header.
    pub(super) fn word(&self, offset: usize) -> u32 {
        let bytes = self.body.get(offset..).and_then(<[u8]>::first_chunk::<4>);
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

/// Attributes in order; ends at the first malformed one.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone()
            .find_map(|(other, value)| (other == kind).then_some(value))
    }

    pub(super) fn find_text(&self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.find(kind)?.strip_suffix(&[0])?).ok()
    }

    pub(super) fn find_u32(&self, kind: u16) -> Option<u32> {
        self.find(kind)?
            .first_chunk::<4>()
            .map(|bytes| u32::from_ne_bytes(*bytes))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.0.split_first_chunk::<4>()?;
        let [a, b, c, d] = *header;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    }
}

/// A socket to the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let failed = |action| move |errno| NetlinkError::Socket { action, errno };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )
        .map_err(failed("open"))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed("bind"))?;
        Ok(Self(socket))
    }

    /// Sends all and returns what the kernel answers, acknowledgements left
    /// out. The first refusal is the error; later messages were still carried out.
    pub(super) fn send(&self, mut batch: Batch) -> Result<Vec<Answer>, NetlinkError> {
        let last = number(batch.steps.len());
        batch.finish(ACK);
        let failed = |action| move |errno| NetlinkError::Socket { action, errno };
        rustix::net::send(&self.0, &batch.bytes, SendFlags::empty()).map_err(failed("send"))?;
        let mut answers = Vec::new();
        let mut refusal = None;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())
                .map_err(failed("receive"))?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (kind, sequence, body, after) = split(rest).ok_or(NetlinkError::Malformed)?;
                rest = after;
                if kind != ERROR && kind != DONE {
                    let body = body.to_vec();
                    answers.push(Answer { kind, body });
                    continue;
                }
                let code = body.first_chunk::<4>().ok_or(NetlinkError::Malformed)?;
                let code = i32::from_ne_bytes(*code);
                if code != 0 && refusal.is_none() {
                    let step = usize::try_from(sequence)
                        .ok()
                        .and_then(|n| n.checked_sub(1));
                    let step = step.and_then(|n| batch.steps.get(n)).cloned();
                    refusal = Some(NetlinkError::Refused {
                        step: step.unwrap_or_default(),
                        errno: Errno::from_raw_os_error(code.saturating_neg()),
                    });
                }
                if sequence == last {
                    return refusal.map_or(Ok(answers), Err);
                }
            }
        }
    }
}

/// Type, sequence number and body of the first message, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    let (_flags, rest) = rest.split_first_chunk::<2>()?;
    let (sequence, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((
        u16::from_ne_bytes(*kind),
        u32::from_ne_bytes(*sequence),
        body,
        after,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut batch = Batch::default();
        batch
            .message("test", 16, 0, &[7; 4])
            .put_text(3, "eth0")
            .nest(18, &[], |batch| {
                batch.put_u32(1, 99);
            });
        batch.finish(ACK);
        batch.bytes
    }

    #[test]
    fn nested_attributes_are_read_back() {
        let bytes = written();
        let (kind, sequence, body, after) = split(&bytes).unwrap();
        assert_eq!((kind, sequence, after.len()), (16, 1, 0));
        let body = body.to_vec();
        let answer = Answer { kind, body };
        assert_eq!(answer.word(0), 0x0707_0707);
        let attributes = answer.attributes(4);
        assert_eq!(attributes.find(3), Some(b"eth0\0".as_slice()));
        assert_eq!(
            Attributes(attributes.find(18).unwrap()).find_u32(1),
            Some(99)
        );
    }

    #[test]
    fn cut_messages_do_not_panic() {
        let bytes = written();
        for length in 0..bytes.len() {
            assert!(split(&bytes[..length]).is_none());
            assert!(Attributes(&bytes[..length]).count() <= length);
        }
        assert_eq!(Attributes(&[0; 64]).count(), 0);
    }
}
