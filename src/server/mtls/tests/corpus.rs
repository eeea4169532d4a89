//! Every chain of the SPIFFE X.509 corpus, shown by a peer in a handshake: what the acceptor says of it, counts and audits.
//!
//! The peer has no key of any of them: what it signs the handshake with is rubbish. A chain that is refused is refused before
//! that is looked at. A chain that is trusted therefore ends in `proof`, the next thing that is asked, and never in `ok`;
//! `tests/spiffe_x509` sees that it is trusted for whom it names, and the tests beside this one what comes after.

use std::collections::BTreeMap;
use std::future::pending;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::SignatureAlgorithm;
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use serde::Deserialize;

use super::*;
use crate::identity::workload_api::OwnSvid;
use crate::identity::x509_svid::X509Bundle;

#[derive(Deserialize)]
struct Case {
    name: String,
    chain: Vec<String>,
    bundles: BTreeMap<String, Vec<String>>,
    accepted: Vec<String>,
    now: Timestamp,
    kind: Option<String>,
}

impl Case {
    /// What becomes of the handshake.
    fn outcome(&self) -> &str {
        match self.kind.as_deref() {
            None => "proof",
            // In TLS a peer without a certificate says so.
            Some("no_certificate") => "no_client_certificate",
            // More than the TLS library reads of one message.
            Some("too_large") if self.chain.iter().map(String::len).sum::<usize>() / 4 * 3 > 0xffff => "protocol",
            Some(kind) => kind,
        }
    }
}

/// Shows a chain as it is, and signs with rubbish.
#[derive(Debug)]
struct Impostor(Vec<CertificateDer<'static>>);

impl ResolvesClientCert for Impostor {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.has_certs().then(|| Arc::new(CertifiedKey::new(self.0.clone(), Arc::new(Rubbish))))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

#[derive(Debug)]
struct Rubbish;

impl SigningKey for Rubbish {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Rubbish {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![7; 64])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/spiffe-x509")
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(directory().join(name)).unwrap()).unwrap()
}

fn cases() -> Vec<Case> {
    let names = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = ["roots.json", "signatures.json", "differences.json"];
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".json") && !others.contains(&name.as_str())).collect();
    names.sort_unstable();
    names.iter().flat_map(|name| read::<Vec<Case>>(name)).collect()
}

#[tokio::test]
async fn every_corpus_case_ends_its_handshake_with_its_status_in_metric_and_audit() {
    let der = |text: &String| STANDARD.decode(text).unwrap();
    let roots: BTreeMap<String, String> = read("roots.json");
    let world = World::new().await;
    // Our own trust domain is always accepted: it is one that no case is about.
    let own: SpiffeId = "spiffe://own.test/sidemint".parse().unwrap();
    let shown = TestAuthority::new("own.test", NOW).issue(own.as_str(), NOW, NOW + HOUR);
    let key = Arc::new(SvidKey::new(shown.chain, &shown.key, Timestamp::MAX).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client::new(&world).with(None, &[&rustls::version::TLS13]);
    let mut expected = BTreeMap::<String, u64>::new();
    let mut words = Vec::new();
    for case in cases() {
        world.clock.set_wall(case.now);
        world.api.update(|identities| {
            identities.svids = vec![OwnSvid { spiffe_id: own.clone(), expires_at: Timestamp::MAX, hint: None }];
            identities.keys = [(own.clone(), Arc::clone(&key))].into();
            let bundle =
                |ids: &Vec<String>| Arc::new(X509Bundle::from_der(ids.iter().map(|id| der(&roots[id]))).unwrap());
            let bundles = case.bundles.iter().map(|(name, ids)| (name.parse().unwrap(), bundle(ids)));
            identities.x509_bundles = bundles.collect();
        });
        let federated = case.accepted.iter().map(|name| name.parse().unwrap()).collect();
        let settings = MtlsSettings { address, spiffe_id: None, federated };
        let mtls = Mtls::new(Arc::clone(&world.broker), &settings);
        let mut client = client.clone();
        let chain = case.chain.iter().map(|text| CertificateDer::from(der(text))).collect();
        client.client_auth_cert_resolver = Arc::new(Impostor(chain));
        client.resumption = Resumption::disabled();
        let show = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("sidemint.invalid").unwrap();
            if let Ok(mut stream) = TlsConnector::from(Arc::new(client)).connect(name, stream).await {
                // Until the other side has said no.
                let _ = stream.read_u8().await;
            }
        };
        let accept = async {
            let (stream, peer) = listener.accept().await.unwrap();
            assert!(
                mtls.accept(stream, peer, pending()).await.is_none(),
                "{}: a connection without its key",
                case.name
            );
        };
        tokio::join!(show, accept);
        *expected.entry(case.outcome().to_owned()).or_default() += 1;
        words.push((case.outcome().to_owned(), case.name));
    }
    assert!(words.len() >= 1000, "{} cases", words.len());
    let refusals = || world.audit_lines().into_iter().filter(|line| line["event"] == "refusal").collect::<Vec<_>>();
    until("every audit line", || world.broker.parts().audit.lost() > 0 || refusals().len() == words.len()).await;
    let said: Vec<_> = refusals().iter().map(|line| line["reason"].as_str().unwrap().to_owned()).collect();
    let wrong: Vec<_> = words.iter().zip(&said).filter(|((word, _), said)| word != *said).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), words.len());
    for word in outcomes() {
        assert_eq!(world.outcome(word), expected.get(word).copied().unwrap_or_default(), "{word}");
    }
}
