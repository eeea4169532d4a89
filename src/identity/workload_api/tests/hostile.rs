//! The real client against a Workload API that is broken, overloaded or hostile (threat T24): whatever it does, what was
//! trusted before stays in force until its own end, unless identities are withdrawn in so many words; readiness says why;
//! and it is asked again with backoff, never in a busy loop.

use std::io;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::*;

/// One thing that it does on a stream. After the last it keeps the stream open until it is told to act otherwise.
#[derive(Clone)]
enum Step {
    Data(Vec<u8>),
    /// Trailers, and so the end.
    Trailers(Pairs),
    /// The end without trailers.
    End,
    /// `RST_STREAM`.
    Reset,
    /// The connection is closed.
    Cut,
}

type Pairs = &'static [(&'static str, &'static str)];

#[derive(Clone)]
enum Act {
    /// These bytes on each new connection in place of HTTP/2; then it closes, or hangs.
    Raw(&'static [u8], After),
    /// An answer to whoever asks for SVIDs; what is said of bundles is good.
    Answer(u16, Pairs, Vec<Step>),
}

#[derive(Clone, Copy, PartialEq)]
enum After {
    Close,
    Hang,
}

/// An answer as gRPC has it, with these bytes.
fn says(bytes: Vec<u8>) -> Act {
    steps(vec![Step::Data(bytes)])
}

fn steps(steps: Vec<Step>) -> Act {
    Act::Answer(200, &[], steps)
}

fn trailers(pairs: Pairs) -> Act {
    steps(vec![Step::Trailers(pairs)])
}

/// A whole message, as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    framed_as(0, u32::try_from(message.len()).unwrap(), message)
}

fn framed_as(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

fn good(ids: &[&str]) -> Vec<u8> {
    framed(&svids(ids).encode_to_vec())
}

fn one(change: impl FnOnce(&mut X509Entry)) -> Vec<u8> {
    let mut entry = entry(REPORT, "");
    change(&mut entry);
    framed(&X509Response { svids: vec![entry] }.encode_to_vec())
}

/// The field `federated_bundles` of a response, to be written behind another.
#[derive(Clone, PartialEq, Message)]
struct Federated {
    #[prost(map = "string, bytes", tag = "3")]
    bundles: std::collections::HashMap<String, Vec<u8>>,
}

fn with_federated(bundles: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let federated = Federated { bundles: bundles.into_iter().collect() };
    framed(&[svids(&[REPORT]).encode_to_vec(), federated.encode_to_vec()].concat())
}

fn pairs(pairs: Pairs) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

type Body = StreamBody<ReceiverStream<io::Result<Frame<Bytes>>>>;

struct Hostile {
    act: watch::Sender<Act>,
    opened: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
    serving: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Hostile {
    /// It begins honestly, with one identity.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let (act, opened) = (watch::Sender::new(says(good(&[REPORT]))), Arc::new(AtomicUsize::new(0)));
        let (acts, count) = (act.clone(), Arc::clone(&opened));
        let key = SigningKey::generate("P-256", "agent");
        let keys = framed(&bundles(&[("spiffe://example.org", &jwks([&key]))]).encode_to_vec());
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                connections.spawn(connection(stream, acts.clone(), keys.clone()));
            }
        });
        Self { act, opened, directory, serving }
    }

    fn address(&self) -> String {
        format!("unix://{}", self.directory.path().join("api.sock").display())
    }

    fn does(&self, act: Act) {
        drop(self.act.send_replace(act));
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

async fn connection(mut stream: UnixStream, acts: watch::Sender<Act>, keys: Vec<u8>) {
    let act = acts.borrow().clone();
    if let Act::Raw(bytes, after) = act {
        let _ = stream.write_all(bytes).await;
        let mut sink = [0; 1024];
        while after == After::Hang && stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        return;
    }
    let cut = Arc::new(Notify::new());
    let mut changes = acts.subscribe();
    let its_cut = Arc::clone(&cut);
    let service = service_fn(move |request| {
        let answered = answer(&request, &acts, &keys, &its_cut);
        async move { Ok::<_, Infallible>(answered) }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = http.serve_connection(TokioIo::new(stream), service) => {}
        () = cut.notified() => {}
        _ = changes.wait_for(|act| matches!(act, Act::Raw(..))) => {}
    }
}

fn answer(
    request: &http::Request<Incoming>,
    acts: &watch::Sender<Act>,
    keys: &[u8],
    cut: &Arc<Notify>,
) -> http::Response<Body> {
    let (sender, receiver) = mpsc::channel(1);
    let mut answer = http::Response::new(StreamBody::new(ReceiverStream::new(receiver)));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if request.uri().path().ends_with("Bundles") {
        tokio::spawn(play(vec![Step::Data(keys.to_vec())], sender, None, Arc::clone(cut)));
    } else if let Act::Answer(status, headers, steps) = &*acts.borrow() {
        *answer.status_mut() = http::StatusCode::from_u16(*status).unwrap();
        answer.headers_mut().extend(pairs(headers));
        let mut changes = acts.subscribe();
        changes.mark_unchanged();
        tokio::spawn(play(steps.clone(), sender, Some(changes), Arc::clone(cut)));
    }
    answer
}

/// Does one step after the other; then what comes next, if it can be done on a running stream.
async fn play(
    mut steps: Vec<Step>,
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
    changes: Option<watch::Receiver<Act>>,
    cut: Arc<Notify>,
) {
    let mut changes = changes;
    loop {
        for step in steps {
            let said = match step {
                Step::Data(bytes) => Ok(Frame::data(bytes.into())),
                Step::Trailers(said) => Ok(Frame::trailers(pairs(said))),
                Step::Reset => Err(io::Error::other("reset")),
                Step::End => return,
                Step::Cut => return cut.notify_one(),
            };
            if sender.send(said).await.is_err() {
                return;
            }
        }
        let next = match &mut changes {
            None => return sender.closed().await,
            Some(changes) => tokio::select! {
                () = sender.closed() => return,
                changed = changes.changed() => changed.map(|()| changes.borrow_and_update().clone()),
            },
        };
        match next {
            Ok(Act::Answer(200, [], more)) if !more.is_empty() => steps = more,
            _ => return drop(sender.send(Err(io::Error::other("reset"))).await),
        }
    }
}

/// What the client makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Concludes {
    /// The stream is over: it is opened again with backoff.
    Over,
    /// The request itself is refused: it is opened again only slowly.
    Refused,
    /// The message is discarded, and the stream goes on.
    Discarded,
    /// Nothing is issued to us any more.
    Withdrawn,
}
use Concludes::{Discarded, Over, Refused, Withdrawn};

/// What it does, what the client concludes, and a part of what readiness says then.
fn cases() -> Vec<(&'static str, Act, Concludes, &'static str)> {
    let half = good(&[OTHER])[..300].to_vec();
    let other_key = entry(OTHER, "").key;
    vec![
        ("HTTP/1.1", Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", After::Close), Over, "h2 protocol error"),
        ("no HTTP at all", Act::Raw(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], After::Hang), Over, "h2 protocol error"),
        ("a connection that closes at once", Act::Raw(b"", After::Close), Over, "transport error"),
        ("a connection that hangs", Act::Raw(b"", After::Hang), Over, "no answer in time"),
        ("a stream that hangs after its headers", steps(vec![]), Over, "no answer in time"),
        (
            "a stream that hangs within a message",
            Act::Answer(200, &[("x", "y")], vec![Step::Data(half.clone())]),
            Over,
            "no answer in time",
        ),
        ("a reset", steps(vec![Step::Reset]), Over, "h2 protocol error"),
        ("a reset within a message", steps(vec![Step::Data(half.clone()), Step::Reset]), Over, "h2 protocol error"),
        (
            "a connection cut within a message",
            steps(vec![Step::Data(half.clone()), Step::Cut]),
            Over,
            "transport error",
        ),
        (
            "a message that ends early",
            steps(vec![Step::Data(half.clone()), Step::Trailers(&[("grpc-status", "0")])]),
            Over,
            "closed the stream",
        ),
        ("an end without a status", steps(vec![Step::End]), Over, "missing grpc-status"),
        ("an end in peace", trailers(&[("grpc-status", "0")]), Over, "closed the stream"),
        ("a status that is no number", trailers(&[("grpc-status", "fine")]), Over, "unknown"),
        ("a status that does not exist", trailers(&[("grpc-status", "99")]), Over, "unknown"),
        ("internal", trailers(&[("grpc-status", "13"), ("grpc-message", "oops%0Aoops")]), Over, "oops oops"),
        ("resource exhausted", trailers(&[("grpc-status", "8")]), Over, "resource_exhausted"),
        ("unauthenticated", trailers(&[("grpc-status", "16")]), Over, "unauthenticated"),
        ("cancelled", trailers(&[("grpc-status", "1")]), Over, "cancelled"),
        ("a redirect", Act::Answer(307, &[("location", "http://127.0.0.1:1/")], vec![Step::End]), Over, "unknown"),
        ("503", Act::Answer(503, &[], vec![Step::End]), Over, "unavailable"),
        ("404", Act::Answer(404, &[], vec![Step::End]), Refused, "unimplemented"),
        (
            "the header is missed",
            trailers(&[("grpc-status", "3"), ("grpc-message", "security header missing")]),
            Refused,
            "security header missing",
        ),
        ("unimplemented", trailers(&[("grpc-status", "12")]), Refused, "unimplemented"),
        (
            "no identity any more",
            trailers(&[("grpc-status", "7"), ("grpc-message", "no identity issued")]),
            Withdrawn,
            "no identity issued",
        ),
        (
            "permission denied in other words",
            trailers(&[("grpc-status", "7"), ("grpc-message", "go away")]),
            Withdrawn,
            "go away",
        ),
        (
            "a page",
            Act::Answer(200, &[("content-type", "text/html")], vec![Step::Data(b"<html>hello there</html>".to_vec())]),
            Over,
            "compression flag",
        ),
        ("a flag that does not exist", says(framed_as(7, 3, b"abc")), Over, "compression flag"),
        ("compressed without a word", says(framed_as(1, 3, b"abc")), Over, "compress"),
        (
            "compressed by gzip",
            Act::Answer(200, &[("grpc-encoding", "gzip")], vec![Step::Data(framed_as(1, 3, b"abc"))]),
            Refused,
            "gzip",
        ),
        ("no protobuf", says(framed(&[0xff; 40])), Over, "decode"),
        ("a field of another type", says(framed(&[0x0d, 1, 2, 3, 4])), Over, "decode"),
        ("a field longer than its message", says(framed(&[0x0a, 0xff, 0x7f, 1])), Over, "decode"),
        ("a message of 5 MiB", says(framed_as(0, 5 << 20, b"x")), Over, "too large"),
        ("a message of 4 GiB", says(framed_as(0, u32::MAX, b"x")), Over, "too large"),
        ("no SVID", says(framed(&[])), Discarded, "svids"),
        ("no key", says(one(|entry| entry.key.clear())), Discarded, "x509_svid_key"),
        ("no chain", says(one(|entry| entry.chain.clear())), Discarded, "X509SVID.x509_svid"),
        ("no bundle", says(one(|entry| entry.bundle.clear())), Discarded, "bundle"),
        ("no SPIFFE ID", says(one(|entry| entry.spiffe_id.clear())), Discarded, "spiffe_id"),
        ("a chain of garbage", says(one(|entry| entry.chain = vec![0x30; 500])), Discarded, "X.509"),
        ("garbage behind the chain", says(one(|entry| entry.chain.push(0))), Discarded, "X.509"),
        ("a key of garbage", says(one(|entry| entry.key = vec![0x30; 100])), Discarded, "key"),
        ("a bundle of garbage", says(one(|entry| entry.bundle = vec![0x30; 500])), Discarded, "X.509"),
        ("an authority as a leaf", says(one(|entry| entry.chain = entry.bundle.clone())), Discarded, "X.509"),
        (
            "a chain of a hundred certificates",
            says(one(|entry| entry.chain = entry.chain.repeat(100))),
            Discarded,
            "X.509",
        ),
        (
            "one bad SVID among good ones",
            says({
                let mut said = svids(&[OTHER, REPORT]);
                said.svids[1].key = other_key[..20].to_vec();
                framed(&said.encode_to_vec())
            }),
            Discarded,
            "key",
        ),
        (
            "a federated trust domain that is invalid",
            says(with_federated([("../etc".into(), Vec::new())])),
            Discarded,
            "trust domain",
        ),
        (
            "a federated bundle of garbage",
            says(with_federated([("spiffe://other.org".into(), vec![1; 9])])),
            Discarded,
            "X.509",
        ),
    ]
}

fn follow(hostile: &Hostile) -> (Arc<SpiffeWorkloadApi>, Arc<Impatient>) {
    let clock = Arc::new(Impatient::default());
    (SpiffeWorkloadApi::start(&hostile.address(), None, clock.clone()).unwrap(), clock)
}

/// Lets everything run until `condition` holds; says whether it does.
async fn comes(api: &SpiffeWorkloadApi, condition: impl Fn(&Identities, &Health) -> bool) -> bool {
    for _ in 0..100_000 {
        if condition(&api.identities(), &api.health()) {
            return true;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    false
}

async fn play_case(act: Act, concludes: Concludes, says_why: &str) -> Result<(), String> {
    let hostile = Hostile::start();
    let (api, clock) = follow(&hostile);
    let fine = |identities: &Identities, health: &Health| complete(identities) && health.connected();
    let check = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{what}: {:?} {:?}", api.health(), ids(&api.identities()))),
    };
    check(comes(&api, fine).await, "it does not begin")?;
    let (opened, waited) = (hostile.opened(), clock.waits.lock().unwrap().len());
    let waits = || clock.waits.lock().unwrap()[waited..].to_vec();

    hostile.does(act);
    clock.openings_end.store(says_why == "no answer in time", Ordering::SeqCst);
    let why =
        |_: &Identities, health: &Health| health.svids.last_error.as_ref().is_some_and(|why| why.contains(says_why));
    check(comes(&api, why).await, "readiness does not say why")?;
    match concludes {
        Over => check(comes(&api, |_, _| hostile.opened() > opened + 5).await, "it is not asked again")?,
        Refused => check(comes(&api, |_, _| waits().len() >= 3).await, "it is not asked again")?,
        Withdrawn => {
            check(comes(&api, |identities, _| identities.svids.is_empty()).await, "it keeps what was withdrawn")?
        }
        Discarded => check(api.health().connected() && hostile.opened() == opened, "the stream does not go on")?,
    }
    let asked = hostile.opened() - opened;
    check(asked <= waits().len() + 4, &format!("a busy loop: asked {asked} times, waited {:?}", waits()))?;
    // What cannot be done on a running stream begins with its end: then the first wait is a short one.
    let slow = waits().iter().filter(|wait| (15_000..=30_000).contains(&wait.as_millis())).count();
    let wanted = if concludes == Refused { waits().len() - 1..=waits().len() } else { 0..=0 };
    check(wanted.contains(&slow), &format!("waits {:?}", waits()))?;
    check(waits().iter().all(|wait| concludes == Refused || wait.as_secs() <= 5), &format!("waits {:?}", waits()))?;
    let identities = api.identities();
    let report = REPORT.parse().unwrap();
    if concludes == Withdrawn {
        check(identities.keys.is_empty() && identities.x509_bundles.is_empty(), "it keeps keys or bundles")?;
    } else {
        check(
            identities.svid(&report, NOW).is_some() && identities.svid(&report, NOT_AFTER).is_none(),
            "before its end",
        )?;
        check(ids(&identities) == [REPORT] && identities.keys.contains_key(&report), "what was trusted stays")?;
    }
    check(domains(&identities) == ["example.org"], "what was said of bundles is good")?;

    clock.openings_end.store(false, Ordering::SeqCst);
    hostile.does(says(good(&[OTHER])));
    let fixed = |identities: &Identities, health: &Health| {
        ids(identities) == [OTHER] && identities.keys.len() == 1 && health.connected() && health.last_error().is_none()
    };
    check(comes(&api, fixed).await, "it does not recover")
}

#[tokio::test]
async fn keeps_trusted_state_under_a_hostile_agent_and_recovers() {
    let mut failed = Vec::new();
    for (name, act, concludes, says_why) in cases() {
        if let Err(error) = play_case(act, concludes, says_why).await {
            failed.push(format!("{name}: {error}"));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases().len(), failed.join("\n"));
}

/// Follows it until it has said `bytes`, of which the last SVID is `last`.
async fn after(bytes: Vec<u8>, last: &str) -> Arc<Identities> {
    let hostile = Hostile::start();
    let (api, _) = follow(&hostile);
    until(&api, |identities, _| complete(identities)).await;
    hostile.does(says(bytes));
    until(&api, |identities, health| {
        ids(identities).last() == Some(&last) && health.last_error().is_none() && health.connected()
    })
    .await;
    api.identities()
}

fn roots(identities: &Identities) -> Vec<&str> {
    identities.x509_bundles.keys().map(TrustDomain::as_str).collect()
}

#[tokio::test]
async fn keeps_both_svids_of_one_name_and_uses_the_first_keys() {
    let said = svids(&[OTHER, OTHER, OTHER]);
    let leaf = said.svids[0].chain.clone();
    let identities = after(framed(&said.encode_to_vec()), OTHER).await;
    assert_eq!(ids(&identities), [OTHER; 3]);
    assert_eq!(identities.keys[&OTHER.parse().unwrap()].certified().cert[0].as_ref(), leaf);
}

#[tokio::test]
async fn takes_identity_from_the_certificate_and_roots_for_its_own_domain_only() {
    let mut said = svids(&[OTHER]);
    said.svids[0].spiffe_id = "spiffe://other.org/admin".into();
    let identities = after(framed(&said.encode_to_vec()), OTHER).await;
    assert_eq!((ids(&identities), roots(&identities)), (vec![OTHER], vec!["example.org"]));

    // And what stands in another trust domain's bundle proves nothing of ours.
    let (mut said, other) = (svids(&[OTHER, "spiffe://other.org/a"]), entry(OTHER, ""));
    said.svids[0].bundle = other.bundle;
    let identities = after(framed(&said.encode_to_vec()), "spiffe://other.org/a").await;
    let accepted = identities.accepted(&BTreeSet::new(), NOW);
    let verified = |id: &str| {
        let key = &identities.keys[&id.parse().unwrap()];
        x509_svid::verify(&key.certified().cert, &identities.x509_bundles, &accepted, NOW).is_ok()
    };
    assert!(!verified(OTHER) && verified("spiffe://other.org/a"));
}

#[tokio::test]
async fn accepts_a_thousand_svids_and_bundles_in_one_message() {
    let one = entry(REPORT, "");
    let mut many: Vec<X509Entry> = (0..999).map(|n| X509Entry { hint: n.to_string(), ..one.clone() }).collect();
    many.push(entry(OTHER, ""));
    let bundles = (0..1000).map(|n| (format!("spiffe://federated-{n}.org"), one.bundle.clone())).collect();
    let federated = Federated { bundles };
    let said = [X509Response { svids: many }.encode_to_vec(), federated.encode_to_vec()].concat();
    assert!(said.len() < 4 << 20, "{}", said.len());
    let identities = after(framed(&said), OTHER).await;
    assert_eq!((identities.svids.len(), identities.keys.len(), identities.x509_bundles.len()), (1000, 2, 1001));
}

#[tokio::test]
async fn applies_the_last_of_many_updates_and_queues_none() {
    let hostile = Hostile::start();
    let (api, clock) = follow(&hostile);
    until(&api, |identities, _| complete(identities)).await;
    let (one, last) = (good(&[REPORT]), good(&[OTHER]));
    let flood = (0..500).map(|_| one.clone()).chain([last]).map(Step::Data).collect();
    hostile.does(steps(flood));
    until(&api, |identities, _| ids(identities) == [OTHER]).await;
    assert!(api.health().connected() && clock.waits.lock().unwrap().is_empty());
    assert_eq!(hostile.opened(), 2);
}

#[tokio::test]
async fn discards_unreadable_jwt_bundles_and_keeps_the_previous_ones() {
    let agent = Agent::running();
    let (api, _) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    let keys = jwks([&agent.key]);
    for (id, keys) in [
        ("spiffe://example.org", &b"no JSON"[..]),
        ("spiffe://example.org", br#"{"keys":{}}"#),
        ("spiffe://example.org", br#"{}"#),
        ("spiffe://", &keys),
        ("spiffe://a b", &keys),
    ] {
        agent.publishes(Ok(bundles(&[(id, keys)])));
        until(&api, |_, health| health.jwt_bundles.last_error.is_some()).await;
        assert_eq!(domains(&api.identities()), ["example.org"]);
        assert!(!api.identities().jwt_bundles.values().any(|bundle| bundle.is_empty()) && api.health().connected());
        agent.publishes(Ok(bundles(&[("spiffe://example.org", &jwks([&agent.key]))])));
        until(&api, |_, health| health.jwt_bundles.last_error.is_none()).await;
    }
}

#[tokio::test]
async fn a_bad_answer_to_a_token_request_fails_with_its_kind() {
    let response = |svids: Vec<JwtEntry>| framed(&JwtResponse { svids }.encode_to_vec());
    let entry = |svid: &str| JwtEntry { spiffe_id: REPORT.into(), svid: svid.into() };
    let ended = |data: Vec<u8>| steps(vec![Step::Data(data), Step::Trailers(&[("grpc-status", "0")])]);
    let long = "a".repeat(1 << 20);
    let mut failed = Vec::new();
    for (name, act, kind) in [
        ("HTTP/1.1", Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", After::Close), "unavailable"),
        ("closed at once", Act::Raw(b"", After::Close), "unavailable"),
        ("hangs", Act::Raw(b"", After::Hang), "unavailable"),
        ("hangs after its headers", steps(vec![]), "unavailable"),
        ("reset", steps(vec![Step::Reset]), "unavailable"),
        ("no protobuf", ended(framed(&[0xff; 40])), "unavailable"),
        ("5 MiB", ended(framed_as(0, 5 << 20, b"x")), "unavailable"),
        ("no message", trailers(&[("grpc-status", "0")]), "unavailable"),
        ("permission denied", trailers(&[("grpc-status", "7")]), "denied"),
        ("gzip", Act::Answer(200, &[("grpc-encoding", "gzip")], vec![Step::Data(framed_as(1, 3, b"abc"))]), "invalid"),
        ("no token", ended(response(vec![])), "invalid"),
        ("an empty token", ended(response(vec![entry("")])), "invalid"),
        ("a token of a megabyte", ended(response(vec![entry(&long)])), "invalid"),
        ("no JWT", ended(response(vec![entry("a.b.c")])), "invalid"),
    ] {
        let hostile = Hostile::start();
        hostile.does(act);
        let clock = Arc::new(Impatient::default());
        clock.openings_end.store(name.starts_with("hangs"), Ordering::SeqCst);
        let client = Client::new(hostile.address().parse().unwrap(), None, clock);
        let error = fetch(&client).await.unwrap_err();
        let found = match &error {
            WorkloadApiError::Unavailable(_) => "unavailable",
            WorkloadApiError::Denied(_) => "denied",
            WorkloadApiError::Untrusted(_) => "untrusted",
            WorkloadApiError::Invalid(_) => "invalid",
        };
        if found != kind || error.to_string().len() > 400 || error.to_string().contains("aaaa") {
            failed.push(format!("{name}: {found}, {error}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
