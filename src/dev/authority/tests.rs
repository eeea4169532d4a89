//! The authority as its clients see it: through the `spiffe` crate's Workload API client, over a real socket.

use std::path::PathBuf;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use spiffe::{WorkloadApiClient, WorkloadApiError};
use tokio_stream::StreamExt as _;
use x509_parser::prelude::*;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::dev::Running;

struct Bench {
    authority: Arc<Authority>,
    clock: ManualClock,
    socket: PathBuf,
    running: Option<Running>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let clock = ManualClock::at("2026-11-23T18:00:00Z".parse().unwrap());
        let settings = Settings {
            trust_domain: "dev.test".parse().unwrap(),
            identities: ["report", "intruder"].map(id).to_vec(),
            issuer: "https://dev.test".into(),
            x509_ttl: Settings::X509_TTL,
            jwt_ttl: Settings::JWT_TTL,
        };
        let authority = Authority::new(settings, Arc::new(clock.clone())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let running = Some(workload_api::serve(&authority, &socket).unwrap());
        Self { authority, clock, socket, running, _folder: folder }
    }

    async fn client(&self) -> WorkloadApiClient {
        WorkloadApiClient::connect_to(format!("unix://{}", self.socket.display())).await.unwrap()
    }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://dev.test/{name}").parse().unwrap()
}

fn json_part(token: &str, part: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(part).unwrap()).unwrap()).unwrap()
}

/// Whether one of the keys in `jwks`, the one that the token's header names, signed `token`.
fn signed_by_one_of(jwks: &[u8], token: &str) -> bool {
    let keys: Value = serde_json::from_slice(jwks).unwrap();
    let Some(key) = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == json_part(token, 0)["kid"]) else {
        return false;
    };
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(key[coordinate].as_str().unwrap()).unwrap());
    }
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &signature).is_ok()
}

#[tokio::test]
async fn x509_svids_follow_the_standard_and_chain_to_the_bundle() {
    let bench = Bench::start();
    let client = bench.client().await;
    let svids = client.fetch_all_x509_svids().await.unwrap();
    let names: Vec<_> = svids.iter().map(|svid| svid.spiffe_id().to_string()).collect();
    assert_eq!(names, ["spiffe://dev.test/report", "spiffe://dev.test/intruder"]);

    let bundles = client.fetch_x509_bundles().await.unwrap();
    let bundle = bundles.get(&"dev.test".try_into().unwrap()).unwrap();
    let root = bundle.authorities().first().unwrap().as_bytes().to_vec();
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    assert!(root.is_ca());
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());

    let leaf = svids[0].cert_chain()[0].as_bytes();
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://dev.test/report")]);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    assert!(!leaf.is_ca());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert_eq!(leaf.validity().not_after.timestamp(), (bench.clock.now() + Settings::X509_TTL).as_secs() as i64);
    assert!(leaf.validity().not_before.timestamp() < bench.clock.now().as_secs() as i64);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, root.public_key().subject_public_key.data.as_ref())
        .verify(leaf.tbs_certificate.as_ref(), &leaf.signature_value.data)
        .unwrap();
}

#[tokio::test]
async fn jwt_svids_carry_the_claims_that_sts_needs_and_verify_under_the_bundle() {
    let bench = Bench::start();
    let client = bench.client().await;
    let wanted = "spiffe://dev.test/intruder".parse().unwrap();
    let token = client.fetch_jwt_token(["sts.amazonaws.com"], Some(&wanted)).await.unwrap();
    let (header, claims) = (json_part(&token, 0), json_part(&token, 1));
    assert_eq!((&header["alg"], &header["typ"]), (&"ES256".into(), &"JWT".into()));
    assert_eq!(claims["sub"], "spiffe://dev.test/intruder");
    assert_eq!(claims["aud"], serde_json::json!(["sts.amazonaws.com"]));
    assert_eq!(claims["iss"], "https://dev.test");
    assert_eq!(claims["iat"], bench.clock.now().as_secs());
    assert_eq!(claims["exp"], bench.clock.now().as_secs() + 300);

    let bundles = client.fetch_jwt_bundles().await.unwrap();
    let kid = header["kid"].as_str().unwrap();
    assert!(bundles.get(&"dev.test".try_into().unwrap()).unwrap().find_jwt_authority(kid).is_some());
    assert!(signed_by_one_of(&bench.authority.jwks(), &token));
    assert!(!signed_by_one_of(&Bench::start().authority.jwks(), &token));
}

#[tokio::test]
async fn without_a_spiffe_id_every_identity_gets_a_jwt_svid() {
    let bench = Bench::start();
    // Asked below the wire: the client would hold these tokens against the machine's clock, not against ours.
    let request = workload_api::JwtSvidRequest { audience: vec!["a".into(), "b".into()], spiffe_id: String::new() };
    let answer = workload_api::fetch_jwt_svids(&bench.authority, &request).unwrap();
    let told: Vec<_> = answer.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(told, ["spiffe://dev.test/report", "spiffe://dev.test/intruder"]);
    for svid in &answer.svids {
        let claims = json_part(&svid.svid, 1);
        assert_eq!(claims["sub"], *svid.spiffe_id);
        assert_eq!(claims["aud"], serde_json::json!(["a", "b"]));
    }
}

#[tokio::test]
async fn rejects_requests_that_break_the_workload_apis_rules() {
    let bench = Bench::start();
    let client = bench.client().await;
    let no_audience = client.fetch_jwt_token(Vec::<String>::new(), None).await.unwrap_err();
    assert!(no_audience.is_invalid_argument(), "{no_audience}");
    let foreign = "spiffe://dev.test/sidemint".parse().unwrap();
    let refused = client.fetch_jwt_token(["a"], Some(&foreign)).await.unwrap_err();
    assert!(matches!(refused, WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_)), "{refused}");
}

#[tokio::test]
async fn rejects_requests_without_the_security_header() {
    let bench = Bench::start();
    for header in [None, Some("false")] {
        let stream = tokio::net::UnixStream::connect(&bench.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = http::Request::post("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(value) = header {
            request = request.header("workload.spiffe.io", value);
        }
        let empty_message = bytes::Bytes::from_static(&[0; 5]);
        let answer = sender.send_request(request.body(Full::new(empty_message)).unwrap()).await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "3");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
        connection.abort();
    }
}

#[tokio::test]
async fn a_stream_gets_new_svids_at_half_their_life() {
    let bench = Bench::start();
    let mut svids = bench.client().await.stream_x509_svids().await.unwrap();
    let first = svids.next().await.unwrap().unwrap();
    while bench.clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    bench.clock.advance(Settings::X509_TTL / 2);
    let second = svids.next().await.unwrap().unwrap();
    assert_ne!(first.cert_chain()[0].as_bytes(), second.cert_chain()[0].as_bytes());
    assert_eq!(first.spiffe_id(), second.spiffe_id());
}

#[tokio::test]
async fn withdrawing_every_identity_ends_the_streams_and_restoring_serves_again() {
    let bench = Bench::start();
    let client = bench.client().await;
    let mut contexts = client.stream_x509_contexts().await.unwrap();
    let mut jwt_bundles = client.stream_jwt_bundles().await.unwrap();
    assert_eq!(contexts.next().await.unwrap().unwrap().svids().len(), 2);
    jwt_bundles.next().await.unwrap().unwrap();

    bench.authority.withdraw(&id("intruder")).unwrap();
    assert_eq!(contexts.next().await.unwrap().unwrap().svids().len(), 1);
    assert!(bench.authority.jwt_svid(&id("intruder"), &["a".into()]).unwrap().is_none());

    bench.authority.withdraw(&id("report")).unwrap();
    let ended = contexts.next().await.unwrap().unwrap_err();
    assert!(matches!(ended, WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_)), "{ended}");
    assert!(contexts.next().await.is_none());
    while let Some(Ok(_)) = jwt_bundles.next().await {}
    assert!(client.fetch_x509_svid().await.is_err());

    bench.authority.restore(&id("report")).unwrap();
    assert_eq!(client.fetch_x509_svid().await.unwrap().spiffe_id().path(), "/report");
}

#[tokio::test]
async fn a_rotated_jwt_key_is_announced_and_a_forgotten_one_verifies_nothing() {
    let bench = Bench::start();
    let sign = || bench.authority.jwt_svid(&id("report"), &["a".into()]).unwrap().unwrap();
    let old = sign();
    bench.authority.rotate_jwt_key(false).unwrap();
    let new = sign();
    assert!(signed_by_one_of(&bench.authority.jwks(), old.expose()));
    assert!(signed_by_one_of(&bench.authority.jwks(), new.expose()));
    bench.authority.rotate_jwt_key(true).unwrap();
    assert!(!signed_by_one_of(&bench.authority.jwks(), old.expose()));
    assert!(!signed_by_one_of(&bench.authority.jwks(), new.expose()));
}

#[tokio::test]
async fn comes_back_on_the_same_socket_after_a_stop() {
    let mut bench = Bench::start();
    let mut svids = bench.client().await.stream_x509_svids().await.unwrap();
    svids.next().await.unwrap().unwrap();
    bench.running.take().unwrap().stop().await;
    // The stream breaks: the client may see an error first, then the end.
    while let Some(Ok(_)) = svids.next().await {}
    bench.running = Some(workload_api::serve(&bench.authority, &bench.socket).unwrap());
    bench.client().await.fetch_x509_svid().await.unwrap();
}

#[tokio::test]
async fn does_not_replace_a_file_that_is_not_a_socket() {
    let bench = Bench::start();
    let file = bench.socket.with_file_name("precious");
    std::fs::write(&file, "data").unwrap();
    assert!(matches!(workload_api::serve(&bench.authority, &file), Err(AuthorityError::Socket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
}

#[test]
fn rejects_identities_of_another_trust_domain() {
    let settings = Settings {
        trust_domain: "dev.test".parse().unwrap(),
        identities: vec!["spiffe://example.org/report".parse().unwrap()],
        issuer: String::new(),
        x509_ttl: Settings::X509_TTL,
        jwt_ttl: Settings::JWT_TTL,
    };
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1)));
    assert!(matches!(Authority::new(settings, clock), Err(AuthorityError::ForeignIdentity(_))));
}
