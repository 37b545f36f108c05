//! Real sockets in pods: servers that say who they are, and clients that say
//! what they met.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};

use crate::namespace::Namespace;
use crate::packet::crc32c;

/// How long an allowed packet may take.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Source ports of SCTP clients: each probe has its own.
static SCTP_CLIENT: AtomicU16 = AtomicU16::new(0);

/// What a client met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// A server, which said its name.
    Server(String),
    /// RST or port unreachable.
    Refused,
    /// No way there: the network, not the server, said so.
    Unreachable,
    /// Nothing in time.
    Silence,
}

impl Met {
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
    /// As bare packets: the kernel need not know SCTP.
    Sctp,
}

/// Threads that serve inside a namespace until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves both families on each (transport, port), as `name`.
    pub fn start(namespace: &Namespace, name: &str, ports: &[(Transport, u16)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (transport, port) in ports.iter().copied() {
            let (stop, name) = (Arc::clone(&stop), name.to_owned());
            threads.push(match transport {
                Transport::Tcp => {
                    let listener = namespace.enter(|| TcpListener::bind(("::", port)).unwrap());
                    std::thread::spawn(move || serve_tcp(&listener, &name, &stop))
                }
                Transport::Udp => {
                    let socket = namespace.enter(|| UdpSocket::bind(("::", port)).unwrap());
                    std::thread::spawn(move || serve_udp(&socket, &name, &stop))
                }
                Transport::Sctp => {
                    let sockets = namespace
                        .enter(|| [AddressFamily::INET, AddressFamily::INET6].map(raw_sctp));
                    std::thread::spawn(move || serve_sctp(&sockets, port, &name, &stop))
                }
            });
        }
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that panicked has said so.
            drop(thread.join());
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => drop(stream.write_all(name.as_bytes())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(name.as_bytes(), from));
        }
    }
}

fn raw_sctp(family: AddressFamily) -> rustix::fd::OwnedFd {
    let socket = rustix::net::socket(family, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(LOOK),
    )
    .unwrap();
    socket
}

/// An SCTP common header with a chunk that holds `text`.
fn sctp_packet(sport: u16, dport: u16, text: &str) -> Vec<u8> {
    let mut payload = vec![0, 0];
    payload.extend(u16::try_from(4 + text.len()).expect("short").to_be_bytes());
    payload.extend(text.as_bytes());
    let mut bytes = Vec::new();
    bytes.extend(sport.to_be_bytes());
    bytes.extend(dport.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    let crc = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&crc);
    bytes
}

/// Ports and text of a received SCTP packet; a raw IPv4 socket gives the IP header too.
fn read_sctp(v6: bool, bytes: &[u8]) -> Option<(u16, u16, String)> {
    let start = if v6 {
        0
    } else {
        usize::from(bytes.first()? & 15) * 4
    };
    let segment = bytes.get(start..)?;
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *segment.get(at)?,
            *segment.get(at + 1)?,
        ]))
    };
    let text = String::from_utf8_lossy(segment.get(16..)?).into_owned();
    Some((port(0)?, port(2)?, text))
}

fn serve_sctp(sockets: &[rustix::fd::OwnedFd; 2], port: u16, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        for (v6, socket) in [(false, &sockets[0]), (true, &sockets[1])] {
            let flags = RecvFlags::DONTWAIT;
            let Ok((length, _, Some(from))) = rustix::net::recvfrom(socket, &mut buffer[..], flags)
            else {
                continue;
            };
            let Some((sport, dport, text)) = read_sctp(v6, &buffer[..length]) else {
                continue;
            };
            if dport == port && text == "who" {
                let answer = sctp_packet(port, sport, name);
                let _sent = rustix::net::sendto(socket, &answer, SendFlags::empty(), &from);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asks the server at `address` who it is, from inside `namespace`.
pub fn probe(namespace: &Namespace, transport: Transport, address: SocketAddr) -> Met {
    let result = namespace.enter(|| match transport {
        Transport::Tcp => probe_tcp(address),
        Transport::Udp => probe_udp(address),
        Transport::Sctp => probe_sctp(address),
    });
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Met::Refused,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => Met::Unreachable,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Met::Silence,
        _ => panic!("{transport:?} to {address}: {error}"),
    })
}

fn probe_tcp(address: SocketAddr) -> std::io::Result<Met> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(Met::Server(name))
}

fn any(v6: bool) -> IpAddr {
    if v6 {
        "::".parse().unwrap()
    } else {
        "0.0.0.0".parse().unwrap()
    }
}

fn probe_udp(address: SocketAddr) -> std::io::Result<Met> {
    let socket = UdpSocket::bind((any(address.is_ipv6()), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(b"who")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(Met::Server(
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
    ))
}

fn probe_sctp(address: SocketAddr) -> std::io::Result<Met> {
    let v6 = address.is_ipv6();
    let family = if v6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = raw_sctp(family);
    let sport = SCTP_CLIENT.fetch_add(1, Ordering::Relaxed) | 0x8000;
    let packet = sctp_packet(sport, address.port(), "who");
    let to = SocketAddr::new(address.ip(), 0);
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to)?;
    let mut buffer = [0; 2048];
    let end = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < end {
        let flags = RecvFlags::empty();
        let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], flags) else {
            continue;
        };
        let answer = read_sctp(v6, &buffer[..length]);
        if let Some((from, to, name)) = answer
            && (from, to) == (address.port(), sport)
        {
            return Ok(Met::Server(name));
        }
    }
    Ok(Met::Silence)
}
