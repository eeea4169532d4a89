//! What users deploy and read — `config/`, `docker/`, README and docs — against the program itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use sidemint::broker::{BeginError, MintError};
use sidemint::config::{self, Config, PolicyPlace};
use sidemint::policy::cache::RefreshOutcome;
use sidemint::policy::metrics::{Role, State, Within};
use sidemint::policy::repository::DirectorySource;
use sidemint::policy::{DenialReason, Policy, Problem, Tier};
use sidemint::task::EndReason;

const SOCKET: (&str, &str) = ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire.sock");
/// The variables that are no key of the configuration: of other commands, and of the test bed.
const OTHER_VARIABLES: [&str; 14] = [
    "SIDEMINT_ROLE",
    "SIDEMINT_HTTP",
    "SIDEMINT_ADMIN",
    "SIDEMINT_AUDIENCE",
    "SIDEMINT_TOKEN_FILE",
    "SIDEMINT_TOKEN",
    "SIDEMINT_CREDENTIALS_URI",
    "SIDEMINT_CONFIG",
    "SIDEMINT_TOOLS",
    "SIDEMINT_OPENBAO",
    "SIDEMINT_BIN",
    "SIDEMINT_INTEROP_KEEP",
    "SIDEMINT_README_LIMIT",
    "SIDEMINT_BENCH_BASE",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn parse(text: &str, environment: &[(&str, &str)]) -> Config {
    let all = [("HOME", "/root"), SOCKET].into_iter().chain(environment.iter().copied());
    let all = all.map(|(k, v)| (k.to_owned(), v.to_owned()));
    Config::parse(text, "sidemint.toml", all).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The keys of the reference file as (section, key, whether it is set, the comment above it).
fn reference_keys(text: &str) -> Vec<(String, String, bool, String)> {
    let (mut section, mut comment, mut keys) = (String::new(), String::new(), Vec::new());
    for line in text.lines() {
        let code = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = code.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if line.starts_with("# ") || line.starts_with("#  ") {
            comment.push_str(line);
            continue;
        } else if let Some((key, _)) = code.split_once(" = ") {
            keys.push((section.clone(), key.to_owned(), !line.starts_with('#'), comment.clone()));
        }
        comment.clear();
    }
    keys
}

#[test]
fn the_reference_file_has_every_key_once_and_in_order_with_its_variable_beside_it() {
    let found = reference_keys(&read("config/sidemint.toml"));
    let names: Vec<_> = found.iter().map(|(section, key, ..)| (section.as_str(), key.as_str())).collect();
    assert_eq!(names, config::keys().collect::<Vec<_>>());
    for (section, key, _, comment) in &found {
        let variable = config::variable_name(section, key);
        let words: Vec<_> = comment.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).collect();
        assert!(words.contains(&variable.as_str()), "{section}.{key}: no {variable} above it: {comment:?}");
    }
}

#[test]
fn what_the_reference_file_sets_are_the_defaults() {
    let text = read("config/sidemint.toml");
    let required = "[policy]\ndirectory = \"/etc/sidemint/policy\"\ntrust = \"unsigned\"\n";
    assert_eq!(parse(&text, &[]), parse(required, &[]));
    // and what is not set has no default to show: setting it to its example changes something
    let set: BTreeSet<_> =
        reference_keys(&text).into_iter().filter(|(.., set, _)| *set).map(|(s, k, ..)| (s, k)).collect();
    for (section, key) in config::keys().filter(|(section, _)| *section != "pod_task") {
        let is_set = set.contains(&(section.to_owned(), key.to_owned()));
        let has_no_default = ["unix_socket", "workload_api", "workload_api_uid", "sts_endpoint", "rotate_age"]
            .contains(&key)
            || ["repository", "root", "minimum_version", "ca", "proxy", "client", "server_id"].contains(&key)
            || [
                ("state", "directory"),
                ("mtls", "address"),
                ("mtls", "spiffe_id"),
                ("vault", "address"),
                ("vault", "ca"),
                ("vault", "namespace"),
            ]
            .contains(&(section, key));
        assert_eq!(is_set, !has_no_default, "{section}.{key}");
    }
}

#[test]
fn every_example_of_the_reference_file_is_accepted() {
    let code = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned();
    let text: String = read("config/sidemint.toml").lines().map(|line| code(line) + "\n").collect();
    // a directory or a repository, and a server has its CA or its SPIFFE ID
    let without = |keys: &[&str]| {
        let stays = |line: &&str| !keys.iter().any(|key| line.starts_with(&format!("{key} = ")));
        text.lines().filter(stays).map(|line| format!("{line}\n")).collect::<String>()
    };
    let of_policy = |text: &str| {
        let (_, policy) = text.split_once("\n[policy]\n").expect("[policy]");
        let (policy, _) = policy.split_once("\n[aws]\n").expect("[aws] behind [policy]");
        parse(&format!("[policy]\n{policy}"), &[]).policy
    };
    for other in ["ca", "server_id"] {
        let policy = of_policy(&without(&["trust", other]).replacen("directory = \"/etc/sidemint/policy\"\n", "", 1));
        assert!(matches!(policy.place, config::PolicyPlace::Signed(settings) if settings.client_svid), "{other}");
    }
    let config = parse(&without(&["repository", "root", "minimum_version", "ca", "proxy", "client", "server_id"]), &[]);
    let pod_task = config.pod_task.expect("a pod task");
    assert_eq!(pod_task.scope.as_str(), "ledger-read");
    assert!(config.server.unix_socket.is_some() && config.aws.sts_endpoint.is_some());
    // the two defaults that its comments tell
    let least =
        parse(&format!("{}\n[pod_task]\nscope = \"a\"\ntoken_file = \"/t\"\n", read("config/sidemint.toml")), &[]);
    let least = least.pod_task.expect("a pod task");
    assert!(least.renew && least.ttl.is_none() && least.params.is_empty());
}

#[test]
fn every_sidemint_variable_that_is_written_anywhere_exists() {
    let known: BTreeSet<_> = config::keys()
        .map(|(section, key)| config::variable_name(section, key))
        .chain(OTHER_VARIABLES.map(str::to_owned))
        .collect();
    let mut places = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["config", "docker", "docs"] {
        places.extend(files_below(&root().join(folder)));
    }
    for place in places {
        let text = fs::read_to_string(&place).unwrap();
        for (at, _) in text.match_indices("SIDEMINT_") {
            let word: String = text[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            // `SIDEMINT_…` and `SIDEMINT_SECTION_KEY` stand for all of them
            let placeholder = word == "SIDEMINT_" || word == "SIDEMINT_SECTION_KEY";
            assert!(placeholder || known.contains(&word), "{}: {word}", place.display());
        }
    }
}

/// `- name: K` followed by `value: V`, the form of a Kubernetes container's variables.
fn kubernetes_variables(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines().map(str::trim).peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let value = lines.peek().and_then(|next| next.strip_prefix("value: "));
        if let (Some(name), Some(value)) = (line.strip_prefix("- name: "), value) {
            found.push((name.to_owned(), value.trim_matches('"').replace("$(POD_IP)", "192.0.2.7")));
        }
    }
    found
}

/// `K: V` below `environment:`, the form of a Compose service's variables.
fn compose_variables(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.trim().split_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

fn check_sidecar(variables: Vec<(String, String)>, folder_of_token: &str) {
    let ours = |name: &str| name.starts_with("SIDEMINT_") || name == "SPIFFE_ENDPOINT_SOCKET";
    let environment: BTreeMap<_, _> = variables.iter().filter(|(name, _)| ours(name)).cloned().collect();
    let config = Config::parse("", "", environment.into_iter().chain([("HOME".into(), "/root".into())])).unwrap();
    let pod_task = config.pod_task.expect("a pod task");
    // what the workload beside it is told must be where the sidecar is and writes
    let told = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    assert_eq!(
        told("AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap(),
        format!("http://{}/v1/aws/credentials", config.server.http)
    );
    let token_file = told("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap();
    assert_eq!(Path::new(&token_file), pod_task.token_file);
    assert_eq!(pod_task.token_file.parent(), Some(Path::new(folder_of_token)));
    assert_eq!(told("AWS_EC2_METADATA_DISABLED").as_deref(), Some("true"));
    assert!(!config.admin.http.ip().is_loopback() && config.admin.http.port() == 9871);
    // and the scope must be one of the example's policy
    let policy = example_policy();
    assert!(policy.scopes().any(|scope| *scope == pod_task.scope));
    let params = pod_task.params.keys().map(|name| name.as_str()).collect::<Vec<_>>();
    assert_eq!(params, ["customer"]);
}

fn example_policy() -> Policy {
    let files = DirectorySource::new(root().join("config/kubernetes/policy")).read().unwrap();
    Policy::load(&files).unwrap()
}

#[test]
fn the_kubernetes_sidecar_and_its_container_agree_and_serve_takes_the_configuration() {
    check_sidecar(kubernetes_variables(&read("config/kubernetes/job.yaml")), "/run/sidemint/token");
}

#[test]
fn serve_accepts_the_signed_policy_in_the_comments_of_the_kubernetes_sidecar() {
    let job = read("config/kubernetes/job.yaml");
    let signed: Vec<_> = job
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("#   - {name: SIDEMINT_")?.strip_suffix('}')?.split_once(", value: ")
        })
        .map(|(name, value)| (format!("SIDEMINT_{name}"), value.trim_matches('"').to_owned()))
        .collect();
    let unsigned = ["SIDEMINT_POLICY_DIRECTORY", "SIDEMINT_POLICY_TRUST"];
    let ours = |name: &str| name.starts_with("SIDEMINT_") || name == "SPIFFE_ENDPOINT_SOCKET";
    let variables = kubernetes_variables(&job).into_iter().filter(|(name, _)| ours(name));
    let variables = variables.filter(|(name, _)| !unsigned.contains(&name.as_str())).chain(signed);
    let policy = Config::parse("", "", variables).unwrap().policy;
    let PolicyPlace::Signed(repository) = policy.place else { panic!("{policy:?}") };
    assert_eq!(repository.minimum_version, Some(7));
    // the volume, its mount and its ConfigMap go together
    let mount = repository.root.parent().unwrap().display();
    assert!(job.contains(&format!("#   - {{name: policy-root, mountPath: {mount}, readOnly: true}}\n")));
    assert!(job.contains("#     configMap: {name: sidemint-policy-root}\n"));
    let file = repository.root.file_name().unwrap().to_str().unwrap();
    let kustomization = read("config/kubernetes/kustomization.yaml");
    assert!(kustomization.contains(&format!("#   - name: sidemint-policy-root\n  #     files: [{file}]\n")));
}

#[test]
fn the_compose_sidecar_and_its_workload_agree_and_serve_takes_the_configuration() {
    check_sidecar(compose_variables(&read("docker/compose.yaml")), "/run/sidemint/token");
}

#[test]
fn the_example_policy_is_decided_on_and_has_no_problem() {
    let policy = example_policy();
    assert_eq!(policy.suspended(), &BTreeMap::new());
    assert_eq!((policy.stray(), policy.warnings()), (&[][..], &[][..]));
    assert_eq!(policy.active(), 1);
}

#[test]
fn every_policy_file_is_in_the_config_map_and_mounted_where_it_belongs() {
    let folder = root().join("config/kubernetes/policy");
    let (kustomization, job) = (read("config/kubernetes/kustomization.yaml"), read("config/kubernetes/job.yaml"));
    let paths: Vec<_> = files_below(&folder)
        .iter()
        .map(|path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned())
        .collect();
    for path in &paths {
        let key = path.replace('/', ".");
        assert!(kustomization.contains(&format!("- {key}=policy/{path}\n")), "{path}");
        assert!(job.contains(&format!("{{key: {key}, path: {path}}}")), "{path}");
    }
    assert_eq!(kustomization.matches("=policy/").count(), paths.len());
    assert_eq!(job.matches("{key: ").count(), paths.len());
}

/// Every metric of ours with its labels.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let families = sidemint::app::metrics().unwrap().registry().families();
    let owned = |labels: Vec<&str>| labels.into_iter().map(str::to_owned).collect();
    families.into_iter().map(|(name, labels)| (name.to_owned(), owned(labels))).collect()
}

#[test]
fn every_metric_that_is_written_anywhere_exists() {
    let known = metrics();
    let mut places = vec![root().join("README.md")];
    for folder in ["config/prometheus", "docs"] {
        places.extend(files_below(&root().join(folder)));
    }
    for place in places {
        let text = fs::read_to_string(&place).unwrap();
        for (at, _) in text.match_indices("sidemint_") {
            let word: String = text[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(&word);
            assert!(known.contains_key(family) || known.contains_key(&word), "{}: {word}", place.display());
        }
    }
}

/// The rows of the README's table of metrics: name and labels.
fn readme_metrics(readme: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `sidemint_"));
    rows.map(|row| {
        let (name, _) = row.split_once('`').unwrap();
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let labels = labels.trim_end_matches('}').split(',').map(str::trim).filter(|label| !label.is_empty());
        (format!("sidemint_{name}"), labels.map(str::to_owned).collect())
    })
    .collect()
}

#[test]
fn the_readme_lists_every_metric_with_its_labels() {
    assert_eq!(readme_metrics(&read("README.md")), metrics());
}

#[test]
fn every_label_value_of_the_alert_rules_exists() {
    let rules = read("config/prometheus/rules.yml");
    let mut known: BTreeSet<&str> = State::ALL.map(State::as_str).into();
    known.extend(Within::ALL.map(Within::as_str));
    known.extend(Role::ALL.map(Role::as_str));
    known.extend(RefreshOutcome::ALL.map(RefreshOutcome::as_str));
    known.extend(BeginError::KINDS.into_iter().chain(MintError::OUTCOMES));
    known.extend(["1800", "5..", "sidemint"]);
    let mut seen = 0;
    for (at, _) in rules.match_indices("=\"").chain(rules.match_indices("~\"")) {
        let value = rules[at + 2..].split('"').next().unwrap();
        for word in value.split('|') {
            assert!(known.contains(word), "{word}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn the_operations_guide_explains_every_status_of_the_closed_sets() {
    let guide = read("docs/operations.md");
    let explained: BTreeSet<_> = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let denials = DenialReason::ALL.map(DenialReason::as_str).into_iter().chain(BeginError::KINDS);
    let words = denials.chain(EndReason::ALL.map(EndReason::as_str)).chain(Problem::KINDS);
    let words = words.chain(RefreshOutcome::ALL.map(RefreshOutcome::as_str)).chain(MintError::OUTCOMES);
    for word in words.chain(Tier::ALL.map(Tier::as_str)) {
        assert!(explained.contains(word), "{word} has no row");
    }
    for alert in read("config/prometheus/rules.yml").lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(explained.contains(alert), "{alert} has no row");
    }
}
