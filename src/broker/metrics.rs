//! What the broker counts.

use std::time::Duration;

use super::{BeginError, Broker};
use crate::exchange::{ExchangeError, Revocation};
use crate::metrics::{Label, Registry, label, metrics};
use crate::policy::{DenialReason, Provider, Tier};
use crate::task::{EndReason, MintError};

metrics! {
    /// The families.
    struct Families {
        /// Running tasks.
        tasks_active: Gauge<Tier> = "sidemint_tasks_active";
        /// Running break-glass tasks.
        break_glass_active: Gauge<()> = "sidemint_break_glass_active";
        /// Tasks that have ended.
        tasks_ended: Counter<EndReason> = "sidemint_tasks_ended_total";
        /// Tasks that were not allowed to begin.
        denials: Counter<Refusal> = "sidemint_denials_total";
        /// Credentials asked for at a provider.
        mints: Counter<(Provider, Tier, MintOutcome)> = "sidemint_mints_total";
        /// How long an exchange took, its records included.
        mint_seconds: Seconds<Provider> = "sidemint_mint_duration_seconds", &MINT_BUCKETS;
        /// Credentials that could still be used at their provider.
        leases_active: Gauge<(Provider, Revocation)> = "sidemint_leases_active";
        /// For how long a credential could still be used after its task ended.
        residual: Seconds<Provider> = "sidemint_residual_access_seconds", &RESIDUAL_BUCKETS;
        /// Tries to revoke a credential at its provider, and credentials that expired before it succeeded.
        revocations: Counter<(Provider, RevocationOutcome)> = "sidemint_revocations_total";
        /// How long after its task's end a credential was revoked at its provider.
        revocation_lag: Seconds<Provider> = "sidemint_revocation_lag_seconds", &LAG_BUCKETS;
        /// Credentials of ended tasks that are still to be revoked.
        revocations_outstanding: Gauge<Provider> = "sidemint_revocations_outstanding";
        /// 1 while a provider is asked for no credential because it failed again and again.
        circuit_open: Gauge<Provider> = "sidemint_provider_circuit_open";
        /// The earliest expiry of a credential that is served.
        credential_expiry: Expiry<Provider> = "sidemint_credential_expiry_timestamp_seconds";
        /// Writes that wait to become durable.
        journal_pending: Gauge<()> = "sidemint_journal_pending";
        /// 1 while the time is in doubt.
        clock_untrusted: Gauge<()> = "sidemint_clock_untrusted";
        /// Times that a caller ran into a limit.
        limited: Counter<Limit> = "sidemint_limited_total";
    }
}

const MINT_BUCKETS: [f64; 12] = [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24];
const RESIDUAL_BUCKETS: [f64; 9] = [0.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0];
const LAG_BUCKETS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];

label!("tier" = Tier, "provider" = Provider, "revocation" = Revocation, "reason" = EndReason, "limit" = Limit);

/// Why a task did not begin.
#[derive(Debug, Clone, Copy)]
struct Refusal(&'static str);

impl Label for Refusal {
    const NAME: &'static str = "reason";

    fn all() -> impl Iterator<Item = Self> {
        DenialReason::ALL.into_iter().map(DenialReason::as_str).chain(BeginError::KINDS).map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy)]
struct MintOutcome(&'static str);

impl Label for MintOutcome {
    const NAME: &'static str = "outcome";

    fn all() -> impl Iterator<Item = Self> {
        MintError::OUTCOMES.into_iter().map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

/// How a try to revoke a credential ended, and what became of it where none succeeded.
#[derive(Debug, Clone, Copy)]
struct RevocationOutcome(&'static str);

impl Label for RevocationOutcome {
    const NAME: &'static str = "outcome";

    fn all() -> impl Iterator<Item = Self> {
        ["revoked", "requested", "lapsed"].into_iter().chain(ExchangeError::KINDS).map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

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

    /// The label in the metric.
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

/// The broker's metrics, and the registry for those of the stages after it.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    families: Families,
}

impl Metrics {
    /// Registers them with `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { families: Families::new(&registry), registry }
    }

    /// Where they are registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A caller ran into a limit.
    pub fn limited(&self, limit: Limit) {
        self.families.limited.inc(limit);
    }

    /// A task was not allowed to begin.
    pub(super) fn denied(&self, error: &BeginError) {
        self.families.denials.inc(Refusal(error.kind()));
    }

    /// A task ended.
    pub(super) fn task_ended(&self, reason: EndReason) {
        self.families.tasks_ended.inc(reason);
    }

    /// A credential could be used for `left` after its task ended.
    pub(super) fn residual(&self, provider: Provider, left: Duration) {
        self.families.residual.observe(provider, left);
    }

    /// A credential was tried to be revoked, or expired before it could be.
    pub(super) fn revocation(&self, provider: Provider, outcome: &'static str) {
        self.families.revocations.inc((provider, RevocationOutcome(outcome)));
    }

    /// A credential was revoked so long after its task ended.
    pub(super) fn revoked_after(&self, provider: Provider, lag: Duration) {
        self.families.revocation_lag.observe(provider, lag);
    }

    /// An exchange was tried.
    pub(super) fn mint(&self, provider: Provider, tier: Tier, outcome: &'static str, took: Duration) {
        self.families.mints.inc((provider, tier, MintOutcome(outcome)));
        self.families.mint_seconds.observe(provider, took);
    }
}

impl Broker {
    /// Sets the gauges to what is there now.
    pub fn update_gauges(&self) {
        let (parts, families, census) = (self.parts(), &self.parts().metrics.families, self.census());
        for (tier, count) in &census.tasks {
            families.tasks_active.set(*tier, *count);
        }
        let break_glass = census.tasks.iter().find(|(tier, _)| *tier == Tier::BreakGlass);
        families.break_glass_active.set((), break_glass.map_or(0, |(_, count)| *count));
        families.leases_active.reset();
        for (provider, revocation, count) in census.leases {
            families.leases_active.set((provider, revocation), count);
        }
        families.revocations_outstanding.reset();
        for (provider, count) in census.outstanding {
            families.revocations_outstanding.set(provider, count);
        }
        for provider in Provider::ALL {
            let open = parts.exchanges.get(&provider).is_some_and(|exchange| exchange.circuit_open());
            families.circuit_open.set(provider, open.into());
        }
        let expiry = census.credential_expiry.into_iter().map(|(provider, at)| (provider, at.as_secs()));
        families.credential_expiry.replace(expiry);
        families.journal_pending.set((), i64::try_from(parts.journal.pending()).unwrap_or(i64::MAX));
        families.clock_untrusted.set((), parts.clock.trusted().is_err().into());
    }
}
