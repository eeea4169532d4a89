//! The providers that a task's scope grants something at.

use crate::exchange::Provider;

/// A set of providers. A task keeps one, so it is as small as a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProviderSet(u16);

impl ProviderSet {
    /// Whether `provider` is in it.
    pub fn contains(self, provider: Provider) -> bool {
        self.0 & bit(provider) != 0
    }

    /// Those in it, in the order of [`Provider::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Provider> {
        Provider::ALL.into_iter().filter(move |provider| self.contains(*provider))
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The one that is in it; `None` where there is none, or several are.
    pub fn sole(self) -> Option<Provider> {
        let mut all = self.iter();
        all.next().filter(|_| all.next().is_none())
    }
}

impl FromIterator<Provider> for ProviderSet {
    fn from_iter<I: IntoIterator<Item = Provider>>(providers: I) -> Self {
        Self(providers.into_iter().fold(0, |set, provider| set | bit(provider)))
    }
}

fn bit(provider: Provider) -> u16 {
    1 << provider as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = assert!(Provider::ALL.len() <= 16, "one bit each");

    #[test]
    fn holds_what_was_put_into_it_and_nothing_else() {
        for provider in Provider::ALL {
            let set: ProviderSet = [provider].into_iter().collect();
            assert_eq!((set.sole(), set.iter().collect::<Vec<_>>()), (Some(provider), vec![provider]));
            assert!(Provider::ALL.iter().all(|other| set.contains(*other) == (*other == provider)));
        }
        let all: ProviderSet = Provider::ALL.into_iter().collect();
        assert_eq!((all.sole(), all.iter().count(), all.is_empty()), (None, Provider::ALL.len(), false));
        assert_eq!((ProviderSet::default().sole(), ProviderSet::default().is_empty()), (None, true));
    }
}
