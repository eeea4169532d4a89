//! `policy decide`: governance looks at a scope and its grants as they are now, and writes their digests down.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use toml::Spanned;

use super::read;
use crate::cli::{CliError, CliResult, Exit, Output, plain, print};
use crate::durable_file;
use crate::policy::document::{Decision, Digest, Grant, Scope};
use crate::policy::publish::difference::{self, Difference};
use crate::policy::repository::PolicyFiles;
use crate::policy::{GrantId, LoadOptions, Policy, ScopeId};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy directory
    #[arg(long, value_name = "DIR")]
    pub(super) policy: PathBuf,
    /// The scope to decide on
    pub(super) scope: ScopeId,
    /// Where the repository is published: shows what changed since the last decision
    #[arg(long, value_name = "OUT")]
    pub(super) published: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    #[arg(long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// One file that the decision is about.
#[derive(Debug)]
struct Item {
    file: String,
    decided: Option<Digest>,
    found: Digest,
    /// Its bytes now.
    content: Vec<u8>,
    /// What it says, in plain words.
    summary: Vec<String>,
    /// What changed since the decision, where its content then can be had.
    changes: Option<Vec<Difference>>,
}

/// Everything that `decide` would do, worked out before anything is written.
#[derive(Debug)]
pub(super) struct Plan {
    file: String,
    items: Vec<Item>,
    old: Vec<u8>,
    new: String,
}

pub(super) fn run(args: &Args) -> CliResult {
    let mut plan = Plan::of(&read(&args.policy)?, &args.scope)?;
    if let Some(out) = &args.published {
        plan.compare(out)?;
    }
    if args.output == Output::Text {
        print(plan.text())?;
    }
    let changed = plan.changes();
    if changed {
        if !args.yes {
            confirm()?;
        }
        plan.write(&args.policy)?;
    }
    match (args.output, changed) {
        (Output::Json, _) => print(format!("{}\n", plan.json()))?,
        (Output::Text, true) => print(format!("written to {}\n", plan.file))?,
        (Output::Text, false) => print("already decided on exactly these files\n")?,
    }
    Ok(Exit::Ok as u8)
}

fn failed(message: impl Into<String>) -> CliError {
    CliError::new(Exit::Failed, message)
}

impl Plan {
    /// Refuses what would still be suspended with the new digests: nobody can have understood it.
    pub(super) fn of(files: &PolicyFiles, scope: &ScopeId) -> Result<Self, CliError> {
        let file = format!("decisions/{scope}.toml");
        let old = bytes(files, &file)?;
        let decision = Decision::parse(old).map_err(|error| failed(format!("{file}: {error}")))?;
        let mut items = vec![scope_item(files, scope, decision.scope)?];
        for (id, decided) in &decision.grants {
            items.push(grant_item(files, id, *decided)?);
        }
        let digests =
            decision.grants.iter().map(|(id, _)| id.clone()).zip(items.iter().skip(1).map(|item| item.found)).collect();
        let text = std::str::from_utf8(old).map_err(|_| failed(format!("{file}: is not UTF-8 text")))?;
        let scope_digest = Digest::of(bytes(files, &format!("scopes/{scope}.toml"))?);
        let new = with_digests(text, scope_digest, &digests).ok_or_else(|| {
            failed(format!("{file}: cannot be edited; write scope = \"\" and grants = {{ NAME = \"\" }} into it"))
        })?;
        check(files, scope, &file, &new)?;
        Ok(Self { file, items, old: old.to_vec(), new })
    }

    /// Looks for what was decided on among what is or once was published at `out`, and says what changed since.
    pub(super) fn compare(&mut self, out: &Path) -> Result<(), CliError> {
        for item in &mut self.items {
            let Some(decided) = item.decided.filter(|decided| *decided != item.found) else { continue };
            let old = difference::published(out, &item.file, &decided).map_err(super::signing::failed)?;
            item.changes = old.map(|old| difference::between(&old, &item.content));
        }
        Ok(())
    }

    fn changes(&self) -> bool {
        self.new.as_bytes() != self.old
    }

    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        for item in &self.items {
            lines.push(format!("{}: {}", item.file, item.change()));
            for change in item.changes.iter().flatten() {
                lines.push(format!("    {}: {}{}", item.name(), plain(&change.what), change.direction.suffix()));
            }
            lines.extend(item.summary.iter().map(|line| format!("    {}", plain(line))));
            match item.decided {
                Some(decided) if decided != item.found => {
                    lines.push(format!("    decided on  {decided}"));
                    lines.push(format!("    now         {}", item.found));
                }
                _ => lines.push(format!("    {}", item.found)),
            }
        }
        lines.join("\n") + "\n"
    }

    fn json(&self) -> serde_json::Value {
        let items = self.items.iter().map(|item| {
            let decided = item.decided.map(|digest| digest.to_string());
            let now = item.found.to_string();
            let changes = item.changes.as_ref().map(|changes| {
                let shown = |change: &Difference| json!({"what": change.what, "way": change.direction.as_str()});
                changes.iter().map(shown).collect::<Vec<_>>()
            });
            json!({
                "file": item.file,
                "change": item.change(),
                "decided": decided,
                "now": now,
                "says": item.summary,
                "changes": changes,
            })
        });
        json!({"file": self.file, "written": self.changes(), "items": items.collect::<Vec<_>>()})
    }

    /// Replaces the decision in one step, so that a sidecar never reads half of it.
    pub(super) fn write(&self, directory: &Path) -> Result<(), CliError> {
        let cannot = |error: io::Error| failed(format!("{}: cannot be written: {error}", self.file));
        // Through a link, not over it.
        let place = fs::canonicalize(directory.join(&self.file)).map_err(cannot)?;
        if fs::read(&place).map_err(cannot)? != self.old {
            return Err(failed(format!("{}: changed meanwhile; run the command again", self.file)));
        }
        let mode = fs::metadata(&place).map_err(cannot)?.permissions().mode() & 0o7777;
        durable_file::replace(&place, self.new.as_bytes(), mode).map_err(cannot)
    }
}

impl Item {
    fn change(&self) -> &'static str {
        match self.decided {
            None => "not decided on before",
            Some(decided) if decided == self.found => "unchanged since the decision",
            Some(_) if self.changes.is_some() => "CHANGED since the decision, and this is how",
            Some(_) => "CHANGED since the decision; --published OUT shows how, this is what it says now",
        }
    }

    /// `grant ledger-read-aws`, `scope ledger-read`.
    fn name(&self) -> String {
        let name = self.file.trim_end_matches(".toml");
        name.split_once('/')
            .map_or_else(|| name.to_owned(), |(folder, id)| format!("{} {id}", folder.trim_end_matches('s')))
    }
}

fn bytes<'a>(files: &'a PolicyFiles, file: &str) -> Result<&'a [u8], CliError> {
    files.files.get(file).map(AsRef::as_ref).ok_or_else(|| failed(format!("{file}: is not there; write it first")))
}

fn scope_item(files: &PolicyFiles, id: &ScopeId, decided: Option<Digest>) -> Result<Item, CliError> {
    let file = format!("scopes/{id}.toml");
    let content = bytes(files, &file)?;
    let scope = Scope::parse(content).map_err(|error| failed(format!("{file}: {error}")))?;
    let mut summary = vec![
        format!("purpose: {}", scope.purpose),
        format!("business owner: {}", scope.business_owner),
        format!("justification: {}", scope.justification),
    ];
    summary.extend(scope.evidence.map(|evidence| format!("evidence: {evidence}")));
    summary.extend(scope.params.iter().map(|(name, spec)| format!("parameter {name}: up to {} characters", spec.max)));
    Ok(Item { file, decided, found: Digest::of(content), content: content.to_vec(), summary, changes: None })
}

fn grant_item(files: &PolicyFiles, id: &GrantId, decided: Option<Digest>) -> Result<Item, CliError> {
    let file = format!("grants/{id}.toml");
    let content = bytes(files, &file)?;
    let grant = Grant::parse(content).map_err(|error| failed(format!("{file}: {error}")))?;
    let template = grant.template.kind();
    let mut summary = template.summary();
    if !template.narrows() {
        summary.push("NOT narrowed: every task gets all of the role".to_owned());
    }
    summary.push(format!("one credential lives at most {}", humantime::format_duration(grant.max_session)));
    Ok(Item { file, decided, found: Digest::of(content), content: content.to_vec(), summary, changes: None })
}

/// Loads the policy as it would be.
fn check(files: &PolicyFiles, scope: &ScopeId, file: &str, new: &str) -> Result<(), CliError> {
    let mut candidate = files.files.clone();
    candidate.insert(file.to_owned(), new.to_owned().into());
    let options = LoadOptions { scopes: [scope.clone()].into(), without_warnings: true };
    let problems = match Policy::load_with(&PolicyFiles::unsigned(candidate), &options) {
        Err(error) => error.problems,
        Ok(policy) => policy.suspended().get(scope).cloned().unwrap_or_default(),
    };
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(|problem| plain(&problem.to_string())).collect();
    Err(failed(format!("cannot be decided on: {}", lines.join("; "))))
}

/// Where the digests stand in a decision file.
#[derive(Deserialize)]
struct Places {
    schema: Spanned<i64>,
    scope: Option<Spanned<String>>,
    grants: BTreeMap<GrantId, Spanned<String>>,
}

/// The decision's text with the digests replaced and every other byte as it was; `None` when they have no place.
fn with_digests(text: &str, scope: Digest, grants: &BTreeMap<GrantId, Digest>) -> Option<String> {
    let places: Places = toml::from_str(text).ok()?;
    let mut edits = Vec::new();
    match &places.scope {
        Some(place) => edits.push((place.span(), format!("\"{scope}\""))),
        None => {
            let after = places.schema.span().end;
            let end = text.get(after..)?.find('\n').map_or(text.len(), |line| after + line);
            edits.push((end..end, format!("\nscope = \"{scope}\"")));
        }
    }
    for (id, place) in &places.grants {
        edits.push((place.span(), format!("\"{}\"", grants.get(id)?)));
    }
    // From the back, so that the places before stay right.
    edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut text = text.to_owned();
    for (span, with) in edits {
        text.get(span.clone())?;
        text.replace_range(span, &with);
    }
    let decision = Decision::parse(text.as_bytes()).ok()?;
    let as_meant = decision.scope == Some(scope)
        && decision.grants.iter().all(|(id, digest)| digest.as_ref() == grants.get(id) && digest.is_some());
    as_meant.then_some(text)
}

fn confirm() -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::new(Exit::Usage, "there is no terminal to ask on: add --yes once you have looked"));
    }
    let asked = write!(io::stderr(), "Decide on these? [y/N] ").and_then(|()| io::stderr().flush());
    asked.map_err(|error| failed(format!("cannot ask: {error}")))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| failed(format!("cannot read the answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(failed("not decided; nothing was written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(text: &str) -> Option<String> {
        let grants = [("a", "x"), ("b", "y")].map(|(id, text)| (id.parse().unwrap(), Digest::of(text.as_bytes())));
        with_digests(text, Digest::of(b"s"), &grants.into())
    }

    const REST: &str = "tier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"g\"\nreview_by = 2027-01-01\nmax_task = \"1h\"\nmax_residual = '30s'\n";

    #[test]
    fn writes_digests_and_changes_no_other_byte() {
        let (s, a, b) = (Digest::of(b"s"), Digest::of(b"x"), Digest::of(b"y"));
        let forms = [
            (
                "scope = \"\"  # why\ngrants = { a = '', b=\"\" } # these\n",
                format!("scope = \"{s}\"  # why\ngrants = {{ a = \"{a}\", b=\"{b}\" }} # these\n"),
            ),
            (
                "grants.b = \"\"\r\ngrants.a = \"\"\r\nscope=''\r\n",
                format!("grants.b = \"{b}\"\r\ngrants.a = \"{a}\"\r\nscope=\"{s}\"\r\n"),
            ),
            (
                "scope = \"\"\n[grants] # both\na = \"\"\n\"b\" = \"\"",
                format!("scope = \"{s}\"\n[grants] # both\na = \"{a}\"\n\"b\" = \"{b}\""),
            ),
        ];
        for (from, to) in forms {
            let head = format!("# a comment, ümläut\nschema = 1 # one\n{REST}");
            let written = edit(&format!("{head}{from}")).unwrap();
            assert_eq!(written, format!("{head}{to}"));
            assert_eq!(edit(&written).unwrap(), written);
        }
    }

    #[test]
    fn adds_a_missing_scope_line() {
        let written = edit(&format!("schema = 1 # one\n{REST}grants = {{ a = \"\", b = \"\" }}")).unwrap();
        assert!(written.starts_with(&format!("schema = 1 # one\nscope = \"{}\"\ntier", Digest::of(b"s"))), "{written}");
    }

    #[test]
    fn rejects_to_edit_what_it_cannot_read_back() {
        assert!(edit("schema = 1").is_none());
        assert!(edit(&format!("schema = 1\n{REST}grants = {{ a = \"\", c = \"\" }}")).is_none());
    }
}
