mod server;

use std::collections::BTreeSet;
use std::pin::pin;

use proptest::prelude::*;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;

use self::server::{Act, Authority, DAY, Server, TunnelProxy, chain, pkcs8, reply, send, server_config};
use super::*;
use crate::clock::{Clock as _, ManualClock, Timestamp};
use crate::http_client::MAX_IDLE;
use crate::identity::workload_api::testing::FakeWorkloadApi;
use crate::identity::x509_svid::testing::TestAuthority;

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_250);
const TIMEOUT: Duration = Duration::from_secs(10);
const LIMIT: u64 = 1000;
const FILE: &str = "metadata/timestamp.json";
const US: &str = "spiffe://example.org/ns/finance/sa/report";
const HOST_ID: &str = "spiffe://example.org/ns/policy/sa/repository";

/// The name of a fault or of an error, with its stage or what is wrong with TLS.
trait Kind: std::fmt::Debug {
    fn kind(&self) -> &'static str {
        let debug = format!("{self:?}");
        let mut names = debug.split(|c: char| !c.is_ascii_alphanumeric()).filter(|name| *name != "Client");
        let first = names.next().unwrap();
        let second = names.next().filter(|_| matches!(first, "Slow" | "Tls")).unwrap_or_default();
        let mut kind = String::new();
        for c in [first, second].concat().chars() {
            if c.is_ascii_uppercase() && !kind.is_empty() {
                kind.push('_');
            }
            kind.push(c.to_ascii_lowercase());
        }
        kind.leak()
    }
}

impl Kind for HttpFault {}
impl Kind for HttpError {}

fn clock() -> ManualClock {
    ManualClock::at(NOW)
}

fn settings(base: &str) -> HttpSettings {
    HttpSettings {
        base: base.parse().unwrap(),
        tls: TlsSettings { roots: Roots::System, client: None },
        proxy: None,
        timeout: TIMEOUT,
    }
}

fn fetch(settings: HttpSettings, clock: &ManualClock) -> HttpFetch {
    HttpFetch::new(settings, Arc::new(clock.clone()), None).unwrap()
}

fn body(text: &str, tag: Option<&str>) -> Answer {
    Answer::Body { bytes: Bytes::copy_from_slice(text.as_bytes()), tag: tag.map(|tag| Tag(tag.to_owned())) }
}

/// Waits for `work` and lets time pass only while nothing else moves.
async fn drive<T>(clock: &ManualClock, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    for _ in 0..600 {
        for _ in 0..200 {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::task::yield_now() => {}
            }
        }
        clock.advance(Duration::from_millis(500));
    }
    panic!("nothing ended it within five minutes");
}

/// A server and its client over plain http on loopback.
struct World {
    clock: ManualClock,
    server: Server,
    fetch: HttpFetch,
}

impl World {
    async fn new() -> Self {
        let clock = clock();
        let server = Server::start(&clock, None).await;
        let fetch = fetch(settings(&format!("http://{}/policy/", server.address)), &clock);
        Self { clock, server, fetch }
    }

    async fn fetch_file(&self, seen: Option<&str>) -> Result<Answer, HttpFault> {
        let seen = seen.map(|tag| Tag(tag.to_owned()));
        drive(&self.clock, self.fetch.fetch_file(FILE, LIMIT, seen.as_ref())).await
    }
}

/// What one answer of the server leads to: the kind and text of the fault, and how long it took.
async fn refused(answer: Vec<Act>) -> (&'static str, String, Duration) {
    let world = World::new().await;
    world.server.answer(answer);
    let began = world.clock.boot();
    let fault = world.fetch_file(None).await.unwrap_err();
    let took = world.clock.boot() - began;
    assert!(took <= TIMEOUT + Duration::from_secs(1), "{fault} took {took:?}");
    // What failed is never used again.
    let seam = fault.clone().into_fetch_error(FILE).to_string();
    assert!(seam.starts_with("metadata/timestamp.json: "), "{seam}");
    (fault.kind(), fault.to_string(), took)
}

async fn kind(answer: Vec<Act>) -> &'static str {
    refused(answer).await.0
}

#[tokio::test]
async fn fetches_a_file_once_and_then_only_revalidates_it() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "ETag: \"a1\"\r\n", "{}"));
    world.server.answer(reply("304 Not Modified", "ETag: \"a1\"\r\n", ""));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("{}", Some("\"a1\"")));
    assert_eq!(world.fetch_file(Some("\"a1\"")).await.unwrap(), Answer::Unchanged);
    assert_eq!(world.fetch_file(None).await.unwrap(), Answer::Absent);
    let questions = world.server.questions();
    assert_eq!(world.server.connections(), 1, "all on one kept connection");
    assert_eq!(world.fetch.client.idle_connections(), 1);
    let first = questions[0].to_ascii_lowercase();
    assert!(first.starts_with("get /policy/metadata/timestamp.json http/1.1\r\n"), "{first}");
    assert!(first.contains(&format!("host: {}\r\n", world.server.address)));
    assert!(first.contains(concat!("user-agent: sidemint/", env!("CARGO_PKG_VERSION"), "\r\n")));
    assert!(first.contains("accept-encoding: identity\r\n"));
    assert!(!first.contains("if-none-match"));
    assert!(questions[1].to_ascii_lowercase().contains("if-none-match: \"a1\"\r\n"));
}

#[tokio::test]
async fn takes_a_new_or_missing_tag_with_the_new_body() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "ETag: W/\"b2\"\r\n", "new"));
    world.server.answer(reply("200 OK", "", "newer"));
    assert_eq!(world.fetch_file(Some("\"a1\"")).await.unwrap(), body("new", Some("W/\"b2\"")));
    assert_eq!(world.fetch_file(Some("W/\"b2\"")).await.unwrap(), body("newer", None));
}

#[tokio::test]
async fn a_tag_that_cannot_be_sent_back_is_forgotten() {
    let long = format!("ETag: \"{}\"\r\n", "x".repeat(300));
    for headers in [
        "ETag: a1\r\n",
        "ETag: \"a\r\n",
        "ETag: \"\u{e9}\"\r\n",
        "ETag: \"a\"b\"\r\n",
        "ETag: \"a\"\r\nETag: \"b\"\r\n",
        &long,
    ] {
        let world = World::new().await;
        world.server.answer(reply("200 OK", headers, "{}"));
        assert_eq!(world.fetch_file(None).await.unwrap(), body("{}", None), "{headers}");
    }
}

#[tokio::test]
async fn three_statuses_mean_absent_and_each_is_reported() {
    for (status, note) in [
        ("404 Not Found", "metadata/timestamp.json: HTTP 404"),
        ("410 Gone", "metadata/timestamp.json: HTTP 410"),
        ("403 Forbidden", "metadata/timestamp.json: HTTP 403: not there, or not to be read by this sidecar"),
    ] {
        let world = World::new().await;
        world.server.answer(reply(status, "", "<Error>AccessDenied</Error>"));
        assert_eq!(world.fetch_file(None).await.unwrap(), Answer::Absent);
        assert_eq!(world.fetch.note().as_deref(), Some(note));
        world.server.answer(reply("200 OK", "", "{}"));
        world.fetch_file(None).await.unwrap();
        assert_eq!(world.fetch.note(), None);
        assert_eq!(world.server.connections(), 1);
    }
}

#[tokio::test]
async fn passes_an_html_page_on_to_signature_verification() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "Content-Type: text/html\r\n", "<html>sign in</html>"));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("<html>sign in</html>", None));
}

#[tokio::test]
async fn an_empty_file_and_one_in_chunks_are_files() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "", ""));
    world.server.answer(vec![
        send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: \"c\"\r\n\r\n"),
        send("2\r\n{\"\r\n3;x=y\r\na\":\r\n"),
        send("2\r\n1}\r\n0\r\n\r\n"),
    ]);
    assert_eq!(world.fetch_file(None).await.unwrap(), body("", None));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("{\"a\":1}", Some("\"c\"")));
    assert_eq!(world.fetch_file(None).await.unwrap(), Answer::Absent);
    assert_eq!(world.server.connections(), 1);
    let trailer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nETag: \"t\"\r\n\r\n";
    world.server.answer(vec![send(trailer)]);
    assert_eq!(world.fetch_file(None).await.unwrap(), body("{}", None), "a trailer is no tag");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    for status in ["300 Multiple Choices", "301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
    {
        let (kind, text, _) = refused(reply(status, "Location: http://127.0.0.1:1/secret-place\r\n", "moved")).await;
        assert_eq!(kind, "redirect", "{status}");
        assert!(text.contains("policy.repository") && !text.contains("secret-place"), "{text}");
    }
}

#[tokio::test]
async fn other_statuses_are_refused() {
    for status in [
        "201 Created",
        "204 No Content",
        "206 Partial Content",
        "400 Bad Request",
        "401 Unauthorized",
        "500 Oops",
        "502 Bad Gateway",
        "599 X",
    ] {
        let text = if status.starts_with("204") {
            vec![send("HTTP/1.1 204 No Content\r\n\r\n")]
        } else {
            reply(status, "Content-Range: bytes 0-1/9\r\n", "{}")
        };
        let (kind, text, _) = refused(text).await;
        assert_eq!((kind, text.as_str()), ("status", format!("HTTP {}", &status[..3]).as_str()));
    }
}

#[tokio::test]
async fn accepts_not_modified_only_for_a_conditional_request() {
    assert_eq!(kind(reply("304 Not Modified", "", "")).await, "not_asked");
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    for coding in ["gzip", "br", "identity, gzip", "deflate\r\nContent-Encoding: identity"] {
        let answer = reply("200 OK", &format!("Content-Encoding: {coding}\r\n"), "{}");
        assert_eq!(kind(answer).await, "encoded", "{coding}");
    }
    let world = World::new().await;
    world.server.answer(reply("200 OK", "Content-Encoding: identity\r\n", "{}"));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("{}", None));
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_before_it_is_read() {
    // The body never comes: the length alone is enough.
    let (kind, text, took) = refused(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"), Act::Stall]).await;
    assert_eq!((kind, text.as_str(), took), ("too_large", "larger than 1000 bytes", Duration::ZERO));
    let world = World::new().await;
    world.server.answer(reply("200 OK", "", &"x".repeat(1000)));
    assert_eq!(world.fetch_file(None).await.unwrap(), body(&"x".repeat(1000), None));
    let error = HttpFault::from(http_client::Fault::TooLarge { limit: 7 }).into_fetch_error("x");
    assert_eq!(error, FetchError::TooLarge { name: "x".into(), limit: 7 });
}

#[tokio::test]
async fn endless_chunks_are_refused_at_the_limit() {
    let head = send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (kind, _, took) = refused(vec![head, Act::Flood(b"10\r\n0123456789abcdef\r\n")]).await;
    assert_eq!((kind, took), ("too_large", Duration::ZERO));
}

#[tokio::test]
async fn a_body_that_ends_early_is_refused() {
    assert_eq!(kind(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), Act::Close]).await, "truncated");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for cut in ["", "2", "2\r\n", "2\r\n{", "2\r\n{}\r\n", "2\r\n{}\r\n0", "2\r\n{}\r\n0\r\n"] {
        assert_eq!(kind(vec![send(format!("{chunked}{cut}")), Act::Close]).await, "truncated", "{cut:?}");
    }
    assert_eq!(kind(vec![send(format!("{chunked}zz\r\n{{}}"))]).await, "truncated", "a size that is no number");
}

#[tokio::test]
async fn a_body_without_a_known_end_is_refused() {
    for version in ["1.0", "1.1"] {
        let answer = vec![send(format!("HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n{{}}")), Act::Close];
        assert_eq!(kind(answer).await, "no_length");
    }
}

#[tokio::test]
async fn rejects_contradicting_lengths() {
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}";
    assert_eq!(kind(vec![send(two), Act::Stall]).await, "protocol");
    let negative = "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}";
    assert_eq!(kind(vec![send(negative), Act::Stall]).await, "protocol");
}

#[tokio::test]
async fn rejects_what_is_not_http() {
    for garbage in
        ["SSH-2.0-OpenSSH_9.9\r\n\r\n", "\0\0\0\0\0\0\0\0", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"]
    {
        let got = kind(vec![send(garbage), Act::Close]).await;
        assert!(matches!(got, "protocol" | "closed"), "{garbage:?}: {got}");
    }
    // What hyper says of a broken head is told, never the head itself.
    let (_, text, _) = refused(vec![send("HTTP/1.1 200 OK\r\nhunter2\x01: x\r\n\r\n"), Act::Close]).await;
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    let (kind, _, took) =
        refused(vec![send("HTTP/1.1 200 OK\r\n"), Act::Flood(b"X-Same: and the same again\r\n")]).await;
    assert_eq!((kind, took), ("head_too_large", Duration::ZERO));
    let (kind, _, took) = refused(vec![send("HTTP/1.1 200 OK\r\nX: "), Act::Flood(&[b'x'; 1000])]).await;
    assert_eq!((kind, took), ("head_too_large", Duration::ZERO));
    let many = "X: y\r\n".repeat(http_client::MAX_HEADERS + 1);
    let many = reply("200 OK", &many, "{}");
    assert!(matches!(refused(many).await.0, "head_too_large"));
}

#[tokio::test]
async fn times_out_a_silent_server_at_each_stage() {
    // Before the head, within it, within the body.
    let (kind, text, took) = refused(vec![Act::Stall]).await;
    assert_eq!((kind, took), ("slow_answer", TIMEOUT), "{text}");
    let (kind, _, took) = refused(vec![send("HTTP/1.1 200 OK\r\nContent-Le"), Act::Stall]).await;
    assert_eq!((kind, took), ("slow_answer", TIMEOUT));
    let (kind, _, took) = refused(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), Act::Stall]).await;
    assert_eq!((kind, took), ("slow_body", TIMEOUT / 2));
}

#[tokio::test]
async fn times_out_a_server_that_sends_too_slowly() {
    let second = Duration::from_secs(1);
    let head = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(600));
    let (kind, _, took) = refused(vec![Act::Drip(head.into_bytes(), second)]).await;
    assert_eq!((kind, took), ("slow_answer", TIMEOUT));
    let (kind, _, took) =
        refused(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"), Act::Drip(vec![b'x'; 900], second)]).await;
    assert_eq!(kind, "slow_body");
    assert!(took <= TIMEOUT + second, "{took:?}");
    let early = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(600);
    let (kind, _, took) = refused(vec![Act::Drip(early, second / 10)]).await;
    assert_eq!((kind, took), ("slow_answer", TIMEOUT));
}

#[tokio::test]
async fn times_out_endless_provisional_answers() {
    let world = World::new().await;
    world.server.answer(vec![Act::Flood(b"HTTP/1.1 103 Early Hints\r\n\r\n")]);
    let fault = world.fetch_file(None).await.unwrap_err();
    assert_eq!(fault.kind(), "slow_answer");
}

#[tokio::test]
async fn waits_for_a_large_file_that_keeps_arriving() {
    let world = World::new().await;
    // 3 MiB at 128 KiB a second: 24 s, more than twice the time-out.
    let mut acts = vec![send("HTTP/1.1 200 OK\r\nContent-Length: 3145728\r\n\r\n")];
    for _ in 0..24 {
        acts.push(Act::Drip(vec![b'y'], Duration::from_secs(1)));
        acts.push(Act::Send(vec![b'x'; 131_071]));
    }
    world.server.answer(acts);
    let answer = drive(&world.clock, world.fetch.fetch_file(FILE, 4 << 20, None)).await.unwrap();
    let Answer::Body { bytes, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(bytes.len(), 3 << 20);
    assert_eq!(world.clock.boot() - clock().boot(), Duration::from_secs(24));
}

#[tokio::test]
async fn distinguishes_a_closed_connection_from_a_missing_server() {
    let world = World::new().await;
    world.server.greet(vec![Act::Close]);
    let fault = world.fetch_file(None).await.unwrap_err();
    assert_eq!((fault.kind(), world.server.connections()), ("closed", 1), "a new connection is not tried twice");
    assert_eq!(kind(vec![Act::Close]).await, "closed");

    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fault = fetch(settings(&format!("http://{free}")), &clock()).fetch_file(FILE, LIMIT, None).await.unwrap_err();
    assert_eq!((fault.kind(), fault.to_string().as_str()), ("connect", "no connection: connection refused"));
    assert!(matches!(fault.into_fetch_error(FILE), FetchError::Unreachable { .. }));
}

#[tokio::test]
async fn retries_once_after_a_kept_connection_was_closed() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "", "1"));
    // The server reads the question and is gone, as one that had just timed the connection out.
    world.server.answer(vec![Act::Close]);
    world.server.answer(reply("200 OK", "", "2"));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("1", None));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("2", None));
    assert_eq!((world.server.connections(), world.server.questions().len()), (2, 3));
    // Twice is a fault.
    world.server.answer(vec![Act::Close]);
    world.server.answer(vec![Act::Close]);
    assert_eq!(world.fetch_file(None).await.unwrap_err().kind(), "closed");
    assert_eq!((world.server.connections(), world.server.questions().len()), (3, 5));
}

#[tokio::test]
async fn a_dead_kept_connection_leaves_time_for_a_new_one() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "", "1"));
    world.server.answer(vec![Act::Stall]);
    world.server.answer(reply("200 OK", "", "2"));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("1", None));
    let began = world.clock.boot();
    assert_eq!(world.fetch_file(None).await.unwrap(), body("2", None));
    assert!(world.clock.boot() - began <= Duration::from_secs(4), "well within the five seconds that a kill has");
    assert_eq!(world.server.connections(), 2);
}

#[tokio::test]
async fn closes_the_connection_on_unsolicited_answers() {
    let world = World::new().await;
    let first = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1";
    world.server.answer(vec![send(format!("{first}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))]);
    world.server.answer(reply("200 OK", "", "2"));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("1", None));
    assert_eq!(world.fetch_file(None).await.unwrap(), body("2", None), "and not what was split off");
    assert_eq!(world.server.connections(), 2);
}

#[tokio::test]
async fn does_not_reuse_a_closed_idle_or_old_connection() {
    let world = World::new().await;
    world.server.answer(reply("200 OK", "Connection: close\r\n", "1"));
    world.fetch_file(None).await.unwrap();
    world.fetch_file(None).await.unwrap();
    assert_eq!(world.server.connections(), 2);
    world.clock.advance(MAX_IDLE - Duration::from_secs(1));
    world.fetch_file(None).await.unwrap();
    assert_eq!(world.server.connections(), 2, "used within the time");
    world.clock.advance(MAX_IDLE);
    world.fetch_file(None).await.unwrap();
    assert_eq!(world.server.connections(), 3);
    for _ in 0..10 {
        world.clock.advance(Duration::from_secs(60));
        world.fetch_file(None).await.unwrap();
    }
    assert_eq!(world.server.connections(), 4, "one more for its age");
}

#[tokio::test]
async fn many_concurrent_requests_share_few_connections() {
    let world = World::new().await;
    let fetches = (0..40).map(|_| world.fetch.fetch_file(FILE, LIMIT, None));
    let mut fetches: Vec<_> = fetches.map(Box::pin).collect();
    let all = std::future::poll_fn(|context| {
        fetches.retain_mut(|fetch| fetch.as_mut().poll(context).is_pending());
        if fetches.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    drive(&world.clock, all).await;
    assert_eq!(world.server.questions().len(), 40);
    assert!(world.server.connections() <= MAX_CONNECTIONS, "{}", world.server.connections());
}

#[tokio::test]
async fn honours_retry_after_of_a_busy_server() {
    // NOW is 12:00:00.250 on that day.
    for (status, header, millis) in [
        ("429 Too Many Requests", "Retry-After: 120\r\n", Some(120_000)),
        ("503 Service Unavailable", "Retry-After: Mon, 23 Nov 2026 12:01:00 GMT\r\n", Some(59_750)),
        ("503 Service Unavailable", "Retry-After: Mon, 23 Nov 2026 11:00:00 GMT\r\n", Some(0)),
        ("503 Service Unavailable", "Retry-After: 4000000000\r\n", Some(600_000)),
        ("429 Too Many Requests", "Retry-After: soon\r\n", None),
        ("429 Too Many Requests", "", None),
    ] {
        let world = World::new().await;
        world.server.answer(reply(status, header, "busy"));
        let wait = millis.map(Duration::from_millis);
        let fault = world.fetch_file(None).await.unwrap_err();
        assert_eq!(fault, HttpFault::Busy { status: status[..3].parse().unwrap(), retry_after: wait });
        assert_eq!(fault.kind(), "busy");
        assert_eq!(world.fetch.retry_after(), wait.filter(|wait| !wait.is_zero()), "{header}");
        let second = Duration::from_secs(1);
        world.clock.advance(second);
        assert_eq!(world.fetch.retry_after(), wait.filter(|wait| *wait > second).map(|wait| wait - second));
        world.server.answer(reply("200 OK", "", "{}"));
        world.fetch_file(None).await.unwrap();
        assert_eq!((world.fetch.retry_after(), world.server.connections()), (None, 1));
    }
}

#[tokio::test]
async fn an_ipv6_address_is_a_host() {
    let clock = clock();
    let server = Server::at("[::1]:0", &clock, None).await;
    server.answer(reply("200 OK", "", "six"));
    let fetch = fetch(settings(&format!("http://[::1]:{}", server.address.port())), &clock);
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), body("six", None));
    let question = server.questions()[0].to_ascii_lowercase();
    assert!(question.contains(&format!("host: [::1]:{}\r\n", server.address.port())), "{question}");
    assert!(question.starts_with("get /metadata/timestamp.json "));
}

#[tokio::test]
async fn never_requests_a_name_outside_the_repository() {
    let world = World::new().await;
    for name in ["", "/", "..", "a/../b", "a//b", "/a", "a/", "./a", "a\nb", "a\r\nX: y", "a\0", &"x".repeat(2000)] {
        assert_eq!(world.fetch.fetch_file(name, LIMIT, None).await.unwrap_err(), HttpFault::Name, "{name:?}");
    }
    assert_eq!(world.server.connections(), 0);
    let odd = Tag("\"a\r\nX: y\"".to_owned());
    assert_eq!(world.fetch.fetch_file(FILE, LIMIT, Some(&odd)).await.unwrap_err(), HttpFault::Name);
    for (name, path) in [
        ("metadata/1.root.json", "/policy/metadata/1.root.json"),
        ("metadata/7.finance%2Feu.json", "/policy/metadata/7.finance%252Feu.json"),
        ("targets/scopes/é ?#.toml", "/policy/targets/scopes/%C3%A9%20%3F%23.toml"),
    ] {
        world.fetch.fetch_file(name, LIMIT, None).await.unwrap();
        assert!(world.server.questions().last().unwrap().starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{name}");
    }
}

#[test]
fn rejects_settings_that_cannot_work_and_says_the_fix() {
    let refused = |change: &dyn Fn(&mut HttpSettings), base: &str| {
        let mut settings = settings(base);
        change(&mut settings);
        HttpFetch::new(settings, Arc::new(clock()), None).unwrap_err()
    };
    let as_it_is = |_: &mut HttpSettings| {};
    for base in
        ["/policy", "ftp://host/", "https://user:hunter2@host/", "https://host/?a=b", "host:443", "https://host:0/"]
    {
        let error = refused(&as_it_is, base);
        assert_eq!(error.kind(), "base", "{base}");
        assert!(!error.to_string().contains("hunter2"));
    }
    assert_eq!(refused(&as_it_is, "http://policy.example/").kind(), "plain_http");
    assert_eq!(refused(&as_it_is, "http://127.0.0.1.policy.example/").kind(), "plain_http");
    assert_eq!(refused(&|s| s.tls.client = Some(ClientSvid::Default), "http://127.0.0.1/").kind(), "tls_settings");
    assert_eq!(refused(&|s| s.tls.roots = Roots::Pem("/x".into()), "http://localhost/").kind(), "tls_settings");
    assert_eq!(refused(&|s| s.timeout = Duration::ZERO, "http://[::1]/").kind(), "timeout");
    assert_eq!(refused(&|s| s.timeout = Duration::from_secs(121), "http://[::1]/").kind(), "timeout");
    assert_eq!(
        refused(&|s| s.tls.roots = Roots::Spiffe(HOST_ID.parse().unwrap()), "https://h/").kind(),
        "no_workload_api"
    );
    let missing = refused(&|s| s.tls.roots = Roots::Pem("/nowhere/ca.pem".into()), "https://host/");
    assert!(missing.kind() == "roots" && missing.to_string().contains("/nowhere/ca.pem"), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    for pem in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(file.path(), pem).unwrap();
        assert_eq!(
            refused(&|s| s.tls.roots = Roots::Pem(file.path().into()), "https://host/").kind(),
            "roots",
            "{pem}"
        );
    }
}

#[test]
fn a_proxys_password_is_never_shown() {
    for text in [
        "https://proxy:3128",
        "proxy:3128",
        "http://proxy",
        "http://",
        "http://u:hunter2@",
        "http://p:1/path",
        "http://u:hunter2%zz@proxy:1",
        "http://p:99999",
        "http://u:hunter2@p:1?x",
    ] {
        let error = text.parse::<Proxy>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{text}");
    }
    let proxy: Proxy = "http://user:hunter2@proxy.example:3128/".parse().unwrap();
    assert!(!format!("{proxy:?}").contains("hunter2"));
    for (other, same) in [("user:hunter2", true), ("user:hunter3", false)] {
        assert_eq!(proxy == format!("http://{other}@proxy.example:3128").parse().unwrap(), same);
    }
    assert_ne!(proxy, "http://proxy.example:3128".parse().unwrap());
    let mut settings = settings("http://127.0.0.1/");
    settings.proxy = Some(proxy);
    assert!(!format!("{settings:?} {:?}", fetch(settings.clone(), &clock())).contains("hunter2"));
}

// TLS

/// A TLS server with `config` and a client that trusts `authority`, by way of `host`.
async fn tls(
    config: rustls::ServerConfig,
    authority: &Authority,
    host: &str,
) -> (Server, HttpFetch, tempfile::NamedTempFile) {
    let clock = clock();
    let server = Server::start(&clock, Some(config)).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &authority.pem).unwrap();
    let mut settings = settings(&format!("https://{host}:{}/", server.address.port()));
    settings.tls.roots = Roots::Pem(file.path().into());
    let fetch = fetch(settings, &clock);
    (server, fetch, file)
}

#[tokio::test]
async fn trusts_a_private_authority_for_its_hosts() {
    let authority = Authority::new(NOW);
    let (server, fetch, _file) = tls(authority.server(NOW - DAY, NOW + DAY), &authority, "127.0.0.1").await;
    server.answer(reply("200 OK", "", "{}"));
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), body("{}", None));
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), Answer::Absent);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn rejects_each_bad_certificate_with_its_own_error() {
    let (authority, other) = (Authority::new(NOW), Authority::new(NOW));
    for (config, kind) in [
        (authority.other_server(NOW), "tls_name"),
        (other.server(NOW - DAY, NOW + DAY), "tls_issuer"),
        (authority.server(NOW - DAY, NOW - Duration::from_secs(1)), "tls_expired"),
        (authority.server(NOW + Duration::from_secs(1), NOW + DAY), "tls_not_yet_valid"),
    ] {
        let (server, fetch, _file) = tls(config, &authority, "127.0.0.1").await;
        let fault = fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err();
        assert_eq!(fault.kind(), kind, "{fault}");
        assert!(matches!(fault.into_fetch_error(FILE), FetchError::Refused { .. }));
        assert!(server.questions().is_empty(), "nothing was asked of it");
    }
}

#[tokio::test]
async fn system_roots_do_not_trust_a_private_authority() {
    let authority = Authority::new(NOW);
    let (server, _, _file) = tls(authority.server(NOW - DAY, NOW + DAY), &authority, "127.0.0.1").await;
    let settings = settings(&format!("https://{}/", server.address));
    match HttpFetch::new(settings, Arc::new(clock()), None) {
        Ok(fetch) => assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "tls_issuer"),
        // A machine without roots says so at start.
        Err(error) => assert_eq!(error.kind(), "roots"),
    }
}

#[tokio::test]
async fn rejects_plain_text_where_tls_is_expected_and_the_reverse() {
    let clock = clock();
    let plain = Server::start(&clock, None).await;
    plain.greet(vec![send("HTTP/1.1 400 Bad Request\r\n\r\n"), Act::Stall]);
    let authority = Authority::new(NOW);
    let (server, fetch_tls, file) = tls(authority.server(NOW - DAY, NOW + DAY), &authority, "127.0.0.1").await;
    let mut wrong = settings(&format!("https://{}/", plain.address));
    wrong.tls.roots = Roots::Pem(file.path().into());
    let fault = fetch(wrong, &clock).fetch_file(FILE, LIMIT, None).await.unwrap_err();
    assert_eq!(fault.kind(), "tls_not_tls", "{fault}");
    let fault = fetch(settings(&format!("http://{}/", server.address)), &clock).fetch_file(FILE, LIMIT, None).await;
    assert!(matches!(fault.unwrap_err().kind(), "closed" | "protocol"));
    assert_eq!(fetch_tls.fetch_file(FILE, LIMIT, None).await.unwrap(), Answer::Absent);
}

#[tokio::test]
async fn times_out_a_handshake_that_hangs_or_breaks() {
    let clock = clock();
    let server = Server::start(&clock, None).await;
    server.greet(vec![Act::Stall]).greet(vec![Act::Close]);
    let authority = Authority::new(NOW);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &authority.pem).unwrap();
    let mut settings = settings(&format!("https://{}/", server.address));
    settings.tls.roots = Roots::Pem(file.path().into());
    let fetch = fetch(settings, &clock);
    let fault = drive(&clock, fetch.fetch_file(FILE, LIMIT, None)).await.unwrap_err();
    assert_eq!(fault.kind(), "slow_handshake");
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "closed");
}

#[tokio::test]
async fn rereads_rotated_roots_and_ignores_a_broken_file() {
    let (old, new) = (Authority::new(NOW), Authority::new(NOW));
    let (server, fetch, file) = tls(new.server(NOW - DAY, NOW + DAY), &old, "127.0.0.1").await;
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "tls_issuer");
    std::fs::write(file.path(), format!("{}{}", old.pem, new.pem)).unwrap();
    server.answer(reply("200 OK", "Connection: close\r\n", "{}"));
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), body("{}", None));
    std::fs::write(file.path(), "half a fi").unwrap();
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), Answer::Absent);
    assert_eq!(server.connections(), 2);
}

// SPIFFE

/// A server that shows `theirs`, asks for a certificate of `authority`, and a client of the given settings.
struct Mutual {
    clock: ManualClock,
    api: Arc<FakeWorkloadApi>,
    authority: TestAuthority,
    server: Server,
    fetch: HttpFetch,
}

impl Mutual {
    async fn new(theirs: &str, client: Option<ClientSvid>) -> Self {
        let clock = clock();
        let authority = TestAuthority::new("example.org", NOW);
        let api = FakeWorkloadApi::new(Arc::new(clock.clone()), &[US]);
        api.update(|identities| {
            authority.trust(identities);
            authority.give(identities, US, NOW, NOW + Duration::from_secs(3600));
        });
        let svid = authority.issue(theirs, NOW, NOW + DAY);
        let mut roots = RootCertStore::empty();
        roots.add(authority.root().to_vec().into()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let config = server_config(&clock).with_client_cert_verifier(verifier);
        let config = config.with_single_cert(chain(&svid.chain), pkcs8(&svid.key)).unwrap();
        let server = Server::start(&clock, Some(config)).await;
        let mut settings = settings(&format!("https://{}/", server.address));
        settings.tls.roots = Roots::Spiffe(HOST_ID.parse().unwrap());
        settings.tls.client = client;
        let workload_api = Arc::clone(&api) as Arc<dyn WorkloadApi>;
        let fetch = HttpFetch::new(settings, Arc::new(clock.clone()), Some(workload_api)).unwrap();
        Self { clock, api, authority, server, fetch }
    }

    async fn fetch_file(&self) -> Result<Answer, HttpFault> {
        self.fetch.fetch_file(FILE, LIMIT, None).await
    }

    fn rotate(&self) {
        let until = self.clock.now() + Duration::from_secs(3600);
        self.api.update(|identities| self.authority.give(identities, US, self.clock.now(), until));
    }
}

#[tokio::test]
async fn authenticates_both_sides_by_svid_and_presents_a_rotated_one_next() {
    let world = Mutual::new(HOST_ID, Some(ClientSvid::Default)).await;
    assert_eq!(world.fetch_file().await.unwrap(), Answer::Absent);
    assert_eq!(world.fetch_file().await.unwrap(), Answer::Absent);
    assert_eq!(world.server.connections(), 1);
    world.rotate();
    assert_eq!(world.fetch_file().await.unwrap(), Answer::Absent);
    assert_eq!(world.server.connections(), 2);
    let peers: BTreeSet<_> = world.server.peers().into_iter().collect();
    assert!(peers.len() == 2 && !peers.contains(&None), "two certificates, one after the other");
}

#[tokio::test]
async fn presents_the_named_svid_or_none() {
    let world = Mutual::new(HOST_ID, Some(ClientSvid::Named(US.parse().unwrap()))).await;
    assert_eq!(world.fetch_file().await.unwrap(), Answer::Absent);
    world.api.withdraw_all();
    let fault = world.fetch_file().await.unwrap_err();
    assert_eq!((fault.kind(), world.server.connections()), ("no_svid", 1), "nor is the kept connection used");
    assert!(matches!(fault.into_fetch_error(FILE), FetchError::Unreachable { .. }));
    // An expired one is none.
    let world = Mutual::new(HOST_ID, Some(ClientSvid::Default)).await;
    world.clock.advance(Duration::from_secs(3600));
    assert_eq!(world.fetch_file().await.unwrap_err().kind(), "no_svid");
}

#[tokio::test]
async fn accepts_only_the_named_workload_as_server() {
    let world = Mutual::new("spiffe://example.org/ns/policy/sa/other", Some(ClientSvid::Default)).await;
    assert_eq!(world.fetch_file().await.unwrap_err().kind(), "tls_other_workload");
    assert!(world.server.questions().is_empty());

    let world = Mutual::new(HOST_ID, Some(ClientSvid::Default)).await;
    assert_eq!(world.fetch_file().await.unwrap(), Answer::Absent);
    // Its authority is replaced: neither the kept connection nor a new one is trusted.
    let other = TestAuthority::new("example.org", NOW);
    world.api.update(|identities| other.trust(identities));
    let fault = world.fetch_file().await.unwrap_err();
    assert_eq!(fault.kind(), "tls_svid", "{fault}");
    world.api.update(|identities| identities.x509_bundles.clear());
    assert_eq!(world.fetch_file().await.unwrap_err().kind(), "tls_svid");
    assert_eq!(world.server.questions().len(), 1);
}

#[tokio::test]
async fn reports_a_server_that_requires_a_client_certificate() {
    let world = Mutual::new(HOST_ID, None).await;
    let fault = world.fetch_file().await.unwrap_err();
    assert_eq!(fault.kind(), "tls_alert", "{fault}");
    assert!(fault.to_string().contains("policy.client"), "{fault}");
}

// The proxy

async fn by_proxy(proxy: &str, target: &str, clock: &ManualClock, roots: Option<&Authority>) -> HttpFetch {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut settings = settings(target);
    if let Some(authority) = roots {
        std::fs::write(file.path(), &authority.pem).unwrap();
        settings.tls.roots = Roots::Pem(file.path().into());
    }
    settings.proxy = Some(proxy.parse().unwrap());
    fetch(settings, clock)
}

#[tokio::test]
async fn a_proxy_sees_only_the_address_of_its_tunnel() {
    let (clock, authority) = (clock(), Authority::new(NOW));
    let server = Server::start(&clock, Some(authority.server(NOW - DAY, NOW + DAY))).await;
    server.answer(reply("200 OK", "", "{}"));
    let proxy = TunnelProxy::start(server.address).await;
    let fetch = by_proxy(
        &format!("http://us%40x:p%3Aw@{}", proxy.address),
        "https://policy.example/p",
        &clock,
        Some(&authority),
    )
    .await;
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), body("{}", None));
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap(), Answer::Absent);
    let heads = proxy.heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 1, "one tunnel for both");
    let head = heads[0].to_ascii_lowercase();
    assert!(head.starts_with("connect policy.example:443 http/1.1\r\nhost: policy.example:443\r\n"), "{head}");
    assert!(heads[0].contains("Basic dXNAeDpwOnc="), "us@x:p:w");
    assert!(!head.contains("metadata"));
    let question = &server.questions()[0];
    assert!(question.starts_with("GET /p/metadata/timestamp.json ") && !question.contains("Basic"), "{question}");
}

#[tokio::test]
async fn distinguishes_proxy_failures_from_server_failures() {
    let clock = clock();
    let proxy = Server::start(&clock, None).await;
    let fetch = by_proxy(&format!("http://{}", proxy.address), "http://127.0.0.1:9/", &clock, None).await;
    proxy.answer(reply("407 Proxy Authentication Required", "", "who?"));
    let fault = fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err();
    assert_eq!((fault.kind(), fault.to_string().as_str()), ("proxy_refused", "policy.proxy opens no tunnel: HTTP 407"));
    proxy.answer(reply("302 Found", "Location: http://127.0.0.1:1/\r\n", ""));
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "proxy_refused");
    proxy.answer(vec![send("not HTTP at all\r\n\r\n"), Act::Close]);
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "proxy_broken");
    proxy.answer(vec![Act::Close]);
    assert_eq!(fetch.fetch_file(FILE, LIMIT, None).await.unwrap_err().kind(), "proxy_broken");
    proxy.answer(vec![Act::Stall]);
    assert_eq!(drive(&clock, fetch.fetch_file(FILE, LIMIT, None)).await.unwrap_err().kind(), "slow_proxy");
    drop(proxy);
    let fault = drive(&clock, fetch.fetch_file(FILE, LIMIT, None)).await.unwrap_err();
    assert_eq!(fault.kind(), "connect");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bytes a server sends, there is an answer or a fault, in time and within the limit.
    #[test]
    fn arbitrary_bytes_end_in_an_answer_or_a_fault(
        head in prop::sample::select(vec!["", "HTTP/1.1 ", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: ",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 304 X\r\nETag: "]),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let bytes = [head.as_bytes(), &tail].concat();
            world.server.answer(vec![send(bytes), Act::Close]);
            match world.fetch_file(Some("\"a\"")).await {
                Ok(Answer::Body { bytes, .. }) => assert!(bytes.len() as u64 <= LIMIT),
                Ok(_) => {}
                Err(fault) => assert!(!fault.kind().is_empty()),
            }
        });
    }

    #[test]
    fn a_requested_path_decodes_to_its_name(name in "[a-zé%/ .?#&+]{1,40}") {
        if let Some(path) = encoded(&name) {
            let uri: Uri = format!("http://h/{path}").parse().unwrap();
            let mut decoded = Vec::new();
            let mut rest = uri.path().as_bytes()[1..].iter();
            while let Some(byte) = rest.next() {
                decoded.push(match byte {
                    b'%' => u8::from_str_radix(&format!("{}{}", *rest.next().unwrap() as char, *rest.next().unwrap() as char), 16).unwrap(),
                    byte => *byte,
                });
            }
            prop_assert_eq!(decoded, name.as_bytes());
            prop_assert_eq!(uri.query(), None);
        }
    }
}
