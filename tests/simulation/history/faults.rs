//! A disk that fails while the sidecar runs: nothing new is minted, what lives is served on, ends go on, and health says why.

use super::*;

impl History {
    /// One request, with a cloud that gives at once; its status and body.
    fn ask_now(&mut self, call: Call) -> (u16, Value) {
        let (server, answer) = (Arc::clone(&self.sidecar().server), Arc::new(Mutex::new(None)));
        let told = Arc::clone(&answer);
        self.sidecar().runtime.spawn(async move { *told.lock().unwrap() = exchange(server, call).await });
        self.settle();
        while self.cloud.waiting() > 0 {
            self.cloud.answer(0, Answer::Give, Undo::Done);
            self.settle();
        }
        let (status, body) = answer.lock().unwrap().take().expect("an answer");
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn begin_now(&mut self) -> (u16, Value) {
        let (bearer, body) = (self.api.issue(WHO[0], AUDIENCE), json!({ "scope": "archive" }).to_string());
        self.ask_now(Call { method: Method::POST, path: "/v1/tasks".into(), bearer, key: None, body })
    }

    fn of_task(&mut self, method: Method, task: &Value, what: &str) -> (u16, Value) {
        let path = format!("/v1/tasks/{}{what}", task["id"].as_str().unwrap());
        let bearer = task["token"].as_str().unwrap().to_owned();
        self.ask_now(Call { method, path, bearer, key: None, body: String::new() })
    }
}

fn fails_closed(fault: Fault) {
    let mut history = History::new(1, Planted::No);
    history.start().unwrap();
    let (_, live) = history.begin_now();
    let (_, other) = history.begin_now();
    let (status, credential) = history.of_task(Method::GET, &live, "/credentials");
    assert_eq!(status, 200);

    history.disk.fail(fault);
    assert_eq!(history.begin_now().0, 503, "{fault:?}: a task that cannot be recorded does not begin");
    let asked = history.cloud.asked();
    assert_eq!(history.of_task(Method::GET, &other, "/credentials").0, 503, "{fault:?}");
    assert_eq!(history.cloud.asked(), asked, "{fault:?}: the cloud is not asked without an intent");
    assert_eq!(history.of_task(Method::GET, &live, "/credentials"), (200, credential), "{fault:?}: served on");
    assert!(!history.sidecar().journal.healthy(), "{fault:?}: readiness looks here");
    assert_eq!(history.of_task(Method::DELETE, &live, "").0, 200, "{fault:?}: ends go on");
    assert_eq!(history.of_task(Method::GET, &live, "/credentials").0, 409, "{fault:?}");
    history.check().unwrap();

    history.start_again(Some(Stop::Machine)).unwrap();
    assert_eq!(history.of_task(Method::GET, &other, "/credentials").0, 200, "{fault:?}: a repaired disk fixes it");
    history.check().unwrap();
    history.drop_sidecar();
}

#[test]
fn a_full_disk_stops_mints_and_nothing_else() {
    fails_closed(Fault::Full);
}

#[test]
fn a_disk_that_cannot_be_written_stops_mints_and_nothing_else() {
    fails_closed(Fault::Write);
}

#[test]
fn a_disk_that_cannot_be_synced_stops_mints_and_nothing_else() {
    fails_closed(Fault::Sync);
}
