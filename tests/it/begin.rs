//! A task begins: what its beginner is told, and told once.

use serde_json::json;

use sidemint::task::EndReason;

use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, REPORT};
use crate::world::{START, Setup, World, begun, secs, settle, time, until};

#[tokio::test]
async fn a_proved_caller_begins_a_task_and_is_served() {
    let w = World::new().await;
    let reply = w
        .send(w.begin_call(&json!({ "scope": "ledger-read", "params": { "customer": "c-42" }, "task": "nightly" })))
        .await;
    let task = begun(&reply);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!([&task.body["scope"], &task.body["spiffe_id"]], ["ledger-read", REPORT]);
    assert_eq!(task.expires_at, START + secs(8 * 3600));
    assert!(task.token.starts_with("smt_") && task.token.len() == 47);
    assert_eq!(
        task.body["environment"],
        json!({
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": format!("http://{}/v1/aws/credentials", w.address),
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": task.token,
        })
    );
    w.served(&task.token).await;
    let order = &w.cloud.orders()[0];
    assert_eq!(order.caller.as_str(), REPORT);
    assert!(order.session_name.starts_with("report.ledger-read.") && order.session_name.ends_with(&task.id));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!([&line["event"], &line["outcome"], &line["task"]], ["decision", "permit", task.id.as_str()]);
    assert_eq!([&line["spiffe_id"], &line["proof"], &line["label"]], [REPORT, "jwt-svid", "nightly"]);
    assert_eq!(line["rule_ids"], json!(["rule-0-of-ledger-read"]));
}

#[tokio::test]
async fn returns_the_token_once_and_shows_it_nowhere_else() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let shown = w.show(&task).await;
    assert_eq!(
        [&shown["state"], &shown["tier"], &shown["hold"]],
        [&json!("active"), &json!("baseline"), &json!(false)]
    );
    assert_eq!(time(&shown["begun_at"]), START);
    assert_eq!(shown["leases"][0]["state"], "issued");
    let status = w.operator(Call::get("/status")).await.json();
    assert_eq!(status["task_list"][0]["id"], task.id.as_str());
    // The world's own search at its end covers these answers.
}

#[tokio::test]
async fn the_owner_lists_its_tasks_and_a_token_only_its_own() {
    let w = World::new().await;
    let (first, second) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
    let others =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({"scope": "archive"}))).await);
    let list = async |bearer: &str| {
        let reply = w.send(Call::get("/v1/tasks").bearer(bearer)).await.json();
        let mut ids: Vec<_> =
            reply["tasks"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let mut own = vec![first.id.clone(), second.id.clone()];
    own.sort();
    assert_eq!(list(&w.svid(REPORT)).await, own);
    assert_eq!(list(&first.token).await, vec![first.id.clone()]);
    assert_eq!(list(&w.svid(OTHER)).await, vec![others.id.clone()]);
    for (bearer, id) in [(&others.token, &first.id), (&w.svid(OTHER), &first.id), (&first.token, &second.id)] {
        for call in [Call::get(&format!("/v1/tasks/{id}")), Call::delete(&format!("/v1/tasks/{id}"))] {
            let reply = w.send(call.bearer(bearer)).await;
            assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"));
        }
    }
    assert!(!w.is_ended(&first) && !w.is_ended(&second));
}

#[tokio::test]
async fn the_same_key_and_body_find_the_same_task_under_a_fresh_token() {
    let w = World::new().await;
    let call = || w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1");
    let first = begun(&w.send(call()).await);
    w.served(&first.token).await;
    let reply = w.send(call()).await;
    let again = begun(&reply);
    assert_eq!(again.id, first.id);
    assert_ne!(again.token, first.token);
    assert_eq!(w.credentials(&first.token).await.status, 401);
    w.served(&again.token).await;
    assert_eq!((w.cloud.calls(), w.broker.tasks().len()), (1, 1));
    // A new token for a running task is a decision that somebody will want to find.
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!([&line["event"], &line["outcome"], &line["task"]], ["decision", "permit", first.id.as_str()]);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_a_conflict_and_begins_nothing() {
    let w = World::new().await;
    let call = |scope: &str| w.begin_call(&json!({ "scope": scope })).header("idempotency-key", "k-1");
    let first = begun(&w.send(call("archive")).await);
    let reply = w.send(call("brief")).await;
    assert_eq!((reply.status, reply.code().as_str()), (409, "conflict"));
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "conflict");
    w.served(&first.token).await;
    assert_eq!(w.broker.tasks().len(), 1);
    // The key belongs to the caller: another one's is another key.
    let others = Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }));
    assert_ne!(begun(&w.send(others.header("idempotency-key", "k-1")).await).id, first.id);
    // Ended, the task cannot be had again.
    w.end(&first).await;
    assert_eq!(w.send(call("archive")).await.code(), "conflict");
}

#[tokio::test]
async fn callers_with_the_same_key_at_the_same_time_begin_one_task() {
    let w = World::new().await;
    let calls = (0..20).map(|_| w.send(w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1")));
    let mut ids = std::collections::HashSet::new();
    let mut alive = 0;
    let mut tokens = Vec::new();
    for reply in join_all(calls).await {
        let task = begun(&reply);
        ids.insert(task.id.clone());
        tokens.push(task.token);
    }
    for token in tokens {
        alive += u32::from(w.credentials(&token).await.status == 200);
    }
    assert_eq!((ids.len(), alive, w.broker.tasks().len()), (1, 1, 1));
}

#[tokio::test]
async fn an_idempotency_key_does_not_match_under_another_parent() {
    let w = World::new().await;
    let (a, b) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    let call = |token: &str| {
        Call::post("/v1/tasks").bearer(token).json(&json!({ "scope": "brief" })).header("idempotency-key", "k-1")
    };
    let child = begun(&w.send(call(&a.token)).await);
    let reply = w.send(call(&b.token)).await;
    assert_eq!((reply.status, reply.code().as_str()), (409, "conflict"));
    w.served(&child.token).await;
}

#[tokio::test]
async fn a_ttl_shortens_the_task_and_one_over_the_cap_is_invalid() {
    let w = World::new().await;
    for (ttl, life) in [(json!("15m"), 900), (json!(90), 90), (json!("1h"), 3600)] {
        let task = w.begin(json!({ "scope": "archive", "ttl": ttl })).await;
        assert_eq!(task.expires_at, START + secs(life));
    }
    for ttl in [
        json!("61m"),
        json!("0s"),
        json!(0),
        json!("-5s"),
        json!("soon"),
        json!(1.5),
        json!(["15m"]),
        json!("9999999999y"),
    ] {
        let reply = w.send(w.begin_call(&json!({ "scope": "archive", "ttl": ttl }))).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request"), "{ttl}");
    }
    assert_eq!(w.broker.tasks().len(), 3);
}

#[tokio::test]
async fn texts_have_limits() {
    let w = World::new().await;
    let with = |name: &str, value: String| w.begin_call(&json!({ "scope": "archive", name: value }));
    for (name, max) in [("task", 128), ("reason", 512), ("approval", 512)] {
        assert_eq!(w.send(with(name, "x".repeat(max))).await.status, 201, "{name}");
        for bad in ["x".repeat(max + 1), "a\nb".into(), "a\u{7f}".into(), "\u{0}".into()] {
            let reply = w.send(with(name, bad)).await;
            assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request"), "{name}");
            assert!(reply.json()["detail"].as_str().unwrap().starts_with(name));
        }
    }
    for key in [String::new(), "k".repeat(256), "k\u{e9}".into(), "k\tk".into()] {
        let call = w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", &key);
        assert_eq!(w.send(call).await.status, 400, "{key:?}");
    }
}

#[tokio::test]
async fn a_child_task_begins_by_its_parents_token_and_ends_with_it() {
    let w = World::new().await;
    let parent = w.begin(json!({ "scope": "archive", "ttl": "10m" })).await;
    let by_token =
        begun(&w.send(Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "brief" }))).await);
    let by_name = w.begin(json!({ "scope": "brief", "parent": parent.id })).await;
    let grandchild =
        begun(&w.send(Call::post("/v1/tasks").bearer(&by_token.token).json(&json!({ "scope": "brief" }))).await);
    for child in [&by_token, &by_name, &grandchild] {
        assert_eq!(child.expires_at, parent.expires_at, "no child outlives its parent");
        w.served(&child.token).await;
    }
    assert_eq!(w.show(&by_token).await["parent"], parent.id.as_str());
    w.end(&parent).await;
    for child in [&by_token, &by_name, &grandchild] {
        assert_eq!(w.credentials(&child.token).await.status, 401);
        assert_eq!(w.show(child).await["reason"], "parent_ended");
    }
    let late = w.send(Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "brief" }))).await;
    assert_eq!((late.status, late.code().as_str()), (401, "unauthenticated"));
}

#[tokio::test]
async fn a_child_may_do_no_more_than_policy_permits_its_owner() {
    let w = World::new().await;
    let parent = w.begin_scope("archive").await;
    let reply = w.send(Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "others-only" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "denied"));
}

#[tokio::test]
async fn rejects_the_task_of_another_caller_as_parent() {
    let w = World::new().await;
    let foreign =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({"scope": "archive"}))).await);
    let own = w.begin_scope("archive").await;
    let nobody = "t-00000000000000000000000000";
    for parent in [foreign.id.as_str(), nobody, "t-x", "../.."] {
        let reply = w.send(w.begin_call(&json!({ "scope": "archive", "parent": parent }))).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "denied"), "{parent}");
    }
    // A token proves its own task, not the one that the body names.
    let call = Call::post("/v1/tasks").bearer(&own.token).json(&json!({ "scope": "archive", "parent": foreign.id }));
    assert_eq!(w.send(call).await.status, 403);
    assert_eq!(w.broker.tasks().len(), 2);
}

#[tokio::test]
async fn a_child_that_begins_while_its_parent_ends_does_not_outlive_it() {
    let w = World::new().await;
    let parent = w.begin_scope("archive").await;
    w.journal.hold("task");
    let begin = w.send(Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "brief" })));
    let meanwhile = async {
        settle().await;
        let task = w.broker.tasks().by_id(&parent.id.parse().unwrap()).unwrap();
        w.broker.end(&task, EndReason::Done, None).await;
        w.journal.release("task");
    };
    let (reply, ()) = tokio::join!(begin, meanwhile);
    let child = begun(&reply);
    assert_eq!(w.credentials(&child.token).await.status, 401);
    assert_eq!(w.show(&child).await["reason"], "parent_ended");
    assert_eq!(w.cloud.calls(), 0);
}

#[tokio::test]
async fn an_identity_that_is_withdrawn_while_its_task_begins_ends_it_at_once() {
    let w = World::with_reaper().await;
    w.journal.hold("task");
    let begin = w.send(w.begin_call(&json!({ "scope": "archive" })));
    let meanwhile = async {
        until("the task is on its way to the journal", || w.journal.waiting() == 1).await;
        w.api.set_identities(&[]);
        // The reaper has looked, and found no task.
        settle().await;
        w.journal.release("task");
    };
    let (reply, ()) = tokio::join!(begin, meanwhile);
    // No time passes, and nobody asks for it.
    assert_eq!(w.ended(&begun(&reply)).await, "identity_withdrawn");
}

#[tokio::test]
async fn a_disconnected_caller_leaves_no_task_half_begun() {
    let mut w = World::new().await;
    w.journal.hold("task");
    let mut connection = Connection::open(w.address).await;
    let call = w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1");
    let bytes = String::from_utf8(call.bytes(w.address)).unwrap().replace("connection: close\r\n", "");
    connection.send(bytes.as_bytes()).await;
    until("the task is on its way to the journal", || w.journal.waiting() == 1).await;
    drop(connection);
    settle().await;
    w.journal.release("task");
    until("the task is durable", || w.log.all().contains(&"task".to_owned())).await;
    // The caller tries again, and the sidecar is restarted: one task, whose token the caller has.
    let task = begun(&w.send(w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1")).await);
    w.restart().await;
    assert_eq!(w.broker.tasks().len(), 1);
    w.served(&task.token).await;
}

#[tokio::test]
async fn a_key_replayed_while_its_task_ends_does_not_bring_it_back_after_a_crash() {
    let mut w = World::new().await;
    let call = || w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1");
    let first = begun(&w.send(call()).await);
    w.journal.hold("task");
    let again = call();
    let meanwhile = async {
        settle().await;
        let task = w.broker.tasks().by_id(&first.id.parse().unwrap()).unwrap();
        w.broker.end(&task, EndReason::Done, None).await;
        w.journal.release("task");
    };
    let (reply, ()) = tokio::join!(w.send(again), meanwhile);
    assert_eq!((reply.status, reply.code().as_str()), (409, "conflict"));
    w.crash().await;
    assert!(w.is_ended(&first));
}

#[tokio::test]
async fn concurrent_begins_do_not_exceed_the_task_limit() {
    let w = World::with(Setup { tasks: 3, ..Setup::default() }).await;
    w.journal.hold("task");
    let calls = (0..12).map(|_| w.send(w.begin_call(&json!({ "scope": "archive" }))));
    let open = async {
        settle().await;
        w.journal.release("task");
    };
    let (replies, ()) = tokio::join!(join_all(calls), open);
    let begun = replies.iter().filter(|reply| reply.status == 201).count();
    assert!((1..=3).contains(&begun), "{begun} began");
    for refused in replies.iter().filter(|reply| reply.status != 201) {
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
        assert_eq!(refused.header("retry-after"), Some("30"));
    }
    assert_eq!(w.broker.tasks().len(), begun);
}

/// Awaits all, at the same time.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *slot = Some(output),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(done.iter_mut().map(|slot| slot.take().unwrap()).collect()),
        }
    })
    .await
}

#[tokio::test]
async fn an_acknowledged_end_is_not_undone_by_a_replayed_key_whose_write_lands_last() {
    let mut w = World::new().await;
    let call = || w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1");
    let first = begun(&w.send(call()).await);
    w.journal.hold("task");
    let mut again = Connection::open(w.address).await;
    again.send(&call().bytes(w.address)).await;
    until("the replay is on its way to the journal", || w.journal.waiting() == 1).await;
    let ending = w.end(&first).await;
    assert_eq!(ending.get("durable"), None, "acknowledged");
    w.log.take();
    // Nothing comes after it that could put it right.
    w.journal.hold("task ended");
    w.journal.release("task");
    until("it has landed", || w.log.all() == ["task"]).await;
    w.crash().await;
    assert!(w.is_ended(&first));
    assert_eq!(w.end(&first).await, ending, "and its token still finds the report");
}

#[tokio::test]
async fn ended_tasks_of_one_caller_do_not_exhaust_the_task_limit() {
    let limits = |limits: &mut sidemint::broker::Limits| limits.tasks_per_caller = 2;
    let w = World::with(Setup { tasks: 8, limits, reaper: true, ..Setup::default() }).await;
    let call = |w: &World| w.begin_call(&json!({ "scope": "archive" }));
    let mut ended = Vec::new();
    for _ in 0..4 {
        let task = begun(&w.send(call(&w)).await);
        w.served(&task.token).await;
        w.end(&task).await;
        ended.push(w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap());
    }
    let reply = w.send(call(&w)).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (429, "rate_limited", Some("30")));
    assert_eq!(reply.json()["detail"], "Too many tasks of this workload run, or have ended and left access.");
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "too_many_tasks_of_caller");
    assert_eq!(w.metric("sidemint_limited_total{limit=\"tasks_per_caller\"}").await, Some(1.0));
    begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    // What has died by itself is nobody's burden.
    settle().await;
    w.clock.advance(secs(1201));
    until("nothing is left", || ended.iter().all(|task| task.state().is_settled())).await;
    begun(&w.send(call(&w)).await);
}
