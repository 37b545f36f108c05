//! The TLS accept loop: bounded connections, handshakes, headers and streams.
//!
//! When a bound is reached the newest is refused at once and counted; nothing
//! queues. ALPN decides between HTTP/2 and HTTP/1.1, and each request carries a
//! [`Peer`] in its extensions.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::WallClock;
use super::pack::Packed;
use super::peer::{ClientVerifier, Deferred, Peer};
use super::rotate::Rotating;

/// What one listener accepts before it refuses.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections in all; one more is closed at once.
    pub connections_max: usize,
    /// Open connections of one address, so that one cannot take them all.
    pub connections_per_address_max: usize,
    /// Time for the TLS handshake, and again for the first request after it.
    pub handshake_max: Duration,
    /// Time for the header block of a request, idle time of a kept HTTP/1.1 connection included.
    pub header_read_max: Duration,
    /// Bytes of one request's header block, request line included.
    pub header_bytes_max: u32,
    /// Header fields of one request.
    pub header_count_max: usize,
    /// Concurrent requests of one HTTP/2 connection.
    pub streams_max: u32,
    /// HTTP/2 receive window of a connection: bytes of bodies held before they are read.
    pub window_bytes: u32,
    /// Silence after which an HTTP/2 peer is asked for a sign of life.
    pub ping_interval: Duration,
    /// Time that open requests get to end at shutdown.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_address_max: 7_500,
            handshake_max: Duration::from_secs(10),
            header_read_max: Duration::from_secs(90),
            header_bytes_max: 64 << 10,
            header_count_max: 128,
            streams_max: 250,
            window_bytes: 4 << 20,
            ping_interval: Duration::from_secs(30),
            drain_max: Duration::from_secs(10),
        }
    }
}

/// Counters of one listener.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open now.
    pub open: Gauge,
    /// Connections closed at accept because a bound was reached.
    pub refused: Counter,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: Counter,
}

/// A TLS endpoint: certificate, client verification and bounds.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    acceptor: TlsAcceptor,
    verifier: ClientVerifier,
    clock: WallClock,
    limits: Limits,
    counters: Arc<Counters>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A counted place for one connection; gives it back when dropped.
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
}

// === impl Counters ===

impl Counters {
    /// Adds these to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let open = self.open.clone();
        registry.register("fairlead_tls_connections", "Open connections", open);
        let refused = self.refused.clone();
        let what = "Connections closed at accept because a bound was reached";
        registry.register("fairlead_tls_connections_refused", what, refused);
        let failed = self.handshakes_failed.clone();
        let what = "TLS handshakes that failed or took too long";
        registry.register("apiserver_tls_handshake_errors", what, failed);
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Serves `certificate`, trusting client certificates of `verifier`'s CA.
    pub fn new(
        certificate: Arc<Rotating>,
        verifier: ClientVerifier,
        clock: WallClock,
        limits: Limits,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Deferred(verifier.clone())))
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let shared = Shared {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            verifier,
            clock,
            limits,
            counters: Arc::default(),
            open: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// This endpoint's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }
}

/// Accepts until `shutdown` completes, then lets open requests end within the drain time.
pub async fn serve<S, B>(
    endpoint: Endpoint,
    listener: TcpListener,
    service: S,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let shared = endpoint.shared;
    let (stop, stopping) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            // Takes finished tasks out, so that the set holds only open connections.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                if let Some(place) = Place::take(&shared, address.ip()) {
                    let (service, stopping) = (service.clone(), stopping.clone());
                    connections.spawn(connection(place, stream, address, service, stopping));
                }
            }
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, new ones wait a moment.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(());
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.limits.drain_max, drained)
        .await
        .is_err()
    {
        tracing::warn!(open = connections.len(), "connections cut off at shutdown");
    }
}

async fn connection<S, B>(
    place: Place,
    stream: TcpStream,
    address: SocketAddr,
    service: S,
    mut stopping: watch::Receiver<()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let shared = Arc::clone(&place.shared);
    let handshake = handshake(&shared, stream, address);
    let accepted = tokio::select! {
        accepted = handshake => accepted,
        _ = stopping.changed() => return,
    };
    let Some((stream, peer)) = accepted else {
        shared.counters.handshakes_failed.inc();
        return;
    };
    let used = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&used);
    let service = service_fn(move |mut request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer.clone());
        service.call(request)
    });
    let limits = &shared.limits;
    let unused = async {
        tokio::time::sleep(limits.handshake_max).await;
        if used.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let stream = TokioIo::new(Packed::new(stream));
        let served = http2(limits).serve_connection(stream, service);
        let mut served = pin!(served);
        tokio::select! {
            ended = served.as_mut() => ended,
            () = unused => return,
            _ = stopping.changed() => { served.as_mut().graceful_shutdown(); served.await }
        }
    } else {
        let served = http1(limits)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut served = pin!(served);
        tokio::select! {
            ended = served.as_mut() => ended,
            () = unused => return,
            _ = stopping.changed() => { served.as_mut().graceful_shutdown(); served.await }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}

async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "cannot set TCP_NODELAY");
    }
    let accepting = shared.acceptor.accept(stream);
    match tokio::time::timeout(shared.limits.handshake_max, accepting).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = shared.verifier.judge(chain, (shared.clock)());
            Some((
                stream,
                Peer {
                    address,
                    certificate,
                },
            ))
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            None
        }
        Err(_elapsed) => {
            tracing::debug!(%address, "TLS handshake took too long");
            None
        }
    }
}

fn http1(limits: &Limits) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_max)
        .max_headers(limits.header_count_max)
        .max_header_size(usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX));
    builder
}

fn http2(limits: &Limits) -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header_bytes_max)
        .max_concurrent_streams(limits.streams_max)
        .initial_connection_window_size(limits.window_bytes)
        .initial_stream_window_size(limits.window_bytes / 4)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.handshake_max);
    builder
}

// === impl Place ===

impl Place {
    fn take(shared: &Arc<Shared>, address: IpAddr) -> Option<Self> {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all = shared.counters.open.get();
        let of_address = open.get(&address).copied().unwrap_or(0);
        let full = usize::try_from(all).is_ok_and(|all| all >= shared.limits.connections_max);
        if full || of_address >= shared.limits.connections_per_address_max {
            shared.counters.refused.inc();
            return None;
        }
        open.insert(address, of_address + 1);
        shared.counters.open.inc();
        Some(Self {
            shared: Arc::clone(shared),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self
            .shared
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
        self.shared.counters.open.dec();
    }
}
