//! A small client of the Kubernetes API: one HTTP/2 connection over TLS.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use bytes::{Bytes, BytesMut};
use hyper::{Request, Response, body::Incoming, client::conn::http2, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::TlsConnector;

use super::Kubeconfig;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Largest line of a watch.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The kubeconfig's server, certificates or token do not make sense.
    #[error("the kubeconfig's {what} cannot be used: {why}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to the API server broke")]
    Broken(#[from] hyper::Error),
    /// The answer broke off, or is too large.
    #[error("the answer broke off")]
    Answer(#[from] axum::Error),
    /// The answer is no JSON.
    #[error("the answer is no JSON")]
    Json(#[from] serde_json::Error),
    /// The server refuses.
    #[error("{code}: {message}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// The server's message.
        message: String,
    },
}

type Sender = http2::SendRequest<Body>;

/// The client.
pub struct Client {
    address: String,
    host: ServerName<'static>,
    tls: TlsConnector,
    token: Option<header::HeaderValue>,
    sender: Mutex<Option<Sender>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// [`HttpError::Setting`].
    pub fn new(config: &Kubeconfig) -> Result<Self, HttpError> {
        let address = config
            .server
            .strip_prefix("https://")
            .map(|rest| rest.trim_end_matches('/').to_owned())
            .ok_or_else(|| wrong("server", "it does not begin with https://"))?;
        let address = if address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            address
        } else {
            format!("{address}:443")
        };
        let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
        let host = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| wrong("server", error))?;
        let token = config.token.as_ref().map(|token| {
            let mut value = header::HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|error| wrong("token", error))?;
            value.set_sensitive(true);
            Ok::<_, HttpError>(value)
        });
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls(config)?)),
            token: token.transpose()?,
            address,
            host,
            sender: Mutex::new(None),
        })
    }

    /// The connection, opened again if it broke.
    async fn sender(&self) -> Result<Sender, HttpError> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let failed = |source| HttpError::Connect {
            address: self.address.clone(),
            source,
        };
        let stream = TcpStream::connect(&self.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = self
            .tls
            .connect(self.host.clone(), stream)
            .await
            .map_err(failed)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection ended");
            }
        });
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header(header::USER_AGENT, "fairlead-hollow")
            .header(header::ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let bytes = match body {
            None => Body::empty(),
            Some((kind, value)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                Body::from(serde_json::to_vec(value)?)
            }
        };
        let request = request
            .body(bytes)
            .map_err(|error| wrong("server", error))?;
        let mut sender = self.sender().await?;
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// [`HttpError`]; `Refused` for every code from 400 on.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, HttpError> {
        let response = self.send(method, path, body).await?;
        let code = response.status().as_u16();
        let bytes = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
        if code >= 400 {
            let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            return Err(HttpError::Refused {
                code,
                message: status["message"]
                    .as_str()
                    .unwrap_or("no message")
                    .to_owned(),
            });
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// A watch.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn watch(&self, path: &str) -> Result<Lines, HttpError> {
        let response = self.send("GET", path, None).await?;
        let code = response.status().as_u16();
        if code >= 400 {
            let message = "the watch was refused".to_owned();
            return Err(HttpError::Refused { code, message });
        }
        Ok(Lines {
            body: Body::new(response.into_body()),
            rest: BytesMut::new(),
        })
    }
}

/// The lines of a watch.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    rest: BytesMut,
}

impl Lines {
    /// The next event; `None` when the server ends the watch.
    ///
    /// # Errors
    /// [`HttpError`] if the connection breaks or a line is no JSON.
    pub async fn next(&mut self) -> Result<Option<Value>, HttpError> {
        let mut searched = 0;
        loop {
            let fresh = self.rest.get(searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(searched + end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            searched = self.rest.len();
            if searched > LINE_BYTES_MAX {
                return Err(wrong("server", "a line of a watch has more than 8 MiB"));
            }
            match self.chunk().await {
                None => return Ok(None),
                Some(chunk) => self.rest.extend_from_slice(&chunk?),
            }
        }
    }

    async fn chunk(&mut self) -> Option<Result<Bytes, axum::Error>> {
        use axum::body::HttpBody as _;
        let mut body = std::pin::Pin::new(&mut self.body);
        let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await?;
        // A frame of trailers holds no data.
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

fn tls(config: &Kubeconfig) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&config.ca) {
        let certificate =
            certificate.map_err(|error| wrong("certificate-authority", format!("{error:?}")))?;
        roots
            .add(certificate)
            .map_err(|error| wrong("certificate-authority", error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("server", error))?
        .with_root_certificates(roots);
    let mut tls = match &config.certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
            let chain = chain.map_err(|error| wrong("client-certificate", format!("{error:?}")))?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_why| wrong("client-key", "it is no private key in PEM"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| wrong("client-certificate", error))?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

fn wrong(what: &'static str, why: impl std::fmt::Display) -> HttpError {
    HttpError::Setting {
        what,
        why: why.to_string(),
    }
}
