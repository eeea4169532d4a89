//! What a section of the configuration is: a struct that serde reads, validated into the settings of one stage.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

/// The environment variables of the process.
pub(crate) type Environment = BTreeMap<String, String>;

/// What is wrong with one key, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(super) key: &'static str,
    pub(super) what: String,
}

impl Invalid {
    /// `key` stands in the section that is validated; `what` is one line without secrets.
    pub(crate) fn new(key: &'static str, what: impl Into<String>) -> Self {
        Self { key, what: what.into() }
    }
}

/// One section as it is written. Its fields are its keys: nothing else lists them.
///
/// It derives `Deserialize` with `#[serde(default, deny_unknown_fields)]`, so that a key that is not set has its default
/// and a key that does not exist is refused.
pub(crate) trait Section: DeserializeOwned {
    /// What the stage takes.
    type Settings;

    /// Checks what the keys mean together.
    ///
    /// # Errors
    /// The first key that is wrong.
    fn validate(self, environment: &Environment) -> Result<Self::Settings, Invalid>;
}

/// A section that may be left out.
impl<S: Section> Section for Option<S> {
    type Settings = Option<S::Settings>;

    fn validate(self, environment: &Environment) -> Result<Self::Settings, Invalid> {
        self.map(|section| section.validate(environment)).transpose()
    }
}

/// Sections whose keys are independent of each other: what serde reads are the settings.
macro_rules! complete_as_read {
    ($($settings:ty),+) => {$(
        impl $crate::config::section::Section for $settings {
            type Settings = Self;

            fn validate(
                self,
                _: &$crate::config::section::Environment,
            ) -> Result<Self, $crate::config::section::Invalid> {
                Ok(self)
            }
        }
    )+};
}
pub(crate) use complete_as_read;
