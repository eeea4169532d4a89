//! The keys that may sign one trust domain's JWT-SVIDs (SPIFFE Trust Domain and Bundle §4, RFC 7517, RFC 7518 §6).

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, ParsedPublicKey, RsaParameters, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// The longest JWK Set that is read, in bytes.
pub const MAX_BUNDLE: usize = 1024 * 1024;
/// The most keys that one trust domain may have; SPIRE publishes a handful.
pub const MAX_KEYS: usize = 1000;

/// A signature algorithm that JWT-SVIDs may use (SPIFFE JWT-SVID §2.1); there are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    /// Reads the value of `alg`, which is case-sensitive (RFC 7515 §4.1.1).
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    fn scheme(self) -> Scheme {
        match self {
            Self::Rs256 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Scheme::Ec(Curve::P256),
            Self::Es384 => Scheme::Ec(Curve::P384),
            Self::Es512 => Scheme::Ec(Curve::P521),
        }
    }
}

enum Scheme {
    Rsa(&'static RsaParameters),
    Ec(Curve),
}

/// Each curve goes with one algorithm (RFC 7518 §3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "P-256" => Self::P256,
            "P-384" => Self::P384,
            "P-521" => Self::P521,
            _ => return None,
        })
    }

    /// The length of a coordinate in bytes (RFC 7518 §6.2.1.2).
    const fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn verification(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// Why a token's algorithm and a key do not go together, or the signature is not the key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyError {
    /// The key is of another type, curve or declared `alg`.
    Mismatch,
    /// The signature does not verify.
    Signature,
}

/// One verification key. What it may verify is fixed by the key, never by the token.
pub(super) struct Key {
    material: Material,
    /// The JWK's own `alg`, where it has one: then no other will do (RFC 7517 §4.4).
    only: Option<Algorithm>,
}

enum Material {
    /// An RSA key of 2,048 to 8,192 bits: it serves six algorithms, so it is not bound to one here.
    Rsa(PublicKeyComponents<Vec<u8>>),
    /// A point on the curve, checked and made ready.
    Ec(Curve, ParsedPublicKey),
}

impl Key {
    /// Whether this key may verify `algorithm` at all.
    fn fits(&self, algorithm: Algorithm) -> bool {
        let type_fits = match (&self.material, algorithm.scheme()) {
            (Material::Rsa(_), Scheme::Rsa(_)) => true,
            (Material::Ec(curve, _), Scheme::Ec(wanted)) => *curve == wanted,
            _ => false,
        };
        type_fits && self.only.is_none_or(|only| only == algorithm)
    }

    /// Checks `signature` over `message`.
    pub(super) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        if !self.fits(algorithm) {
            return Err(KeyError::Mismatch);
        }
        let verified = match (&self.material, algorithm.scheme()) {
            (Material::Rsa(components), Scheme::Rsa(parameters)) => components.verify(parameters, message, signature),
            (Material::Ec(_, point), Scheme::Ec(_)) => point.verify_sig(message, signature),
            _ => return Err(KeyError::Mismatch),
        };
        verified.map_err(|_| KeyError::Signature)
    }

    /// The key in a JWK, or why it cannot be used.
    fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        let only = match jwk.get("alg") {
            None => None,
            Some(name) => Some(name.as_str().and_then(Algorithm::parse).ok_or("alg is not one that JWT-SVIDs use")?),
        };
        let material = match text(jwk, "kty") {
            Some("RSA") => rsa(jwk)?,
            Some("EC") => ec(jwk)?,
            // also "oct": a symmetric key would let every holder of the bundle sign
            _ => return Err("kty is neither RSA nor EC"),
        };
        let key = Self { material, only };
        match key.only {
            Some(only) if !key.fits(only) => Err("alg does not fit the key"),
            _ => Ok(key),
        }
    }
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    jwk.get(name).and_then(Value::as_str)
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    text(jwk, name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
}

fn rsa(jwk: &Map<String, Value>) -> Result<Material, &'static str> {
    let (Some(n), Some(e)) = (bytes(jwk, "n"), bytes(jwk, "e")) else {
        return Err("n or e is missing or not base64url");
    };
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err("the RSA key has fewer than 2048 or more than 8192 bits");
    }
    let components = PublicKeyComponents { n, e };
    match components.to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256) {
        Ok(_) => Ok(Material::Rsa(components)),
        Err(_) => Err("n and e are not an RSA key"),
    }
}

fn ec(jwk: &Map<String, Value>) -> Result<Material, &'static str> {
    let curve = text(jwk, "crv").and_then(Curve::parse).ok_or("crv is not P-256, P-384 or P-521")?;
    let (Some(x), Some(y)) = (bytes(jwk, "x"), bytes(jwk, "y")) else {
        return Err("x or y is missing or not base64url");
    };
    if x.len() != curve.coordinate() || y.len() != curve.coordinate() {
        return Err("x or y is not as long as the curve's field");
    }
    // uncompressed point, SEC 1 §2.3.3
    let point = [&[4][..], &x, &y].concat();
    let algorithm: &'static dyn VerificationAlgorithm = curve.verification();
    let key = ParsedPublicKey::new(algorithm, point).map_err(|_| "x and y are not a point on the curve")?;
    Ok(Material::Ec(curve, key))
}

/// Why a JWK Set cannot be read at all. Then its trust domain has no keys: nothing of it verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtBundleError {
    /// Longer than [`MAX_BUNDLE`], or more than [`MAX_KEYS`] keys.
    #[error("larger than 1 MiB or more than 1,000 keys")]
    TooLarge,
    /// Not a JSON object with an array `keys` (RFC 7517 §5).
    #[error("not a JWK Set")]
    NotAJwkSet,
}

/// The JWT authorities of one trust domain: verification keys by `kid`.
///
/// An empty bundle verifies nothing: it is how a trust domain revokes all (SPIFFE Trust Domain and Bundle §4.2.2).
#[derive(Default)]
pub struct JwtBundle {
    /// `None` marks a `kid` that several usable keys claim: neither is trusted.
    keys: BTreeMap<String, Option<Key>>,
    ignored: usize,
}

impl JwtBundle {
    /// Reads a JWK Set as the Workload API gives it for one trust domain.
    ///
    /// Keys that cannot verify JWT-SVIDs are left out, as RFC 7517 §5 and SPIFFE ask: no or empty `kid`, another `kty`
    /// than RSA and EC, a `use` other than `jwt-svid` or `sig` (it may be absent here: SPIRE strips it on this path),
    /// `key_ops` without `verify`, RSA under 2,048 bits, a point off its curve. A `kid` that two usable keys claim
    /// verifies nothing.
    ///
    /// # Errors
    /// Refuses the set as a whole when it is too large or not a JWK Set.
    pub fn parse(jwks: &[u8]) -> Result<Self, JwtBundleError> {
        if jwks.len() > MAX_BUNDLE {
            return Err(JwtBundleError::TooLarge);
        }
        let set: Value = serde_json::from_slice(jwks).map_err(|_| JwtBundleError::NotAJwkSet)?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(JwtBundleError::NotAJwkSet)?;
        Self::from_values(keys.iter())
    }

    /// The same from single JWKs, for a client that has taken the set apart already. Texts that are not JSON count as
    /// ignored keys.
    ///
    /// # Errors
    /// Refuses more than [`MAX_KEYS`] keys.
    pub fn from_jwks<'a>(jwks: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, JwtBundleError> {
        let values: Vec<Value> =
            jwks.into_iter().map(|jwk| serde_json::from_slice(jwk).unwrap_or(Value::Null)).collect();
        Self::from_values(values.iter())
    }

    fn from_values<'a>(jwks: impl ExactSizeIterator<Item = &'a Value>) -> Result<Self, JwtBundleError> {
        if jwks.len() > MAX_KEYS {
            return Err(JwtBundleError::TooLarge);
        }
        let mut bundle = Self::default();
        for jwk in jwks {
            bundle.add(jwk);
        }
        Ok(bundle)
    }

    fn add(&mut self, jwk: &Value) {
        match usable(jwk) {
            Ok((kid, key)) => {
                self.keys
                    .entry(kid.to_owned())
                    .and_modify(|known| {
                        tracing::warn!("two JWT authorities of one trust domain have the same kid: neither is trusted");
                        *known = None;
                    })
                    .or_insert(Some(key));
            }
            Err(reason) => {
                tracing::debug!(reason, "a key of a JWT bundle is not used");
                self.ignored += 1;
            }
        }
    }

    /// How many keys can verify tokens.
    pub fn len(&self) -> usize {
        self.keys.values().flatten().count()
    }

    /// Whether nothing can verify: then no token of this trust domain is trusted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys were left out because they cannot verify JWT-SVIDs.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    pub(super) fn key(&self, kid: &str) -> Option<&Key> {
        self.keys.get(kid)?.as_ref()
    }
}

impl fmt::Debug for JwtBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtBundle").field("kids", &self.keys.keys()).field("ignored", &self.ignored).finish()
    }
}

fn usable(jwk: &Value) -> Result<(&str, Key), &'static str> {
    let jwk = jwk.as_object().ok_or("not an object")?;
    let kid = text(jwk, "kid").filter(|kid| !kid.is_empty()).ok_or("no kid")?;
    match jwk.get("use") {
        None => {}
        Some(purpose) if matches!(purpose.as_str(), Some("jwt-svid" | "sig")) => {}
        Some(_) => return Err("use is another"),
    }
    if let Some(operations) = jwk.get("key_ops") {
        let verifies = operations.as_array().is_some_and(|all| all.iter().any(|one| one == "verify"));
        if !verifies {
            return Err("key_ops does not hold verify");
        }
    }
    Ok((kid, Key::from_jwk(jwk)?))
}
