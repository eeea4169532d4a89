//! Policy files → [`Policy`]. A bad decision, scope or grant suspends its scope; a bad boundary, owner or kill list, which
//! must work everywhere, refuses the whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::charter::{self, Owners};
use super::document::{Decision, Digest, Grant, Scope};
use super::kill::{self, KillList};
use super::repository::{PolicyFiles, Signed, TESTS};
use super::rules::{Engine, Rule, RuleProblem, Rules, Validators, parse_together};
use super::signers::Signers;
use super::slices::{Slices, Source};
use super::snapshot::{ActiveScope, Content, Ends, Leaver};
use super::standing::{RoleName, WHOLE};
use super::{
    Digests, DocumentError, GrantId, ParamName, ParamSpec, Policy, PolicyError, Problem, Provider, ScopeId, kind, lint,
};

/// The most scopes whose rules are parsed in one go.
const TOGETHER: usize = 64;

/// What local configuration narrows a policy to. It can take scopes away, never add or change any (requirement G03).
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The scopes to load; empty loads all.
    pub scopes: BTreeSet<ScopeId>,
    /// Leaves out [`Policy::warnings`], which cost a quarter of the time: a sidecar has nobody to show them to.
    pub without_warnings: bool,
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

/// What a decision asks of a scope file. The rest of it is for people, and for those who publish.
struct Expects {
    business_owner: Box<str>,
    params: Arc<BTreeMap<ParamName, ParamSpec>>,
}

/// Sets of parameters, each once: most scopes share one.
#[derive(Default)]
struct ParamSets(HashSet<Arc<BTreeMap<ParamName, ParamSpec>>>);

impl ParamSets {
    fn one(&mut self, params: BTreeMap<ParamName, ParamSpec>) -> Arc<BTreeMap<ParamName, ParamSpec>> {
        if let Some(known) = self.0.get(&params) {
            return Arc::clone(known);
        }
        let params = Arc::new(params);
        self.0.insert(Arc::clone(&params));
        params
    }
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
    let sorted = sort(files);
    let (owners, kill) = everywhere(files)?;
    let mut sets = ParamSets::default();
    let mut expects = |bytes: &[u8]| {
        let Scope { business_owner, params, .. } = Scope::parse(bytes)?;
        Ok(Expects { business_owner: business_owner.into(), params: sets.one(params) })
    };
    let scopes: BTreeMap<ScopeId, Parsed<Expects>> =
        sorted.scopes.iter().map(|(id, bytes)| (id.clone(), parsed(bytes, &mut expects))).collect();
    let grants: BTreeMap<GrantId, Parsed<Arc<Grant>>> = sorted
        .grants
        .iter()
        .map(|(id, bytes)| (id.clone(), parsed(bytes, |b| Grant::parse(b).map(Arc::new))))
        .collect();
    let engine = Engine::new().map_err(|problem| refused(vec![of_rule("guardrails.cedar", problem)]))?;
    let mut warnings = Vec::new();
    let boundaries = boundaries(&engine, &sorted, &scopes, &mut warnings)?;

    let publishers = Publishers::of(files.signed.as_ref());
    let mut signers = files.signed.as_ref().map(Signers::new);
    warnings.extend(unknown_providers(&kill));
    let validators = Validators::default();
    let mut loader = Loader {
        engine,
        sorted,
        scopes,
        grants,
        boundaries,
        owners,
        publishers,
        validators,
        warnings,
        without_warnings: options.without_warnings,
        parsed: HashMap::new(),
        named: BTreeSet::new(),
    };
    let mut active = BTreeMap::new();
    let mut suspended = BTreeMap::new();
    let every: Vec<_> = loader.every_scope(options).into_iter().collect();
    for ids in every.chunks(TOGETHER) {
        loader.parse(ids);
        for id in ids.iter().cloned() {
            match loader.scope(&id) {
                Ok(scope) => {
                    if let Some(signers) = &mut signers {
                        signers.rest(scope.decision.tier, &scope.roles);
                    }
                    active.insert(id, Arc::new(scope));
                }
                Err(problems) => drop(suspended.insert(id, problems)),
            }
        }
    }
    let mut stray = loader.stray(options);
    stray.extend(files.signed.iter().flat_map(|signed| signed.stray.iter().cloned()));
    let Loader { engine, boundaries, warnings, owners: Owners { charter, .. }, .. } = loader;
    let by_id = active.iter().map(|(id, scope)| (id.clone(), Arc::clone(scope))).collect();
    let content = Content {
        version: files.version.clone(),
        engine,
        boundaries,
        slices: Slices::default(),
        charter,
        active,
        by_id,
        suspended,
        stray,
        warnings,
        signers,
    };
    Ok(Policy::new(content, files.signed.as_ref().map(|signed| signed.standing.clone()), kill))
}

/// The kill list alone, of a version that may be bad elsewhere.
pub(super) fn kill_list(files: &PolicyFiles) -> Result<KillList, Vec<Problem>> {
    let problems = files.signed.iter().flat_map(|signed| unsigned_files(&files.files, signed));
    let problems: Vec<_> = problems.filter(|problem| problem.file.starts_with("kill/")).collect();
    if problems.is_empty() { KillList::read(&files.files, epoch(files)) } else { Err(problems) }
}

/// The version of the role `incident`, where the files are signed.
pub(super) fn epoch(files: &PolicyFiles) -> Option<u64> {
    files.signed.as_ref().map(|signed| signed.incident)
}

/// What concerns every scope; all problems at once.
fn everywhere(files: &PolicyFiles) -> Result<(Owners, KillList), PolicyError> {
    let mut problems = Vec::new();
    let mut keep = |found: Vec<Problem>| problems.extend(found);
    let owners = Owners::read(&files.files, files.signed.is_some()).map_err(&mut keep).ok();
    let kill = KillList::read(&files.files, epoch(files)).map_err(&mut keep).ok();
    if let Some(signed) = &files.signed {
        keep(unsigned_files(&files.files, signed));
    }
    match (owners, kill) {
        (Some(owners), Some(kill)) if problems.is_empty() => Ok((owners, kill)),
        _ => Err(refused(problems)),
    }
}

/// Whatever of a signed version nobody vouches for. A source sees to it that there is nothing; judged here again, since
/// a role without an end would be taken for one that never expires.
fn unsigned_files(files: &BTreeMap<String, Bytes>, signed: &Signed) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_valid = |role: &str| signed.standing.ends.contains_key(role);
    for role in WHOLE.iter().filter(|role| !is_valid(role)) {
        problems.push(Problem::new(
            "(signatures)",
            kind::NOT_OWNER,
            format!("the role {role} has no valid signatures"),
        ));
    }
    for role in signed.delegators.values().filter(|role| !is_valid(role)) {
        problems.push(Problem::new(
            "(signatures)",
            kind::NOT_OWNER,
            format!("the role {role}, which delegates, has no valid signatures"),
        ));
    }
    for path in files.keys() {
        if !signed.publishers.get(path).is_some_and(|role| is_valid(role)) {
            problems.push(Problem::new(path, kind::NOT_OWNER, "no role with valid signatures has published it"));
        }
    }
    problems
}

/// Entries of a kill list that stop nothing here: right in a fleet of several versions, and perhaps a slip.
fn unknown_providers(kill: &KillList) -> Vec<Problem> {
    let unknown = kill.stops().iter().filter_map(|stop| match &stop.target {
        kill::Target::Provider(name) if Provider::parse(name).is_none() => Some((&stop.id, name)),
        _ => None,
    });
    unknown
        .map(|(id, name)| {
            let message = format!("entry {id}: this version knows no provider {name}, so the entry stops nothing here");
            Problem::new(kill::LIST, kind::WARNING, message)
        })
        .collect()
}

/// Which role published what, for files that are signed. Combinations of roles are kept once: there are few.
#[derive(Default)]
struct Publishers<'a> {
    signed: Option<&'a Signed>,
    /// Whoever published something that concerns every scope.
    everywhere: BTreeSet<RoleName>,
    combinations: BTreeSet<Arc<[RoleName]>>,
}

impl<'a> Publishers<'a> {
    fn of(signed: Option<&'a Signed>) -> Self {
        let Some(signed) = signed else { return Self::default() };
        let everywhere = |path: &str| {
            let folder = path.split('/').next().unwrap_or_default();
            ["boundaries", charter::FOLDER, kill::FOLDER].contains(&folder)
        };
        let roles = signed.publishers.iter().filter(|(path, _)| everywhere(path)).map(|(_, role)| role);
        let everywhere = roles.flat_map(|role| signed.chain(role)).filter(|role| !WHOLE.contains(&&***role));
        Self { signed: Some(signed), everywhere: everywhere.cloned().collect(), combinations: BTreeSet::new() }
    }

    /// The roles that a scope with these files rests on: who published them, and who let them.
    fn roles(&mut self, paths: impl Iterator<Item = String>) -> Arc<[RoleName]> {
        let Some(signed) = self.signed else { return Arc::new([]) };
        let own = paths.filter_map(|path| signed.publishers.get(&path)).flat_map(|role| signed.chain(role));
        let own = own.filter(|role| &***role != "targets").cloned();
        let roles: BTreeSet<RoleName> = own.chain(self.everywhere.iter().cloned()).collect();
        let roles: Arc<[RoleName]> = roles.into_iter().collect();
        match self.combinations.get(&roles) {
            Some(known) => Arc::clone(known),
            None => {
                self.combinations.insert(Arc::clone(&roles));
                roles
            }
        }
    }
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

fn parsed<T>(bytes: &Bytes, parse: impl FnOnce(&[u8]) -> Result<T, DocumentError>) -> Parsed<T> {
    Parsed { digest: Digest::of(bytes), content: parse(bytes) }
}

/// Sorts the files by folder. Those of `owners/` and `kill/` are read apart.
fn sort(files: &PolicyFiles) -> Sorted<'_> {
    let mut sorted = Sorted::default();
    for (path, bytes) in files.files.iter().filter(|(path, _)| !path.ends_with(TESTS)) {
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
            (charter::FOLDER | kill::FOLDER, _) => true,
            _ => false,
        };
        if !placed {
            sorted.stray.push(unplaced(path));
        }
    }
    sorted
}

fn place<'a, K: std::str::FromStr + Ord>(map: &mut BTreeMap<K, &'a Bytes>, id: &str, bytes: &'a Bytes) -> bool {
    let Ok(id) = id.parse() else { return false };
    map.insert(id, bytes);
    true
}

fn unplaced(path: &str) -> Problem {
    let message = "is not read: files are owners/ID.toml, boundaries/B.cedar, decisions/S.toml, decisions/S.cedar, \
                   scopes/S.toml, grants/G.toml and kill/list.toml; S and G are 1 to 8 segments of a-z 0-9 - _ joined by '/'";
    Problem::new(path, kind::FILE_NAME, message)
}

fn boundaries(
    engine: &Engine,
    sorted: &Sorted<'_>,
    scopes: &BTreeMap<ScopeId, Parsed<Expects>>,
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
    scopes: BTreeMap<ScopeId, Parsed<Expects>>,
    grants: BTreeMap<GrantId, Parsed<Arc<Grant>>>,
    boundaries: Vec<Rule>,
    owners: Owners,
    publishers: Publishers<'a>,
    validators: Validators,
    warnings: Vec<Problem>,
    without_warnings: bool,
    /// Rules that were parsed with those of other scopes.
    parsed: HashMap<ScopeId, Vec<Rule>>,
    /// The grants that some decision names.
    named: BTreeSet<GrantId>,
}

impl<'a> Loader<'a> {
    /// Parses the rules of these scopes in one go. Where somebody is to be warned, each is parsed alone, as it is told of.
    fn parse(&mut self, ids: &[ScopeId]) {
        if self.without_warnings {
            let found: Vec<_> = ids.iter().filter_map(|id| Some((id, &***self.sorted.rules.get(id)?))).collect();
            let texts: Vec<_> = found.iter().map(|(_, bytes)| *bytes).collect();
            let parsed = found.iter().zip(parse_together(&texts));
            self.parsed = parsed.filter_map(|((id, _), rules)| Some(((*id).clone(), rules?))).collect();
        }
    }

    /// Every scope that some file names, or that configuration asks for.
    fn every_scope(&self, options: &LoadOptions) -> BTreeSet<ScopeId> {
        let sorted = &self.sorted;
        let named = sorted.scopes.keys().chain(sorted.decisions.keys()).chain(sorted.rules.keys());
        named.filter(|id| options.wants(id)).chain(&options.scopes).cloned().collect()
    }

    /// Joins one scope's files; every problem at once, so that one pass fixes all.
    fn scope(&mut self, id: &ScopeId) -> Result<ActiveScope, Vec<Problem>> {
        let mut problems = Vec::new();
        let scope = keep(self.scope_file(id), &mut problems);
        let decision = keep(self.decision_file(id), &mut problems);
        if let (Some((digest, _)), Some((_, decision))) = (&scope, &decision) {
            problems.extend(judge(id, &format!("scopes/{id}.toml"), decision.scope, *digest));
        }
        let mut grants = Vec::new();
        if let Some((_, decision)) = &decision {
            self.named.extend(decision.grants.iter().map(|(grant, _)| grant.clone()));
            grants = self.grants_of(id, decision, scope.as_ref().map(|(_, scope)| &*scope.params), &mut problems);
        }
        let ends = self.ends(
            id,
            decision.as_ref().map(|(_, decision)| decision),
            scope.as_ref().map(|(_, scope)| scope),
            &mut problems,
        );
        let rules = match &scope {
            Some((_, scope)) => self.rules_of(id, &scope.params, &mut problems),
            None => None,
        };
        let (Some((scope_digest, scope)), Some((decision_digest, decision)), Some((rules_digest, rules, source))) =
            (scope, decision, rules)
        else {
            return Err(problems);
        };
        let joined = self.engine.join(&rules.rules, &self.boundaries).map(drop);
        problems.extend(joined.err().map(|problem| of_rule(&rules_path(id), problem)));
        if !problems.is_empty() {
            return Err(problems);
        }
        let digests = Digests {
            id: id.clone(),
            decision: decision_digest,
            rules: rules_digest,
            scope: scope_digest,
            grants: grants.iter().map(|(grant, digest, _)| (grant.clone(), *digest)).collect(),
        };
        let grants: Box<[_]> = grants.into_iter().map(|(id, _, grant)| (id, grant)).collect();
        let own = [decision_path(id), rules_path(id), format!("scopes/{id}.toml")].into_iter();
        let roles = self.publishers.roles(own.chain(grants.iter().map(|(grant, _)| format!("grants/{grant}.toml"))));
        if !self.without_warnings {
            self.warnings.extend(lint::scope(id, &decision, &scope.params, &grants, &rules, &scope.business_owner));
        }
        let Expects { business_owner, params } = scope;
        let (digests, rules) = (Arc::new(digests), Source::new(source));
        Ok(ActiveScope { decision, business_owner, params, grants, rules, ends, digests, roles })
    }

    /// When the first of a scope's owners leaves. Whoever it names must be an owner, where there are any.
    fn ends(
        &self,
        id: &ScopeId,
        decision: Option<&Decision>,
        scope: Option<&Expects>,
        problems: &mut Vec<Problem>,
    ) -> Ends {
        let Some(owners) = &self.owners.by_id else { return Ends::default() };
        let governance = decision.map(|decision| (decision_path(id), "decision_owner", &*decision.decision_owner));
        let business = scope.map(|scope| (format!("scopes/{id}.toml"), "business_owner", &*scope.business_owner));
        let mut ends = Ends::default();
        for (file, key, name) in governance.into_iter().chain(business) {
            let Some(owner) = owners.get(name) else {
                let message = format!(
                    "{key} {name} has no file owners/{name}.toml: name an owner who is there. (The file of one who leaves \
                     stays, with active_until.)"
                );
                problems.push(Problem::new(file, kind::OWNER, message));
                continue;
            };
            let (Some(active_until), Some(decision)) = (owner.active_until, decision) else { continue };
            let stops_at = active_until + self.owners.charter.orphan_grace(decision.tier);
            if ends.owner.as_ref().is_none_or(|other| stops_at < other.stops_at) {
                ends.owner = Some(Leaver { id: name.to_owned(), active_until, stops_at });
            }
        }
        ends
    }

    fn scope_file(&mut self, id: &ScopeId) -> Result<(Digest, Expects), Problem> {
        let file = format!("scopes/{id}.toml");
        // Nobody else asks for it.
        match self.scopes.remove(id) {
            Some(Parsed { digest, content: Ok(scope) }) => Ok((digest, scope)),
            Some(Parsed { content: Err(error), .. }) => Err(of_document(file, &error)),
            None => {
                Err(Problem::new(file, kind::MISSING, "the file is not there: the scope's business owner writes it"))
            }
        }
    }

    fn decision_file(&self, id: &ScopeId) -> Result<(Digest, Decision), Problem> {
        let file = decision_path(id);
        match self.sorted.decisions.get(id) {
            Some(bytes) => match Decision::parse(bytes) {
                Ok(decision) => Ok((Digest::of(bytes), decision)),
                Err(error) => Err(of_document(file, &error)),
            },
            None => {
                let message = "nobody decided on this scope: identity governance writes this file";
                Err(Problem::new(file, kind::UNDECIDED, message))
            }
        }
    }

    /// The rules of a scope, with the text that they were read from.
    fn rules_of(
        &mut self,
        id: &ScopeId,
        params: &BTreeMap<ParamName, ParamSpec>,
        problems: &mut Vec<Problem>,
    ) -> Option<(Digest, Rules, &'a str)> {
        let file = rules_path(id);
        let Some(bytes) = self.sorted.rules.get(id).copied() else {
            let message = "the file is not there, and without a rule nobody may begin this scope";
            problems.push(Problem::new(file, kind::MISSING, message));
            return None;
        };
        let params = params.keys().cloned().collect();
        let parsed = self.parsed.remove(id);
        match self.engine.decision(&mut self.validators, bytes, parsed, id, &params) {
            Ok(rules) => Some((Digest::of(bytes), rules, std::str::from_utf8(bytes).ok()?)),
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
        params: Option<&BTreeMap<ParamName, ParamSpec>>,
        problems: &mut Vec<Problem>,
    ) -> Vec<(GrantId, Digest, Arc<Grant>)> {
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
            if let Some(other) = providers.insert(grant.template.provider(), name) {
                let message =
                    format!("has two grants of one provider, {other} and {name}: a scope has at most one each");
                problems.push(Problem::new(decision_path(id), kind::PROVIDER, message));
            }
            problems.extend(decision.check_residual(grant).err().map(|error| of_document(file.clone(), &error)));
            if let Some(params) = params {
                problems
                    .extend(grant.template.kind().check_params(params).err().map(|error| of_document(file, &error)));
            }
            resolved.push((name.clone(), *digest, Arc::clone(grant)));
        }
        resolved
    }

    /// Problems that belong to no scope, once every scope was joined.
    fn stray(&mut self, options: &LoadOptions) -> Vec<Problem> {
        let mut stray = std::mem::take(&mut self.sorted.stray);
        if !options.scopes.is_empty() {
            // Which grants belong to scopes that configuration left out is not known: say nothing of them.
            return stray;
        }
        for (id, grant) in self.grants.iter().filter(|(id, _)| !self.named.contains(*id)) {
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
    let fix = format!("look at it, then run: sidemint policy decide --policy DIR {id}");
    match decided {
        Some(decided) if decided == found => None,
        Some(decided) => {
            let message = format!("changed after it was decided on ({decided}, now {found}): {fix}");
            Some(Problem::new(file, kind::DIGEST_MISMATCH, message))
        }
        None => {
            let message = format!("{} has no digest of it: {fix}", decision_path(id));
            Some(Problem::new(file, kind::UNDECIDED, message))
        }
    }
}
