//! The accept loop over real sockets on loopback: identities, renewal, floods, shutdown.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::WallClock;
use super::authority::{Authority, Issued, LEAF_LIFE, Leaf, api_server_names};
use super::listen::{Counters, Endpoint, Limits, serve};
use super::peer::{ClientVerifier, Peer, PeerCertificate};
use super::rotate::Rotating;

struct Server {
    address: SocketAddr,
    authority: Arc<Authority>,
    certificate: Arc<Rotating>,
    counters: Arc<Counters>,
    /// Seconds that the wall clock is ahead of the real one.
    ahead: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Answers with what the connection knows about the peer.
async fn answer(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let peer = request
        .extensions()
        .get::<Peer>()
        .expect("every request carries its peer");
    let text = match &peer.certificate {
        PeerCertificate::Absent => "absent".to_owned(),
        PeerCertificate::Rejected(why) => format!("rejected: {why}"),
        PeerCertificate::Verified(id) => {
            format!("{} {}", id.common_name, id.organizations.join(","))
        }
    };
    Ok(Response::new(text))
}

async fn start(limits: Limits) -> Server {
    start_at(limits, Duration::ZERO).await
}

/// A server whose clock begins `behind` the real one.
async fn start_at(limits: Limits, behind: Duration) -> Server {
    let ahead = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&ahead);
    let clock: WallClock = Arc::new(move || {
        SystemTime::now() - behind + Duration::from_secs(seen.load(Ordering::SeqCst))
    });
    let authority = Arc::new(Authority::generate(clock()).unwrap());
    let leaf = Leaf::Server {
        common_name: "kube-apiserver".into(),
        organizations: vec![],
        names: api_server_names("cluster.local"),
        addresses: vec![[127, 0, 0, 1].into()],
    };
    let certificate = Rotating::new(Arc::clone(&authority), leaf, Arc::clone(&clock)).unwrap();
    let verifier = ClientVerifier::new(authority.certificate().clone()).unwrap();
    let endpoint = Endpoint::new(Arc::clone(&certificate), verifier, clock, limits).unwrap();
    let counters = endpoint.counters();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(endpoint, listener, service_fn(answer), async {
        drop(stopped.await);
    }));
    Server {
        address,
        authority,
        certificate,
        counters,
        ahead,
        stop: Some(stop),
        task,
    }
}

fn client(authority: &Authority, life: Duration) -> Issued {
    let leaf = Leaf::Client {
        common_name: "system:node:one".into(),
        organizations: vec!["system:nodes".into()],
    };
    authority.issue(&leaf, SystemTime::now(), life).unwrap()
}

async fn connect(server: &Server, identity: Option<Issued>) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(server.authority.certificate().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some(id) => config
            .with_client_auth_cert(vec![id.certificate], id.key)
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("kubernetes.default.svc").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

async fn exchange(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    // A cut connection ends the reply as an orderly end does; the text is what is judged.
    drop(stream.read_to_end(&mut reply).await);
    String::from_utf8_lossy(&reply).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn requests_carry_who_is_at_the_other_end() {
    let server = start(Limits::default()).await;
    let foreign = Authority::generate(SystemTime::now()).unwrap();
    let cases = [
        (None, "absent"),
        (
            Some(client(&server.authority, LEAF_LIFE)),
            "system:node:one system:nodes",
        ),
        (Some(client(&foreign, LEAF_LIFE)), "rejected: "),
    ];
    for (identity, expected) in cases {
        let mut stream = connect(&server, identity).await;
        let reply = exchange(&mut stream, GET).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        assert!(reply.contains(expected), "{expected}: {reply}");
    }
}

#[tokio::test]
async fn an_expired_or_a_server_certificate_identifies_nobody() {
    let server = start(Limits::default()).await;
    let soon = client(&server.authority, Duration::from_mins(1));
    server.ahead.store(3600, Ordering::SeqCst);
    let reply = exchange(&mut connect(&server, Some(soon)).await, GET).await;
    assert!(reply.contains("rejected: "), "{reply}");

    let leaf = Leaf::Server {
        common_name: "system:admin".into(),
        organizations: vec!["system:masters".into()],
        names: vec!["node".into()],
        addresses: vec![],
    };
    let serving = server
        .authority
        .issue(&leaf, SystemTime::now(), LEAF_LIFE)
        .unwrap();
    let reply = exchange(&mut connect(&server, Some(serving)).await, GET).await;
    assert!(
        reply.contains("rejected: "),
        "a serving certificate logs nobody in: {reply}"
    );
}

#[tokio::test]
async fn renewal_shows_on_new_connections_and_leaves_open_ones_alone() {
    let server = start_at(Limits::default(), Duration::from_hours(61 * 24)).await;
    let shown = |stream: &TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    };
    let mut old = connect(&server, None).await;
    server.ahead.store(61 * 24 * 3600, Ordering::SeqCst);
    assert!(server.certificate.renew_if_due().unwrap());
    let issued = server
        .certificate
        .with_current(|issued| issued.certificate.clone());
    assert_ne!(shown(&old), issued);
    assert_eq!(shown(&connect(&server, None).await), issued);
    let reply = exchange(&mut old, GET).await;
    assert!(reply.contains("absent"), "{reply}");
}

#[tokio::test]
async fn one_address_cannot_open_more_than_its_share() {
    let limits = Limits {
        connections_per_address_max: 3,
        ..Limits::default()
    };
    let server = start(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(&server, None).await);
    }
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let mut byte = [0];
    assert_eq!(
        refused.read(&mut byte).await.unwrap_or(0),
        0,
        "closed at once"
    );
    assert_eq!(server.counters.refused.get(), 1);
    assert_eq!(server.counters.open.get(), 3);
    let reply = exchange(&mut held[0], GET).await;
    assert!(reply.contains("absent"), "open ones go on: {reply}");
    drop(held);
    let counters = Arc::clone(&server.counters);
    eventually("places come back", || counters.open.get() == 0).await;
    connect(&server, None).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_let_go() {
    let limits = Limits {
        handshake_max: Duration::from_millis(200),
        header_read_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = start(limits).await;
    let counters = Arc::clone(&server.counters);
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0, "no handshake");
    eventually("it is counted", || counters.handshakes_failed.get() == 1).await;

    let mut idle = connect(&server, None).await;
    assert_eq!(
        idle.read(&mut [0]).await.unwrap_or(0),
        0,
        "a handshake and nothing else"
    );

    let mut slow = connect(&server, None).await;
    let reply = exchange(&mut slow, "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    assert!(!reply.contains("200 OK"), "half a header block: {reply}");
    eventually("all places come back", || counters.open.get() == 0).await;
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_431() {
    let server = start(Limits::default()).await;
    let many = "x-many: y\r\n".repeat(200);
    let large = format!("x-large: {}\r\n", "y".repeat(80 << 10));
    for fields in [many, large] {
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        let reply = exchange(&mut connect(&server, None).await, &request).await;
        assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
    }
}

#[tokio::test]
async fn shutdown_lets_idle_connections_go_and_returns() {
    let mut server = start(Limits::default()).await;
    let mut open = connect(&server, None).await;
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0);
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
}
