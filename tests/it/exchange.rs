//! The way to a credential beside an STS that loses answers, hangs, lies or throttles: nothing that may live is forgotten, and
//! an outage costs neither the STS a storm nor the callers their time.

use sidemint::clock::ManualClock;

use crate::begin::join_all;
use crate::leaks::stepping;
use crate::sts::{OnCall, Sts};
use crate::world::{Begun, START, Setup, World, secs, time};

const LIE: OnCall = OnCall::GiveWith("role/tests", "role/admin");

async fn world() -> (World, Sts) {
    // The STS's clock becomes the world's, which is not there yet.
    let clock = ManualClock::at(START);
    let sts = Sts::start(clock.clone()).await;
    let w = World::with_clock(Setup { sts: Some(sts.address), ..Setup::default() }, clock).await;
    (w, sts)
}

async fn mints(w: &World, outcome: &str) -> f64 {
    let series = format!("sidemint_mints_total{{outcome=\"{outcome}\",provider=\"aws\",tier=\"baseline\"}}");
    w.metric(&series).await.unwrap()
}

async fn circuit_open(w: &World) -> bool {
    w.metric("sidemint_provider_circuit_open{provider=\"aws\"}").await == Some(1.0)
}

#[tokio::test]
async fn keeps_the_intent_of_a_lost_credential_whatever_sts_answers_next() {
    let (mut w, sts) = world().await;
    let task = w.begin_scope("archive").await;
    sts.next([OnCall::Lose]);
    sts.on_call(OnCall::Refuse(403, "AccessDenied"));
    let reply = stepping(&w, w.credentials(&task.token)).await;
    assert_eq!((reply.status, sts.calls()), (503, 2), "{}", reply.text());
    assert_eq!((mints(&w, "unavailable").await, mints(&w, "refused").await), (1.0, 0.0));
    let audited = w.audited(reply.request_id()).await;
    let failed = audited.iter().find(|line| line["event"] == "mint").unwrap();
    assert_eq!((&failed["outcome"], &failed["reason"]), (&"failed".into(), &"unavailable".into()));

    let dead_by = START.floor_to_second() + secs(1200);
    w.crash().await;
    let shown = w.show(&task).await;
    assert_eq!((&shown["leases"][0]["state"], time(&shown["leases"][0]["usable_until"])), (&"intent".into(), dead_by));
    let report = w.end(&task).await;
    let [lease] = &report["leases"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&lease["outcome"], time(&lease["usable_until"])), (&"expires".into(), dead_by));
    let status = w.operator(crate::http::Call::get("/status")).await.json();
    assert_eq!(status["outstanding"][0]["id"], lease["id"], "{status}");
}

/// A hundred tasks that want a credential of a sidecar that serves one already.
struct Callers {
    w: World,
    sts: Sts,
    live: Begun,
    key: String,
    tasks: Vec<Begun>,
}

impl Callers {
    async fn new() -> Self {
        let (w, sts) = world().await;
        let live = w.begin_scope("archive").await;
        let key = stepping(&w, w.served(&live.token)).await["AccessKeyId"].as_str().unwrap().to_owned();
        let mut tasks = Vec::new();
        for _ in 0..100 {
            tasks.push(w.begin_scope("archive").await);
        }
        Self { w, sts, live, key, tasks }
    }

    /// Lets each of them ask at once; how many were served.
    async fn ask(&self) -> usize {
        let replies = join_all(self.tasks.iter().map(|task| self.w.credentials(&task.token)));
        let replies = stepping(&self.w, replies).await;
        for reply in &replies {
            assert!(reply.status == 200 || reply.status == 503, "{}", reply.text());
            assert!(reply.status == 200 || reply.header("retry-after").is_some());
        }
        // And the one that has a credential is served, without any time passing.
        assert_eq!(self.w.served(&self.live.token).await["AccessKeyId"], self.key.as_str());
        replies.iter().filter(|reply| reply.status == 200).count()
    }

    /// Lets them ask again and again for so many seconds; how often the STS was asked.
    async fn ask_for(&self, seconds: u64) -> usize {
        let (until, calls) = (self.w.now() + secs(seconds), self.sts.calls());
        while self.w.now() < until {
            assert_eq!(self.ask().await, 0);
            self.w.clock.advance(secs(3));
        }
        self.sts.calls() - calls
    }

    /// The STS is well again: how many seconds it takes until all are served.
    async fn recover(&self) -> u64 {
        self.sts.on_call(OnCall::Give);
        let since = self.w.now();
        while self.ask().await < self.tasks.len() {
            assert!(self.w.now().since(since) < secs(120), "not all are served after two minutes");
            self.w.clock.advance(secs(2));
        }
        assert!(!circuit_open(&self.w).await);
        self.w.now().since(since).as_secs()
    }
}

#[tokio::test]
async fn a_hanging_sts_opens_the_circuit_and_gets_one_probe_at_a_time() {
    let callers = Callers::new().await;
    callers.sts.on_call(OnCall::Hang);
    // 20 at once and 5 a second, until the first have waited in vain for 8 s.
    let calls = callers.ask_for(15).await;
    assert!(calls <= 20 + 5 * 9 + 4, "{calls}");
    assert!(circuit_open(&callers.w).await);
    // Then one at a time, each for 8 s.
    let calls = callers.ask_for(100).await;
    assert!((2..=10).contains(&calls), "{calls}");
    assert!(mints(&callers.w, "not_asked").await > 100.0);
    let took = callers.recover().await;
    assert!(took <= 90, "{took} s");
}

#[tokio::test]
async fn an_sts_with_invalid_answers_opens_the_circuit_and_gets_one_probe_at_a_time() {
    let callers = Callers::new().await;
    callers.sts.on_call(LIE);
    let calls = callers.ask_for(60).await;
    assert!((6..=20 + 10).contains(&calls), "{calls}");
    assert!(circuit_open(&callers.w).await);
    let took = callers.recover().await;
    assert!(took <= 90, "{took} s");
}

#[tokio::test]
async fn waits_for_a_throttling_sts_without_opening_the_circuit() {
    let callers = Callers::new().await;
    callers.sts.on_call(OnCall::Say(429, "retry-after: 30", ""));
    let calls = callers.ask_for(29).await;
    assert!(calls <= 20, "those who were under way when it first said so: {calls}");
    let calls = callers.ask_for(60).await;
    assert!(calls <= 3 * 20, "{calls}");
    assert!(!circuit_open(&callers.w).await);
    let took = callers.recover().await;
    assert!(took <= 90, "{took} s");
}

#[tokio::test]
async fn refused_callers_do_not_open_the_circuit() {
    let callers = Callers::new().await;
    callers.sts.on_call(OnCall::Refuse(403, "AccessDenied"));
    let replies = join_all(callers.tasks[..10].iter().map(|task| callers.w.credentials(&task.token)));
    for reply in stepping(&callers.w, replies).await {
        assert_eq!(reply.status, 403);
    }
    assert!(!circuit_open(&callers.w).await);
    callers.sts.on_call(OnCall::Give);
    assert_eq!(stepping(&callers.w, callers.w.credentials(&callers.tasks[10].token)).await.status, 200);
}
