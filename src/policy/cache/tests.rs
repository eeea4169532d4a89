use std::collections::VecDeque;

use async_trait::async_trait;

use super::super::repository::PolicyFiles;
use super::super::tests::fixture;
use super::*;
use crate::clock::{Clock as _, ManualClock};

/// A source that shows `files`, or fails while there are none; the real contract of `seen` included.
#[derive(Debug, Default)]
struct Fake {
    files: Mutex<Option<PolicyFiles>>,
    seen: Mutex<VecDeque<Option<PolicyVersion>>>,
    retry_after: Mutex<Option<Duration>>,
}

#[async_trait]
impl PolicySource for Fake {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        self.seen.lock().unwrap().push_back(seen.cloned());
        let files = self.files.lock().unwrap().clone().ok_or_else(|| PolicySourceError::unavailable("gone"))?;
        Ok(if seen == Some(&files.version) { Fetched::Unchanged } else { Fetched::New(files) })
    }

    fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap()
    }
}

impl Fake {
    fn show(&self, files: Option<PolicyFiles>) {
        *self.files.lock().unwrap() = files;
    }
}

fn bad() -> PolicyFiles {
    let mut files = fixture().files;
    files.insert("boundaries/bad.cedar".to_owned(), "permit".into());
    PolicyFiles::unsigned(files)
}

fn cache() -> (Arc<Fake>, Arc<PolicyCache>) {
    let source = Arc::new(Fake::default());
    (Arc::clone(&source), Arc::new(PolicyCache::new(source, LoadOptions::default())))
}

const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

#[tokio::test]
async fn a_refused_version_keeps_the_last_good_one_and_says_why() {
    let (source, cache) = cache();
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Unavailable);
    assert!(cache.current().is_none());
    assert!(cache.status().problems[0].message.contains("gone"));
    source.show(Some(fixture()));
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Loaded);
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Unchanged);
    let good = cache.current().unwrap();
    assert!(cache.status().problems.is_empty());

    source.show(Some(bad()));
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Refused);
    // Still refused at the next poll, without loading it again.
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Refused);
    assert_eq!(source.seen.lock().unwrap().back().unwrap().as_ref(), Some(&bad().version));
    assert!(Arc::ptr_eq(&cache.current().unwrap(), &good));
    assert_eq!(cache.status().problems[0].file, "boundaries/bad.cedar");

    source.show(None);
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Unavailable);
    assert!(Arc::ptr_eq(&cache.current().unwrap(), &good));
    source.show(Some(fixture()));
    assert_eq!(cache.reload_now(NOW).await, RefreshOutcome::Unchanged);
    assert_eq!(cache.status().counts, [1, 2, 2, 2]);
}

#[tokio::test]
async fn polls_by_the_clock_and_notifies_subscribers() {
    let (source, cache) = cache();
    let clock = ManualClock::at(NOW);
    let mut changes = cache.subscribe();
    let polled = Arc::clone(&cache);
    let shared: SharedClock = Arc::new(clock.clone());
    let polling = tokio::spawn(async move { polled.run(shared, Duration::from_secs(2)).await });
    source.show(Some(fixture()));
    while clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(cache.current().is_none());
    clock.advance(Duration::from_secs(2));
    changes.changed().await.unwrap();
    assert_eq!(changes.borrow_and_update().as_ref().unwrap().version(), &fixture().version);
    while clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.status().at, Some(clock.now()));
    polling.abort();
}

#[tokio::test]
async fn polls_by_its_schedule_and_spares_a_busy_source() {
    let (source, cache) = cache();
    let clock = ManualClock::at(NOW);
    source.show(Some(fixture()));
    cache.reload_now(NOW).await;
    let (polled, shared): (_, SharedClock) = (Arc::clone(&cache), Arc::new(clock.clone()));
    let schedule = Schedule::new(Duration::from_secs(30));
    let polling = tokio::spawn(async move { polled.run_by(shared, schedule, || 0.5).await });
    // The seconds that pass until the next refresh, to the half second.
    let next = async |refreshes: usize| {
        let began = clock.boot();
        while source.seen.lock().unwrap().len() < refreshes {
            while clock.sleepers() == 0 && source.seen.lock().unwrap().len() < refreshes {
                tokio::task::yield_now().await;
            }
            clock.advance(Duration::from_millis(500));
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        (clock.boot() - began).as_secs_f64()
    };
    assert_eq!(next(2).await, 14.5, "anywhere in the first interval");
    assert_eq!(next(3).await, 28.5);
    source.show(None);
    assert_eq!(next(4).await, 28.5);
    *source.retry_after.lock().unwrap() = Some(Duration::from_secs(100));
    assert_eq!(next(5).await, 7.5, "sooner after a failure");
    assert_eq!(next(6).await, 114.5, "but not as soon as it asked not to be");
    polling.abort();
}
