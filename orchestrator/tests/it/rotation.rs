//! Certificates of a running server that replace themselves.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fairlead::server::Server;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;

use crate::harness::{Cluster, Folder, config};

/// The certificate that new connections are shown.
async fn shown(cluster: &Cluster) -> Vec<u8> {
    let text = std::fs::read_to_string(&cluster.server.kubeconfig).unwrap();
    let ca = text
        .split_once("certificate-authority-data: ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .map(|text| STANDARD.decode(text.trim_matches('"')).unwrap());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&ca.unwrap()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(cluster.server.address).await.unwrap();
    let name = ServerName::try_from("kubernetes.default.svc").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_renews_its_certificate_and_the_admins() {
    let folder = Folder::new("rotation");
    let mut config = config(&folder.0);
    // Certificates count from five minutes ago, and are renewed at two thirds
    // of their life: two seconds from now.
    config.certificate_life = Duration::from_secs(153);
    let server = Server::start(config, |_| {}).await.unwrap();
    let cluster = Cluster { folder, server };
    let client = cluster.kube().await;
    let (first, kubeconfig) = (shown(&cluster).await, cluster.server.kubeconfig.clone());
    let before = std::fs::read_to_string(&kubeconfig).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while shown(&cluster).await == first || std::fs::read_to_string(&kubeconfig).unwrap() == before
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not renewed within 20 s"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The new kubeconfig works, and so does a client that was there before.
    assert_eq!(cluster.get("/api/v1/namespaces/default").await.0, 200);
    client.apiserver_version().await.unwrap();
}
