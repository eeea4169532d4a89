//! A request's target and headers, a line each: what passes the guard names this listener and came neither through a
//! proxy nor from a browser.
#![no_main]

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use libfuzzer_sys::fuzz_target;
use sidemint::server::Peer;
use sidemint::server::guard::{self, Rules};

const NEVER: [&str; 6] = ["x-forwarded-for", "forwarded", "via", "origin", "referer", "sec-fetch-site"];

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut first = lines.next().unwrap_or_default().splitn(2, |byte| *byte == b' ');
    let Ok(method) = Method::from_bytes(first.next().unwrap_or_default()) else { return };
    let Ok(target) = Uri::try_from(first.next().unwrap_or_default()) else { return };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    let clean = NEVER.iter().all(|name| !request.headers().contains_key(*name)) && request.uri().authority().is_none();
    let passes = |peer| guard::check(&request.clone().into_parts().0, peer, 9870, &Rules::GENERAL).is_ok();
    assert_eq!(passes(Peer::Unix), clean && request.method() != Method::CONNECT);
    let hosts: Vec<_> = request.headers().get_all("host").iter().map(HeaderValue::as_bytes).collect();
    let ours = [&b"127.0.0.1:9870"[..], b"localhost:9870", b"[::1]:9870"];
    let named = hosts.len() == 1 && ours.contains(&hosts[0]);
    let near = Peer::Tcp("127.0.0.1:40000".parse().unwrap());
    assert_eq!(passes(near), clean && named && request.method() != Method::CONNECT);
    let far = Peer::Tcp("192.0.2.1:40000".parse().unwrap());
    assert!(!passes(far));
});
