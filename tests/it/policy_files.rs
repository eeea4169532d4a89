//! Policy directories, written with the right digests.

use std::fs;
use std::path::Path;

use sidemint::policy::document::Digest;

/// The workload that most tests are about.
pub(crate) const REPORT: &str = "spiffe://example.org/ns/finance/sa/report";
/// Another workload, also served by this sidecar.
pub(crate) const OTHER: &str = "spiffe://example.org/ns/finance/sa/other";
/// A workload of the trust domain that this sidecar has no SVID for.
pub(crate) const FOREIGN: &str = "spiffe://example.org/ns/web/sa/foreign";

/// One scope: its decision, its scope file and one grant.
#[derive(Clone)]
pub(crate) struct Scope {
    pub(crate) id: &'static str,
    pub(crate) tier: &'static str,
    pub(crate) max_task: &'static str,
    pub(crate) max_residual: &'static str,
    pub(crate) max_session: Option<&'static str>,
    pub(crate) idle: Option<&'static str>,
    pub(crate) params: &'static [&'static str],
    pub(crate) permits: &'static [&'static str],
    /// A Cedar condition for each rule; empty for none.
    pub(crate) condition: String,
    /// What its session policy allows.
    pub(crate) action: &'static str,
    /// Whether its decision accepts access that outlives `max_residual`.
    pub(crate) accept_residual: bool,
}

impl Scope {
    /// A baseline scope without parameters for [`REPORT`]; 8 h, 20 min.
    pub(crate) fn new(id: &'static str) -> Self {
        Self {
            id,
            tier: "baseline",
            max_task: "8h",
            max_residual: "20m",
            max_session: None,
            idle: None,
            params: &[],
            permits: &[REPORT],
            condition: String::new(),
            action: "s3:GetObject",
            accept_residual: false,
        }
    }

    /// Writes or replaces its files below `directory`.
    pub(crate) fn write(&self, directory: &Path) {
        let params: String =
            self.params.iter().map(|name| format!("{name} = {{ type = \"segment\", max = 32 }}\n")).collect();
        let scope = format!(
            "schema = 1\npurpose = \"tests\"\nbusiness_owner = \"tests\"\njustification = \"tests\"\n[params]\n{params}"
        );
        let resource: String = self.params.iter().map(|name| format!("${{param.{name}}}/")).collect();
        let session = self.max_session.map_or(String::new(), |max| format!("max_session = \"{max}\"\n"));
        let grant = format!(
            "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/tests\"\n{session}\
             [[session_policy.Statement]]\nEffect = \"Allow\"\nAction = [\"{}\"]\n\
             Resource = [\"arn:aws:s3:::bucket/{resource}*\"]\n",
            self.action
        );
        let idle = self.idle.map_or(String::new(), |idle| format!("idle = \"{idle}\"\n"));
        let decision = format!(
            "schema = 1\ntier = \"{}\"\nkind = \"machine\"\ndecision_owner = \"tests\"\nreview_by = 2027-02-01\n\
             max_task = \"{}\"\nmax_residual = \"{}\"\naccept_residual = {}\n{idle}scope = \"{}\"\ngrants = {{ {}-aws = \"{}\" }}\n",
            self.tier,
            self.max_task,
            self.max_residual,
            self.accept_residual,
            Digest::of(scope.as_bytes()),
            self.id,
            Digest::of(grant.as_bytes()),
        );
        let when = if self.condition.is_empty() { String::new() } else { format!(" when {{ {} }}", self.condition) };
        let rule = |(number, who): (usize, &&str)| {
            format!(
                "@id(\"rule-{number}-of-{}\")\npermit (principal == Workload::\"{who}\", action == Action::\"begin\", \
                 resource == Scope::\"{}\"){when};\n",
                self.id, self.id
            )
        };
        let rules: String = self.permits.iter().enumerate().map(rule).collect();
        write(directory, &format!("scopes/{}.toml", self.id), &scope);
        write(directory, &format!("grants/{}-aws.toml", self.id), &grant);
        write(directory, &format!("decisions/{}.cedar", self.id), &rules);
        write(directory, &format!("decisions/{}.toml", self.id), &decision);
    }
}

/// The owner whom every scope of [`standard`] names.
pub(crate) fn owners(directory: &Path) {
    let owner = "schema = 1\nname = \"Tests\"\nmail = \"tests@example.org\"\n";
    write(directory, "owners/tests.toml", owner);
}

/// A kill list of one entry.
pub(crate) fn kill(target: &str) -> String {
    format!("schema = 1\n[[stop]]\nid = \"stop-1\"\n{target}\nreason = \"INC-7 leaked\"\n")
}

/// Writes one policy file as a careful publisher does: whole or not at all.
pub(crate) fn write(directory: &Path, path: &str, text: &str) {
    let place = directory.join(path);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let aside = place.with_extension("aside");
    fs::write(&aside, text).unwrap();
    fs::rename(aside, place).unwrap();
}

/// The directory that most tests start from.
pub(crate) fn standard(directory: &Path) {
    let scopes = [
        Scope {
            params: &["customer"],
            condition: "[\"c-42\", \"c-43\"].contains(context.asserted.params.customer)".into(),
            ..Scope::new("ledger-read")
        },
        Scope { permits: &[REPORT, OTHER, FOREIGN], max_task: "1h", ..Scope::new("archive") },
        Scope { max_residual: "60s", max_task: "1h", ..Scope::new("brief") },
        Scope { idle: Some("5m"), ..Scope::new("idling") },
        Scope { tier: "elevated", ..Scope::new("elevated") },
        Scope { tier: "break-glass", ..Scope::new("emergency") },
        Scope { permits: &[OTHER], ..Scope::new("others-only") },
        Scope::new("walled"),
        Scope::new("ledger-less"),
        Scope::new("suspended"),
    ];
    for scope in scopes {
        scope.write(directory);
    }
    write(
        directory,
        "boundaries/wall.cedar",
        "@id(\"wall\")\nforbid (principal, action == Action::\"begin\", resource) when { resource == Scope::\"walled\" };\n",
    );
    // Changed after it was decided on.
    let changed = directory.join("scopes/suspended.toml");
    fs::write(&changed, fs::read_to_string(&changed).unwrap() + "# changed\n").unwrap();
}
