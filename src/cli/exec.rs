//! `sidemint exec -- CMD`: a command inside a held task. The task begins before CMD and ends with it.
//!
//! - The hold is attached before CMD starts, so no moment exists in which CMD runs and nobody holds its task.
//! - CMD gets the task's token by a file that only this user can read, never by its arguments or environment.
//! - Signals are passed on; CMD's exit code is exec's.
//! - When exec dies without a word (`kill -9`), the sidecar sees its hold close and ends the task after 10 s, and the
//!   kernel sends CMD a SIGTERM: CMD is started through [`launch`], which asks for that before it becomes CMD.
//! - When the sidecar restarts, exec holds the task again. When the task ends before CMD does, CMD goes on without
//!   credentials, and one line says so.

mod child;
mod environment;
mod holder;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::client::{BeginRequest, Begun, ClientError, Hold, Sidecar};
use super::{CliError, CliResult, Exit, complain, own_svid, plain, task};
use crate::clock::{SharedClock, SystemClock, within};
use crate::hardening;
use crate::retry::Backoff;
use crate::secret::Secret;
use child::{Child, Signals};
pub use child::{LAUNCH, LaunchArgs, launch};
use environment::TokenFile;
use holder::{Event, Holder};

/// How long ending the task may keep exec, once CMD has ended.
const END_LIMIT: Duration = Duration::from_secs(3);

/// Run a command inside a task: it gets credentials, and loses them when it ends.
///
/// The command finds AWS credentials through the endpoint of the sidecar, as AWS SDKs and the AWS CLI do by themselves;
/// other sources of AWS credentials are taken out of its environment. SIDEMINT_HTTP names the sidecar (default
/// http://127.0.0.1:9870).
///
/// Exit codes: the command's own; 128+N when signal N killed it; 127 when it is not found, 126 when it cannot be run;
/// 1 to 4 as for every sidemint command when no task began.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    ask: task::Ask,
    #[command(flatten)]
    svid: own_svid::Args,
    /// How long to wait for a sidecar or Workload API that is not there yet
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Say which task begins, and how each of its credentials ends
    #[arg(short, long)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs CMD inside a task and returns its exit code.
///
/// # Errors
/// When no task begins: what to print and the exit code.
pub async fn run(args: Args) -> CliResult {
    hardening::harden_parent().map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    let clock: SharedClock = Arc::new(SystemClock);
    let sidecar = Sidecar::from_env(clock.clone())?;
    let request = args.ask.request(true)?;
    // Listened to from here on: a signal while the task begins must not leave the task behind.
    let mut signals = Signals::listen()?;
    let begun = tokio::select! {
        begun = begin(&sidecar, &clock, &args, &request) => begun?,
        signal = signals.fatal() => return Ok(child::killed_by(signal)),
    };
    if args.verbose {
        complain(&format!("task {} began, scope {}, until {}", plain(&begun.id), begun.scope, begun.expires_at));
    }
    let task = Task { sidecar, clock, id: begun.id.clone(), token: Arc::new(begun.token) };
    let result = task.work(&args, &begun.environment, &mut signals).await;
    task.end(args.verbose).await;
    result
}

/// Fetches an SVID and begins the task; tries again while something it needs is not there yet.
async fn begin(sidecar: &Sidecar, clock: &SharedClock, args: &Args, request: &BeginRequest) -> Result<Begun, CliError> {
    let key = task::idempotency_key()?;
    let give_up = clock.boot() + args.wait;
    let mut pause = pauses();
    loop {
        let error = match args.svid.fetch(clock.clone()).await {
            Ok(svid) => match sidecar.begin(&svid.token, &key, request).await {
                Ok(answer) => return Ok(answer.value),
                Err(error) if error.is_passing() => CliError::from(error),
                Err(error) => return Err(error.into()),
            },
            Err(error) if error.exit == Exit::Unavailable => error,
            Err(error) => return Err(error),
        };
        let pause = pause.next_wait();
        if clock.boot() + pause >= give_up {
            return Err(error);
        }
        clock.sleep(pause).await;
    }
}

/// Pauses between tries: 100 ms, doubled up to 1 s.
const fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(1))
}

/// The task that this process holds.
struct Task {
    sidecar: Sidecar,
    clock: SharedClock,
    id: String,
    token: Arc<Secret>,
}

impl Task {
    /// Holds the task, then runs CMD to its end.
    async fn work(&self, args: &Args, told: &BTreeMap<String, Secret>, signals: &mut Signals) -> CliResult {
        // before anything is held: where CMD could not be told of its credentials, it does not run
        environment::changes(told, Path::new(""))?;
        let hold = tokio::select! {
            hold = self.first_hold(args.wait) => hold?,
            signal = signals.fatal() => return Ok(child::killed_by(signal)),
        };
        let (holder, events) = self.keep_held(hold);
        let file = TokenFile::write(&self.token)?;
        let mut child = match Child::start(&args.command, &environment::changes(told, file.path())?) {
            Ok(child) => child,
            Err(failure) => return Ok(failure.report()),
        };
        let status = self.attend(&mut child, signals, events).await;
        drop(holder);
        Ok(child::exit_code(status?))
    }

    async fn first_hold(&self, wait: Duration) -> Result<Hold, ClientError> {
        let give_up = self.clock.boot() + wait;
        let mut pause = pauses();
        loop {
            let error = match self.sidecar.hold(&self.token, &self.id).await {
                Err(error) if error.is_passing() => error,
                done => return done,
            };
            let pause = pause.next_wait();
            if self.clock.boot() + pause >= give_up {
                return Err(error);
            }
            self.clock.sleep(pause).await;
        }
    }

    /// Keeps the task held in the background until the returned guard is dropped.
    fn keep_held(&self, hold: Hold) -> (holder::Guard, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(8);
        let holder = Holder {
            sidecar: self.sidecar.clone(),
            clock: self.clock.clone(),
            id: self.id.clone(),
            token: self.token.clone(),
            events: sender,
        };
        (holder.spawn(hold), events)
    }

    /// Waits for CMD; meanwhile passes signals on and says what becomes of the task.
    async fn attend(
        &self,
        child: &mut Child,
        signals: &mut Signals,
        mut events: mpsc::Receiver<Event>,
    ) -> Result<ExitStatus, CliError> {
        loop {
            tokio::select! {
                status = child.wait() => {
                    return status.map_err(|error| CliError::new(Exit::Failed, format!("lost the command: {error}")));
                }
                signal = signals.next() => child.pass_on(signal),
                Some(event) = events.recv() => complain(&event.describe(&self.id)),
            }
        }
    }

    /// Ends the task; best effort, since a held task also ends by itself.
    async fn end(&self, verbose: bool) {
        match within(&*self.clock, END_LIMIT, self.sidecar.end(&self.token, &self.id)).await {
            Some(Ok(answer)) => {
                if verbose {
                    for line in task::ending_text(&answer.value).lines() {
                        complain(line);
                    }
                }
                if !answer.value.durable {
                    complain(task::NOT_DURABLE);
                }
            }
            // 401: the task ended so long ago that its token is forgotten.
            Some(Err(ClientError::Refused(refusal))) if refusal.status == http::StatusCode::UNAUTHORIZED => {}
            Some(Err(error)) => {
                complain(&format!("could not end task {}: {error}; it ends by itself in 10 s", self.id))
            }
            None => complain(&format!("could not end task {} in time; it ends by itself in 10 s", self.id)),
        }
    }
}
