//! What ends a task (requirement G21), one by one: from the trigger on nothing of it is served, decided at the request and by no
//! sweep: no reaper runs here. And what is told of an end is the same wherever it is told.

use serde_json::{Value, json};
use sidemint::task::EndReason;

use crate::fakes::{OnMint, refused, unavailable};
use crate::http::Call;
use crate::policy_files::{OTHER, REPORT, Scope, kill, write};
use crate::vault::{passing, scope};
use crate::world::{Begun, START, Setup, World, secs, settle, time, until};

/// Two providers, one of which can revoke what it gave.
async fn world() -> World {
    let w = World::with(Setup { vault: true, ..Setup::default() }).await;
    scope(&w.policy_directory(), "both", "20m", &["aws", "vault"]);
    let decision = w.policy_directory().join("decisions/both.toml");
    let text = std::fs::read_to_string(decision).unwrap() + "idle = \"4m\"\n";
    write(&w.policy_directory(), "decisions/both.toml", &text);
    w.reload().await;
    w
}

async fn asked(w: &World, task: &Begun, provider: &str) -> crate::http::Reply {
    w.send(Call::get(&format!("/v1/tasks/{}/credentials?provider={provider}", task.id)).bearer(&task.token)).await
}

async fn mints(w: &World) -> (usize, usize) {
    (w.cloud.calls(), w.vault.as_ref().unwrap().count("creds"))
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trigger {
    Delete,
    HoldGone,
    Deadline,
    Idle,
    PolicyChanged,
    Killed,
    Operator,
    IdentityWithdrawn,
    TrustDomainRemoved,
    BundlesRemoved,
    ParentEnded,
    Shutdown,
}

impl Trigger {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Delete, "done"),
        (Self::HoldGone, "hold_gone"),
        (Self::Deadline, "deadline"),
        (Self::Idle, "idle"),
        (Self::PolicyChanged, "policy_changed"),
        (Self::Killed, "killed"),
        (Self::Operator, "operator"),
        (Self::IdentityWithdrawn, "identity_withdrawn"),
        (Self::TrustDomainRemoved, "identity_withdrawn"),
        (Self::BundlesRemoved, "identity_withdrawn"),
        (Self::ParentEnded, "parent_ended"),
        (Self::Shutdown, "shutdown"),
    ];

    /// Lets it happen to `task`, and returns once it can be seen.
    async fn pull(self, w: &World, task: &Begun, parent: Option<&Begun>) {
        let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
        let domain = "example.org".parse().unwrap();
        match self {
            // The answer waits for what can be revoked, which nobody does here.
            Self::Delete => drop(passing(w, w.end(task)).await),
            Self::Operator => {
                let call = Call::delete(&format!("/v1/tasks/{}", task.id));
                assert_eq!(passing(w, w.operator(call)).await.status, 200);
            }
            Self::HoldGone => {
                let mut hold = w.hold(task).await;
                hold.line().await.unwrap();
                drop(hold);
                until("the hold is let go", || found.state().holders == 0).await;
                w.clock.advance(secs(10));
            }
            Self::Deadline => w.clock.advance(secs(90)),
            Self::Idle => w.clock.advance(secs(240)),
            Self::PolicyChanged => {
                let path = "decisions/both.cedar";
                let rule = std::fs::read_to_string(w.policy_directory().join(path)).unwrap();
                w.write_policy(path, &rule.replace(REPORT, OTHER)).await;
            }
            Self::Killed => drop(w.write_policy("kill/list.toml", &kill("scope = \"both\"")).await),
            Self::IdentityWithdrawn => w.api.withdraw(REPORT),
            Self::TrustDomainRemoved => w.api.update(|identities| {
                identities.svids.retain(|svid| *svid.spiffe_id.trust_domain() != domain);
                identities.jwt_bundles.remove(&domain);
                identities.x509_bundles.remove(&domain);
            }),
            Self::BundlesRemoved => w.api.update(|identities| {
                identities.jwt_bundles.remove(&domain);
                identities.x509_bundles.remove(&domain);
            }),
            Self::ParentEnded => drop(w.end(parent.unwrap()).await),
            Self::Shutdown => drop(w.broker.end(&found, EndReason::Shutdown, None).await),
        }
    }
}

#[tokio::test]
async fn after_each_trigger_the_very_next_request_is_refused_and_revocation_is_queued() {
    for (trigger, reason) in Trigger::ALL {
        let w = world().await;
        let parent = match trigger {
            Trigger::ParentEnded => Some(w.begin_scope("brief").await),
            _ => None,
        };
        let mut body = json!({ "scope": "both" });
        match trigger {
            Trigger::HoldGone => body["hold"] = true.into(),
            Trigger::Deadline => body["ttl"] = "90s".into(),
            Trigger::ParentEnded => body["parent"] = parent.as_ref().unwrap().id.clone().into(),
            _ => {}
        }
        let task = w.begin(body).await;
        for provider in ["aws", "vault"] {
            assert_eq!(asked(&w, &task, provider).await.status, 200, "{trigger:?}");
        }
        let minted = mints(&w).await;
        trigger.pull(&w, &task, parent.as_ref()).await;

        let refused = asked(&w, &task, "vault").await;
        assert_eq!((refused.status, refused.code().as_str()), (409, "task_ended"), "{trigger:?}");
        let text = refused.text();
        assert!(text.contains("The task has ended."), "{text}");
        for hidden in ["INC-7", "stop-1", "rule-of", "both.cedar", reason] {
            assert!(!text.contains(hidden), "{trigger:?}: {text}");
        }
        assert_eq!(w.credentials(&task.token).await.status, 401, "{trigger:?}: in the dialect of AWS too");
        assert_eq!(mints(&w).await, minted, "{trigger:?}");
        let outstanding = w.metric("sidemint_revocations_outstanding{provider=\"vault\"}").await;
        assert_eq!(outstanding, Some(1.0), "{trigger:?}: queued at once");

        let shown = w.show(&task).await;
        assert_eq!([&shown["state"], &shown["reason"]], ["ended", reason], "{trigger:?}");
        let counted = w.metric(&format!("sidemint_tasks_ended_total{{reason=\"{reason}\"}}")).await;
        assert_eq!(counted, Some(1.0), "{trigger:?}");
        let lines =
            || w.audit.lines().into_iter().filter(|line| line["event"] == "end" && line["task"] == task.id.as_str());
        until("its end is audited", || lines().count() == 1).await;
        let line = lines().next().unwrap();
        assert_eq!([&line["reason"], &line["scope"]], [reason, "both"], "{trigger:?}");
        assert_eq!(line["leases"].as_array().unwrap().len(), 2, "{trigger:?}");
        if trigger == Trigger::Killed {
            assert_eq!(line["detail"], "kill list entry stop-1: INC-7 leaked");
        }
    }
}

#[tokio::test]
async fn an_unknown_and_a_foreign_task_get_the_same_answer() {
    let w = World::new().await;
    let (own, foreign) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    let other = w.svid(OTHER);
    let nobody = "t-00000000000000000000000000";
    let told = |reply: crate::http::Reply| {
        let mut body = reply.json();
        body.as_object_mut().unwrap().remove("request_id");
        (reply.status, body)
    };
    for (method, rest) in [("GET", ""), ("DELETE", ""), ("GET", "/credentials"), ("POST", "/hold")] {
        let by_token = |id: &str| Call::new(method, &format!("/v1/tasks/{id}{rest}")).bearer(&own.token);
        let unknown = told(w.send(by_token(nobody)).await);
        assert_eq!(unknown.0, 404, "{method} {rest}");
        for id in [foreign.id.as_str(), "t-1", "nonsense"] {
            assert_eq!(told(w.send(by_token(id)).await), unknown, "{method} {rest} {id}");
        }
        if rest.is_empty() {
            let by_svid = |id: &str| Call::new(method, &format!("/v1/tasks/{id}")).bearer(&other);
            assert_eq!(told(w.send(by_svid(&foreign.id)).await), unknown);
            assert_eq!(told(w.send(by_svid(nobody)).await), unknown);
        }
    }
    assert!(!w.is_ended(&foreign) && !w.is_ended(&own));
}

/// The sum of what a histogram was told.
async fn residual(w: &World, provider: &str) -> (f64, f64) {
    let series = |what: &str| format!("sidemint_residual_access_seconds_{what}{{provider=\"{provider}\"}}");
    (w.metric(&series("count")).await.unwrap(), w.metric(&series("sum")).await.unwrap())
}

fn left(ending: &Value, provider: &str) -> f64 {
    let ended_at = time(&ending["ended_at"]);
    let leases = ending["leases"].as_array().unwrap().iter().filter(|lease| lease["provider"] == provider);
    leases.map(|lease| time(&lease["usable_until"]).since(ended_at).as_secs_f64()).sum()
}

#[tokio::test]
async fn reports_the_same_residual_access_in_answer_audit_log_and_metric() {
    let w = World::with(Setup { vault: true, reaper: true, ..Setup::default() }).await;
    scope(&w.policy_directory(), "both", "20m", &["aws", "vault"]);
    w.reload().await;
    let task = w.begin_scope("both").await;
    for provider in ["aws", "vault"] {
        assert_eq!(asked(&w, &task, provider).await.status, 200);
    }
    w.clock.advance(secs(30));
    let ending = w.end(&task).await;
    let leases = ending["leases"].as_array().unwrap();
    assert_eq!(leases.iter().map(|lease| &lease["outcome"]).collect::<Vec<_>>(), ["expires", "revoked"]);
    // A lease that can be revoked is counted once, when it was.
    assert_eq!(residual(&w, "vault").await, (1.0, left(&ending, "vault")));
    assert_eq!(residual(&w, "aws").await, (1.0, left(&ending, "aws")));
    assert!(left(&ending, "aws") > 1100.0 && left(&ending, "vault") < 1.0);
    // The audit log's last word on each lease.
    let lines = w.audit.lines();
    let end = lines.iter().find(|line| line["event"] == "end").unwrap();
    let mut told = end["leases"].as_array().unwrap().clone();
    for line in lines.iter().filter(|line| line["event"] == "revocation" && line["outcome"] == "revoked") {
        let lease = told.iter_mut().find(|lease| lease["id"] == line["lease"]).unwrap();
        lease["outcome"] = "revoked".into();
        lease["usable_until"] = line["usable_until"].clone();
    }
    assert_eq!(&told, leases);
    // What the commands print is made of the same bytes.
    let show = w.show(&task).await;
    for (shown, lease) in show["leases"].as_array().unwrap().iter().zip(leases) {
        assert_eq!((&shown["id"], &shown["usable_until"]), (&lease["id"], &lease["usable_until"]));
    }
    assert_eq!(w.end(&task).await, ending, "and again");
    assert_eq!(residual(&w, "aws").await.0, 1.0, "counted once");
}

#[tokio::test]
async fn reports_no_residual_access_of_what_expired_before_the_end() {
    let w = World::new().await;
    let task = w.begin_scope("brief").await;
    w.served(&task.token).await;
    w.clock.advance(secs(300));
    let ending = w.end(&task).await;
    assert!(time(&ending["leases"][0]["usable_until"]) < time(&ending["ended_at"]));
    assert_eq!(w.show(&task).await["leases"][0]["state"], "expired");
    assert_eq!(residual(&w, "aws").await, (1.0, 0.0));
}

#[tokio::test]
async fn reports_everywhere_what_a_session_policy_lets_outlive_the_cut() {
    let w = World::with_reaper().await;
    // The session itself lives 30 min of the 90, since what it may assume lives another hour.
    w.publish(Scope { max_residual: "90m", action: "sts:AssumeRole", ..Scope::new("chained") }).await;
    let task = w.begin_scope("chained").await;
    let served = w.served(&task.token).await;
    let session_ends = START.floor_to_second() + secs(30 * 60);
    assert_eq!(w.cloud.orders()[0].dead_by, session_ends);
    assert!(time(&served["Expiration"]) <= session_ends, "it is served no longer for that");
    let until_then = json!(session_ends + secs(3600));
    assert_eq!(w.show(&task).await["leases"][0]["usable_until"], until_then);
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["usable_until"], until_then);
    assert_eq!(ending["leases"][0].get("open_ended"), None);
    assert_eq!(residual(&w, "aws").await, (1.0, left(&ending, "aws")));
    let lines = w.audit.lines();
    let line = |event: &str| lines.iter().find(|line| line["event"] == event).unwrap();
    assert_eq!((&line("mint")["usable_until"], &line("end")["leases"]), (&until_then, &ending["leases"]));
    // Not called dead while what it made may live.
    for (passed, state) in [(3600, "ending"), (1801, "expired")] {
        w.clock.advance(secs(passed));
        settle().await;
        until(state, || {
            let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
            let is = json!(found.state().leases[0].state);
            is == state
        })
        .await;
    }
}

#[tokio::test]
async fn counts_what_an_unanswered_intent_might_leave() {
    let w = World::new().await;
    w.publish(Scope { max_residual: "90m", action: "sts:AssumeRole", ..Scope::new("chained") }).await;
    let task = w.begin_scope("chained").await;
    w.cloud.otherwise(OnMint::Fail(unavailable(None)));
    assert_eq!(w.credentials(&task.token).await.status, 503);
    let ending = w.end(&task).await;
    assert_eq!(time(&ending["leases"][0]["usable_until"]), START.floor_to_second() + secs(90 * 60));
}

#[tokio::test]
async fn access_without_an_end_is_reported_and_needs_a_decision_that_accepts_it() {
    let w = World::new().await;
    let scope = Scope { action: "rds-db:connect", ..Scope::new("connected") };
    w.publish(scope.clone()).await;
    let refused = w.send(w.begin_call(&json!({ "scope": "connected" }))).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "denied"));
    assert_eq!(w.metric("sidemint_scopes_suspended{reason=\"residual\"}").await, Some(1.0));
    w.publish(Scope { accept_residual: true, ..scope }).await;
    let task = w.begin_scope("connected").await;
    w.served(&task.token).await;
    assert_eq!(w.show(&task).await["leases"][0]["open_ended"], true);
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["open_ended"], true);
    assert_eq!(time(&ending["leases"][0]["usable_until"]), START.floor_to_second() + secs(1200));
    let end = w.audit.lines().into_iter().find(|line| line["event"] == "end").unwrap();
    assert_eq!(end["leases"], ending["leases"]);
}

#[tokio::test]
async fn an_answer_that_comes_after_the_end_is_reported_and_counted_once_it_is_known() {
    let w = World::with_reaper().await;
    let task = w.begin_scope("archive").await;
    w.cloud.next([OnMint::Sooner(secs(600))]);
    w.cloud.gate.shut();
    let asked = w.credentials(&task.token);
    let ends = async {
        until("STS is asked", || w.cloud.calls() == 1).await;
        let ending = w.end(&task).await;
        let before = residual(&w, "aws").await;
        w.cloud.gate.release();
        (ending, before)
    };
    let (reply, (ending, before)) = tokio::join!(asked, ends);
    assert_eq!(reply.status, 401);
    // Until it is known: the latest that the order allowed.
    assert_eq!(time(&ending["leases"][0]["usable_until"]), START.floor_to_second() + secs(1200));
    assert_eq!(before, (0.0, 0.0));
    let known = w.end(&task).await;
    assert_eq!(time(&known["leases"][0]["usable_until"]), START.floor_to_second() + secs(600));
    assert_eq!(residual(&w, "aws").await, (1.0, left(&known, "aws")));
}

#[tokio::test]
async fn counts_an_unanswered_exchange_once_its_credential_has_expired() {
    let w = World::with_reaper().await;
    let task = w.begin_scope("brief").await;
    w.cloud.otherwise(OnMint::Fail(unavailable(None)));
    assert_eq!(w.credentials(&task.token).await.status, 503);
    let ending = w.end(&task).await;
    assert_eq!(residual(&w, "aws").await, (0.0, 0.0));
    for _ in 0..61 {
        w.clock.advance(secs(1));
        settle().await;
    }
    assert_eq!(residual(&w, "aws").await, (1.0, left(&ending, "aws")));
    assert_eq!(w.show(&task).await["leases"][0]["state"], "expired");
    assert_eq!(w.end(&task).await, ending);
}

#[tokio::test]
async fn lists_a_requested_revocation_as_outstanding_but_not_pending() {
    let w = World::with(Setup { vault: true, reaper: true, ..Setup::default() }).await;
    scope(&w.policy_directory(), "db", "5m", &["vault"]);
    w.reload().await;
    let vault = w.vault.as_deref().unwrap();
    // The token goes, and when the lease does nobody may say.
    vault.role(|role| role.may_revoke = false);
    let task = w.begin_scope("db").await;
    assert_eq!(asked(&w, &task, "vault").await.status, 200);
    let ending = passing(&w, w.end(&task)).await;
    assert_eq!(ending["leases"][0]["outcome"], "expires");
    assert_eq!(w.metric("sidemint_revocations_outstanding{provider=\"vault\"}").await, Some(0.0));
    let status = w.ask_admin("/status").await.json();
    assert_eq!(status["leases"], json!({ "active": 1, "outstanding": 1, "to_revoke": 0 }));
    assert_eq!(status["outstanding"][0]["to_revoke"], false);
}

#[tokio::test]
async fn an_exchange_that_is_refused_after_the_end_leaves_no_line_and_no_lease() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.next([OnMint::Fail(refused())]);
    w.cloud.gate.shut();
    w.journal.hold("task ended");
    let ends = async {
        until("STS is asked", || w.cloud.calls() == 1).await;
        let refusal = async {
            // The end is written as it was when it came, and lands after what was forgotten meanwhile.
            until("the end is on its way", || w.journal.waiting() == 1).await;
            w.cloud.gate.release();
            until("the intent is forgotten", || w.log.all().contains(&"forget lease".to_owned())).await;
            w.journal.release("task ended");
        };
        tokio::join!(w.end(&task), refusal).0
    };
    let (reply, ending) = tokio::join!(w.credentials(&task.token), ends);
    assert_eq!(reply.status, 403);
    assert_eq!(ending["leases"], json!([]));
    assert_eq!((w.end(&task).await, residual(&w, "aws").await), (ending.clone(), (0.0, 0.0)));
    w.crash().await;
    assert_eq!((w.show(&task).await["leases"].clone(), w.end(&task).await), (json!([]), ending));
}
