//! A client of the API server: HTTP/2 over TLS with a client certificate, as
//! the kubeconfig names it. Windows are those of Go's client.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// Where the server is, and who asks.
#[derive(Clone)]
pub(crate) struct Connector {
    address: String,
    host: ServerName<'static>,
    tls: TlsConnector,
}

impl Connector {
    /// `None` while the file is not there.
    pub(crate) fn from_kubeconfig(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        let pem = |name: &str| STANDARD.decode(field(name)).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem("certificate-authority-data:")) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let chain = CertificateDer::pem_slice_iter(&pem("client-certificate-data:"))
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data:")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let address = field("server: https://");
        let host = address.rsplit_once(':').unwrap().0.to_owned();
        Some(Self {
            host: host.try_into().unwrap(),
            address,
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    /// A connection; `None` if nobody listens.
    pub(crate) async fn try_connect(&self) -> Option<Connection> {
        let stream = TcpStream::connect(&self.address).await.ok()?;
        stream.set_nodelay(true).unwrap();
        let stream = self.tls.connect(self.host.clone(), stream).await.ok()?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .ok()?;
        // Ends with the server; whoever still asks sees the error.
        tokio::spawn(async move { drop(connection.await) });
        Some(Connection {
            sender,
            address: self.address.clone(),
        })
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.try_connect().await.expect("the server listens")
    }

    pub(crate) async fn connections(&self, count: usize) -> Vec<Connection> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(self.connect().await);
        }
        connections
    }
}

/// One HTTP/2 connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    address: String,
}

impl Connection {
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("user-agent", "fairlead-bench")
            .body(Full::new(body))
            .unwrap();
        let mut sender = self.sender.clone();
        sender.ready().await.unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// Code and whole answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Bytes) {
        let response = self.send(method, path, body.into()).await;
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, bytes)
    }

    /// The answer to a call that must succeed.
    pub(crate) async fn done(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Bytes {
        let shown = format!("{method} {path}");
        let (code, bytes) = self.call(method, path, body).await;
        assert!(
            code.is_success(),
            "{shown}: {code} {}",
            String::from_utf8_lossy(&bytes)
        );
        bytes
    }

    /// An answer that is read as it comes; the call must succeed.
    pub(crate) async fn open(&self, path: &str) -> Incoming {
        let response = self.send(Method::GET, path, Bytes::new()).await;
        assert!(response.status().is_success(), "{path}: {response:?}");
        response.into_body()
    }
}

/// The next bytes of an answer; `None` at its end.
pub(crate) async fn next(body: &mut Incoming) -> Option<Bytes> {
    let frame = body.frame().await?.unwrap();
    Some(frame.into_data().unwrap_or_default())
}
