//! What is bounded (threat T22, invariant I14): whoever runs into a bound is refused or sent away, is counted, and takes
//! nothing from the others.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, REPORT};
use crate::world::{Begun, Setup, World, begun, secs, settle, until};

#[tokio::test]
async fn a_caller_with_too_many_tasks_begins_no_more_and_takes_none_from_others() {
    let w = World::with(Setup { limits: |limits| limits.tasks_per_caller = 2, ..Setup::default() }).await;
    let first = w.begin_scope("archive").await;
    let second = w.begin_scope("archive").await;
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"));
    assert_eq!(reply.header("retry-after"), Some("30"));
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "too_many_tasks_of_caller");
    assert_eq!(w.limited("tasks_per_caller").await, 1.0);
    // A child is its caller's as well, and so no way round.
    let child = w.send(Call::post("/v1/tasks").bearer(&first.token).json(&json!({ "scope": "archive" }))).await;
    assert_eq!(child.status, 429);
    begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    // What has ended no longer counts.
    w.end(&second).await;
    w.begin_scope("archive").await;
}

#[tokio::test]
async fn concurrent_requests_of_one_caller_do_not_exceed_its_limit() {
    let w = World::with(Setup { limits: |limits| limits.tasks_per_caller = 5, ..Setup::default() }).await;
    w.journal.hold("task");
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(w.address).await;
        connection.send(&w.begin_call(&json!({ "scope": "archive" })).bytes(w.address)).await;
        connections.push(connection);
    }
    until("as many wait as may", || w.journal.waiting() == 5).await;
    settle().await;
    assert_eq!(w.journal.waiting(), 5);
    w.journal.release("task");
    until("they have begun", || w.broker.tasks().len() == 5).await;
    let mut statuses = Vec::new();
    for connection in &mut connections {
        statuses.push(connection.reply().await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![201; 5], vec![429; 15]].concat());
}

#[tokio::test]
async fn a_caller_that_mints_too_often_waits_and_others_do_not() {
    let w = World::with(Setup { limits: |limits| limits.mints_per_caller = 2, ..Setup::default() }).await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(w.begin_scope("archive").await);
    }
    w.served(&tasks[0].token).await;
    w.served(&tasks[1].token).await;
    // Our own dialect says what it is; AWS's SDKs take 503 for passing and 429, some of them, for final.
    let path = format!("/v1/tasks/{}/credentials", tasks[2].id);
    let native = w.send(Call::get(&path).bearer(&tasks[2].token)).await;
    assert_eq!((native.status, native.code().as_str()), (429, "rate_limited"));
    assert_eq!(native.header("retry-after"), Some("30"));
    let sdk = w.credentials(&tasks[2].token).await;
    assert_eq!((sdk.status, sdk.header("retry-after")), (503, Some("30")));
    assert_eq!((w.limited("mints_per_caller").await, w.cloud.calls()), (2.0, 2));
    // What is live already is served on, and another caller mints.
    w.served(&tasks[0].token).await;
    let other =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    w.served(&other.token).await;
    w.clock.advance(secs(30));
    w.served(&tasks[2].token).await;
}

#[tokio::test]
async fn rejects_and_reports_more_tasks_than_may_be_remembered() {
    let w = World::with(Setup { tasks: 2, ..Setup::default() }).await;
    for _ in 0..2 {
        w.begin_scope("archive").await;
    }
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("30")));
    assert_eq!(reply.json()["detail"], "Too many tasks.");
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "too_many_tasks");
    assert_eq!((w.limited("tasks").await, w.limited("tasks_per_caller").await), (1.0, 0.0));
    assert_eq!(w.metric("sidemint_denials_total{reason=\"too_many_tasks\"}").await, Some(1.0));
}

#[tokio::test]
async fn limits_holders_per_task_and_holds_per_caller() {
    let w = World::with(Setup { limits: |limits| limits.holds_per_caller = 17, ..Setup::default() }).await;
    let (task, second) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    let hold = |task: &Begun| Call::post(&format!("/v1/tasks/{}/hold", task.id)).bearer(&task.token);
    let mut holds = Vec::new();
    for _ in 0..16 {
        holds.push(w.hold(&task).await);
    }
    let reply = w.send(hold(&task)).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("1")));
    assert_eq!(reply.json()["detail"], "Too many hold this task.");
    assert_eq!(w.audited(reply.request_id()).await[0]["detail"], "as many hold this task as may");
    assert_eq!((w.limited("holds_per_task").await, w.limited("holds_per_caller").await), (1.0, 0.0));
    // What was refused is not counted: there is room for one more of this caller, and no second.
    holds.push(w.hold(&second).await);
    let reply = w.send(hold(&second)).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("1")));
    assert_eq!(reply.json()["detail"], "Too many tasks of this workload are held.");
    assert_eq!(w.audited(reply.request_id()).await[0]["detail"], "as many tasks of this caller are held as may be");
    assert_eq!((w.limited("holds_per_task").await, w.limited("holds_per_caller").await), (1.0, 1.0));
    let others =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    let _others = w.hold(&others).await;
    // Whoever lets go makes room.
    let found = w.broker.tasks().by_id(&second.id.parse().unwrap()).unwrap();
    holds.pop();
    until("the hold is seen to be gone", || found.state().holders == 0).await;
    w.hold(&second).await;
}

#[tokio::test]
async fn limits_the_waiters_on_a_hanging_provider_and_serves_others() {
    let w = World::with(Setup { limits: |limits| limits.waits_per_caller = 3, ..Setup::default() }).await;
    let other = || Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }));
    let (served, unserved) = (begun(&w.send(other()).await), begun(&w.send(other()).await));
    let live = w.served(&served.token).await;
    let (task, second) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    w.cloud.gate.shut();
    let ask = async |token: &str| {
        let mut connection = Connection::open(w.address).await;
        connection.send(&Call::get("/v1/aws/credentials").header("authorization", token).bytes(w.address)).await;
        connection
    };
    let mut waiting = Vec::new();
    for token in [&task.token, &task.token, &second.token] {
        waiting.push(ask(token).await);
    }
    until("as many wait as may", || w.clock.sleepers() == 3 && w.cloud.calls() == 3).await;
    let path = format!("/v1/tasks/{}/credentials", second.id);
    let reply = w.send(Call::get(&path).bearer(&second.token)).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("1")));
    assert_eq!(reply.json()["detail"], "Too many requests of this workload wait for a credential.");
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!((&line["event"], &line["reason"]), (&json!("refusal"), &json!("rate_limited")));
    assert_eq!(w.credentials(&task.token).await.status, 503, "AWS's SDKs take it for passing");
    assert_eq!((w.limited("waits_per_caller").await, w.cloud.calls()), (2.0, 3));
    // Another caller has what is live at once, and waits for what is not.
    assert_eq!(w.served(&served.token).await, live);
    waiting.push(ask(&unserved.token).await);
    until("it waits as well", || w.clock.sleepers() == 4).await;
    w.cloud.gate.release();
    for mut connection in waiting {
        assert_eq!(connection.reply().await.unwrap().status, 200);
    }
    w.served(&second.token).await;
}

#[tokio::test]
async fn a_list_of_tasks_has_pages_and_is_complete() {
    let w = World::new().await;
    let mut begun = std::collections::BTreeSet::new();
    let parent = w.begin_scope("archive").await;
    begun.insert(parent.id);
    for _ in 0..250 {
        let child = Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "archive" }));
        begun.insert(crate::world::begun(&w.send(child).await).id);
    }
    let list = async |query: &str| w.send(Call::get(&format!("/v1/tasks{query}")).bearer(&w.svid(REPORT))).await;
    let first = list("").await.json();
    let ids = |page: &serde_json::Value| -> Vec<String> {
        page["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
    };
    let next = first["next"].as_str().unwrap();
    assert_eq!((ids(&first).len(), next), (200, ids(&first)[199].as_str()));
    let second = list(&format!("?after={next}")).await.json();
    assert_eq!((ids(&second).len(), second.get("next")), (51, None));
    let all = ids(&first).into_iter().chain(ids(&second)).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(all, begun);
    let last = list(&format!("?after={}", ids(&second)[50])).await.json();
    assert_eq!(last, json!({ "tasks": [] }));
    // A task that is not there and one of somebody else get the same answer.
    let foreign = Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }));
    let foreign = crate::world::begun(&w.send(foreign).await);
    for query in [format!("?after={}", foreign.id), "?after=t-0".into(), "?after=".into()] {
        let reply = list(&query).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"), "{query}");
    }
    let unknown = list("?limit=10000").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (400, "invalid_request"));
    assert_eq!(w.audited(unknown.request_id()).await[0]["detail"], "unknown query");
}

#[tokio::test]
async fn rejects_requests_over_the_concurrency_limit_at_once() {
    let w = World::with(Setup { limits: |limits| limits.requests = 2, ..Setup::default() }).await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::open(w.address).await;
        connection.send(&Call::get("/v1/aws/credentials").header("authorization", &task.token).bytes(w.address)).await;
        waiting.push(connection);
    }
    until("both wait for one exchange", || w.clock.sleepers() == 2).await;
    let reply = w.send(Call::get("/v1/tasks").bearer(&task.token)).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("1")));
    assert_eq!(reply.json()["detail"], "Too many requests at once.");
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "rate_limited");
    assert_eq!((w.credentials(&task.token).await.status, w.limited("requests").await), (503, 2.0));
    // Operators are told how it stands all the same.
    assert_eq!(w.ask_admin("/livez").await.status, 200);
    w.cloud.gate.release();
    for mut connection in waiting {
        assert_eq!(connection.reply().await.unwrap().status, 200);
    }
    w.show(&task).await;
}

#[tokio::test]
async fn a_body_too_large_and_a_head_too_large_are_refused_and_counted() {
    let w = World::new().await;
    let body = json!({ "scope": "archive", "reason": "x".repeat(64 * 1024) });
    let reply = w.send(w.begin_call(&body)).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "too_large");
    assert_eq!(w.limited("body_size").await, 1.0);
    let mut many = Call::get("/v1/tasks");
    for number in 0..101 {
        many = many.header(&format!("x-{number}"), "1");
    }
    for call in [many, Call::get("/v1/tasks").header("x", &"y".repeat(80 * 1024))] {
        let mut connection = Connection::open(w.address).await;
        connection.send(&call.bytes(w.address)).await;
        let status = connection.reply().await.map(|reply| reply.status);
        assert!(status.is_none_or(|status| status == 431), "{status:?}");
    }
    until_limited(&w, "head_size", 2.0).await;
    assert_eq!(w.audited_as("head_size").await["event"], "refusal");
    let deep = format!("{{\"scope\":\"archive\",\"ttl\":{}1{}}}", "[".repeat(17), "]".repeat(17));
    let call = Call::post("/v1/tasks").bearer(&w.svid(REPORT)).header("content-type", "application/json").body(deep);
    let reply = w.send(call).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request"));
    assert_eq!(reply.json()["detail"], "the body is nested deeper than 16");
    assert_eq!(w.audited(reply.request_id()).await[0]["detail"], "the body is nested deeper than 16");
    assert_eq!(w.limited("body_depth").await, 1.0);
    // What is wrong in another way is not that, whatever its texts hold.
    let brackets = json!({ "scope": "archive", "reason": "[".repeat(100), "what": 1 });
    assert_eq!(w.send(w.begin_call(&brackets)).await.status, 400);
    assert_eq!(w.limited("body_depth").await, 1.0);
}

async fn until_limited(w: &World, limit: &str, times: f64) {
    for _ in 0..1000 {
        if w.limited(limit).await == times {
            return;
        }
    }
    panic!("{limit}: {}", w.limited(limit).await);
}

#[tokio::test]
async fn closes_connections_that_do_not_read_their_answers() {
    let w = World::new().await;
    let stream = TcpStream::connect(w.address).await.unwrap();
    let (mut answers, mut requests) = stream.into_split();
    let request = format!("GET /nothing HTTP/1.1\r\nhost: {}\r\n\r\n", w.address);
    // It asks until nobody hears it any more.
    let asking = tokio::spawn(async move {
        let many = request.repeat(1000);
        for _ in 0..1000 {
            if requests.write_all(many.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    until("an answer stands still", || w.clock.sleepers() == 1).await;
    w.clock.advance(secs(5));
    asking.await.unwrap();
    until_limited(&w, "answer_time", 1.0).await;
    assert_eq!(w.audited_as("answer_time").await["event"], "refusal");
    assert!(answers.read(&mut [0; 16]).await.is_ok());
}

#[tokio::test]
async fn a_thousand_silent_clients_do_not_block_an_active_one() {
    let w = World::with(Setup { connections: 1024, ..Setup::default() }).await;
    let head = format!("GET /v1/aws/credentials HTTP/1.1\r\nhost: {}\r\n", w.address);
    let body = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer x\r\ncontent-type: application/json\r\n\
         content-length: 20\r\n\r\n{{",
        w.address
    );
    let mut silent = Vec::new();
    for number in 0..1024 {
        let mut connection = Connection::open(w.address).await;
        let said = ["", head.as_str(), body.as_str()][number % 3];
        connection.send(said.as_bytes()).await;
        silent.push(connection);
    }
    settle().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    // Nothing had to be waited for: no time-out has passed, only those who were silent the longest have gone.
    assert!(w.limited("connections").await >= 1.0);
    assert_eq!([w.limited("head_time").await, w.limited("body_time").await], [0.0, 0.0]);
    assert!(silent[0].reply().await.is_none());
}

#[tokio::test]
async fn never_evicts_the_connection_of_a_held_task() {
    let w = World::with(Setup { connections: 4, ..Setup::default() }).await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    let mut hold = Connection::open(w.address).await;
    let call = Call::post(&format!("/v1/tasks/{}/hold", task.id)).bearer(&task.token);
    hold.send(&call.bytes(w.address)).await;
    assert_eq!(hold.stream_head().await.status, 200);
    assert!(hold.chunk().await.is_some());
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(Connection::open(w.address).await);
    }
    w.served(&task.token).await;
    assert!(w.limited("connections").await >= 30.0);
    until("the heart beats on", || w.clock.sleepers() == 1).await;
    w.clock.advance(secs(2));
    assert!(hold.chunk().await.is_some());
    assert!(!w.is_ended(&task));
}

/// Bytes that are no request we answer, and what each is about. An answer, where there is one, is a refusal.
const HOSTILE: [(&str, &[u8]); 46] = [
    ("nothing", b""),
    ("a line break", b"\r\n\r\n"),
    ("NULs", b"\0\0\0\0\r\n\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("HTTP/0.9", b"GET /v1/tasks\r\n\r\n"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
    ("h2c upgrade", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    ("websocket", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    ("HTTP/1.2", b"GET /v1/tasks HTTP/1.2\r\nhost: H\r\n\r\n"),
    ("HTTP/3", b"GET /v1/tasks HTTP/3\r\nhost: H\r\n\r\n"),
    ("lower-case http", b"GET /v1/tasks http/1.1\r\nhost: H\r\n\r\n"),
    ("HTTP/1.0 without a host", b"GET /v1/tasks HTTP/1.0\r\n\r\n"),
    ("no host", b"GET /v1/tasks HTTP/1.1\r\n\r\n"),
    ("an empty host", b"GET /v1/tasks HTTP/1.1\r\nhost:\r\n\r\n"),
    ("two hosts", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nhost: H\r\n\r\n"),
    ("another host", b"GET /v1/tasks HTTP/1.1\r\nhost: evil.example\r\n\r\n"),
    ("an absolute target", b"GET http://H/v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a target elsewhere", b"GET http://evil.example/ HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a tunnel", b"CONNECT H HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("an asterisk", b"OPTIONS * HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("no target", b"GET  HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("no slash", b"GET v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a space in the target", b"GET /v1/ta sks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a tab in the target", b"GET /v1/\ttasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a NUL in the target", b"GET /v1/tasks\0 HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("high bytes in the target", b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("climbing", b"GET /v1/x/../../v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("escaped climbing", b"GET /v1/%2e%2e/v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a fragment", b"GET /v1/tasks#x HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("no method", b" /v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a method in quotes", b"\"GET\" /v1/tasks HTTP/1.1\r\nhost: H\r\n\r\n"),
    ("a folded header", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nx: a\r\n b\r\n\r\n"),
    ("a header that is folded first", b"GET /v1/tasks HTTP/1.1\r\n host: H\r\n\r\n"),
    ("a space before the colon", b"GET /v1/tasks HTTP/1.1\r\nhost : H\r\n\r\n"),
    ("a header without a colon", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nx\r\n\r\n"),
    ("a header without a name", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\n: x\r\n\r\n"),
    ("a NUL in a header", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nx: \0\r\n\r\n"),
    ("a lone CR in a header", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nx: a\rauthorization: b\r\n\r\n"),
    ("two authorizations", b"GET /v1/tasks HTTP/1.1\r\nhost: H\r\nauthorization: a\r\nauthorization: b\r\n\r\n"),
    ("two lengths", b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
    ("a negative length", b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ncontent-length: -1\r\n\r\n{}"),
    ("a huge length", b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ncontent-length: 99999999999999999999\r\n\r\n{}"),
    (
        "length and chunks",
        b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: H\r\n\r\n",
    ),
    ("chunks that are not last", b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    ("a chunk of no size", b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    (
        "a chunk of the largest size",
        b"POST /v1/tasks HTTP/1.1\r\nhost: H\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ),
];

/// `bytes` with our own address wherever they say `H`.
fn with_host(bytes: &[u8], host: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|two| matches!(two, b" H" | b"/H")) {
        out.extend_from_slice(&rest[..=at]);
        // `HTTP` begins with one as well
        if rest[at + 2..].starts_with(b"TTP") {
            out.push(b'H')
        } else {
            out.extend_from_slice(host.as_bytes())
        }
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    out
}

#[tokio::test]
async fn hostile_bytes_are_refused_and_the_next_request_is_answered() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let host = w.address.to_string();
    let (mut malformed, mut refused) = (0.0, std::collections::BTreeMap::new());
    for (about, bytes) in HOSTILE {
        let bytes = with_host(bytes, &host);
        // whole, and cut off in the middle
        for bytes in [&bytes[..], &bytes[..bytes.len() / 2]] {
            let mut stream = TcpStream::connect(w.address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            let said = String::from_utf8(said).unwrap();
            let statuses: Vec<_> = said.split("HTTP/1.").skip(1).map(|answer| &answer[2..5]).collect();
            assert!(statuses.iter().all(|status| status.starts_with('4')), "{about}: {said}");
            assert!(statuses.len() <= 1, "{about}: answered as several requests: {said}");
            // Each leaves its trace: a request is refused, counted and audited as such, anything else as malformed.
            let id = said.lines().find_map(|line| line.strip_prefix("x-request-id: "));
            if let Some(id) = id {
                let line = &w.audited(id).await[0];
                assert_eq!(line["status"].as_u64().unwrap().to_string(), statuses[0], "{about}");
                *refused.entry(statuses[0].to_owned()).or_insert(0.0) += 1.0;
            } else if !bytes.trim_ascii().is_empty() {
                malformed += 1.0;
                until_limited(&w, "malformed", malformed).await;
            }
        }
        w.served(&task.token).await;
    }
    assert_eq!((w.broker.tasks().len(), w.cloud.calls()), (1, 1));
    for (status, times) in refused {
        let series = format!("sidemint_requests_total{{code=\"{status}\",dialect=\"native\"}}");
        assert_eq!(w.metric(&series).await, Some(times), "{series}");
    }
    let told = || w.audit.lines().iter().filter(|line| line["reason"] == "malformed").count();
    until("each is audited", || told() as f64 == malformed).await;
    let line = w.audited_as("malformed").await;
    assert_eq!((&line["event"], &line["outcome"]), (&json!("refusal"), &json!("refused")));
    assert!(line["detail"].as_str().unwrap().starts_with("connection from 127.0.0.1:"), "{line}");
}
