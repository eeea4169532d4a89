use std::net::IpAddr;

use http::header::RETRY_AFTER;
use proptest::prelude::*;

use super::*;
use crate::http_client::loopback_addresses;

fn refused(status: u16, body: &str) -> CliError {
    refusal(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes(), Timestamp::default()).into()
}

#[test]
fn reads_the_three_forms_of_an_address() {
    let tcp = Address::Tcp { host: "127.0.0.1".into(), port: 9870 };
    assert_eq!("http://127.0.0.1:9870".parse(), Ok(tcp.clone()));
    assert_eq!("http://127.0.0.1:9870/".parse(), Ok(tcp.clone()));
    assert_eq!("127.0.0.1:9870".parse(), Ok(tcp));
    assert_eq!("[::1]:1".parse(), Ok(Address::Tcp { host: "[::1]".into(), port: 1 }));
    assert_eq!("localhost:1".parse(), Ok(Address::Tcp { host: "localhost".into(), port: 1 }));
    assert_eq!("unix:///run/s.sock".parse(), Ok(Address::Unix("/run/s.sock".into())));
}

#[test]
fn rejects_every_other_form() {
    for text in ["", "9870", "http://", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "unix://run/s", "unix:///"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::Form), "{text:?}");
    }
    for text in ["http://u@127.0.0.1:1", "http://127.0.0.1:1/path", "https://127.0.0.1:1", "::1:1"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::Form), "{text:?}");
    }
}

#[test]
fn rejects_to_send_a_proof_to_another_host() {
    for text in ["10.0.0.1:9870", "http://sidecar.example:9870", "0.0.0.0:9870", "[2001:db8::1]:1", "localhost.:1"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::NotLoopback), "{text:?}");
    }
}

proptest! {
    #[test]
    fn every_address_that_is_read_is_on_this_host_and_prints_as_itself(text in "(http://|unix://)?[a-z0-9.:/\\[\\]]{0,24}") {
        if let Ok(address) = text.parse::<Address>() {
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address.clone()));
            if let Address::Tcp { host, .. } = &address {
                prop_assert!(!loopback_addresses(host).is_empty());
                prop_assert!(loopback_addresses(host).iter().all(IpAddr::is_loopback));
            }
        }
    }

    #[test]
    fn any_error_body_becomes_one_harmless_line(status in 400u16..600, body: Vec<u8>) {
        let error: CliError = refusal(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), &body, Timestamp::default()).into();
        prop_assert!(!error.message.chars().any(char::is_control));
        prop_assert!(error.exit != Exit::Ok);
    }
}

#[test]
fn every_refusal_has_its_exit_code_and_names_code_and_request() {
    let cases = [
        (401, "unauthenticated", Exit::Denied),
        (403, "denied", Exit::Denied),
        (403, "approval_required", Exit::Denied),
        (409, "task_ended", Exit::Failed),
        (409, "conflict", Exit::Failed),
        (400, "invalid_request", Exit::Usage),
        (503, "policy_expired", Exit::Unavailable),
        (503, "provider_unavailable", Exit::Unavailable),
        (503, "unavailable", Exit::Unavailable),
        (429, "rate_limited", Exit::Unavailable),
        (404, "not_found", Exit::Failed),
        (500, "internal", Exit::Failed),
    ];
    for (status, code, exit) in cases {
        let body = format!(r#"{{"title":"T","status":{status},"detail":"why","code":"{code}","request_id":"r-1"}}"#);
        let error = refused(status, &body);
        assert_eq!(error.exit, exit, "{code}");
        assert!(error.message.starts_with(&format!("{code}: why (request r-1); ")), "{}", error.message);
    }
}

#[test]
fn reports_the_status_of_an_answer_without_a_problem_document() {
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", HeaderValue::from_static("r-2"));
    headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
    let ClientError::Refused(refusal) =
        refusal(StatusCode::SERVICE_UNAVAILABLE, &headers, b"<html>", Timestamp::default())
    else {
        panic!("a refusal");
    };
    assert_eq!(refusal.to_string(), "http_503: Service Unavailable (request r-2)");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
}

#[test]
fn control_characters_of_an_answer_never_reach_the_terminal() {
    let error = refused(403, r#"{"code":"denied","detail":"a\u001b[2J\nb","request_id":"\u0007"}"#);
    assert!(!error.message.chars().any(char::is_control), "{:?}", error.message);
}

#[test]
fn retries_only_transient_failures() {
    let status = |code: u16| refusal(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), b"", Timestamp::default());
    assert!(status(503).is_passing() && status(429).is_passing());
    assert!(!status(401).is_passing() && !status(403).is_passing() && !status(409).is_passing());
    let address: Address = "127.0.0.1:1".parse().unwrap();
    let connect = |kind: io::ErrorKind| ClientError::Connect { address: address.clone(), source: kind.into() };
    assert!(connect(io::ErrorKind::ConnectionRefused).is_passing());
    assert!(connect(io::ErrorKind::NotFound).is_passing());
    assert!(!connect(io::ErrorKind::PermissionDenied).is_passing());
}
