//! The AWS container-credentials dialect on the wire (local-endpoints: what unmodified SDKs send and read).

use sidemint::clock::Timestamp;

use crate::fakes::{OnMint, refused, unavailable};
use crate::http::{Call, Connection};
use crate::world::{START, World, secs, time};

fn members(body: &serde_json::Value) -> Vec<&str> {
    let mut members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    members
}

#[tokio::test]
async fn the_body_has_exactly_the_members_that_sdks_read() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let reply = w.credentials(&task.token).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    let body = reply.json();
    assert_eq!(members(&body), ["AccessKeyId", "AccountId", "Expiration", "SecretAccessKey", "Token"]);
    assert_eq!(body["AccessKeyId"], "ASIAFAKE000000000001");
    assert_eq!(body["AccountId"], "111122223333");
    assert_eq!([&body["SecretAccessKey"], &body["Token"]], [w.cloud.secrets()[0].as_str(), &w.cloud.secrets()[1]]);
}

#[tokio::test]
async fn advertises_the_expiry_less_a_margin_in_whole_utc_seconds() {
    let w = World::new().await;
    // (scope, ttl, the credential's end after START's second, the margin)
    let rows = [
        // max_residual 20 min: dead at 12:20:00, told 15 s earlier
        ("archive", None, 1200, 15),
        // max_residual 60 s: a tenth of its life of 59.75 s, rounded down to a second
        ("brief", None, 60, 6),
        // the deadline comes first: 100 s, a tenth of it
        ("archive", Some("100s"), 100, 10),
    ];
    for (scope, ttl, end, margin) in rows {
        let task = w.begin(serde_json::json!({ "scope": scope, "ttl": ttl })).await;
        let told = w.served(&task.token).await["Expiration"].as_str().unwrap().to_owned();
        assert!(told.ends_with('Z') && told.len() == "2026-11-23T12:00:00Z".len(), "{told}");
        let whole = START.floor_to_second();
        assert_eq!(told.parse::<Timestamp>().unwrap(), whole + secs(end - margin), "{scope} {ttl:?}");
    }
}

#[tokio::test]
async fn a_shorter_credential_than_ordered_moves_the_expiration() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.next([OnMint::Sooner(secs(600))]);
    let told = time(&w.served(&task.token).await["Expiration"]);
    assert_eq!(told, START.floor_to_second() + secs(600 - 15));
}

#[tokio::test]
async fn an_error_has_both_spellings_and_no_member_of_ours() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let unknown = format!("smt_{}", "A".repeat(43));
    w.cloud.next([OnMint::Fail(refused())]);
    let rows = [
        (w.credentials(&unknown).await, 401, "InvalidToken"),
        (w.credentials("").await, 401, "InvalidToken"),
        (w.credentials(&task.token).await, 403, "AccessDenied"),
        (w.send(Call::post("/v1/aws/credentials").header("authorization", &task.token)).await, 405, "MethodNotAllowed"),
        (w.send(Call::get("/v1/aws/nothing").header("authorization", &task.token)).await, 404, "NotFound"),
        (w.send(Call::get("/v1/aws/credentials").host("evil.example")).await, 403, "AccessDenied"),
    ];
    for (reply, status, code) in rows {
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let body = reply.json();
        assert_eq!(members(&body), ["Code", "Message", "code", "message"]);
        assert_eq!([&body["code"], &body["Code"]], [code, code]);
        assert_eq!(body["message"], body["Message"]);
        assert!(!reply.text().contains("archive") && !reply.text().contains("fake"), "{}", reply.text());
        w.audited(reply.request_id()).await;
    }
}

#[tokio::test]
async fn an_unavailable_provider_is_a_503_with_retry_after() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.next([OnMint::Fail(unavailable(Some(secs(7))))]);
    let reply = w.credentials(&task.token).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("7")));
    assert_eq!(reply.code(), "ServiceUnavailable");
}

#[tokio::test]
async fn accepts_a_bare_or_bearer_token_with_nothing_around_it() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let get = |value: String| w.send(Call::get("/v1/aws/credentials").header("authorization", &value));
    assert_eq!(get(task.token.clone()).await.status, 200);
    assert_eq!(get(format!("Bearer {}", task.token)).await.status, 200);
    for wrong in [
        format!("Bearer  {}", task.token),
        format!("Bearer\t{}", task.token),
        format!("Basic {}", task.token),
        format!("{}%0A", task.token),
        format!("{} x", task.token),
        format!("{},{}", task.token, task.token),
        format!("\"{}\"", task.token),
        format!("{}A", task.token),
        task.token[..task.token.len() - 1].to_owned(),
        task.token.to_ascii_uppercase(),
        task.token.replace("smt_", ""),
    ] {
        assert_eq!(get(wrong.clone()).await.status, 401, "{wrong}");
    }
    let doubled =
        Call::get("/v1/aws/credentials").header("authorization", &task.token).header("authorization", &task.token);
    assert_eq!(w.send(doubled).await.status, 401);
    let none = w.send(Call::get("/v1/aws/credentials")).await;
    assert_eq!(none.status, 401);
    let in_query = w.send(Call::get(&format!("/v1/aws/credentials?token={}", task.token))).await;
    assert_eq!(in_query.status, 401);
    assert_eq!(w.cloud.calls(), 1);
}

#[tokio::test]
async fn ignores_extra_slashes_in_the_path() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    for target in ["/v1/aws/credentials/", "//v1/aws/credentials", "/v1//aws//credentials//", "/v1/aws/credentials?x=y"]
    {
        let reply = w.send(Call::get(target).header("authorization", &task.token)).await;
        assert_eq!(reply.status, 200, "{target}");
    }
    // Refused in the same dialect, and counted in it.
    let refused = w.send(Call::get("//v1//aws/credentials")).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "InvalidToken"));
    assert_eq!(w.metric("sidemint_requests_total{code=\"200\",dialect=\"aws\"}").await, Some(4.0));
    assert_eq!(w.metric("sidemint_requests_total{code=\"401\",dialect=\"aws\"}").await, Some(1.0));
    for target in ["/v1/aws/Credentials", "/v1/aws/credentials/x", "/v1/aws/../tasks", "/v1/aws/%63redentials"] {
        let reply = w.send(Call::get(target).header("authorization", &task.token)).await;
        assert_eq!(reply.status, 404, "{target}");
    }
}

#[tokio::test]
async fn rejects_an_ended_task_at_once_and_permanently() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.end(&task).await;
    for _ in 0..3 {
        let reply = w.credentials(&task.token).await;
        assert_eq!(reply.status, 401, "{}", reply.text());
        assert!(!reply.text().contains("ASIA"));
    }
    assert_eq!(w.cloud.calls(), 1);
}

#[tokio::test]
async fn rejects_permanently_a_task_with_too_little_time_left() {
    let w = World::new().await;
    let task = w.begin(serde_json::json!({ "scope": "archive", "ttl": "10s" })).await;
    w.clock.advance(secs(6));
    let reply = w.credentials(&task.token).await;
    assert_eq!(reply.status, 401, "{}", reply.text());
    assert_eq!(w.cloud.calls(), 0);
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_turn() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let mut connection = Connection::open(w.address).await;
    let request =
        format!("GET /v1/aws/credentials HTTP/1.1\r\nhost: {}\r\nauthorization: {}\r\n\r\n", w.address, task.token);
    connection.send(request.repeat(3).as_bytes()).await;
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        let reply = connection.reply().await.unwrap();
        assert_eq!(reply.status, 200);
        ids.insert(reply.request_id().to_owned());
    }
    assert_eq!(ids.len(), 3);
}
