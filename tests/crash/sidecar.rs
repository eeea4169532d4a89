//! `sidemint serve` itself, started, killed and started again on what is left; and its books: the journal as a kill left it,
//! and its own account of itself.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use sidemint::cli::exec::LAUNCH;
use sidemint::clock::{Clock as _, SystemClock, Timestamp, within};
use sidemint::journal::DiskJournal;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::ledger::{Books, LeaseLine, TaskLine};
use crate::world::World;

/// How long a start may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(20);

/// A program that is started again and again in one place.
pub(crate) struct Sidecar {
    folder: PathBuf,
    child: Option<Child>,
    copies: usize,
    pub(crate) starts: usize,
}

impl Sidecar {
    pub(crate) fn beside(world: &World) -> Self {
        let folder = world.folder().to_owned();
        std::fs::write(folder.join("sidemint.toml"), configuration(world)).unwrap();
        Self { folder, child: None, copies: 0, starts: 0 }
    }

    /// Where workloads ask.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("http.sock")
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.folder.join("serve.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sidemint"))
            // It dies with us, however we die.
            .args([LAUNCH, &std::process::id().to_string(), "--", env!("CARGO_BIN_EXE_sidemint"), "serve", "--config"])
            .arg(self.folder.join("sidemint.toml"))
            .env_clear()
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.starts += 1;
    }

    /// Returns when it is ready.
    pub(crate) async fn ready(&mut self) -> Result<(), String> {
        let admin = self.folder.join("admin.sock");
        let mut last = String::new();
        let waited = within(&SystemClock, PATIENCE, async {
            loop {
                if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                    return Err(format!("it ended by itself: {status}"));
                }
                match ask(&admin, "GET", "/readyz", &[], Bytes::new()).await {
                    Ok((StatusCode::OK, _)) => return Ok(()),
                    Ok((_, body)) => last = String::from_utf8_lossy(&body).into_owned(),
                    Err(error) => last = error,
                }
                SystemClock.sleep(Duration::from_millis(10)).await;
            }
        });
        let waited = waited.await.unwrap_or_else(|| Err(format!("not ready after {PATIENCE:?}: {last}")));
        waited.map_err(|why| format!("{why}; its log ends:\n{}", self.log_tail()))
    }

    /// SIGKILL, and waits until it is gone. Whether it was there to be killed.
    pub(crate) async fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let running = child.try_wait().unwrap().is_none();
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        running
    }

    /// Waits until the journal's thread does something: it is writing, or waits for the disk.
    pub(crate) async fn committing(&self) {
        let Some(id) = self.child.as_ref().and_then(Child::id) else { return };
        let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        let is_journal =
            |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == "journal\n");
        let Some(thread) = threads.map(|thread| thread.path()).find(is_journal) else { return };
        let idle = |stat: String| stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('S'));
        while std::fs::read_to_string(thread.join("stat")).is_ok_and(idle) {
            tokio::task::yield_now().await;
        }
    }

    /// What the journal says, read from a copy: with the sidecar dead, that is what the next start finds.
    pub(crate) fn journal(&mut self) -> Books {
        let mut books = Books { name: "the journal", ..Books::default() };
        let file = self.folder.join("state/journal.redb");
        if !file.exists() {
            return books;
        }
        self.copies += 1;
        let copy = self.folder.join(format!("copy-{}", self.copies));
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(file, copy.join("journal.redb")).unwrap();
        std::fs::copy(self.folder.join("state/sidecar-id"), copy.join("sidecar-id")).unwrap();
        let (journal, recovered) = DiskJournal::open(&copy).expect("a journal that a kill left can be read");
        drop(journal);
        for task in recovered.tasks {
            let line = TaskLine {
                owner: task.owner.to_string(),
                ended: task.ending.as_ref().map(|ending| ending.reason.to_string()),
                deadline: task.deadline,
                idempotency: task.idempotency.as_ref().map(|idempotency| idempotency.key),
            };
            books.tasks.insert(task.id.to_string(), line);
        }
        for lease in recovered.leases {
            let task = lease.task.to_string();
            let vault = lease.provider.as_str() == "vault";
            let line = LeaseLine {
                group: if vault { vault_group(&books.tasks, &task) } else { task },
                upstream: lease.upstream.as_ref().map(ToString::to_string).unwrap_or_default(),
                revoked: lease.state == sidemint::lease::LeaseState::Revoked,
                open: !lease.state.is_over(),
                issued: lease.upstream.is_some(),
                until: lease.usable_until,
            };
            books.leases.push(line);
        }
        std::fs::remove_dir_all(copy).unwrap();
        books
    }

    /// What the running sidecar tells its operator.
    pub(crate) async fn status(&self) -> Result<Books, String> {
        let (status, body) = ask(&self.folder.join("admin.sock"), "GET", "/status", &[], Bytes::new()).await?;
        let whole: serde_json::Value = serde_json::from_slice(&body).map_err(|error| format!("{status}: {error}"))?;
        let mut books = Books { name: "status", ..Books::default() };
        let list = whole["task_list"].as_array().ok_or("no task_list")?;
        for task in list {
            let text = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
            let line = TaskLine {
                owner: text("spiffe_id"),
                ended: (task["state"] == "ended").then(|| text("reason")),
                deadline: time(&task["expires_at"]),
                idempotency: None,
            };
            books.tasks.insert(text("id"), line);
        }
        for task in list {
            for lease in task["leases"].as_array().ok_or("no leases")? {
                let (id, state) =
                    (task["id"].as_str().unwrap_or_default(), lease["state"].as_str().unwrap_or_default());
                let vault = lease["provider"] == "vault";
                books.leases.push(LeaseLine {
                    group: if vault { vault_group(&books.tasks, id) } else { id.to_owned() },
                    upstream: String::new(),
                    // Without the provider's name for it there is nothing to join it by: the journal is judged for that.
                    revoked: false,
                    open: !matches!(state, "revoked" | "expired"),
                    issued: state != "intent",
                    until: time(&lease["usable_until"]),
                });
            }
        }
        Ok(books)
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("serve.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn vault_group(tasks: &BTreeMap<String, TaskLine>, task: &str) -> String {
    format!("vault of {}", tasks.get(task).map_or("nobody", |task| &task.owner))
}

/// Reads a time of an answer.
pub(crate) fn time(value: &serde_json::Value) -> Timestamp {
    value.as_str().unwrap_or_default().parse().unwrap_or_default()
}

/// One request on a connection of its own.
pub(crate) async fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).unwrap();
    let talk = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let whole = async {
            let (head, body) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok((head.status, body))
        };
        tokio::pin!(whole);
        tokio::select! {
            biased;
            answer = &mut whole => answer,
            _ = connection => whole.await,
        }
    };
    within(&SystemClock, REQUEST, talk).await.unwrap_or_else(|| Err("no answer in time".to_owned()))
}

fn configuration(world: &World) -> String {
    let folder = world.folder().display();
    format!(
        r#"
[server]
http = "127.0.0.1:0"
unix_socket = "{folder}/http.sock"

[admin]
http = "127.0.0.1:0"
unix_socket = "{folder}/admin.sock"

[identity]
workload_api = "unix://{folder}/workload-api.sock"

[policy]
directory = "{folder}/policy"
trust = "unsigned"

[aws]
sts_endpoint = "{sts}"

[vault]
address = "{vault}"
rate = 500

[state]
directory = "{folder}/state"

[audit]
output = "{folder}/audit.jsonl"

[log]
level = "warn"

[limits]
tasks = 1500
mints_per_caller = 60000
upstream_rate = 500
upstream_burst = 500
"#,
        sts = world.sts,
        vault = world.vault_address,
    )
}
