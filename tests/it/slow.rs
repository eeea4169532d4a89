//! Clients that are slow, or never finish. (The limit on a request's head is hyper's own timer, on tokio's clock.)

use serde_json::json;

use crate::http::Connection;
use crate::policy_files::REPORT;
use crate::world::{World, secs, settle, until};

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_cut_off() {
    let w = World::new().await;
    let mut slow = Connection::open(w.address).await;
    slow.send(b"GET /v1/aws/credentials HTTP/1.1\r\nhost: ").await;
    settle().await;
    tokio::time::advance(secs(4)).await;
    settle().await;
    slow.send(b"127.0.0.1").await;
    settle().await;
    tokio::time::advance(secs(2)).await;
    assert!(slow.reply().await.is_none_or(|reply| reply.status == 408));
    let line = w.audited_as("head_time").await;
    assert_eq!((line["event"].as_str(), line["outcome"].as_str()), (Some("refusal"), Some("refused")));
    assert_eq!(w.limited("head_time").await, 1.0);
}

#[tokio::test]
async fn a_body_that_never_comes_is_refused_in_time() {
    let w = World::new().await;
    let mut slow = Connection::open(w.address).await;
    let body = json!({ "scope": "archive" }).to_string();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{}",
        w.address,
        w.svid(REPORT),
        body.len(),
        &body[..5]
    );
    slow.send(head.as_bytes()).await;
    until("the body is waited for", || w.clock.sleepers() == 1).await;
    w.clock.advance(secs(5));
    let reply = slow.reply().await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request"));
    assert_eq!(w.audited(reply.request_id()).await[0]["detail"], "the body took too long");
    assert_eq!(w.limited("body_time").await, 1.0);
    assert!(w.broker.tasks().is_empty());
}
