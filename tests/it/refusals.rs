//! Everything that is refused: the status, the public body, the counter and the audit line, checked together.

use serde_json::{Value, json};
use sidemint::identity::TrustDomain;
use sidemint::identity::workload_api::testing::{SigningKey, claims};
use sidemint::policy::cache::RefreshOutcome;

use crate::http::{Call, Connection, Reply};
use crate::policy_files::{self, FOREIGN, OTHER, REPORT};
use crate::world::{AUDIENCE, Setup, World, append, begun, secs};

/// How a refusal is counted.
enum Counted {
    /// `sidemint_denials_total{reason}`
    Denial(&'static str),
    /// `sidemint_requests_total{dialect,code}` alone
    Request,
}
use Counted::{Denial, Request};

/// Sends `call` and checks all that a refusal owes.
async fn refuses(w: &World, what: &str, call: Call, status: u16, code: &str, counted: Counted) -> Reply {
    let dialect = if call.target.contains("/aws/") { "aws" } else { "native" };
    let requests = format!("sidemint_requests_total{{code=\"{status}\",dialect=\"{dialect}\"}}");
    let denials = match counted {
        Denial(reason) => format!("sidemint_denials_total{{reason=\"{reason}\"}}"),
        Request => String::new(),
    };
    let (tasks, calls) = (w.broker.tasks().len(), w.cloud.calls());
    let before = (w.metric(&requests).await, w.metric(&denials).await);
    let reply = w.send(call).await;
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{what}: {}", reply.text());
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{what}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{what}");
    assert!(reply.headers.iter().all(|(name, _)| !name.starts_with("access-control-")), "{what}");
    if dialect == "native" {
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{what}");
        let body = reply.json();
        assert_eq!(body["type"], "about:blank", "{what}");
        assert_eq!(body["status"], status, "{what}");
        assert_eq!(body["request_id"], reply.request_id(), "{what}");
        assert!(body["title"].is_string() && body["detail"].is_string(), "{what}");
    }
    assert_eq!(w.metric(&requests).await, Some(before.0.unwrap_or(0.0) + 1.0), "{what}: {requests}");
    let lines = w.audited(reply.request_id()).await;
    let line = lines.last().unwrap();
    match counted {
        Denial(reason) => {
            assert_eq!(w.metric(&denials).await, Some(before.1.unwrap() + 1.0), "{what}: {denials}");
            assert_eq!([&line["event"], &line["outcome"], &line["reason"]], ["decision", "deny", reason], "{what}");
        }
        Request => {
            assert_eq!(
                [&line["event"], &line["outcome"], &line["reason"]],
                ["refusal", "refused", code_in_audit(&reply, code)],
                "{what}"
            );
            assert_eq!(line["status"], status, "{what}");
        }
    }
    assert!(line["detail"].is_string(), "{what}: the audit log says why");
    assert_eq!((w.broker.tasks().len(), w.cloud.calls()), (tasks, calls), "{what}: nothing begun, nothing minted");
    reply
}

/// The audit log has our own code, whatever the dialect calls it.
fn code_in_audit<'a>(reply: &Reply, code: &'a str) -> &'a str {
    match (reply.header("content-type"), code) {
        (Some("application/json"), "InvalidToken") => "unauthenticated",
        (Some("application/json"), "AccessDenied") => "denied",
        _ => code,
    }
}

fn begin_with(authorization: &str) -> Call {
    Call::post("/v1/tasks").header("authorization", authorization).json(&json!({ "scope": "archive" }))
}

#[tokio::test]
async fn rejects_callers_without_valid_proof() {
    let w = World::new().await;
    let domain: TrustDomain = "example.org".parse().unwrap();
    let stranger: TrustDomain = "stranger.test".parse().unwrap();
    let sign = |claims: Value| format!("Bearer {}", w.api.issue_claims(&domain, claims));
    let good = claims(REPORT, AUDIENCE, w.now(), secs(300));
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        sign(claims)
    };
    let forged = SigningKey::generate("P-256", "fake").sign(&good);
    let genuine = w.svid(REPORT);
    let cut = genuine[..genuine.len() - 4].to_owned();
    let header = |text: &str| format!("Bearer {}", w.api.issue_text(&domain, text, &good.to_string()));
    let now = w.now().as_secs();
    let proofs = [
        ("malformed", "Bearer not-a-token".to_owned()),
        ("empty", "Bearer x".to_owned()),
        ("cut off", format!("Bearer {cut}")),
        ("forged", format!("Bearer {forged}")),
        ("oversize", format!("Bearer {}", "e".repeat(9000))),
        ("expired", with("exp", json!(now - 1))),
        ("expiring this second", with("exp", json!(now))),
        ("not valid yet", with("nbf", json!(now + 3600))),
        ("living too long", with("exp", json!(now + 90_000))),
        ("for another audience", with("aud", json!(["elsewhere"]))),
        ("for a cloud's audience", with("aud", json!(["sts.amazonaws.com"]))),
        ("for two audiences", with("aud", json!([AUDIENCE, "elsewhere"]))),
        ("for no audience", with("aud", json!([]))),
        ("without an audience", with("aud", Value::Null)),
        ("with a textual time", with("exp", json!((now + 300).to_string()))),
        ("with a fractional time", with("exp", json!(now as f64 + 300.5))),
        ("of no workload", with("sub", json!("spiffe://example.org"))),
        ("of another trust domain by our key", with("sub", json!("spiffe://stranger.test/report"))),
        ("of algorithm none", header(r#"{"alg":"none","kid":"fake"}"#)),
        ("of a symmetric algorithm", header(r#"{"alg":"HS256","kid":"fake"}"#)),
        ("of an unknown key", header(r#"{"alg":"ES256","kid":"other"}"#)),
        ("without a key id", header(r#"{"alg":"ES256"}"#)),
        ("with crit", header(r#"{"alg":"ES256","kid":"fake","crit":["x"]}"#)),
        ("of another type", header(r#"{"alg":"ES256","kid":"fake","typ":"at+jwt"}"#)),
        ("with a member twice", header(r#"{"alg":"ES256","alg":"ES256","kid":"fake"}"#)),
    ];
    for (what, proof) in proofs {
        refuses(&w, what, begin_with(&proof), 401, "unauthenticated", Denial("unauthenticated")).await;
    }
    // A trust domain that we do have keys for, but that signs for another one.
    w.api.trust(stranger.clone());
    let crossed = format!("Bearer {}", w.api.issue_claims(&stranger, good.clone()));
    refuses(&w, "signed by another domain", begin_with(&crossed), 401, "unauthenticated", Denial("unauthenticated"))
        .await;

    for (what, value) in [
        ("no scheme", genuine.clone()),
        ("another scheme", format!("Basic {genuine}")),
        ("half a task token", "Bearer smt_short".to_owned()),
        ("no token at all", "Bearer".to_owned()),
    ] {
        refuses(&w, what, begin_with(&value), 401, "unauthenticated", Request).await;
    }
    let none = Call::post("/v1/tasks").json(&json!({ "scope": "archive" }));
    refuses(&w, "no proof", none, 401, "unauthenticated", Request).await;
    let twice = begin_with(&format!("Bearer {genuine}")).header("authorization", &format!("Bearer {genuine}"));
    refuses(&w, "two proofs", twice, 401, "unauthenticated", Request).await;
    let unknown = begin_with(&format!("Bearer smt_{}", "A".repeat(43)));
    refuses(&w, "a token of no task", unknown, 401, "unauthenticated", Denial("parent_gone")).await;
    // The genuine one, to show that it was not something else.
    assert_eq!(w.send(begin_with(&format!("Bearer {genuine}"))).await.status, 201);
}

#[tokio::test]
async fn every_policy_denial_has_the_same_public_text() {
    let w = World::new().await;
    let customer = |customer: &str| json!({ "scope": "ledger-read", "params": { "customer": customer } });
    let rows = [
        ("an unknown scope", json!({ "scope": "no-such" }), "unknown_scope"),
        ("a suspended scope", json!({ "scope": "suspended" }), "scope_suspended"),
        ("no rule for this caller", json!({ "scope": "others-only" }), "not_permitted"),
        ("no rule for this parameter", customer("c-44"), "not_permitted"),
        ("forbidden by a boundary", json!({ "scope": "walled" }), "forbidden"),
        ("break-glass without a reason", json!({ "scope": "emergency" }), "guardrail"),
        (
            "others' scope and wrong parameters",
            json!({ "scope": "others-only", "params": { "x": "y" } }),
            "not_permitted",
        ),
    ];
    let mut told = std::collections::HashSet::new();
    for (what, body, reason) in rows {
        let reply = refuses(&w, what, w.begin_call(&body), 403, "denied", Denial(reason)).await;
        told.insert(reply.text().replace(reply.request_id(), "ID"));
    }
    for name in ["", "../x", "Ledger", "a b", "ledger-read/", &"x".repeat(200)] {
        let call = w.begin_call(&json!({ "scope": name }));
        let reply = refuses(&w, "a name that no scope can have", call, 403, "denied", Request).await;
        told.insert(reply.text().replace(reply.request_id(), "ID"));
    }
    assert_eq!(told.len(), 1, "{told:?}");
    let with_reason = json!({ "scope": "emergency", "reason": "INC-1: the report is down" });
    assert_eq!(w.send(w.begin_call(&with_reason)).await.status, 201);
}

#[tokio::test]
async fn an_elevated_scope_needs_an_approval_that_somebody_verified() {
    let w = World::new().await;
    for body in [json!({ "scope": "elevated" }), json!({ "scope": "elevated", "approval": "I approve myself" })] {
        let call = w.begin_call(&body);
        refuses(&w, "elevated", call, 403, "approval_required", Denial("approval_required")).await;
    }
}

#[tokio::test]
async fn reports_invalid_parameters_only_to_callers_that_the_scope_names() {
    let w = World::new().await;
    let long = "c".repeat(33);
    let rows = [
        ("missing", json!({})),
        ("unknown", json!({ "customer": "c-42", "extra": "x" })),
        ("empty", json!({ "customer": "" })),
        ("too long", json!({ "customer": long })),
        ("a path", json!({ "customer": "../c-42" })),
        ("a wildcard", json!({ "customer": "*" })),
        ("a policy variable", json!({ "customer": "${aws:userid}" })),
        ("quotes", json!({ "customer": "c\",\"Resource\":\"*" })),
        ("a line break", json!({ "customer": "c-42\n" })),
        ("not ASCII", json!({ "customer": "ç-42" })),
        ("dots", json!({ "customer": ".." })),
    ];
    for (what, params) in rows {
        let call = w.begin_call(&json!({ "scope": "ledger-read", "params": params }));
        let reply = refuses(&w, what, call, 400, "invalid_request", Denial("invalid_parameters")).await;
        assert!(!reply.text().contains("aws:userid"), "{what}");
    }
    for (what, params) in [
        ("a number", json!({ "customer": 42 })),
        ("a list", json!({ "customer": ["c-42"] })),
        ("no object", json!("c-42")),
        ("a name that no parameter can have", json!({ "customer": "c-42", "Ä": "x" })),
    ] {
        let call = w.begin_call(&json!({ "scope": "ledger-read", "params": params }));
        refuses(&w, what, call, 400, "invalid_request", Request).await;
    }
    let twice = Call::post("/v1/tasks")
        .bearer(&w.svid(REPORT))
        .header("content-type", "application/json")
        .body(r#"{"scope":"ledger-read","params":{"customer":"c-42","customer":"c-43"}}"#);
    refuses(&w, "a parameter twice", twice, 400, "invalid_request", Request).await;
    let over = w.begin_call(&json!({ "scope": "archive", "ttl": "61m" }));
    refuses(&w, "ttl over the cap", over, 400, "invalid_request", Denial("ttl_too_long")).await;
}

#[tokio::test]
async fn rejects_invalid_task_bodies() {
    let w = World::new().await;
    let raw = |body: &str| {
        Call::post("/v1/tasks").bearer(&w.svid(REPORT)).header("content-type", "application/json").body(body.as_bytes())
    };
    for (what, body) in [
        ("nothing", ""),
        ("broken JSON", "{\"scope\":"),
        ("two documents", "{\"scope\":\"archive\"}{}"),
        ("a list", "[]"),
        ("an unknown member", "{\"scope\":\"archive\",\"role\":\"admin\"}"),
        ("a member twice", "{\"scope\":\"archive\",\"scope\":\"brief\"}"),
        ("no scope", "{}"),
        ("a number for a scope", "{\"scope\":1}"),
        ("text for hold", "{\"scope\":\"archive\",\"hold\":\"yes\"}"),
        ("a list nested too deep", &format!("{{\"scope\":{}}}", "[".repeat(5000))),
    ] {
        refuses(&w, what, raw(body), 400, "invalid_request", Request).await;
    }
    let not_utf8 = Call { body: b"{\"scope\":\"\xff\"}".to_vec(), ..raw("") };
    refuses(&w, "not UTF-8", not_utf8, 400, "invalid_request", Request).await;
    for (what, kind) in
        [("form", "application/x-www-form-urlencoded"), ("text", "text/plain"), ("almost", "application/jsonx")]
    {
        let call = Call::post("/v1/tasks")
            .bearer(&w.svid(REPORT))
            .header("content-type", kind)
            .body("{\"scope\":\"archive\"}");
        refuses(&w, what, call, 415, "unsupported_media_type", Request).await;
    }
    let untyped = Call::post("/v1/tasks").bearer(&w.svid(REPORT)).body("{\"scope\":\"archive\"}");
    refuses(&w, "no content type", untyped, 415, "unsupported_media_type", Request).await;
    let oversize = raw(&format!("{{\"scope\":\"{}\"}}", "x".repeat(70_000)));
    refuses(&w, "oversize", oversize, 413, "too_large", Request).await;
    let charset = Call::post("/v1/tasks")
        .bearer(&w.svid(REPORT))
        .header("content-type", "Application/JSON; charset=utf-8")
        .body("{\"scope\":\"archive\"}");
    assert_eq!(w.send(charset).await.status, 201);
}

#[tokio::test]
async fn never_quotes_an_invalid_body() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let svid = w.svid(REPORT);
    for secret in [&task.token, &svid] {
        for body in [
            json!(secret),
            json!({ secret.as_str(): 1 }),
            json!({ "scope": { "x": secret } }),
            json!({ "scope": "archive", "ttl": { secret.as_str(): 1 } }),
            json!({ "scope": "archive", "hold": secret }),
        ] {
            let reply =
                refuses(&w, "a token in the wrong place", w.begin_call(&body), 400, "invalid_request", Request).await;
            assert!(!reply.text().contains(secret.as_str()));
        }
    }
    // What the audit log holds is searched when the world goes.
}

#[tokio::test]
async fn rejects_requests_that_no_local_sdk_sends() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let get = || Call::get("/v1/aws/credentials").header("authorization", &task.token);
    let port = w.address.port();
    // Nor do they get what is there already.
    w.served(&task.token).await;
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1",
        &format!("127.0.0.1.evil.example:{port}"),
        &format!("127.0.0.1:{}", port ^ 1),
    ] {
        refuses(&w, host, get().host(host), 403, "AccessDenied", Request).await;
    }
    refuses(&w, "no Host", get().host(""), 403, "AccessDenied", Request).await;
    let two = get().header("host", &w.address.to_string());
    refuses(&w, "two Hosts", two, 403, "AccessDenied", Request).await;
    for header in ["X-Forwarded-For", "Forwarded", "Via", "Origin", "Referer", "Sec-Fetch-Site"] {
        refuses(&w, header, get().header(header, "127.0.0.1"), 403, "AccessDenied", Request).await;
        let native = Call::get("/v1/tasks").bearer(&task.token).header(header, "127.0.0.1");
        refuses(&w, header, native, 403, "denied", Request).await;
    }
    let absolute = Call { target: format!("http://{}/v1/aws/credentials", w.address), ..get() };
    assert_eq!(w.send(absolute).await.status, 403);
    for host in [format!("localhost:{port}"), format!("[::1]:{port}")] {
        assert_eq!(w.send(get().host(&host)).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn rejects_unknown_methods_and_paths() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    for (method, target, allow) in [
        ("OPTIONS", "/v1/tasks", "GET, POST"),
        ("PUT", "/v1/tasks", "GET, POST"),
        ("PATCH", &format!("/v1/tasks/{}", task.id), "GET, DELETE"),
        ("GET", &format!("/v1/tasks/{}/hold", task.id), "POST"),
        ("POST", &format!("/v1/tasks/{}/credentials", task.id), "GET"),
        ("TRACE", "/v1/tasks", "GET, POST"),
    ] {
        let call = Call::new(method, target).bearer(&task.token);
        let reply = refuses(&w, method, call, 405, "method_not_allowed", Request).await;
        assert_eq!(reply.header("allow"), Some(allow));
    }
    for target in
        ["/", "/v1", "/v2/tasks", "/v1/tasks/x/y", "/metrics", "/status", "/v1/mars/token", "/latest/meta-data/"]
    {
        refuses(&w, target, Call::get(target).bearer(&task.token), 404, "not_found", Request).await;
    }
    for id in ["t-00000000000000000000000000", "x", "%2e%2e", "t-00000000000000000000000000%0a"] {
        let call = Call::get(&format!("/v1/tasks/{id}")).bearer(&task.token);
        refuses(&w, id, call, 404, "not_found", Request).await;
    }
    let query = Call::get(&format!("/v1/tasks/{}/credentials?provider=mars", task.id)).bearer(&task.token);
    refuses(&w, "an unknown provider", query, 400, "invalid_request", Request).await;
}

#[tokio::test]
async fn a_token_opens_its_own_task_only_and_an_ended_one_nothing() {
    let w = World::new().await;
    let (own, other) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    for (method, rest) in [("GET", ""), ("GET", "/credentials"), ("POST", "/hold"), ("DELETE", "")] {
        let call = Call::new(method, &format!("/v1/tasks/{}{rest}", other.id)).bearer(&own.token);
        refuses(&w, rest, call, 404, "not_found", Request).await;
    }
    w.end(&own).await;
    let hold = Call::post(&format!("/v1/tasks/{}/hold", own.id)).bearer(&own.token);
    refuses(&w, "hold", hold, 409, "task_ended", Request).await;
    let native = Call::get(&format!("/v1/tasks/{}/credentials", own.id)).bearer(&own.token);
    refuses(&w, "credentials", native, 409, "task_ended", Request).await;
    let aws = Call::get("/v1/aws/credentials").bearer(&own.token);
    refuses(&w, "aws", aws, 401, "InvalidToken", Request).await;
    // An SVID proves who one is; credentials and holds belong to whoever has the task.
    let svid = w.svid(REPORT);
    for (method, rest) in [("GET", "/credentials"), ("POST", "/hold")] {
        let call = Call::new(method, &format!("/v1/tasks/{}{rest}", other.id)).bearer(&svid);
        refuses(&w, rest, call, 401, "unauthenticated", Request).await;
    }
}

#[tokio::test]
async fn does_not_serve_an_identity_that_the_sidecar_does_not_have() {
    let w = World::new().await;
    let call = Call::post("/v1/tasks").bearer(&w.svid(FOREIGN)).json(&json!({ "scope": "archive" }));
    refuses(&w, "not served", call, 403, "denied", Denial("identity_not_served")).await;
}

#[tokio::test]
async fn trusts_nobody_before_the_workload_api_has_answered() {
    let w = World::with(Setup { known: false, ..Setup::default() }).await;
    let reply =
        refuses(&w, "silent", w.begin_call(&json!({ "scope": "archive" })), 503, "unavailable", Denial("not_ready"))
            .await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(w.ask_admin("/readyz").await.text().contains("workload api"));
}

#[tokio::test]
async fn begins_nothing_without_a_policy() {
    let w = World::with(Setup { policy: false, ..Setup::default() }).await;
    let reply =
        refuses(&w, "no policy", w.begin_call(&json!({ "scope": "archive" })), 503, "unavailable", Denial("no_policy"))
            .await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    let ready = w.ask_admin("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("policy"));
    policy_files::standard(&w.policy_directory());
    assert_eq!(w.reload().await, RefreshOutcome::Loaded);
    w.begin_scope("archive").await;
    assert_eq!(w.ask_admin("/readyz").await.text(), "ready\n");
}

#[tokio::test]
async fn a_bad_boundary_leaves_the_last_good_policy_in_force() {
    let w = World::new().await;
    append(&w.policy_directory().join("boundaries/wall.cedar"), "forbid (");
    assert_eq!(w.reload().await, RefreshOutcome::Refused);
    w.begin_scope("archive").await;
    refuses(&w, "still walled", w.begin_call(&json!({ "scope": "walled" })), 403, "denied", Denial("forbidden")).await;
}

#[tokio::test]
async fn too_many_tasks_are_refused_until_one_is_forgotten() {
    let w = World::with(Setup { tasks: 2, ..Setup::default() }).await;
    w.begin_scope("archive").await;
    w.begin_scope("archive").await;
    let call = w.begin_call(&json!({ "scope": "archive" }));
    let reply = refuses(&w, "full", call, 429, "rate_limited", Denial("too_many_tasks")).await;
    assert_eq!(reply.header("retry-after"), Some("30"));
}

#[tokio::test]
async fn begins_no_task_that_cannot_be_journalled() {
    let w = World::new().await;
    w.journal.fail("*");
    let call = w.begin_call(&json!({ "scope": "archive" }));
    let reply = refuses(&w, "journal", call, 503, "unavailable", Denial("not_recorded")).await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(w.ask_admin("/readyz").await.text().contains("journal"));
}

#[tokio::test]
async fn begins_and_mints_nothing_that_cannot_be_audited() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.audit.fail(true);
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "unavailable"));
    assert_eq!(w.broker.tasks().len(), 1);
    assert_eq!(w.metric("sidemint_denials_total{reason=\"not_recorded\"}").await, Some(1.0));
    let refused = w.credentials(&task.token).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "ServiceUnavailable"));
    // Even a denial must be on record before it is told as one.
    let denied = w.send(w.begin_call(&json!({ "scope": "walled" }))).await;
    assert_eq!(denied.status, 503);
    w.audit.fail(false);
    w.clock.advance(secs(2));
    w.served(&task.token).await;
}

#[tokio::test]
async fn denies_a_task_to_callers_that_did_not_begin_it() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let others =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    let served = w.served(&task.token).await;
    assert_ne!(w.served(&others.token).await["SecretAccessKey"], served["SecretAccessKey"]);
    let orders = w.cloud.orders();
    assert_eq!([orders[0].caller.as_str(), orders[1].caller.as_str()], [REPORT, OTHER]);
    assert_ne!(orders[0].session_name, orders[1].session_name);
}

#[tokio::test]
async fn malformed_requests_get_at_most_a_client_error() {
    let w = World::new().await;
    for bytes in [
        "\u{16}\u{3}\u{1}\u{2}\0garbage\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /v1/tasks HTTP/1.1\r\nhost: {}\r\n{}\r\n", w.address, "a: b\r\n".repeat(200)),
        format!("GET /v1/tasks HTTP/1.1\r\nhost: {}\r\nx: {}\r\n\r\n", w.address, "y".repeat(100_000)),
        "POST /v1/tasks HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n".to_owned(),
        "POST /v1/tasks HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
    ] {
        let mut connection = Connection::open(w.address).await;
        connection.send(bytes.as_bytes()).await;
        if let Some(reply) = connection.reply().await {
            assert!((400..500).contains(&reply.status), "{} to {bytes:.40}", reply.status);
        }
    }
    w.begin_scope("archive").await;
}
