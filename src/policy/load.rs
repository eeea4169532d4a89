//! Policy files → [`Policy`]. A bad decision, scope or grant suspends its scope; a bad boundary, or a file that must work
//! everywhere and that this version cannot enforce, refuses the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cedar_policy::Policy as Rule;

use super::document::{Decision, Digest, DocumentError, Grant, GrantId, ParamName, Scope, ScopeId};
use super::repository::PolicyFiles;
use super::rules::{Engine, RuleProblem, Rules, Validators};
use super::{ActiveScope, Policy, PolicyError, Problem, kind, lint};

/// What local configuration narrows a policy to. It can take scopes away, never add or change any (requirement G03).
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The scopes to load; empty loads all.
    pub scopes: BTreeSet<ScopeId>,
}

impl LoadOptions {
    fn wants(&self, id: &ScopeId) -> bool {
        self.scopes.is_empty() || self.scopes.contains(id)
    }
}

/// A parsed file with the digest of its exact bytes.
struct Parsed<T> {
    digest: Digest,
    content: Result<T, DocumentError>,
}

/// The files by what they are, not yet joined.
#[derive(Default)]
struct Sorted<'a> {
    boundaries: Vec<(&'a str, &'a Bytes)>,
    decisions: BTreeMap<ScopeId, &'a Bytes>,
    rules: BTreeMap<ScopeId, &'a Bytes>,
    scopes: BTreeMap<ScopeId, &'a Bytes>,
    grants: BTreeMap<GrantId, &'a Bytes>,
    stray: Vec<Problem>,
}

pub(super) fn load(files: &PolicyFiles, options: &LoadOptions) -> Result<Policy, PolicyError> {
    let sorted = sort(files)?;
    let scopes: BTreeMap<ScopeId, Parsed<Scope>> =
        sorted.scopes.iter().map(|(id, bytes)| (id.clone(), parsed(bytes, Scope::parse))).collect();
    let grants: BTreeMap<GrantId, Parsed<Arc<Grant>>> = sorted
        .grants
        .iter()
        .map(|(id, bytes)| (id.clone(), parsed(bytes, |b| Grant::parse(b).map(Arc::new))))
        .collect();
    let engine = Engine::new().map_err(|problem| refused(vec![of_rule("guardrails.cedar", problem)]))?;
    let mut warnings = Vec::new();
    let boundaries = boundaries(&engine, &sorted, &scopes, &mut warnings)?;

    let mut loader = Loader { engine, sorted, scopes, grants, boundaries, validators: Validators::default(), warnings };
    let mut active = BTreeMap::new();
    let mut suspended = BTreeMap::new();
    for id in loader.every_scope(options) {
        match loader.scope(&id) {
            Ok(scope) => drop(active.insert(id, Arc::new(scope))),
            Err(problems) => drop(suspended.insert(id, problems)),
        }
    }
    let stray = loader.stray(options);
    let Loader { engine, warnings, .. } = loader;
    let by_id = active.iter().map(|(id, scope)| (id.clone(), Arc::clone(scope))).collect();
    Ok(Policy { version: files.version.clone(), engine, active, by_id, suspended, stray, warnings })
}

fn refused(problems: Vec<Problem>) -> PolicyError {
    PolicyError { problems }
}

fn of_rule(file: &str, problem: RuleProblem) -> Problem {
    Problem::new(file, problem.kind, problem.message)
}

fn of_document(file: String, error: &DocumentError) -> Problem {
    Problem::new(file, error.kind, error.message.clone())
}

fn parsed<T>(bytes: &Bytes, parse: impl Fn(&[u8]) -> Result<T, DocumentError>) -> Parsed<T> {
    Parsed { digest: Digest::of(bytes), content: parse(bytes) }
}

/// Sorts the files by folder. A `kill/` list must stop things everywhere, so a version that cannot read one refuses.
fn sort(files: &PolicyFiles) -> Result<Sorted<'_>, PolicyError> {
    let mut sorted = Sorted::default();
    let mut whole = Vec::new();
    for (path, bytes) in &files.files {
        let Some((folder, name)) = path.split_once('/') else {
            sorted.stray.push(unplaced(path));
            continue;
        };
        let placed = match (folder, name.rsplit_once('.')) {
            ("boundaries", Some((_, "cedar"))) => {
                sorted.boundaries.push((path, bytes));
                true
            }
            ("decisions", Some((id, "toml"))) => place(&mut sorted.decisions, id, bytes),
            ("decisions", Some((id, "cedar"))) => place(&mut sorted.rules, id, bytes),
            ("scopes", Some((id, "toml"))) => place(&mut sorted.scopes, id, bytes),
            ("grants", Some((id, "toml"))) => place(&mut sorted.grants, id, bytes),
            ("kill", _) => {
                let message = "this version cannot enforce a kill list: remove the file, or use a version that can";
                whole.push(Problem::new(path, kind::FILE_NAME, message));
                true
            }
            _ => false,
        };
        if !placed {
            sorted.stray.push(unplaced(path));
        }
    }
    if whole.is_empty() { Ok(sorted) } else { Err(refused(whole)) }
}

fn place<'a, K: std::str::FromStr + Ord>(map: &mut BTreeMap<K, &'a Bytes>, id: &str, bytes: &'a Bytes) -> bool {
    let Ok(id) = id.parse() else { return false };
    map.insert(id, bytes);
    true
}

fn unplaced(path: &str) -> Problem {
    let message = "is not read: files are boundaries/B.cedar, decisions/S.toml, decisions/S.cedar, scopes/S.toml and \
                   grants/G.toml; S and G are 1 to 8 segments of a-z 0-9 - _ joined by '/'";
    Problem::new(path, kind::FILE_NAME, message)
}

fn boundaries(
    engine: &Engine,
    sorted: &Sorted<'_>,
    scopes: &BTreeMap<ScopeId, Parsed<Scope>>,
    warnings: &mut Vec<Problem>,
) -> Result<Vec<Rule>, PolicyError> {
    // Every name that any scope declares: a boundary may ask for any of them, and for names that no scope has (yet).
    let params: BTreeSet<ParamName> = scopes
        .values()
        .filter_map(|scope| scope.content.as_ref().ok())
        .flat_map(|scope| scope.params.keys().cloned())
        .collect();
    let mut problems = Vec::new();
    let mut all: BTreeMap<String, Rule> = BTreeMap::new();
    for (path, bytes) in &sorted.boundaries {
        match engine.boundaries(bytes, &params) {
            Err(found) => problems.extend(found.into_iter().map(|problem| of_rule(path, problem))),
            Ok(Rules { rules, warnings: found }) => {
                warnings.extend(found.into_iter().map(|message| Problem::new(*path, kind::WARNING, message)));
                for rule in rules {
                    let id = rule.id().to_string();
                    if all.contains_key(&id) {
                        let message = format!("@id(\"{id}\") is also in another boundary: ids must be unique");
                        problems.push(Problem::new(*path, kind::RULE, message));
                    }
                    all.insert(id, rule);
                }
            }
        }
    }
    if problems.is_empty() { Ok(all.into_values().collect()) } else { Err(refused(problems)) }
}

struct Loader<'a> {
    engine: Engine,
    sorted: Sorted<'a>,
    scopes: BTreeMap<ScopeId, Parsed<Scope>>,
    grants: BTreeMap<GrantId, Parsed<Arc<Grant>>>,
    boundaries: Vec<Rule>,
    validators: Validators,
    warnings: Vec<Problem>,
}

impl Loader<'_> {
    /// Every scope that some file names, or that configuration asks for.
    fn every_scope(&self, options: &LoadOptions) -> BTreeSet<ScopeId> {
        let sorted = &self.sorted;
        let named = sorted.scopes.keys().chain(sorted.decisions.keys()).chain(sorted.rules.keys());
        named.filter(|id| options.wants(id)).chain(&options.scopes).cloned().collect()
    }

    /// Joins one scope's files; every problem at once, so that one look mends all.
    fn scope(&mut self, id: &ScopeId) -> Result<ActiveScope, Vec<Problem>> {
        let mut problems = Vec::new();
        let scope = keep(self.scope_file(id), &mut problems);
        let decision = keep(self.decision_file(id), &mut problems);
        if let (Some((digest, _)), Some(decision)) = (&scope, &decision) {
            problems.extend(judge(id, &format!("scopes/{id}.toml"), decision.scope, *digest));
        }
        let grants = match &decision {
            Some(decision) => self.grants_of(id, decision, scope.as_ref().map(|(_, scope)| scope), &mut problems),
            None => Vec::new(),
        };
        let rules = match &scope {
            Some((_, scope)) => self.rules_of(id, scope, &mut problems),
            None => None,
        };
        let (Some((_, scope)), Some(decision), Some(rules)) = (scope, decision, rules) else { return Err(problems) };
        let slice = self.engine.slice(id, &decision, &rules, &self.boundaries);
        let slice = keep(slice.map_err(|problem| of_rule(&rules_path(id), problem)), &mut problems);
        match slice {
            Some(slice) if problems.is_empty() => {
                self.warnings.extend(lint::scope(id, &decision, &scope, &grants, &rules));
                Ok(ActiveScope { decision, scope, grants, slice })
            }
            _ => Err(problems),
        }
    }

    fn scope_file(&self, id: &ScopeId) -> Result<(Digest, Scope), Problem> {
        let file = format!("scopes/{id}.toml");
        match self.scopes.get(id) {
            Some(Parsed { digest, content: Ok(scope) }) => Ok((*digest, scope.clone())),
            Some(Parsed { content: Err(error), .. }) => Err(of_document(file, error)),
            None => {
                Err(Problem::new(file, kind::MISSING, "the file is not there: the scope's business owner writes it"))
            }
        }
    }

    fn decision_file(&self, id: &ScopeId) -> Result<Decision, Problem> {
        let file = decision_path(id);
        match self.sorted.decisions.get(id) {
            Some(bytes) => Decision::parse(bytes).map_err(|error| of_document(file, &error)),
            None => {
                let message = "nobody decided on this scope: identity governance writes this file";
                Err(Problem::new(file, kind::UNDECIDED, message))
            }
        }
    }

    fn rules_of(&mut self, id: &ScopeId, scope: &Scope, problems: &mut Vec<Problem>) -> Option<Rules> {
        let file = rules_path(id);
        let Some(bytes) = self.sorted.rules.get(id) else {
            let message = "the file is not there, and without a rule nobody may begin this scope";
            problems.push(Problem::new(file, kind::MISSING, message));
            return None;
        };
        let params = scope.params.keys().cloned().collect();
        match self.engine.decision(&mut self.validators, bytes, id, &params) {
            Ok(rules) => Some(rules),
            Err(found) => {
                problems.extend(found.into_iter().map(|problem| of_rule(&file, problem)));
                None
            }
        }
    }

    fn grants_of(
        &self,
        id: &ScopeId,
        decision: &Decision,
        scope: Option<&Scope>,
        problems: &mut Vec<Problem>,
    ) -> Vec<(GrantId, Arc<Grant>)> {
        let mut resolved = Vec::new();
        let mut providers = BTreeMap::new();
        for (name, decided) in &decision.grants {
            let file = format!("grants/{name}.toml");
            let Some(Parsed { digest, content }) = self.grants.get(name) else {
                let message = format!("the file is not there, but {} names it", decision_path(id));
                problems.push(Problem::new(file, kind::MISSING, message));
                continue;
            };
            problems.extend(judge(id, &file, *decided, *digest));
            let grant = match content {
                Ok(grant) => grant,
                Err(error) => {
                    problems.push(of_document(file, error));
                    continue;
                }
            };
            if let Some(other) = providers.insert(grant.provider.provider(), name) {
                let message =
                    format!("has two grants of one provider, {other} and {name}: a scope has at most one each");
                problems.push(Problem::new(decision_path(id), kind::PROVIDER, message));
            }
            if let Some(scope) = scope {
                problems.extend(grant.check_params(&scope.params).err().map(|error| of_document(file, &error)));
            }
            resolved.push((name.clone(), Arc::clone(grant)));
        }
        resolved
    }

    /// Problems that belong to no scope.
    fn stray(&mut self, options: &LoadOptions) -> Vec<Problem> {
        let mut stray = std::mem::take(&mut self.sorted.stray);
        if !options.scopes.is_empty() {
            // Which grants belong to scopes that configuration left out is not known: say nothing of them.
            return stray;
        }
        let decisions = self.sorted.decisions.values().filter_map(|bytes| Decision::parse(bytes).ok());
        let named: BTreeSet<GrantId> = decisions.flat_map(|decision| decision.grants.into_keys()).collect();
        for (id, grant) in self.grants.iter().filter(|(id, _)| !named.contains(*id)) {
            let file = format!("grants/{id}.toml");
            match &grant.content {
                Err(error) => stray.push(of_document(file, error)),
                Ok(_) => self.warnings.push(Problem::new(file, kind::WARNING, "no decision names this grant")),
            }
        }
        stray
    }
}

fn decision_path(id: &ScopeId) -> String {
    format!("decisions/{id}.toml")
}

fn rules_path(id: &ScopeId) -> String {
    format!("decisions/{id}.cedar")
}

fn keep<T>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

/// Compares what was decided on with what is there.
fn judge(id: &ScopeId, file: &str, decided: Option<Digest>, found: Digest) -> Option<Problem> {
    let mend = format!("look at it, then run: sidemint policy decide --policy DIR {id}");
    match decided {
        Some(decided) if decided == found => None,
        Some(decided) => {
            let message = format!("changed after it was decided on ({decided}, now {found}): {mend}");
            Some(Problem::new(file, kind::DIGEST_MISMATCH, message))
        }
        None => {
            let message = format!("{} has no digest of it: {mend}", decision_path(id));
            Some(Problem::new(file, kind::UNDECIDED, message))
        }
    }
}
