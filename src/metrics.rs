//! The registry of metrics, and families of series whose labels are typed and closed.
//!
//! Each module declares its own with the macro `metrics!`. Names are an interface. No SPIFFE ID, task or scope is a label: every
//! series that can occur is there from the start, so that a rate over it is right from its first event.

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    TextEncoder,
};

pub use prometheus::Error;

/// One label: its name, and the closed set of its values.
pub trait Label: Copy + 'static {
    /// The name in the exposition.
    const NAME: &'static str;

    /// Every value that can occur.
    fn all() -> impl Iterator<Item = Self>;

    /// The value in the exposition.
    fn as_str(self) -> &'static str;
}

/// The labels of one family: none, one, or a tuple.
pub trait Labels: Copy + 'static {
    /// Their names.
    fn names() -> Vec<&'static str>;

    /// Every combination that can occur.
    fn all() -> Vec<Self>;

    /// Hands their values to `read`, in the order of the names.
    fn values<R>(self, read: impl FnOnce(&[&str]) -> R) -> R;
}

impl Labels for () {
    fn names() -> Vec<&'static str> {
        Vec::new()
    }

    fn all() -> Vec<Self> {
        vec![()]
    }

    fn values<R>(self, read: impl FnOnce(&[&str]) -> R) -> R {
        read(&[])
    }
}

impl<A: Label> Labels for A {
    fn names() -> Vec<&'static str> {
        vec![A::NAME]
    }

    fn all() -> Vec<Self> {
        A::all().collect()
    }

    fn values<R>(self, read: impl FnOnce(&[&str]) -> R) -> R {
        read(&[self.as_str()])
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn names() -> Vec<&'static str> {
        vec![A::NAME, B::NAME]
    }

    fn all() -> Vec<Self> {
        A::all().flat_map(|a| B::all().map(move |b| (a, b))).collect()
    }

    fn values<R>(self, read: impl FnOnce(&[&str]) -> R) -> R {
        read(&[self.0.as_str(), self.1.as_str()])
    }
}

impl<A: Label, B: Label, C: Label> Labels for (A, B, C) {
    fn names() -> Vec<&'static str> {
        vec![A::NAME, B::NAME, C::NAME]
    }

    fn all() -> Vec<Self> {
        A::all().flat_map(|a| <(B, C)>::all().into_iter().map(move |(b, c)| (a, b, c))).collect()
    }

    fn values<R>(self, read: impl FnOnce(&[&str]) -> R) -> R {
        read(&[self.0.as_str(), self.1.as_str(), self.2.as_str()])
    }
}

/// Makes types labels by their own `ALL` and `as_str`.
macro_rules! label {
    ($($name:literal = $label:ty),+ $(,)?) => {$(
        impl $crate::metrics::Label for $label {
            const NAME: &'static str = $name;

            fn all() -> impl Iterator<Item = Self> {
                <$label>::ALL.into_iter()
            }

            fn as_str(self) -> &'static str {
                <$label>::as_str(self)
            }
        }
    )+};
}
pub(crate) use label;

/// Declares the metrics of one module, one in one place: help, field, family, labels, name, and the buckets of a
/// histogram. `new` registers them; of two with one registry both count in the same series.
macro_rules! metrics {
    (
        $(#[$meta:meta])*
        $vis:vis struct $metrics:ident {
            $(#[doc = $help:literal] $field:ident: $family:ident<$labels:ty> = $name:literal $(, $buckets:expr)?;)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        $vis struct $metrics {
            $(#[doc = $help] $field: $crate::metrics::$family<$labels>,)+
        }

        impl $metrics {
            /// Registers them with `registry`.
            $vis fn new(registry: &$crate::metrics::Registry) -> Self {
                Self {
                    $($field: $crate::metrics::$family::register(registry, $name, $help.trim_start() $(, $buckets)?),)+
                }
            }
        }
    };
}
pub(crate) use metrics;

/// All metrics of one sidecar. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prometheus: prometheus::Registry,
    families: Mutex<BTreeMap<&'static str, Family>>,
    /// The first mistake: a name twice, or an invalid one.
    mistake: Mutex<Option<Error>>,
}

#[derive(Debug)]
struct Family {
    labels: Vec<&'static str>,
    family: Box<dyn Any + Send>,
}

impl Default for Registry {
    fn default() -> Self {
        let inner =
            Inner { prometheus: prometheus::Registry::new(), families: Mutex::default(), mistake: Mutex::default() };
        let registry = Self(Arc::new(inner));
        registry.note(registry.0.prometheus.register(Box::new(ProcessCollector::for_self())));
        Build::new(&registry).info.set(Version, 1);
        registry
    }
}

impl Registry {
    /// The page that Prometheus reads.
    ///
    /// # Errors
    /// Only when the encoder fails.
    pub fn page(&self) -> Result<Vec<u8>, Error> {
        let mut page = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.0.prometheus.gather(), &mut page)?;
        Ok(page)
    }

    /// Every metric of ours: its name and those of its labels.
    pub fn families(&self) -> BTreeMap<&'static str, Vec<&'static str>> {
        locked(&self.0.families).iter().map(|(name, family)| (*name, family.labels.clone())).collect()
    }

    /// Whether everything that was declared could be registered.
    ///
    /// # Errors
    /// A mistake of the program's own: two metrics have one name, or a name is invalid.
    pub fn check(&self) -> Result<(), Error> {
        locked(&self.0.mistake).take().map_or(Ok(()), Err)
    }

    /// The family of this name, made where it is new.
    fn family<F, L>(&self, name: &'static str, make: impl FnOnce(&[&str]) -> Result<F, Error>) -> Option<F>
    where
        F: Collector + Clone + 'static,
        L: Labels,
    {
        let labels = L::names();
        let mut families = locked(&self.0.families);
        if let Some(known) = families.get(name) {
            let same = known.family.downcast_ref::<F>().filter(|_| known.labels == labels).cloned();
            return same.or_else(|| self.note(Err(Error::AlreadyReg)));
        }
        let made =
            make(&labels).and_then(|family| self.0.prometheus.register(Box::new(family.clone())).map(|()| family));
        let family = self.note(made)?;
        families.insert(name, Family { labels, family: Box::new(family.clone()) });
        Some(family)
    }

    fn note<T>(&self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| locked(&self.0.mistake).get_or_insert(error).to_string()).ok()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Declares a type of family over one of the `prometheus` crate's.
macro_rules! family {
    ($(#[$meta:meta])* $family:ident($vec:ty)) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $family<L> {
            /// `None` where the registry refused it, which [`Registry::check`] says.
            vec: Option<$vec>,
            labels: PhantomData<fn(L)>,
        }
    };
}

family! {
    /// Counters.
    Counter(IntCounterVec)
}
family! {
    /// Gauges that are there whatever their value is.
    Gauge(IntGaugeVec)
}
family! {
    /// Times in seconds since the epoch. A series is there only while it has a value: 0 would set off every alert.
    Expiry(GaugeVec)
}
family! {
    /// Histograms of seconds.
    Seconds(HistogramVec)
}

impl<L: Labels> Counter<L> {
    pub(crate) fn register(registry: &Registry, name: &'static str, help: &str) -> Self {
        let make = |labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let family = Self { vec: registry.family::<_, L>(name, make), labels: PhantomData };
        L::all().into_iter().for_each(|labels| drop(family.handle(labels)));
        family
    }

    /// The series of these labels, for where it must not be looked up each time.
    pub fn handle(&self, labels: L) -> Option<IntCounter> {
        let vec = self.vec.as_ref()?;
        Some(labels.values(|values| vec.with_label_values(values)))
    }

    /// One more.
    pub fn inc(&self, labels: L) {
        if let Some(counter) = self.handle(labels) {
            counter.inc();
        }
    }

    /// `total` so far, where somebody else counts.
    pub fn reach(&self, labels: L, total: u64) {
        if let Some(counter) = self.handle(labels) {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

impl<L: Labels> Gauge<L> {
    pub(crate) fn register(registry: &Registry, name: &'static str, help: &str) -> Self {
        let make = |labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let family = Self { vec: registry.family::<_, L>(name, make), labels: PhantomData };
        family.reset();
        family
    }

    /// Sets one series.
    pub fn set(&self, labels: L, value: i64) {
        if let Some(vec) = &self.vec {
            labels.values(|values| vec.with_label_values(values).set(value));
        }
    }

    /// Adds to one series.
    pub fn add(&self, labels: L, value: i64) {
        if let Some(vec) = &self.vec {
            labels.values(|values| vec.with_label_values(values).add(value));
        }
    }

    /// Sets every series to 0.
    pub fn reset(&self) {
        L::all().into_iter().for_each(|labels| self.set(labels, 0));
    }
}

impl<L: Labels> Expiry<L> {
    pub(crate) fn register(registry: &Registry, name: &'static str, help: &str) -> Self {
        let make = |labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        Self { vec: registry.family::<_, L>(name, make), labels: PhantomData }
    }

    /// Sets the series to `times`, in seconds since the epoch; the others are gone.
    pub fn replace(&self, times: impl IntoIterator<Item = (L, u64)>) {
        let Some(vec) = &self.vec else { return };
        vec.reset();
        for (labels, time) in times {
            labels.values(|values| vec.with_label_values(values).set(time as f64));
        }
    }
}

impl<L: Labels> Seconds<L> {
    pub(crate) fn register(registry: &Registry, name: &'static str, help: &str, buckets: &[f64]) -> Self {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let family = Self {
            vec: registry.family::<_, L>(name, |labels| HistogramVec::new(options, labels)),
            labels: PhantomData,
        };
        L::all().into_iter().for_each(|labels| drop(family.handle(labels)));
        family
    }

    /// The series of these labels, for where it must not be looked up each time.
    pub fn handle(&self, labels: L) -> Option<Histogram> {
        let vec = self.vec.as_ref()?;
        Some(labels.values(|values| vec.with_label_values(values)))
    }

    /// Something took so long.
    pub fn observe(&self, labels: L, took: Duration) {
        if let Some(histogram) = self.handle(labels) {
            histogram.observe(took.as_secs_f64());
        }
    }
}

/// The version of this program.
#[derive(Debug, Clone, Copy)]
struct Version;

impl Version {
    const ALL: [Self; 1] = [Self];

    const fn as_str(self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

label!("version" = Version);

metrics! {
    /// What is running.
    struct Build {
        /// Always 1; the version is the label.
        info: Gauge<Version> = "sidemint_build_info";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    struct Kind(&'static str);

    impl Kind {
        const ALL: [Self; 2] = [Self("a"), Self("b")];

        const fn as_str(self) -> &'static str {
            self.0
        }
    }

    label!("kind" = Kind);

    metrics! {
        struct Few {
            /// Events.
            events: Counter<Kind> = "events_total";
            /// Ends.
            ends: Expiry<Kind> = "end_seconds";
        }
    }

    fn page(registry: &Registry) -> String {
        String::from_utf8(registry.page().unwrap()).unwrap()
    }

    #[test]
    fn every_series_is_there_from_the_start_but_those_of_an_expiry() {
        let registry = Registry::default();
        let few = Few::new(&registry);
        let text = page(&registry);
        assert!(text.contains("events_total{kind=\"a\"} 0") && text.contains("events_total{kind=\"b\"} 0"), "{text}");
        assert!(!text.contains("end_seconds{"), "{text}");
        few.ends.replace([(Kind("a"), 7)]);
        assert!(page(&registry).contains("end_seconds{kind=\"a\"} 7"));
        few.ends.replace([]);
        assert!(!page(&registry).contains("end_seconds{"));
    }

    #[test]
    fn metrics_registered_twice_count_in_the_same_series() {
        let registry = Registry::default();
        Few::new(&registry).events.inc(Kind("a"));
        Few::new(&registry).events.inc(Kind("a"));
        assert!(page(&registry).contains("events_total{kind=\"a\"} 2"));
        registry.check().unwrap();
    }

    #[test]
    fn refuses_one_name_for_two_metrics() {
        let registry = Registry::default();
        let _few = Few::new(&registry);
        let other = Gauge::<()>::register(&registry, "events_total", "Other.");
        other.set((), 1);
        assert!(registry.check().is_err());
    }
}
