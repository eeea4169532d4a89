//! The roots of one trust domain (SPIFFE X509-SVID §6, Trust Domain and Bundle §4).

use std::fmt;

use super::certificate::Certificate;
use super::path;

/// The most roots that one trust domain may have.
pub const MAX_ROOTS: usize = 256;
/// The largest bundle, in bytes of DER.
pub const MAX_BUNDLE: usize = 1024 * 1024;

/// The X.509 authorities of one trust domain. Roots of different trust domains never stand in one bundle.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct X509Bundle {
    roots: Vec<Vec<u8>>,
    ignored: usize,
}

/// A bundle with too many roots, or too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the X.509 bundle is too large: at most {MAX_ROOTS} certificates and {MAX_BUNDLE} bytes")]
pub struct BundleTooLarge;

impl X509Bundle {
    /// The bundle of these certificates in DER. Certificates that cannot be roots are left out and counted: not cA, of
    /// a key that is too weak or of no known kind, with a critical extension that is unknown, or not readable. Whether
    /// a root has expired is judged when it is used.
    ///
    /// # Errors
    /// When it is too large.
    pub fn from_der(certificates: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self, BundleTooLarge> {
        let (mut bundle, mut count, mut size) = (Self::default(), 0_usize, 0_usize);
        for der in certificates {
            let der = der.as_ref();
            count += 1;
            size = size.saturating_add(der.len());
            if count > MAX_ROOTS || size > MAX_BUNDLE {
                return Err(BundleTooLarge);
            }
            match Certificate::parse(der).and_then(|root| path::check_root(&root)) {
                Ok(()) => bundle.roots.push(der.to_vec()),
                Err(_) => bundle.ignored += 1,
            }
        }
        Ok(bundle)
    }

    /// Whether it has no usable root: then nothing of its trust domain verifies.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// How many certificates were left out.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The roots in DER.
    pub fn roots(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(Vec::as_slice)
    }
}

impl fmt::Debug for X509Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Bundle({} roots, {} ignored)", self.roots.len(), self.ignored)
    }
}
