use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::identity::workload_api::testing::{SigningKey, claims, jwks};

const ID: &str = "spiffe://example.org/ns/finance/sa/report";
const AUDIENCE: &str = "sidemint";
const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
const LIFE: Duration = Duration::from_secs(300);

type Bundles = BTreeMap<TrustDomain, Arc<JwtBundle>>;

static EC: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("P-256", "ec"));
static P384: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("P-384", "p384"));
static P521: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("P-521", "p521"));
static RSA: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("RSA", "rsa"));
static BUNDLES: LazyLock<Bundles> = LazyLock::new(|| bundles("example.org", &jwks([&*EC, &*P384, &*P521, &*RSA])));

fn bundles(trust_domain: &str, jwks: &[u8]) -> Bundles {
    [(trust_domain.parse().unwrap(), Arc::new(JwtBundle::parse(jwks).unwrap()))].into()
}

fn good_claims() -> Json {
    claims(ID, AUDIENCE, NOW, LIFE)
}

fn good_token() -> String {
    EC.sign(&good_claims())
}

fn check(token: &str) -> Result<Claims, JwtSvidError> {
    verify(token, &BUNDLES, AUDIENCE, NOW)
}

/// A token with a valid signature over `header` and the good claims.
fn with_header(header: &str) -> Result<Claims, JwtSvidError> {
    check(&EC.sign_text("ES256", header, &good_claims().to_string()))
}

/// A token with a valid signature over the usual header and `claims`.
fn with_claims(claims: &str) -> Result<Claims, JwtSvidError> {
    check(&EC.sign_text("ES256", r#"{"alg":"ES256","kid":"ec","typ":"JWT"}"#, claims))
}

/// The good claims with one member replaced by a JSON text, or removed.
fn with_member(name: &str, value: Option<&str>) -> Result<Claims, JwtSvidError> {
    let mut members: Vec<String> = good_claims()
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| *key != name)
        .map(|(key, value)| format!("\"{key}\":{value}"))
        .collect();
    members.extend(value.map(|value| format!("\"{name}\":{value}")));
    with_claims(&format!("{{{}}}", members.join(",")))
}

#[test]
fn accepts_what_spire_issues() {
    let expected = Claims { spiffe_id: ID.parse().unwrap(), expires_at: NOW.floor_to_second() + LIFE };
    assert_eq!(check(&good_token()), Ok(expected));
}

#[test]
fn accepts_each_of_the_nine_algorithms_with_the_key_it_is_for() {
    for (key, algorithms) in [
        (&*EC, &["ES256"][..]),
        (&*P384, &["ES384"]),
        (&*P521, &["ES512"]),
        (&*RSA, &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ] {
        for algorithm in algorithms {
            let header = json!({"alg": algorithm, "kid": key.kid()}).to_string();
            let token = key.sign_text(algorithm, &header, &good_claims().to_string());
            assert!(check(&token).is_ok(), "{algorithm}");
        }
    }
}

#[test]
fn rejects_every_other_algorithm_before_any_other_check() {
    for algorithm in [
        r#""none""#,
        r#""None""#,
        r#""NONE""#,
        r#""nOnE""#,
        r#""""#,
        r#""HS256""#,
        r#""HS384""#,
        r#""HS512""#,
        r#""EdDSA""#,
        r#""Ed25519""#,
        r#""ES256K""#,
        r#""es256""#,
        r#""ES256 ""#,
        r#""RS1""#,
        r#""RSA-OAEP""#,
        r#""dir""#,
        "null",
        "256",
        r#"["ES256"]"#,
        r#"{"alg":"ES256"}"#,
        "true",
    ] {
        // the rest of the header is wrong as well: alg comes first
        let header = format!(r#"{{"alg":{algorithm},"crit":["x"],"typ":"wit+jwt"}}"#);
        assert_eq!(with_header(&header), Err(JwtSvidError::Algorithm), "{algorithm}");
    }
    assert_eq!(with_header(r#"{"kid":"ec","typ":"JWT"}"#), Err(JwtSvidError::Algorithm));
}

#[test]
fn binds_the_algorithm_to_the_key_not_to_the_token() {
    let text = good_claims().to_string();
    for (key, algorithm) in [
        (&*EC, "ES384"),
        (&*EC, "ES512"),
        (&*EC, "RS256"),
        (&*EC, "PS256"),
        (&*P384, "ES256"),
        (&*P521, "ES256"),
        (&*RSA, "ES256"),
    ] {
        let token = key.sign_text("RS256", &json!({"alg": algorithm, "kid": key.kid()}).to_string(), &text);
        assert_eq!(check(&token), Err(JwtSvidError::KeyMismatch), "{} {algorithm}", key.kid());
    }
    // the right type of key, but a signature of another scheme
    for (said, done) in [("PS256", "RS256"), ("RS256", "PS256"), ("RS384", "RS256"), ("PS512", "PS256")] {
        let token = RSA.sign_text(done, &json!({"alg": said, "kid": "rsa"}).to_string(), &text);
        assert_eq!(check(&token), Err(JwtSvidError::Signature), "{said} {done}");
    }
}

#[test]
fn a_key_that_declares_its_algorithm_verifies_no_other() {
    let mut jwk = RSA.jwk();
    jwk["alg"] = json!("RS256");
    let bundles = bundles("example.org", json!({"keys": [jwk]}).to_string().as_bytes());
    let token = |algorithm| {
        RSA.sign_text(algorithm, &json!({"alg": algorithm, "kid": "rsa"}).to_string(), &good_claims().to_string())
    };
    assert!(verify(&token("RS256"), &bundles, AUDIENCE, NOW).is_ok());
    assert_eq!(verify(&token("PS256"), &bundles, AUDIENCE, NOW), Err(JwtSvidError::KeyMismatch));
}

#[test]
fn rejects_header_parameters_that_a_jwt_svid_may_not_have() {
    for extra in [
        r#""crit":["exp"]"#,
        r#""crit":[]"#,
        r#""jku":"https://example.org/keys""#,
        r#""jwk":{"kty":"EC"}"#,
        r#""x5c":["MA=="]"#,
        r#""x5u":"https://example.org/cert""#,
        r#""x5t":"AAAA""#,
        r#""cty":"JWT""#,
        r#""b64":false"#,
        r#""zip":"DEF""#,
        r#""enc":"A128GCM""#,
        r#""Alg":"none""#,
        r#""":1"#,
    ] {
        let header = format!(r#"{{"alg":"ES256","kid":"ec",{extra}}}"#);
        assert_eq!(with_header(&header), Err(JwtSvidError::Header), "{extra}");
    }
}

#[test]
fn accepts_only_the_two_types_of_the_specification() {
    for typ in [r#""JWT""#, r#""JOSE""#] {
        assert!(with_header(&format!(r#"{{"alg":"ES256","kid":"ec","typ":{typ}}}"#)).is_ok(), "{typ}");
    }
    assert!(with_header(r#"{"alg":"ES256","kid":"ec"}"#).is_ok());
    for typ in [r#""wit+jwt""#, r#""jwt""#, r#""at+jwt""#, r#""application/jwt""#, r#""""#, "null", "1", r#"["JWT"]"#] {
        let header = format!(r#"{{"alg":"ES256","kid":"ec","typ":{typ}}}"#);
        assert_eq!(with_header(&header), Err(JwtSvidError::Type), "{typ}");
    }
}

#[test]
fn requires_a_kid_that_the_bundle_knows() {
    assert_eq!(with_header(r#"{"alg":"ES256"}"#), Err(JwtSvidError::KeyId));
    for kid in [r#""""#, "null", "1", r#"["ec"]"#, r#"{"ec":1}"#] {
        assert_eq!(with_header(&format!(r#"{{"alg":"ES256","kid":{kid}}}"#)), Err(JwtSvidError::KeyId), "{kid}");
    }
    for kid in ["EC", "ec ", "ec\\u0000", "../ec", "' OR 1=1 --", "/dev/null"] {
        let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
        assert_eq!(with_header(&header), Err(JwtSvidError::UnknownKey), "{kid}");
    }
    // another key of the same trust domain
    assert_eq!(with_header(r#"{"alg":"ES384","kid":"p384"}"#), Err(JwtSvidError::Signature));
}

#[test]
fn rejects_repeated_members_wherever_they_are() {
    for header in [
        r#"{"alg":"ES256","alg":"ES256","kid":"ec"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"ec"}"#,
        r#"{"alg":"ES256","kid":"ec","\u006bid":"other"}"#,
    ] {
        assert_eq!(with_header(header), Err(JwtSvidError::Duplicate), "{header}");
    }
    let good = good_claims().to_string();
    for extra in [
        r#""sub":"spiffe://example.org/other""#,
        r#""a\u0075d":"other""#,
        r#""exp":99999999999"#,
        r#""x":{"y":1,"y":2}"#,
        r#""x":[[{"y":1,"y":2}]]"#,
    ] {
        let claims = format!("{},{extra}}}", good.strip_suffix('}').unwrap());
        assert_eq!(with_claims(&claims), Err(JwtSvidError::Duplicate), "{extra}");
    }
}

#[test]
fn rejects_headers_and_claims_that_are_not_one_object() {
    for text in ["", "null", "[]", "1", "\"x\"", "{", "{}{}", "{\"alg\":}", "\u{feff}{}"] {
        let header = with_header(text);
        let claims = with_claims(text);
        let expected = if text.is_empty() { JwtSvidError::Malformed } else { JwtSvidError::Json };
        assert_eq!((header, claims), (Err(expected), Err(expected)), "{text:?}");
    }
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    assert_eq!(with_claims(&deep), Err(JwtSvidError::Json));
}

#[test]
fn rejects_what_is_not_a_compact_jws() {
    let token = good_token();
    let parts: Vec<&str> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    for text in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        header.into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!(".{payload}.{signature}"),
        format!("{header}..{signature}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{signature}"),
        format!("{header}.{payload}.{signature}.{signature}.{signature}"),
        format!("{token}="),
        format!("{token}=="),
        format!("{header}=.{payload}.{signature}"),
        format!(" {token}"),
        format!("{token}\n"),
        format!("Bearer {token}"),
        token.replace('.', ","),
        json!({"payload": payload, "protected": header, "signature": signature}).to_string(),
        format!("{header}.{payload}.{}", "é".repeat(20)),
    ] {
        assert_eq!(check(&text), Err(JwtSvidError::Malformed), "{text}");
    }
}

#[test]
fn rejects_trailing_bits_that_would_give_a_token_a_second_spelling() {
    let token = good_token();
    // 64 bytes are 86 characters, the last of which carries 2 bits: 15 other characters decode to the same byte
    let last = token.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for other in alphabet.chars().filter(|c| *c != last) {
        let respelt = format!("{}{other}", &token[..token.len() - 1]);
        assert!(matches!(check(&respelt), Err(JwtSvidError::Malformed | JwtSvidError::Signature)), "{other}");
    }
}

#[test]
fn rejects_a_token_over_the_size_limit_even_when_it_is_good() {
    let sized = |filler: usize| {
        let mut claims = good_claims();
        claims["x"] = json!("x".repeat(filler));
        EC.sign(&claims)
    };
    let largest = (5000..6200).rev().map(sized).find(|token| token.len() <= MAX_TOKEN).unwrap();
    assert!(largest.len() > MAX_TOKEN - 4);
    assert!(check(&largest).is_ok());
    assert_eq!(check(&sized(6200)), Err(JwtSvidError::Oversize));
}

#[test]
fn requires_the_spiffe_id_of_a_workload_as_subject() {
    for sub in [
        "null",
        "1",
        "{}",
        r#"["spiffe://example.org/a"]"#,
        r#""""#,
        r#""report""#,
        r#""spiffe://example.org""#,
        r#""spiffe://example.org/""#,
        r#""SPIFFE://example.org/a""#,
        r#""spiffe://EXAMPLE.org/a""#,
        r#""spiffe://example.org/a/../b""#,
        r#""spiffe://example.org/a%2fb""#,
        r#""spiffe://user@example.org/a""#,
        r#""spiffe://example.org:443/a""#,
        r#""spiffe://example.org/a?b""#,
        r#""spiffe://example.org/a#b""#,
        r#""https://example.org/a""#,
        r#"" spiffe://example.org/a""#,
    ] {
        assert_eq!(with_member("sub", Some(sub)), Err(JwtSvidError::Subject), "{sub}");
    }
    assert_eq!(with_member("sub", None), Err(JwtSvidError::Subject));
}

#[test]
fn accepts_exactly_one_audience_and_only_ours() {
    for aud in [r#""sidemint""#, r#"["sidemint"]"#] {
        assert!(with_member("aud", Some(aud)).is_ok(), "{aud}");
    }
    for aud in [
        "null",
        "1",
        "{}",
        "[]",
        r#""""#,
        r#"[""]"#,
        r#"[null]"#,
        r#"[["sidemint"]]"#,
        r#"{"sidemint":1}"#,
        r#""Sidemint""#,
        r#""sidemint ""#,
        r#""sidemint,other""#,
        r#"["other"]"#,
        r#""sts.amazonaws.com""#,
    ] {
        assert_eq!(with_member("aud", Some(aud)), Err(JwtSvidError::Audience), "{aud}");
    }
    assert_eq!(with_member("aud", None), Err(JwtSvidError::Audience));
    for aud in [r#"["sidemint","other"]"#, r#"["other","sidemint"]"#, r#"["sidemint","sidemint"]"#, r#"["a","b"]"#] {
        assert_eq!(with_member("aud", Some(aud)), Err(JwtSvidError::SeveralAudiences), "{aud}");
    }
}

#[test]
fn never_accepts_the_audience_of_a_cloud_provider() {
    for cloud in [
        "sts.amazonaws.com",
        "https://sts.eu-west-1.amazonaws.com/",
        "sts.cn-north-1.amazonaws.com.cn",
        "STS.amazonaws.com",
        "api://AzureADTokenExchange",
        "api://AzureADTokenExchangeUSGov",
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "https://iam.googleapis.com/projects/1",
    ] {
        assert!(is_cloud_audience(cloud), "{cloud}");
        let token = EC.sign(&claims(ID, cloud, NOW, LIFE));
        // even when configuration were to name it as ours
        assert_eq!(verify(&token, &BUNDLES, cloud, NOW), Err(JwtSvidError::Audience), "{cloud}");
        assert_eq!(check(&token), Err(JwtSvidError::Audience), "{cloud}");
    }
    for ours in [
        "sidemint",
        "spiffe://example.org/sidemint",
        "https://sidemint.example.org",
        "myamazonaws.com",
        "googleapis.com.example.org",
    ] {
        assert!(!is_cloud_audience(ours), "{ours}");
    }
}

#[test]
fn reads_times_only_as_whole_seconds_in_plain_digits() {
    let soon = NOW.as_secs() + 60;
    for value in [
        "null".into(),
        "true".into(),
        "{}".into(),
        format!("[{soon}]"),
        format!("\"{soon}\""),
        "\"\"".into(),
        "-1".into(),
        "-0".into(),
        format!("-{soon}"),
        format!("{soon}.0"),
        format!("{soon}.5"),
        "1.795452600e9".into(),
        "1e400000".into(),
        "1E10".into(),
        "253402300800".into(),
        "18446744073709551615".into(),
        "18446744073709551616".into(),
        "9".repeat(400),
    ] {
        for claim in ["exp", "nbf", "iat"] {
            let refused = with_member(claim, Some(&value));
            assert!(
                // 1e400000 overflows the reader of numbers itself
                matches!(refused, Err(JwtSvidError::NumericDate | JwtSvidError::Json)),
                "{claim} {value}: {refused:?}"
            );
        }
    }
    assert_eq!(with_member("exp", None), Err(JwtSvidError::NumericDate));
    for optional in ["nbf", "iat"] {
        assert!(with_member(optional, None).is_ok());
        assert!(with_member(optional, Some("0")).is_ok());
    }
}

#[test]
fn honours_expiry_to_the_millisecond_and_starts_within_the_leeway() {
    let token = good_token();
    let end = NOW + LIFE;
    let at = |now| verify(&token, &BUNDLES, AUDIENCE, now);
    assert!(at(end - Duration::from_millis(1)).is_ok());
    assert_eq!(at(end), Err(JwtSvidError::Expired));
    assert_eq!(at(Timestamp::MAX), Err(JwtSvidError::Expired));
    assert_eq!(with_member("exp", Some("0")), Err(JwtSvidError::Expired));

    // its iat is NOW
    assert!(at(NOW - LEEWAY).is_ok());
    assert_eq!(at(NOW - LEEWAY - Duration::from_millis(1)), Err(JwtSvidError::NotYetValid));
    let edge = NOW.as_secs() + LEEWAY.as_secs();
    for claim in ["nbf", "iat"] {
        assert!(with_member(claim, Some(&edge.to_string())).is_ok());
        assert_eq!(with_member(claim, Some(&(edge + 1).to_string())), Err(JwtSvidError::NotYetValid));
    }
}

#[test]
fn rejects_a_token_that_would_live_too_long() {
    let edge = NOW.as_secs() + MAX_LIFETIME.as_secs();
    assert!(with_member("exp", Some(&edge.to_string())).is_ok());
    assert_eq!(with_member("exp", Some(&(edge + 1).to_string())), Err(JwtSvidError::Lifetime));
    assert_eq!(with_member("exp", Some("253402300799")), Err(JwtSvidError::Lifetime));
}

#[test]
fn the_keys_of_one_trust_domain_never_verify_for_another() {
    let ours = SigningKey::generate("P-256", "same-kid");
    let theirs = SigningKey::generate("P-256", "same-kid");
    let mut both = bundles("example.org", &jwks([&ours]));
    both.extend(bundles("other.org", &jwks([&theirs])));
    let at = |token: &str| verify(token, &both, AUDIENCE, NOW);

    let own = ours.sign(&claims("spiffe://example.org/a", AUDIENCE, NOW, LIFE));
    let own_other = theirs.sign(&claims("spiffe://other.org/a", AUDIENCE, NOW, LIFE));
    assert!(at(&own).is_ok() && at(&own_other).is_ok());
    for (signer, victim) in [(&theirs, "example.org"), (&ours, "other.org")] {
        let forged = signer.sign(&claims(&format!("spiffe://{victim}/a"), AUDIENCE, NOW, LIFE));
        assert_eq!(at(&forged), Err(JwtSvidError::Signature), "{victim}");
    }
    for unknown in ["example.org.evil", "example.or", "xample.org", "third.org"] {
        let token = ours.sign(&claims(&format!("spiffe://{unknown}/a"), AUDIENCE, NOW, LIFE));
        assert_eq!(at(&token), Err(JwtSvidError::NoBundle), "{unknown}");
    }
    // `iss` does not choose the keys
    let mut claims = claims("spiffe://example.org/a", AUDIENCE, NOW, LIFE);
    claims["iss"] = json!("spiffe://other.org");
    assert_eq!(at(&theirs.sign(&claims)), Err(JwtSvidError::Signature));
}

#[test]
fn an_empty_bundle_verifies_nothing() {
    let empty = bundles("example.org", br#"{"keys":[]}"#);
    assert_eq!(verify(&good_token(), &empty, AUDIENCE, NOW), Err(JwtSvidError::UnknownKey));
    assert_eq!(verify(&good_token(), &Bundles::new(), AUDIENCE, NOW), Err(JwtSvidError::NoBundle));
}

#[test]
fn rejects_every_flip_of_one_bit() {
    let token = good_token();
    assert!(check(&token).is_ok());
    for position in 0..token.len() {
        for bit in 0..8 {
            let mut bytes = token.clone().into_bytes();
            bytes[position] ^= 1 << bit;
            // a flip that is not UTF-8 cannot reach the verifier as text
            if let Ok(mutant) = String::from_utf8(bytes) {
                assert!(check(&mutant).is_err(), "bit {bit} of byte {position}");
            }
        }
    }
}

#[test]
fn rejects_every_truncation_and_every_single_byte_replaced() {
    let token = good_token();
    for length in 0..token.len() {
        assert!(check(&token[..length]).is_err(), "{length}");
    }
    for position in 0..token.len() {
        for replacement in "AZaz09-_.=+/ ".bytes() {
            let mut bytes = token.clone().into_bytes();
            if bytes[position] != replacement {
                bytes[position] = replacement;
                assert!(check(&String::from_utf8(bytes).unwrap()).is_err(), "{position} {replacement}");
            }
        }
    }
}

#[test]
fn rejects_degenerate_signatures() {
    let token = good_token();
    let (signed, _) = token.rsplit_once('.').unwrap();
    let asn1 = [0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01];
    for signature in [vec![0; 64], vec![0xff; 64], vec![0; 63], vec![0; 65], vec![1], asn1.to_vec()] {
        let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
        assert_eq!(check(&forged), Err(JwtSvidError::Signature), "{signature:?}");
    }
}

#[test]
fn no_error_contains_any_part_of_the_token() {
    let mut errors = vec![check("smt_secret").unwrap_err()];
    for member in ["sub", "aud", "exp", "nbf"] {
        errors.push(with_member(member, Some(r#""hunter2""#)).unwrap_err());
    }
    errors.push(with_header(r#"{"alg":"hunter2","kid":"hunter2"}"#).unwrap_err());
    errors.push(with_header(r#"{"alg":"ES256","kid":"hunter2"}"#).unwrap_err());
    for error in errors {
        let text = format!("{error} {error:?} {}", error.kind());
        assert!(!text.contains("hunter2") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_bundle_uses_only_keys_that_may_verify_jwt_svids() {
    let with = |change: &dyn Fn(&mut Json)| {
        let mut jwk = EC.jwk();
        change(&mut jwk);
        JwtBundle::parse(json!({"keys": [jwk], "spiffe_sequence": 1}).to_string().as_bytes()).unwrap()
    };
    for purpose in ["jwt-svid", "sig"] {
        assert_eq!(with(&|jwk| jwk["use"] = json!(purpose)).len(), 1, "{purpose}");
    }
    assert_eq!(with(&|jwk| jwk["key_ops"] = json!(["verify"])).len(), 1);
    assert_eq!(with(&|jwk| jwk["alg"] = json!("ES256")).len(), 1);
    type Change = &'static dyn Fn(&mut Json);
    let changes: [(&str, Change); 20] = [
        ("x509 use", &|jwk| jwk["use"] = json!("x509-svid")),
        ("wit use", &|jwk| jwk["use"] = json!("wit-svid")),
        ("enc use", &|jwk| jwk["use"] = json!("enc")),
        ("case of use", &|jwk| jwk["use"] = json!("JWT-SVID")),
        ("null use", &|jwk| jwk["use"] = json!(null)),
        ("no kid", &|jwk| drop(jwk.as_object_mut().unwrap().remove("kid"))),
        ("empty kid", &|jwk| jwk["kid"] = json!("")),
        ("number kid", &|jwk| jwk["kid"] = json!(1)),
        ("oct", &|jwk| *jwk = json!({"kty": "oct", "kid": "k", "k": "AAAA"})),
        ("OKP", &|jwk| jwk["kty"] = json!("OKP")),
        ("kty in lower case", &|jwk| jwk["kty"] = json!("ec")),
        ("unknown curve", &|jwk| jwk["crv"] = json!("secp256k1")),
        ("other curve", &|jwk| jwk["crv"] = json!("P-384")),
        ("off the curve", &|jwk| jwk["x"] = jwk["y"].clone()),
        ("the origin", &|jwk| {
            jwk["x"] = json!(URL_SAFE_NO_PAD.encode([0; 32]));
            jwk["y"] = jwk["x"].clone();
        }),
        ("padded x", &|jwk| jwk["x"] = json!(format!("{}=", jwk["x"].as_str().unwrap()))),
        ("no y", &|jwk| drop(jwk.as_object_mut().unwrap().remove("y"))),
        ("another alg", &|jwk| jwk["alg"] = json!("ES384")),
        ("a symmetric alg", &|jwk| jwk["alg"] = json!("HS256")),
        ("only signs", &|jwk| jwk["key_ops"] = json!(["sign"])),
    ];
    for (name, change) in changes {
        let bundle = with(change);
        assert!(bundle.is_empty() && bundle.ignored() == 1, "{name}");
    }
}

#[test]
fn a_bundle_refuses_weak_and_malformed_rsa_keys() {
    let with_n = |n: Vec<u8>| {
        let jwk = json!({"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(n)});
        JwtBundle::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap()
    };
    let good = URL_SAFE_NO_PAD.decode(RSA.jwk()["n"].as_str().unwrap()).unwrap();
    assert_eq!(with_n(good.clone()).len(), 1);
    let mut short = good.clone();
    short[0] = 0x7f;
    let mut tiny = good[..128].to_vec();
    tiny[0] |= 0x80;
    let padded = [&[0][..], &good].concat();
    for (name, n) in [
        ("2047 bits", short),
        ("1024 bits", tiny),
        ("leading zero", padded),
        ("empty", vec![]),
        ("8200 bits", vec![0xff; 1025]),
    ] {
        assert!(with_n(n).is_empty(), "{name}");
    }
}

#[test]
fn drops_both_keys_of_a_duplicate_kid() {
    let twin = SigningKey::generate("P-256", "ec");
    let other = SigningKey::generate("P-256", "other");
    let bundles = bundles("example.org", &jwks([&*EC, &twin, &other]));
    for key in [&*EC, &twin] {
        assert_eq!(verify(&key.sign(&good_claims()), &bundles, AUDIENCE, NOW), Err(JwtSvidError::UnknownKey));
    }
    assert!(verify(&other.sign(&good_claims()), &bundles, AUDIENCE, NOW).is_ok());
}

#[test]
fn a_bundle_has_limits() {
    let many: Vec<Json> = (0..=MAX_KEYS).map(|n| json!({"kid": n.to_string()})).collect();
    let many = json!({ "keys": many }).to_string();
    assert_eq!(JwtBundle::parse(many.as_bytes()).unwrap_err(), JwtBundleError::TooLarge);
    let large = format!("{{\"keys\":[]{}}}", " ".repeat(MAX_BUNDLE));
    assert_eq!(JwtBundle::parse(large.as_bytes()).unwrap_err(), JwtBundleError::TooLarge);
    for text in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#, "{\"keys\":[]"] {
        assert_eq!(JwtBundle::parse(text.as_bytes()).unwrap_err(), JwtBundleError::NotAJwkSet, "{text}");
    }
}

/// One change to the bytes of a text.
#[derive(Debug, Clone)]
enum Edit {
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Replace(at, byte) => bytes[at.index(length)] = *byte,
            Self::Insert(at, byte) => bytes.insert(at.index(length + 1), *byte),
            Self::Remove(at) => drop(bytes.remove(at.index(length))),
            Self::Swap(a, b) => bytes.swap(a.index(length), b.index(length)),
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<prop::sample::Index>;
    let byte = prop::sample::select(&b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.="[..]);
    let edit = prop_oneof![
        (index(), byte.clone()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (index(), byte).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        index().prop_map(Edit::Remove),
        (index(), index()).prop_map(|(a, b)| Edit::Swap(a, b)),
    ];
    prop::collection::vec(edit, 1..8)
}

proptest! {
    #[test]
    fn no_edited_token_is_accepted(edits in edits()) {
        let token = good_token();
        let mut bytes = token.clone().into_bytes();
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        let mutant = String::from_utf8(bytes).unwrap();
        prop_assume!(mutant != token);
        prop_assert!(check(&mutant).is_err());
    }

    #[test]
    fn rejects_parts_of_different_tokens_combined(first in 0..6_usize, second in 0..6_usize, third in 0..6_usize) {
        prop_assume!(!(first == second && second == third));
        let tokens: Vec<String> = (0..6)
            .map(|n| {
                let mut claims = claims(&format!("spiffe://example.org/{n}"), AUDIENCE, NOW, LIFE);
                claims["n"] = json!(n);
                let key = [&*EC, &*P384][n % 2];
                key.sign(&claims)
            })
            .collect();
        let part = |token: usize, part: usize| tokens[token].split('.').nth(part).unwrap();
        let mixed = format!("{}.{}.{}", part(first, 0), part(second, 1), part(third, 2));
        // the headers of one key are the same text, so only the payload and its signature must belong together
        let genuine = second == third && first % 2 == second % 2;
        prop_assert_eq!(check(&mixed).is_ok(), genuine);
    }

    #[test]
    fn never_panics_on_any_text(text in any::<String>(), parts in prop::collection::vec("[A-Za-z0-9_=-]{0,40}", 0..5)) {
        prop_assert!(check(&text).is_err());
        prop_assert!(check(&parts.join(".")).is_err());
    }

    #[test]
    fn never_panics_on_signed_nonsense(header in r#"\{"alg":"ES256",?("kid":("ec"|1),?)?("typ":"[A-Z]{0,4}")?\}"#, claims in r#"[\{\}\[\]":,a0e.-]{1,40}"#) {
        prop_assert!(check(&EC.sign_text("ES256", &header, &claims)).is_err());
    }

    #[test]
    fn a_bundle_parser_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = JwtBundle::parse(&bytes);
    }
}
