//! `sidemint demo`: the whole story in one terminal, without a network and without configuration. Each step is checked,
//! and the exit code says whether all of them held.
//!
//! - `story`: the steps.
//! - `workload`: the workload of the story, a process of its own with the AWS SDK.
//! - `leaks`: the search for secrets where none may be.

mod leaks;
mod story;
mod workload;

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;

use serde::Serialize;

use super::dev::Signals;
use super::{CliError, CliResult, Exit, Output};
use crate::clock::SystemClock;

/// Arguments of `sidemint demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print what happened
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Be the workload of the story (the demo starts itself so)
    #[arg(long, hide = true)]
    as_workload: bool,
}

/// How wide the last column is: a line then fits into 80.
const WIDTH: usize = 58;

/// How far the story got.
enum Told {
    /// To its end, or to the first step that did not hold; the end of the sidecar's log, when there is one.
    Whole {
        /// The end of the sidecar's log.
        log: Option<String>,
    },
    /// A signal came.
    Interrupted,
}

/// One step of the story, as `--output json` prints it.
#[derive(Debug, Serialize)]
struct Step {
    /// A stable label.
    name: &'static str,
    /// Whether it held.
    ok: bool,
    /// What was seen.
    detail: String,
}

/// The whole, as `--output json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    steps: Vec<Step>,
    ok: bool,
}

/// Tells the story. 0 when every step held, else 1.
///
/// # Errors
/// When standard output cannot be written.
pub async fn run(args: Args) -> CliResult {
    if args.as_workload {
        return workload::run().await;
    }
    let mut signals = Signals::caught()?;
    let mut teller = Teller::new(args.output);
    teller.title().map_err(unwritable)?;
    let told = story::tell(Arc::new(SystemClock), &mut teller, signals.one()).await.map_err(unwritable)?;
    let log = match told {
        Told::Whole { log } => log,
        Told::Interrupted => return Err(CliError::new(Exit::Failed, "interrupted before the story's end")),
    };
    let ok = teller.finish(log.as_deref()).map_err(unwritable)?;
    Ok(if ok { Exit::Ok } else { Exit::Failed } as u8)
}

fn unwritable(error: io::Error) -> CliError {
    CliError::new(Exit::Failed, format!("cannot write to standard output: {error}"))
}

/// Prints steps as they happen, and keeps them.
struct Teller {
    format: Output,
    /// Standard output is a terminal: colour (without `NO_COLOR`) and a countdown make sense.
    terminal: bool,
    colour: bool,
    steps: Vec<Step>,
}

impl Teller {
    fn new(format: Output) -> Self {
        let terminal = format == Output::Text && io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, terminal, colour, steps: Vec::new() }
    }

    fn title(&self) -> io::Result<()> {
        self.print("\n  Access belongs to a task, and ends with it.\n\n")
    }

    /// A step is over. `Err` holds what was seen instead of what should have been.
    fn step(&mut self, name: &'static str, result: Result<String, String>) -> io::Result<bool> {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|problem| problem);
        let (colour, mark) = if ok { ("32", "ok") } else { ("31;1", "FAIL") };
        let mark = format!("{mark:<4}");
        let mark = if self.colour { format!("\u{1b}[{colour}m{mark}\u{1b}[0m") } else { mark };
        let mut lines = wrapped(&detail, WIDTH).into_iter();
        self.erase()?;
        self.print(&format!("  {mark} {name:<14} {}\n", lines.next().unwrap_or_default()))?;
        for line in lines {
            self.print(&format!("  {:19} {line}\n", ""))?;
        }
        self.steps.push(Step { name, ok, detail });
        Ok(ok)
    }

    /// Shows how long a wait still is; only on a terminal.
    fn countdown(&self, seconds: u64, what: &str) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.print(&format!("\r  {seconds:>2} s  {what}"))
    }

    fn erase(&self) -> io::Result<()> {
        if self.terminal { self.print("\r\u{1b}[K") } else { Ok(()) }
    }

    /// Prints the end; `log` is the end of the sidecar's log, for when something failed.
    fn finish(&self, log: Option<&str>) -> io::Result<bool> {
        let ok = !self.steps.is_empty() && self.steps.iter().all(|step| step.ok);
        if self.format == Output::Json {
            let steps = self.steps.iter().map(|s| Step { name: s.name, ok: s.ok, detail: s.detail.clone() }).collect();
            let report = serde_json::to_string(&Report { steps, ok })?;
            writeln!(io::stdout().lock(), "{report}")?;
        } else if ok {
            self.print(&format!("\n  All {} steps held. Next: sidemint dev\n\n", self.steps.len()))?;
        } else {
            self.print("\n  Not every step held.\n\n")?;
        }
        if let (false, Some(log)) = (ok, log) {
            writeln!(io::stderr().lock(), "sidemint: the sidecar's log ends:\n{log}")?;
        }
        Ok(ok)
    }

    fn print(&self, text: &str) -> io::Result<()> {
        if self.format == Output::Json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// Breaks text between words into lines of at most `width` characters; control characters become spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_or_no_step_fails_the_demo() {
        let mut teller = Teller::new(Output::Json);
        assert!(!teller.steps.iter().any(|step| step.ok));
        assert!(!teller.finish(None).unwrap());
        assert!(teller.step("a", Ok("fine".into())).unwrap());
        assert!(teller.finish(None).unwrap());
        assert!(!teller.step("b", Err("not so".into())).unwrap());
        assert!(!teller.finish(None).unwrap());
    }

    #[test]
    fn wraps_long_details_and_removes_control_characters() {
        assert_eq!(wrapped("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrapped("a\u{1b}[2Jb", 80), ["a [2Jb"]);
        assert_eq!(wrapped("", 5), [""]);
    }
}
