//! A server in its own directory, and callers of every kind, one connection per request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairlead::auth::claims::{Bound, Claims, Reference};
use fairlead::auth::jwt::SigningKey;
use fairlead::config::ServerArgs;
use fairlead::server::Server;
use fairlead::tls::{Authority, Leaf, disk};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A certificate and its key.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// A running server.
pub(crate) struct Cluster {
    server: Server,
    directory: PathBuf,
    authority: Authority,
    key: SigningKey,
}

/// Somebody who sends requests.
pub(crate) struct Caller {
    address: std::net::SocketAddr,
    config: Arc<ClientConfig>,
    token: Option<String>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

pub(crate) fn client(authority: &Authority, user: &str, group: &str, life: Duration) -> Identity {
    let organizations = if group.is_empty() {
        vec![]
    } else {
        vec![group.to_owned()]
    };
    let leaf = Leaf::Client {
        common_name: user.to_owned(),
        organizations,
    };
    let issued = authority.issue(&leaf, SystemTime::now(), life).unwrap();
    Identity {
        certificate: issued.certificate,
        key: issued.key,
    }
}

/// A PEM request for a certificate, and its key in PEM.
pub(crate) fn signing_request(user: &str, group: &str) -> (String, String) {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, user);
    let key = KeyPair::generate().unwrap();
    (
        params.serialize_request(&key).unwrap().pem().unwrap(),
        key.serialize_pem(),
    )
}

pub(crate) fn issued(certificate: &str, key: &str) -> Identity {
    Identity {
        certificate: CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap(),
        key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    }
}

pub(crate) fn certificate_object(name: &str, request: &str, signer: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": format!("kubernetes.io/{signer}"),
            "usages": ["digital signature", "client auth"],
        },
    })
}

// === impl Cluster ===

impl Cluster {
    pub(crate) async fn start(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("fl-security-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        let args = ServerArgs {
            data_dir: Some(directory.clone()),
            listen: Some(([127, 0, 0, 1], 0).into()),
            ..ServerArgs::default()
        };
        let server = Server::start(args.resolve().unwrap(), |_| {})
            .await
            .unwrap();
        let secrets = disk::open(&directory, SystemTime::now()).unwrap();
        let key = SigningKey::from_pem(secrets.service_account_key.expose()).unwrap();
        Self {
            server,
            directory,
            authority: secrets.authority,
            key,
        }
    }

    pub(crate) async fn stop(self) {
        self.server.stop().await;
        std::fs::remove_dir_all(self.directory).unwrap();
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.server.address
    }

    pub(crate) fn caller(&self, identity: Option<Identity>, token: Option<String>) -> Caller {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().clone()).unwrap();
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
        Caller {
            address: self.server.address,
            config: Arc::new(config),
            token,
        }
    }

    pub(crate) fn user(&self, name: &str) -> Caller {
        self.caller(
            Some(client(&self.authority, name, "", Duration::from_hours(1))),
            None,
        )
    }

    pub(crate) fn admin(&self) -> Caller {
        let group = "fairlead:cluster-admins";
        self.caller(
            Some(client(
                &self.authority,
                "boss",
                group,
                Duration::from_hours(1),
            )),
            None,
        )
    }

    pub(crate) fn node(&self, name: &str) -> Caller {
        let user = format!("system:node:{name}");
        let life = Duration::from_hours(1);
        self.caller(
            Some(client(&self.authority, &user, "system:nodes", life)),
            None,
        )
    }

    /// A token signed with the cluster's own key, whatever it says.
    pub(crate) fn token(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        audience: &str,
        life: i64,
    ) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        let bound = Bound {
            namespace: namespace.into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference {
                name: name.into(),
                uid: uid.into(),
            },
        };
        let claims = Claims {
            aud: vec![audience.into()],
            exp: now + life,
            iat: now - 7200,
            iss: "https://kubernetes.default.svc.cluster.local".into(),
            jti: "test".into(),
            bound,
            nbf: now - 7200,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        self.key.sign(&claims).unwrap()
    }
}

// === impl Caller ===

impl Caller {
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("kubernetes.default.svc").unwrap();
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.send_as(method, path, "application/json", body).await
    }

    pub(crate) async fn send_as(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = self.token.as_ref();
        let token = token.map_or(String::new(), |t| format!("authorization: Bearer {t}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        // A peer that closes without close_notify has still said everything.
        drop(stream.read_to_end(&mut reply).await);
        Answer::parse(&String::from_utf8_lossy(&reply))
    }

    pub(crate) async fn request_certificate(
        &self,
        name: &str,
        request: &str,
        signer: &str,
    ) -> String {
        let object = certificate_object(name, request, signer);
        let answer = self.send("POST", REQUESTS, Some(&object)).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        name.to_owned()
    }

    /// Waits until the request is signed; the certificate in PEM.
    pub(crate) async fn wait_for_certificate(&self, name: &str) -> String {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.get(&format!("{REQUESTS}/{name}")).await;
            if let Some(text) = answer.body["status"]["certificate"].as_str() {
                return String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not signed: {}",
                answer.body
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

// === impl Answer ===

impl Answer {
    fn parse(reply: &str) -> Self {
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((reply, ""));
        let code = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        // Chunked bodies of watches are not read; everything else is one JSON document or text.
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
        Self {
            code,
            head: head.to_owned(),
            body,
        }
    }
}
