//! Every metric, in one place. Names are an interface; label sets are closed: no SPIFFE ID, task or scope in a label.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

const REQUEST_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// The states in which a policy can be.
pub const POLICY_STATES: [&str; 4] = ["fresh", "stale", "expired", "unsigned"];

/// The roles that sign a policy (docs/policy.md). Departments count as the role that they are part of.
pub const POLICY_ROLES: [&str; 9] = [
    "root",
    "timestamp",
    "snapshot",
    "targets",
    "security",
    "governance",
    "business-owners",
    "implementers",
    "incident",
];

/// How soon a review is due.
pub const REVIEW_WITHIN: [&str; 4] = ["overdue", "1d", "7d", "30d"];

/// The words that can stand in labels: every set is closed, and every series that can occur is there from the start,
/// so that a rate over it is right from its first event.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    /// The tiers of decisions.
    pub tiers: &'a [&'static str],
    /// The providers.
    pub providers: &'a [&'static str],
    /// Why tasks end.
    pub end_reasons: &'a [&'static str],
    /// Why tasks do not begin.
    pub denials: &'a [&'static str],
    /// How exchanges end.
    pub mint_outcomes: &'a [&'static str],
    /// How credentials can be taken back.
    pub revocations: &'a [&'static str],
    /// How tries to take one back end.
    pub revocation_outcomes: &'a [&'static str],
    /// Why scopes are suspended.
    pub suspensions: &'a [&'static str],
}

/// Every status that the workload's listeners answer with.
const STATUSES: [u16; 12] = [200, 201, 400, 401, 403, 404, 405, 409, 413, 415, 429, 503];

/// What is bounded, and counted when a caller runs into the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A connection came while all places were taken.
    Connections,
    /// The system had no descriptor for a connection.
    Descriptors,
    /// A request came while as many as are allowed were being answered.
    Requests,
    /// The head of a request was too large or had too many fields.
    HeadSize,
    /// The head of a request was begun and not finished in time.
    HeadTime,
    /// A body was too large.
    BodySize,
    /// A body was not finished in time.
    BodyTime,
    /// A body was nested too deep.
    BodyDepth,
    /// An answer was not read in time.
    AnswerTime,
    /// What came is no request of HTTP/1.1, or was broken off in the middle of its head.
    Malformed,
    /// Too many holds of one task.
    HoldsPerTask,
    /// Too many holds of one caller.
    HoldsPerCaller,
    /// Too many requests of one caller wait for a provider.
    WaitsPerCaller,
    /// Too many tasks.
    Tasks,
    /// Too many tasks of one caller.
    TasksPerCaller,
    /// Too many credentials in too short a time for one caller.
    MintsPerCaller,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 16] = [
        Self::Connections,
        Self::Descriptors,
        Self::Requests,
        Self::HeadSize,
        Self::HeadTime,
        Self::BodySize,
        Self::BodyTime,
        Self::BodyDepth,
        Self::AnswerTime,
        Self::Malformed,
        Self::HoldsPerTask,
        Self::HoldsPerCaller,
        Self::WaitsPerCaller,
        Self::Tasks,
        Self::TasksPerCaller,
        Self::MintsPerCaller,
    ];

    /// The word in the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors",
            Self::Requests => "requests",
            Self::HeadSize => "head_size",
            Self::HeadTime => "head_time",
            Self::BodySize => "body_size",
            Self::BodyTime => "body_time",
            Self::BodyDepth => "body_depth",
            Self::AnswerTime => "answer_time",
            Self::Malformed => "malformed",
            Self::HoldsPerTask => "holds_per_task",
            Self::HoldsPerCaller => "holds_per_caller",
            Self::WaitsPerCaller => "waits_per_caller",
            Self::Tasks => "tasks",
            Self::TasksPerCaller => "tasks_per_caller",
            Self::MintsPerCaller => "mints_per_caller",
        }
    }
}

/// The counters and gauges of one sidecar.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    tasks_active: IntGaugeVec,
    tasks_ended: IntCounterVec,
    denials: IntCounterVec,
    mints: IntCounterVec,
    mint_seconds: HistogramVec,
    leases_active: IntGaugeVec,
    residual: HistogramVec,
    revocations: IntCounterVec,
    revocation_lag: HistogramVec,
    revocations_outstanding: IntGaugeVec,
    provider_left_alone: IntGaugeVec,
    providers: Vec<&'static str>,
    credential_expiry: GaugeVec,
    svid_expiry: GaugeVec,
    policy_version: IntGauge,
    policy_state: IntGaugeVec,
    policy_expiry: GaugeVec,
    policy_refreshes: IntCounterVec,
    scopes_suspended: IntGaugeVec,
    review_due: IntGaugeVec,
    exceptions_open: IntGauge,
    break_glass_active: IntGauge,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    journal_pending: IntGauge,
    audit_lost: IntCounter,
    lease_series: Vec<(&'static str, &'static str)>,
    suspensions: Vec<&'static str>,
    tls_handshakes: IntCounterVec,
    connections_ended: IntCounterVec,
    clock_untrusted: IntGauge,
    limited: IntCounterVec,
}

/// Where a gauge of the whole sidecar stands; filled in by the broker when Prometheus asks.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Running tasks by tier, every tier listed.
    pub tasks: Vec<(&'static str, i64)>,
    /// Leases that are not over.
    pub leases: Vec<(&'static str, &'static str, i64)>,
    /// Leases that wait to be taken back, by provider.
    pub outstanding: Vec<(&'static str, i64)>,
    /// The providers that are asked for no credential because they failed again and again.
    pub left_alone: Vec<&'static str>,
    /// The earliest expiry of a live credential, by provider (seconds since the epoch).
    pub credential_expiry: Vec<(&'static str, f64)>,
    /// The earliest expiry among our SVIDs, where there are any (seconds since the epoch).
    pub svid_expiry: Option<f64>,
    /// The state of the policy: one of [`POLICY_STATES`], or none while nothing is loaded.
    pub policy_state: Option<&'static str>,
    /// The version number of the policy's snapshot; 0 where nobody signs, or nothing is loaded.
    pub policy_version: u64,
    /// Until when each of [`POLICY_ROLES`] speaks (seconds since the epoch); those that do not sign are left out.
    pub policy_expiry: Vec<(&'static str, f64)>,
    /// Looks at the policy's source so far, by outcome.
    pub policy_refreshes: Vec<(&'static str, u64)>,
    /// Suspended scopes by the kind of their first problem.
    pub suspended: Vec<(&'static str, i64)>,
    /// Scopes whose review is due, by how soon: every word of [`REVIEW_WITHIN`].
    pub review_due: Vec<(&'static str, i64)>,
    /// Scopes that are exceptions and have not ended.
    pub exceptions_open: i64,
    /// Running break-glass tasks.
    pub break_glass_active: i64,
    /// Writes that wait to become durable.
    pub journal_pending: i64,
    /// Audit lines lost so far.
    pub audit_lost: u64,
    /// Whether the time is in doubt.
    pub clock_untrusted: bool,
}

impl Metrics {
    /// All metrics, registered, with every label value that can occur already there.
    ///
    /// # Errors
    /// Only when two metrics have one name: a mistake in this file.
    pub fn new(words: &Words<'_>) -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let info = gauge_vec(&r, "sidemint_build_info", "Always 1; the version is the label.", &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            tasks_active: gauge_vec(&r, "sidemint_tasks_active", "Running tasks.", &["tier"])?,
            tasks_ended: counter_vec(&r, "sidemint_tasks_ended_total", "Tasks that have ended.", &["reason"])?,
            denials: counter_vec(&r, "sidemint_denials_total", "Tasks that were not allowed to begin.", &["reason"])?,
            mints: counter_vec(
                &r,
                "sidemint_mints_total",
                "Credentials asked for at a provider.",
                &["provider", "tier", "outcome"],
            )?,
            mint_seconds: histogram_vec(
                &r,
                "sidemint_mint_duration_seconds",
                "How long an exchange took, its records included.",
                &["provider"],
                prometheus::exponential_buckets(0.005, 2.0, 12)?,
            )?,
            leases_active: gauge_vec(
                &r,
                "sidemint_leases_active",
                "Credentials that could still be used at their provider.",
                &["provider", "revocation"],
            )?,
            residual: histogram_vec(
                &r,
                "sidemint_residual_access_seconds",
                "For how long a credential could still be used after its task ended.",
                &["provider"],
                vec![0.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0],
            )?,
            revocations: counter_vec(
                &r,
                "sidemint_revocations_total",
                "Tries to take a credential back at its provider, and credentials that died before it succeeded.",
                &["provider", "outcome"],
            )?,
            revocation_lag: histogram_vec(
                &r,
                "sidemint_revocation_lag_seconds",
                "How long after its task's end a credential was revoked at its provider.",
                &["provider"],
                vec![0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0],
            )?,
            revocations_outstanding: gauge_vec(
                &r,
                "sidemint_revocations_outstanding",
                "Credentials of ended tasks that are still to be revoked.",
                &["provider"],
            )?,
            provider_left_alone: gauge_vec(
                &r,
                "sidemint_provider_circuit_open",
                "1 while a provider is asked for no credential because it failed again and again.",
                &["provider"],
            )?,
            providers: words.providers.to_vec(),
            credential_expiry: float_gauge_vec(
                &r,
                "sidemint_credential_expiry_timestamp_seconds",
                "The earliest expiry of a credential that is served.",
                &["provider"],
            )?,
            svid_expiry: float_gauge_vec(
                &r,
                "sidemint_svid_expiry_timestamp_seconds",
                "The earliest expiry of an SVID of this sidecar.",
                &["kind"],
            )?,
            policy_version: gauge(
                &r,
                "sidemint_policy_version",
                "The version number of the signed policy's snapshot; 0 without one.",
            )?,
            policy_expiry: float_gauge_vec(
                &r,
                "sidemint_policy_expiry_timestamp_seconds",
                "Until when a signer of the policy speaks; of departments the earliest.",
                &["role"],
            )?,
            policy_state: gauge_vec(&r, "sidemint_policy_state", "1 for the state the policy is in.", &["state"])?,
            policy_refreshes: counter_vec(
                &r,
                "sidemint_policy_refreshes_total",
                "Looks at the policy's source.",
                &["outcome"],
            )?,
            scopes_suspended: gauge_vec(
                &r,
                "sidemint_scopes_suspended",
                "Scopes that decide nothing because of a problem.",
                &["reason"],
            )?,
            review_due: gauge_vec(
                &r,
                "sidemint_scopes_review_due",
                "Scopes whose review is due within the time, or overdue and in grace; each counted once, nearest first.",
                &["within"],
            )?,
            exceptions_open: gauge(&r, "sidemint_exceptions_open", "Scopes that are exceptions and have not ended.")?,
            break_glass_active: gauge(&r, "sidemint_break_glass_active", "Running break-glass tasks.")?,
            requests: counter_vec(&r, "sidemint_requests_total", "Requests answered.", &["dialect", "code"])?,
            request_seconds: histogram_vec(
                &r,
                "sidemint_request_duration_seconds",
                "How long a request took.",
                &["dialect"],
                REQUEST_BUCKETS.to_vec(),
            )?,
            journal_pending: gauge(&r, "sidemint_journal_pending", "Writes that wait to become durable.")?,
            audit_lost: counter(&r, "sidemint_audit_lost_total", "Noted audit lines dropped because too many waited.")?,
            clock_untrusted: gauge(&r, "sidemint_clock_untrusted", "1 while the time is in doubt.")?,
            lease_series: words
                .providers
                .iter()
                .flat_map(|provider| words.revocations.iter().map(|revocation| (*provider, *revocation)))
                .collect(),
            suspensions: words.suspensions.to_vec(),
            tls_handshakes: counter_vec(&r, "sidemint_tls_handshakes_total", "TLS handshakes.", &["outcome"])?,
            connections_ended: counter_vec(
                &r,
                "sidemint_connections_ended_total",
                "Connections of mutual TLS that the sidecar ended.",
                &["reason"],
            )?,
            limited: counter_vec(&r, "sidemint_limited_total", "Times that a caller ran into a limit.", &["limit"])?,
            registry: r,
        };
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.touch(words);
        Ok(metrics)
    }

    fn touch(&self, words: &Words<'_>) {
        for tier in words.tiers {
            self.tasks_active.with_label_values(&[tier]).set(0);
        }
        for reason in words.end_reasons {
            self.tasks_ended.with_label_values(&[reason]).inc_by(0);
        }
        for reason in words.denials {
            self.denials.with_label_values(&[reason]).inc_by(0);
        }
        for provider in words.providers {
            for (tier, outcome) in words.tiers.iter().flat_map(|t| words.mint_outcomes.iter().map(move |o| (t, o))) {
                self.mints.with_label_values(&[provider, tier, outcome]).inc_by(0);
            }
        }
        for provider in words.providers {
            // A histogram is there once it was asked for.
            self.mint_seconds.with_label_values(&[provider]);
            self.residual.with_label_values(&[provider]);
            self.revocation_lag.with_label_values(&[provider]);
            self.revocations_outstanding.with_label_values(&[provider]).set(0);
            self.provider_left_alone.with_label_values(&[provider]).set(0);
            for outcome in words.revocation_outcomes {
                self.revocations.with_label_values(&[provider, outcome]).inc_by(0);
            }
        }
        self.no_leases();
        self.nothing_suspended();
        for limit in Limit::ALL {
            self.limited.with_label_values(&[limit.as_str()]).inc_by(0);
        }
        for state in POLICY_STATES {
            self.policy_state.with_label_values(&[state]).set(0);
        }
        for within in REVIEW_WITHIN {
            self.review_due.with_label_values(&[within]).set(0);
        }
    }

    fn no_leases(&self) {
        for (provider, revocation) in &self.lease_series {
            self.leases_active.with_label_values(&[provider, revocation]).set(0);
        }
    }

    fn nothing_suspended(&self) {
        for reason in &self.suspensions {
            self.scopes_suspended.with_label_values(&[reason]).set(0);
        }
    }

    /// Lists the words that a TLS handshake's outcome can be.
    pub fn expect_tls_handshakes(&self, outcomes: impl IntoIterator<Item = &'static str>) {
        for outcome in outcomes {
            self.tls_handshakes.with_label_values(&[outcome]).inc_by(0);
        }
    }

    /// A TLS handshake ended.
    pub fn tls_handshake(&self, outcome: &'static str) {
        self.tls_handshakes.with_label_values(&[outcome]).inc();
    }

    /// Lists the words for why a connection of mutual TLS was ended.
    pub fn expect_connections_ended(&self, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            self.connections_ended.with_label_values(&[reason]).inc_by(0);
        }
    }

    /// A connection of mutual TLS was ended.
    pub fn connection_ended(&self, reason: &'static str) {
        self.connections_ended.with_label_values(&[reason]).inc();
    }

    /// A caller ran into a limit.
    pub fn limited(&self, limit: Limit) {
        self.limited.with_label_values(&[limit.as_str()]).inc();
    }

    /// A task was not allowed to begin.
    pub fn denied(&self, reason: &str) {
        self.denials.with_label_values(&[reason]).inc();
    }

    /// A task ended.
    pub fn task_ended(&self, reason: &str) {
        self.tasks_ended.with_label_values(&[reason]).inc();
    }

    /// A credential could be used for `left` after its task ended.
    pub fn residual(&self, provider: &str, left: Duration) {
        self.residual.with_label_values(&[provider]).observe(left.as_secs_f64());
    }

    /// A credential was tried to be taken back, or died before it could be.
    pub fn revocation(&self, provider: &str, outcome: &str) {
        self.revocations.with_label_values(&[provider, outcome]).inc();
    }

    /// A credential was revoked so long after its task ended.
    pub fn revoked_after(&self, provider: &str, lag: Duration) {
        self.revocation_lag.with_label_values(&[provider]).observe(lag.as_secs_f64());
    }

    /// An exchange was tried.
    pub fn mint(&self, provider: &str, tier: &str, outcome: &str, took: Duration) {
        self.mints.with_label_values(&[provider, tier, outcome]).inc();
        self.mint_seconds.with_label_values(&[provider]).observe(took.as_secs_f64());
    }

    /// The counter and the histogram for answers of one dialect, so that the hot path looks neither up.
    pub fn requests(&self, dialect: &'static str) -> RequestMetrics {
        for status in STATUSES {
            self.requests.with_label_values(&[dialect, status.to_string().as_str()]).inc_by(0);
        }
        RequestMetrics {
            ok: self.requests.with_label_values(&[dialect, "200"]),
            seconds: self.request_seconds.with_label_values(&[dialect]),
            all: self.requests.clone(),
            dialect,
        }
    }

    /// The page that Prometheus reads, with the gauges of `snapshot`.
    ///
    /// # Errors
    /// Only when the encoder fails.
    pub fn page(&self, snapshot: &Snapshot) -> Result<Vec<u8>, prometheus::Error> {
        for (tier, count) in &snapshot.tasks {
            self.tasks_active.with_label_values(&[tier]).set(*count);
        }
        self.no_leases();
        for (provider, revocation, count) in &snapshot.leases {
            self.leases_active.with_label_values(&[provider, revocation]).set(*count);
        }
        for provider in &self.providers {
            self.revocations_outstanding.with_label_values(&[provider]).set(0);
            let left_alone = snapshot.left_alone.contains(provider);
            self.provider_left_alone.with_label_values(&[provider]).set(left_alone.into());
        }
        for (provider, count) in &snapshot.outstanding {
            self.revocations_outstanding.with_label_values(&[provider]).set(*count);
        }
        self.credential_expiry.reset();
        for (provider, at) in &snapshot.credential_expiry {
            self.credential_expiry.with_label_values(&[provider]).set(*at);
        }
        self.svid_expiry.reset();
        if let Some(at) = snapshot.svid_expiry {
            self.svid_expiry.with_label_values(&["x509"]).set(at);
        }
        for state in POLICY_STATES {
            self.policy_state.with_label_values(&[state]).set((snapshot.policy_state == Some(state)).into());
        }
        self.policy_version.set(i64::try_from(snapshot.policy_version).unwrap_or(i64::MAX));
        self.policy_expiry.reset();
        for (role, at) in &snapshot.policy_expiry {
            self.policy_expiry.with_label_values(&[role]).set(*at);
        }
        for (outcome, count) in &snapshot.policy_refreshes {
            let counter = self.policy_refreshes.with_label_values(&[outcome]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.nothing_suspended();
        for (reason, count) in &snapshot.suspended {
            self.scopes_suspended.with_label_values(&[reason]).add(*count);
        }
        for (within, count) in &snapshot.review_due {
            self.review_due.with_label_values(&[within]).set(*count);
        }
        self.exceptions_open.set(snapshot.exceptions_open);
        self.break_glass_active.set(snapshot.break_glass_active);
        self.journal_pending.set(snapshot.journal_pending);
        self.clock_untrusted.set(snapshot.clock_untrusted.into());
        self.audit_lost.inc_by(snapshot.audit_lost.saturating_sub(self.audit_lost.get()));
        let mut page = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

/// Counts the answers of one dialect.
#[derive(Debug, Clone)]
pub struct RequestMetrics {
    ok: IntCounter,
    seconds: Histogram,
    all: IntCounterVec,
    dialect: &'static str,
}

impl RequestMetrics {
    /// A request was answered with `status` after `took`.
    pub fn answered(&self, status: u16, took: Duration) {
        match status {
            200 => self.ok.inc(),
            other => self.all.with_label_values(&[self.dialect, other.to_string().as_str()]).inc(),
        }
        self.seconds.observe(took.as_secs_f64());
    }
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    r.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    r.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn counter_vec(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge_vec(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn float_gauge_vec(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn histogram_vec(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: Vec<f64>,
) -> Result<HistogramVec, prometheus::Error> {
    let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
    r.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}
