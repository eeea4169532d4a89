//! The cases: each a token, the bundles it meets and the verdict.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512, digest};
use serde_json::{Value, json};
use sidemint::clock::Timestamp;

use crate::generate::{Signer, base64url, der_of, jwk, mac_token, order, order_less, rsa_der, sum};

pub(crate) const ID: &str = "spiffe://example.org/ns/finance/sa/report";
pub(crate) const AUDIENCE: &str = "sidemint";
const NOW: &str = "2026-11-23T12:00:00Z";
/// [`NOW`] in seconds.
const SECONDS: u64 = 1_795_435_200;
const HEADER: &str = r#"{"alg":"ES256","kid":"p256","typ":"JWT"}"#;

pub(crate) struct Case {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) bundles: BTreeMap<String, String>,
    pub(crate) audience: String,
    pub(crate) now: Timestamp,
    pub(crate) expect: &'static str,
    pub(crate) spiffe_id: String,
    pub(crate) expires_at: Timestamp,
    pub(crate) reason: &'static str,
}

pub(crate) struct Cases<'a> {
    pub(crate) all: Vec<Case>,
    pub(crate) bundles: BTreeMap<String, Value>,
    signer: &'a Signer,
    group: &'static str,
    reason: &'static str,
}

pub(crate) fn all(signer: &Signer) -> Cases<'_> {
    let mut cases = Cases { all: Vec::new(), bundles: bundles(), signer, group: "", reason: "" };
    cases.algorithms();
    cases.headers();
    cases.form();
    cases.json();
    cases.subjects();
    cases.audiences();
    cases.times();
    cases.signatures();
    cases.keys();
    cases.trust();
    cases
}

fn edited(key: &str, name: &str, value: Value) -> Value {
    let mut jwk = jwk(key, key);
    jwk[name] = value;
    jwk
}

fn without(key: &str, name: &str) -> Value {
    let mut jwk = jwk(key, key);
    jwk.as_object_mut().unwrap().remove(name);
    jwk
}

fn set(keys: impl Into<Vec<Value>>) -> Value {
    json!({ "keys": keys.into() })
}

/// The JWK Sets by name. What begins with `p256` has the usual key, spoilt or with others beside it.
fn bundles() -> BTreeMap<String, Value> {
    let p256 = || jwk("p256", "p256");
    let text = |name: &str| jwk("p256", "p256")[name].as_str().unwrap().to_owned();
    let sets = [
        ("main", set([p256(), jwk("p384", "p384"), jwk("p521", "p521"), jwk("rsa", "rsa"), jwk("other", "other")])),
        ("foreign", set([jwk("foreign", "foreign"), jwk("foreign", "p256")])),
        ("empty", set([])),
        ("p256 alone", set([p256()])),
        ("p256 twice", set([p256(), p256()])),
        ("p256 and another of its kid", set([p256(), jwk("other", "p256")])),
        ("another of its kid and p256", set([jwk("other", "p256"), p256()])),
        ("p256 without kid", set([without("p256", "kid")])),
        ("p256 with an empty kid", set([edited("p256", "kid", json!(""))])),
        ("p256 with a number for kid", set([edited("p256", "kid", json!(1))])),
        ("p256 beside one without kid", set([without("other", "kid"), p256()])),
        ("p256 beside one of no known type", set([json!({"kty": "XYZ", "kid": "x"}), p256()])),
        ("p256 beside Ed25519", set([jwk("ed25519", "ed25519"), p256()])),
        ("p256 beside a symmetric one", set([json!({"kty": "oct", "kid": "oct", "k": base64url([7; 32])}), p256()])),
        ("p256 beside what is no key", set([json!("no key"), p256()])),
        ("p256 for x509-svid", set([edited("p256", "use", json!("x509-svid"))])),
        ("p256 for jwt-svid", set([edited("p256", "use", json!("jwt-svid"))])),
        ("p256 for wit-svid", set([edited("p256", "use", json!("wit-svid"))])),
        ("p256 for sig", set([edited("p256", "use", json!("sig"))])),
        ("p256 for enc", set([edited("p256", "use", json!("enc"))])),
        ("p256 for JWT-SVID", set([edited("p256", "use", json!("JWT-SVID"))])),
        ("p256 for a list", set([edited("p256", "use", json!(["jwt-svid"]))])),
        ("p256 to verify", set([edited("p256", "key_ops", json!(["verify"]))])),
        ("p256 to sign", set([edited("p256", "key_ops", json!(["sign"]))])),
        ("p256 to do nothing", set([edited("p256", "key_ops", json!([]))])),
        ("p256 that says ES256", set([edited("p256", "alg", json!("ES256"))])),
        ("p256 that says ES384", set([edited("p256", "alg", json!("ES384"))])),
        ("p256 that says HS256", set([edited("p256", "alg", json!("HS256"))])),
        ("p256 that says P-384", set([edited("p256", "crv", json!("P-384"))])),
        ("p256 that says secp256k1", set([edited("p256", "crv", json!("secp256k1"))])),
        ("p256 that says RSA", set([edited("p256", "kty", json!("RSA"))])),
        ("p256 off its curve", set([edited("p256", "y", json!(text("x")))])),
        ("p256 without y", set([without("p256", "y")])),
        ("p256 with a short x", set([edited("p256", "x", json!(text("x")[..40].to_owned()))])),
        ("p256 with a zero before x", {
            set([edited("p256", "x", json!(base64url([&[0][..], &coordinates()[..32]].concat())))])
        }),
        ("p256 with spare bits in x", set([edited("p256", "x", json!(spare_bit(&text("x"))))])),
        ("p256 in hexadecimal", set([edited("p256", "x", json!(hexadecimal(&coordinates()[..32])))])),
        ("p256 at infinity", set([edited("p256", "x", json!(base64url([0; 32])))])),
        ("p256 with padding", set([edited("p256", "x", json!(format!("{}=", text("x"))))])),
        ("p256 and unknown members", json!({"keys": [edited("p256", "x-note", json!("a"))], "spiffe_sequence": 1})),
        ("p256 in no list", json!({"keys": p256()})),
        ("no keys", json!({})),
        ("no set", json!([p256()])),
        ("rsa1024", set([jwk("rsa1024", "rsa1024")])),
        ("rsa that says RS256", set([edited("rsa", "alg", json!("RS256"))])),
        ("rsa with exponent 1", set([edited("rsa", "e", json!(base64url([1])))])),
        ("rsa with exponent 2", set([edited("rsa", "e", json!(base64url([2])))])),
        ("rsa with exponent 0", set([edited("rsa", "e", json!(base64url([0])))])),
        ("rsa with exponent 3", set([edited("rsa", "e", json!(base64url([3])))])),
        ("rsa with an exponent of 65 bits", set([edited("rsa", "e", json!(base64url([1, 0, 0, 0, 0, 0, 0, 0, 1])))])),
        ("rsa with a zero before its modulus", {
            set([edited("rsa", "n", json!(base64url([&[0][..], &modulus()].concat())))])
        }),
        ("rsa with a zero before its exponent", set([edited("rsa", "e", json!(base64url([0, 1, 0, 1])))])),
        ("rsa with an even modulus", set([edited("rsa", "n", json!(base64url(even_modulus())))])),
        ("ed25519", set([jwk("ed25519", "ed25519")])),
        ("symmetric", set([json!({"kty": "oct", "kid": "oct", "k": base64url([7; 32])})])),
    ];
    sets.into_iter().map(|(name, set)| (name.to_owned(), set)).collect()
}

/// Claims as SPIRE writes them.
fn claims() -> String {
    json!({"aud": [AUDIENCE], "exp": SECONDS + 300, "iat": SECONDS - 10, "sub": ID}).to_string()
}

/// The same with one member in place of what it was, or of nothing; `None` leaves it out.
fn with(name: &str, value: Option<&str>) -> String {
    let usual: Value = serde_json::from_str(&claims()).unwrap();
    let members = usual.as_object().unwrap().iter().filter(|(key, _)| *key != name);
    let mut members: Vec<String> = members.map(|(key, value)| format!("\"{key}\":{value}")).collect();
    members.extend(value.map(|value| format!("\"{name}\":{value}")));
    format!("{{{}}}", members.join(","))
}

impl Cases<'_> {
    fn about(&mut self, group: &'static str, reason: &'static str) {
        (self.group, self.reason) = (group, reason);
    }

    /// A case in the usual surroundings.
    fn add(&mut self, name: impl Into<String>, token: String, expect: &'static str) -> &mut Case {
        let case = Case {
            group: self.group,
            name: name.into(),
            token,
            bundles: BTreeMap::from([("example.org".into(), "main".into())]),
            audience: AUDIENCE.into(),
            now: NOW.parse().unwrap(),
            expect,
            spiffe_id: ID.into(),
            expires_at: Timestamp::from_secs(SECONDS + 300),
            reason: self.reason,
        };
        self.all.push(case);
        self.all.last_mut().unwrap()
    }

    /// The usual claims below this header, signed with P-256.
    fn header(&mut self, name: impl Into<String>, header: &str, expect: &'static str) -> &mut Case {
        let token = self.signer.token("p256", "ES256", header, &claims());
        self.add(name, token, expect)
    }

    /// These claims below the usual header.
    fn claims(&mut self, name: impl Into<String>, claims: &str, expect: &'static str) -> &mut Case {
        let token = self.signer.token("p256", "ES256", HEADER, claims);
        self.add(name, token, expect)
    }

    fn good(&self) -> String {
        self.signer.token("p256", "ES256", HEADER, &claims())
    }

    fn algorithms(&mut self) {
        self.about("algorithm", "SPIFFE JWT-SVID §2.1: the nine, with the key that each is for");
        let pairs = [
            ("p256", "ES256"),
            ("p384", "ES384"),
            ("p521", "ES512"),
            ("rsa", "RS256"),
            ("rsa", "RS384"),
            ("rsa", "RS512"),
            ("rsa", "PS256"),
            ("rsa", "PS384"),
            ("rsa", "PS512"),
        ];
        for (key, algorithm) in pairs {
            let header = json!({"alg": algorithm, "kid": key}).to_string();
            let token = self.signer.token(key, algorithm, &header, &claims());
            self.add(algorithm, token, "ok");
        }
        self.about("algorithm", "SPIFFE JWT-SVID §2.1: no other algorithm, and alg is looked at before anything else");
        let others = [
            "\"none\"",
            "\"None\"",
            "\"NONE\"",
            "\"nOnE\"",
            "\"\"",
            "\"HS256\"",
            "\"HS384\"",
            "\"HS512\"",
            "\"EdDSA\"",
            "\"Ed25519\"",
            "\"Ed448\"",
            "\"ES256K\"",
            "\"es256\"",
            "\"ES256 \"",
            "\"RS1\"",
            "\"\\u006eone\"",
            "\"ES256\\u0000\"",
            "\"\\u0000ES256\"",
            "\"\u{ff25}\u{ff33}256\"",
            "\"E\u{405}256\"",
            "\"ES256,none\"",
            "\"PBES2-HS256+A128KW\"",
            "\"A128KW\"",
            "\"RSA-OAEP\"",
            "\"dir\"",
            "null",
            "256",
            "[\"ES256\"]",
            "{\"alg\":\"ES256\"}",
            "true",
        ];
        for other in others {
            self.header(format!("alg {other}"), &format!(r#"{{"alg":{other},"kid":"p256","typ":"JWT"}}"#), "alg");
        }
        self.header("no alg", r#"{"kid":"p256","typ":"JWT"}"#, "alg");
        self.header("Alg for alg", r#"{"Alg":"ES256","kid":"p256"}"#, "alg");
        self.header("alg with an escape", r#"{"alg":"\u0045S256","kid":"p256"}"#, "ok");
        self.header("alg in a name with an escape", r#"{"\u0061lg":"ES256","kid":"p256"}"#, "ok");
        for none in ["none", "None"] {
            let header = format!(r#"{{"alg":"{none}","kid":"p256"}}"#);
            let token = format!("{}.{}.", base64url(&header), base64url(claims()));
            self.add(format!("alg {none} without a signature"), token.clone(), "malformed");
            self.add(format!("alg {none} with a byte for a signature"), format!("{token}AA"), "alg");
        }
        let ed25519 = self.signer.token("ed25519", "EdDSA", r#"{"alg":"EdDSA","kid":"ed25519"}"#, &claims());
        self.add("a good EdDSA signature", ed25519, "alg").bundles.insert("example.org".into(), "ed25519".into());
        self.about("algorithm", "RFC 8725 §2.1: a public key is no secret for a MAC");
        let point = [&[4][..], &coordinates()].concat();
        let secrets = [
            ("the modulus", modulus()),
            ("the key in PKCS #1", rsa_der("rsa")),
            ("the JWK", jwk("rsa", "rsa").to_string().into_bytes()),
            ("the point", point),
            ("the key in PEM", pem(&rsa_spki())),
            ("the key in PEM without its last line break", pem(&rsa_spki()).trim_ascii().to_vec()),
            ("the key in DER", rsa_spki()),
            ("nothing", vec![]),
        ];
        for (name, secret) in secrets {
            let token = mac_token(&secret, r#"{"alg":"HS256","kid":"rsa"}"#, &claims());
            self.add(format!("HS256 with {name} for a secret"), token, "alg");
        }
        let token = mac_token(&[7; 32], r#"{"alg":"HS256","kid":"oct"}"#, &claims());
        self.add("HS256 with a symmetric key of the bundle", token, "alg")
            .bundles
            .insert("example.org".into(), "symmetric".into());
        for said in ["RS256", "ES256"] {
            let token = mac_token(&modulus(), &json!({"alg": said, "kid": "rsa"}).to_string(), &claims());
            self.add(
                format!("a MAC that says {said}"),
                token,
                if said == "RS256" { "signature" } else { "key_mismatch" },
            );
        }
        self.about("algorithm", "RFC 8725 §3.1: the key decides which algorithms there are, not the token");
        let mixed = [
            ("p256", "ES256", "ES384"),
            ("p256", "ES256", "ES512"),
            ("p256", "ES256", "RS256"),
            ("p256", "ES256", "PS256"),
            ("p384", "ES384", "ES256"),
            ("p384", "ES384", "ES512"),
            ("p521", "ES512", "ES256"),
            ("rsa", "RS256", "ES256"),
        ];
        for (key, scheme, said) in mixed {
            let header = json!({"alg": said, "kid": key}).to_string();
            let token = self.signer.token(key, scheme, &header, &claims());
            self.add(format!("{scheme} that says {said}"), token, "key_mismatch");
        }
        for (scheme, said) in [("RS256", "PS256"), ("PS256", "RS256"), ("RS256", "RS384"), ("PS512", "PS256")] {
            let token = self.signer.token("rsa", scheme, &json!({"alg": said, "kid": "rsa"}).to_string(), &claims());
            self.add(format!("{scheme} that says {said}"), token, "signature");
        }
    }

    fn headers(&mut self) {
        self.about("header", "SPIFFE JWT-SVID §2: no header but alg, kid and typ");
        let own = jwk("p256", "p256").to_string();
        let attacker = jwk("foreign", "p256").to_string();
        let extras = [
            ("crit", r#""crit":["exp"]"#.to_owned()),
            ("an empty crit", r#""crit":[]"#.into()),
            ("jku", r#""jku":"https://example.org/keys""#.into()),
            ("jwk of the key itself", format!(r#""jwk":{own}"#)),
            ("x5c", r#""x5c":["MA=="]"#.into()),
            ("x5u", r#""x5u":"https://example.org/cert""#.into()),
            ("x5t", r#""x5t":"AAAA""#.into()),
            ("cty", r#""cty":"JWT""#.into()),
            ("b64", r#""b64":false"#.into()),
            ("b64 with its crit", r#""b64":false,"crit":["b64"]"#.into()),
            ("b64 that is true", r#""b64":true,"crit":["b64"]"#.into()),
            ("crit of alg", r#""crit":["alg"]"#.into()),
            ("crit that is no list", r#""crit":"exp""#.into()),
            ("jwk of nothing", r#""jwk":null"#.into()),
            ("jku of a file", r#""jku":"file:///etc/hostname""#.into()),
            ("x5t#S256", r##""x5t#S256":"AAAA""##.into()),
            ("p2c of many rounds", r#""p2c":2147483647,"p2s":"AAAA""#.into()),
            ("epk", format!(r#""epk":{own}"#)),
            ("iss beside the claims", r#""iss":"spiffe://example.org""#.into()),
            ("nested eight deep", r#""x":[[[[[[[[1]]]]]]]]"#.into()),
            ("zip", r#""zip":"DEF""#.into()),
            ("enc", r#""enc":"A128GCM""#.into()),
            ("an unknown one", r#""x-note":"a""#.into()),
            ("one of no name", r#""":1"#.into()),
        ];
        for (name, extra) in extras {
            self.header(format!("header {name}"), &format!(r#"{{"alg":"ES256","kid":"p256",{extra}}}"#), "header");
        }
        let header = format!(r#"{{"alg":"ES256","kid":"p256","jwk":{attacker}}}"#);
        let token = self.signer.token("foreign", "ES256", &header, &claims());
        self.add("header jwk of an attacker who signed", token, "header");
        let header = r#"{"alg":"ES256","jku":"https://attacker.example/keys","kid":"foreign"}"#;
        let token = self.signer.token("foreign", "ES256", header, &claims());
        self.add("header jku of an attacker who signed", token, "header");
        self.about("header", "SPIFFE JWT-SVID §2.3: typ is absent, JWT or JOSE");
        for typ in ["\"JWT\"", "\"JOSE\""] {
            self.header(format!("typ {typ}"), &format!(r#"{{"alg":"ES256","kid":"p256","typ":{typ}}}"#), "ok");
        }
        self.header("no typ", r#"{"alg":"ES256","kid":"p256"}"#, "ok");
        for typ in ["\"wit+jwt\"", "\"jwt\"", "\"at+jwt\"", "\"application/jwt\"", "\"\"", "null", "1", "[\"JWT\"]"] {
            self.header(format!("typ {typ}"), &format!(r#"{{"alg":"ES256","kid":"p256","typ":{typ}}}"#), "typ");
        }
        self.about("header", "SPIFFE JWT-SVID §2.2, and every verifier in the field: kid chooses the key");
        self.header("no kid", r#"{"alg":"ES256"}"#, "kid");
        for kid in ["\"\"", "null", "1", "[\"p256\"]", "{\"p256\":1}"] {
            self.header(format!("kid {kid}"), &format!(r#"{{"alg":"ES256","kid":{kid}}}"#), "kid");
        }
        for kid in ["P256", "p256 ", "p256\\u0000", "../p256", "' OR 1=1 --", "/dev/null", "foreign"] {
            self.header(format!("kid {kid}"), &format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), "unknown_key");
        }
        self.header("kid with an escape", r#"{"alg":"ES256","kid":"p\u0032\u00356"}"#, "ok");
        self.header("kid of another key of the domain", r#"{"alg":"ES256","kid":"other"}"#, "signature");
    }

    fn form(&mut self) {
        self.about("form", "RFC 7515 §7.1, SPIFFE JWT-SVID §2: compact serialisation only, base64url without padding");
        let good = self.good();
        let parts: Vec<&str> = good.split('.').collect();
        let (header, payload, signature) = (parts[0], parts[1], parts[2]);
        let texts = [
            ("nothing", String::new()),
            ("a dot", ".".into()),
            ("two dots", "..".into()),
            ("three dots", "...".into()),
            ("a header alone", header.into()),
            ("no signature", format!("{header}.{payload}")),
            ("an empty signature", format!("{header}.{payload}.")),
            ("an empty header", format!(".{payload}.{signature}")),
            ("empty claims", format!("{header}..{signature}")),
            ("four parts", format!("{good}.")),
            ("five parts, as of a JWE", format!("{header}.{payload}.{signature}.{signature}.{signature}")),
            ("padding", format!("{good}==")),
            ("padding in the header", format!("{header}=.{payload}.{signature}")),
            ("a space before", format!(" {good}")),
            ("a line break after", format!("{good}\n")),
            ("a tab within", format!("{header}.\t{payload}.{signature}")),
            ("a zero byte after", format!("{good}\0")),
            ("padding as a URL writes it", format!("{good}%3D%3D")),
            ("dots as a URL writes them", good.replace('.', "%2E")),
            ("a line break in each 64 characters", folded(&good)),
            ("a header of one character", format!("e.{payload}.{signature}")),
            ("a signature of one character", format!("{header}.{payload}.A")),
            ("a comma and the token again", format!("{good},{good}")),
            ("quotes", format!("\"{good}\"")),
            ("a line break within", format!("{header}.\n{payload}.{signature}")),
            ("the scheme before", format!("Bearer {good}")),
            ("commas for dots", good.replace('.', ",")),
            ("characters that are not ASCII", format!("{header}.{payload}.é{signature}")),
            ("the JSON serialisation", {
                json!({"payload": payload, "protected": header, "signature": signature}).to_string()
            }),
            ("the general JSON serialisation", {
                json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]}).to_string()
            }),
        ];
        for (name, text) in texts {
            self.add(name, text, "malformed");
        }
        self.about("form", "RFC 7797: claims that are not encoded are for who says b64, and no JWT-SVID does");
        let bare = format!("{}.{}", base64url(r#"{"alg":"ES256","b64":false,"crit":["b64"],"kid":"p256"}"#), claims());
        let bare_signature = base64url(self.signer.signature("p256", "ES256", bare.as_bytes()));
        self.add("claims that are not encoded", format!("{bare}.{bare_signature}"), "malformed");
        self.about("form", "RFC 4648 §3.5: a token has one spelling");
        let last = signature.chars().last().unwrap();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let at = alphabet.find(last).unwrap();
        // Sixty-four bytes leave four bits of the last digit unused.
        for bits in [1, 2, 8, 15] {
            let other = alphabet.chars().nth(at | bits).unwrap();
            let token = format!("{}{other}", &good[..good.len() - 1]);
            self.add(format!("trailing bits {bits} of the signature"), token, "malformed");
        }
        let standard = claims_with_specials();
        let token = self.signer.token("p256", "ES256", HEADER, &standard);
        assert!(token.contains(['-', '_']));
        self.add("the alphabet of base64url", token.clone(), "ok");
        self.add("the alphabet of base64", token.replace('-', "+").replace('_', "/"), "malformed");
        self.about("form", "no rule of SPIFFE's: more than 8 KiB is not read");
        let sized = |signer: &Signer, length: usize| {
            let claims = with("x", Some(&json!("x".repeat(length)).to_string()));
            signer.token("p256", "ES256", HEADER, &claims)
        };
        let just = (5000..6100).rev().map(|length| (length, unsigned_length(length))).find(|(_, all)| *all <= 8192);
        let just = just.unwrap().0;
        let (just, over, far) = (sized(self.signer, just), sized(self.signer, just + 3), sized(self.signer, 60_000));
        assert!(just.len() <= 8192 && over.len() > 8192);
        self.add("the most that is read", just, "ok");
        self.add("a little more than is read", over, "oversize");
        self.add("far more than is read", far, "oversize");
    }

    fn json(&mut self) {
        self.about("json", "RFC 7519 §7.2: header and claims are each one JSON object");
        for text in [
            "null",
            "[]",
            "1",
            "\"x\"",
            "{",
            "{}{}",
            "{\"alg\":}",
            "\u{feff}{}",
            "{'alg':'ES256'}",
            "{\"alg\":\"ES256\",}",
        ] {
            self.header(format!("header {text}"), text, "json");
            self.claims(format!("claims {text}"), text, "json");
        }
        let deep = |depth| with("x", Some(&format!("{}1{}", "[".repeat(depth), "]".repeat(depth))));
        self.claims("claims with a list in eight lists", &deep(8), "ok");
        self.claims("claims with a list in a thousand lists", &deep(1000), "json");
        self.claims("claims with spaces and line breaks", &with("x", Some("\n\t{ \"y\" : 1 } \r\n")), "ok");
        let texts = [
            ("a comment", "{/* */}"),
            ("a number that is none", r#"{"x":NaN}"#),
            ("a number with a plus", r#"{"x":+1}"#),
            ("a number with a zero before it", r#"{"x":01}"#),
            ("a number in hexadecimal", r#"{"x":0x1}"#),
            ("a number beyond any", r#"{"x":1e999}"#),
            ("half a character", r#"{"x":"\ud800"}"#),
            ("the halves of a character in the wrong order", r#"{"x":"\udc00\ud800"}"#),
            ("a line break in text", "{\"x\":\"\n\"}"),
            ("an unknown escape", r#"{"x":"\a"}"#),
            ("a zero byte after", "{}\0"),
            ("a zero byte before", "\0{}"),
            ("a member of no name", "{1:1}"),
        ];
        for (name, text) in texts {
            self.header(format!("header with {name}"), text, "json");
            self.claims(format!("claims with {name}"), text, "json");
        }
        self.claims("claims with a number of a thousand digits", &with("x", Some(&"9".repeat(1000))), "json");
        self.claims("claims with a number near none", &with("x", Some("1e-999")), "ok");
        self.claims("claims with 2^64", &with("x", Some("18446744073709551616")), "ok");
        self.about("json", "RFC 8259 §8.1, RFC 3629: JSON is UTF-8");
        let unreadable: [(&str, &[u8]); 4] = [
            ("a byte that is none of UTF-8", b"{\"x\":\"\xff\"}"),
            ("a letter in two bytes too many", b"{\"x\":\"\xe0\x80\xaf\"}"),
            ("half a character in UTF-8", b"{\"x\":\"\xed\xa0\x80\"}"),
            ("UTF-16", b"{\0\"\0x\0\"\0:\x001\0}\0"),
        ];
        for (name, bytes) in unreadable {
            for (part, signed) in [
                ("header", format!("{}.{}", base64url(bytes), base64url(claims()))),
                ("claims", format!("{}.{}", base64url(HEADER), base64url(bytes))),
            ] {
                let signature = base64url(self.signer.signature("p256", "ES256", signed.as_bytes()));
                self.add(format!("{part} with {name}"), format!("{signed}.{signature}"), "json");
            }
        }
        self.about("json", "RFC 7515 §4, RFC 7519 §4: no member twice, or two readers read two tokens");
        let headers = [
            r#"{"alg":"ES256","alg":"ES256","kid":"p256"}"#,
            r#"{"alg":"none","alg":"ES256","kid":"p256"}"#,
            r#"{"alg":"ES256","kid":"p256","\u006bid":"other"}"#,
            r#"{"alg":"none","\u0061lg":"ES256","kid":"p256"}"#,
            r#"{"alg":"ES256","typ":"JWT","kid":"p256","typ":"JOSE"}"#,
        ];
        for header in headers {
            self.header(format!("twice in {header}"), header, "duplicate_member");
        }
        let extras = [
            r#""sub":"spiffe://example.org/other""#,
            r#""a\u0075d":"other""#,
            r#""exp":99999999999"#,
            r#""x":{"y":1,"y":2}"#,
            r#""x":[[{"y":1,"y":2}]]"#,
        ];
        for extra in extras {
            let text = format!("{},{extra}}}", claims().strip_suffix('}').unwrap());
            self.claims(format!("twice by {extra}"), &text, "duplicate_member");
        }
    }

    fn subjects(&mut self) {
        self.about(
            "subject",
            "SPIFFE JWT-SVID §3.1: sub is the SPIFFE ID of the workload; SPIFFE-ID §2 has the grammar",
        );
        let bad = [
            "null",
            "1",
            "true",
            "{}",
            r#"["spiffe://example.org/a"]"#,
            r#""""#,
            r#""report""#,
            r#""spiffe://example.org""#,
            r#""spiffe://example.org/""#,
            r#""spiffe://example.org/a/""#,
            r#""spiffe://example.org//a""#,
            r#""SPIFFE://example.org/a""#,
            r#""spiffe://EXAMPLE.org/a""#,
            r#""spiffe://example.org/a/../b""#,
            r#""spiffe://example.org/./b""#,
            r#""spiffe://example.org/a%2fb""#,
            r#""spiffe://user@example.org/a""#,
            r#""spiffe://example.org:443/a""#,
            r#""spiffe://example.org/a?b""#,
            r#""spiffe://example.org/a#b""#,
            r#""spiffe://example.org/ä""#,
            r#""spiffe:///a""#,
            r#""spiffe:/example.org/a""#,
            r#""https://example.org/a""#,
            r#"" spiffe://example.org/a""#,
            r#""spiffe://example.org/a ""#,
            r#""spiffe://example.org/a\u0000b""#,
            r#""spiffe://example.org\\a""#,
            r#""spiffe://ex*mple.org/a""#,
        ];
        for sub in bad {
            self.claims(format!("sub {sub}"), &with("sub", Some(sub)), "sub");
        }
        self.claims("no sub", &with("sub", None), "sub");
        let long = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
        for id in ["spiffe://example.org/a", "spiffe://example.org/A-._/0", "spiffe://example.org/...", &long] {
            let name = if id.len() > 100 { "sub of 2,048 bytes".to_owned() } else { format!("sub {id}") };
            self.claims(name, &with("sub", Some(&json!(id).to_string())), "ok").spiffe_id = id.to_owned();
        }
        let longer = format!("\"{long}a\"");
        self.claims("sub of 2,049 bytes", &with("sub", Some(&longer)), "sub");
    }

    fn audiences(&mut self) {
        self.about(
            "audience",
            "SPIFFE JWT-SVID §3.2: one of aud is the verifier; §7.2 and this corpus: and there is no other",
        );
        for aud in [r#""sidemint""#, r#"["sidemint"]"#, r#""side\u006dint""#] {
            self.claims(format!("aud {aud}"), &with("aud", Some(aud)), "ok");
        }
        let others = [
            "null",
            "1",
            "{}",
            "[]",
            r#""""#,
            r#"[""]"#,
            "[null]",
            r#"[["sidemint"]]"#,
            r#"{"sidemint":1}"#,
            r#""Sidemint""#,
            r#""sidemint ""#,
            r#""sidemint,other""#,
            r#""sidemint other""#,
            r#"["other"]"#,
            r#""sidemin""#,
            r#""sidemint/""#,
            r#""*""#,
            r#"[1]"#,
            r#""sts.amazonaws.com""#,
        ];
        for aud in others {
            self.claims(format!("aud {aud}"), &with("aud", Some(aud)), "aud");
        }
        self.claims("no aud", &with("aud", None), "aud");
        let several = [
            r#"["sidemint","other"]"#,
            r#"["other","sidemint"]"#,
            r#"["sidemint","sidemint"]"#,
            r#"["a","b"]"#,
            r#"["sidemint",1]"#,
        ];
        for aud in several {
            self.claims(format!("aud {aud}"), &with("aud", Some(aud)), "several_aud");
        }
        self.about(
            "audience",
            "no rule of SPIFFE's: whoever answers to a cloud's name could be sent what was meant for the cloud",
        );
        for cloud in ["sts.amazonaws.com", "api://AzureADTokenExchange", "https://iam.googleapis.com/projects/1"] {
            let aud = json!([cloud]).to_string();
            self.claims(format!("a verifier called {cloud}"), &with("aud", Some(&aud)), "aud").audience = cloud.into();
        }
        let aud = json!(["https://sidemint.example.org"]).to_string();
        self.claims("a verifier called by a URL", &with("aud", Some(&aud)), "ok").audience =
            "https://sidemint.example.org".into();
    }

    fn times(&mut self) {
        self.about("time", "RFC 7519 §2; this corpus: whole seconds in plain digits, to the end of the year 9999");
        let soon = SECONDS + 60;
        let values = [
            ("null", "null".to_owned()),
            ("true", "true".into()),
            ("an object", "{}".into()),
            ("a list", format!("[{soon}]")),
            ("text", format!("\"{soon}\"")),
            ("minus one", "-1".into()),
            ("minus zero", "-0".into()),
            ("a fraction of zero", format!("{soon}.0")),
            ("a fraction", format!("{soon}.5")),
            ("an exponent", "1.795435260e9".into()),
            ("the year 10000", "253402300800".into()),
            ("2^64 - 1", "18446744073709551615".into()),
            ("2^64", "18446744073709551616".into()),
        ];
        for (name, value) in &values {
            for claim in ["exp", "nbf", "iat"] {
                self.claims(format!("{claim} as {name}"), &with(claim, Some(value)), "numeric_date");
            }
        }
        self.claims("no exp", &with("exp", None), "numeric_date");
        self.claims("no iat", &with("iat", None), "ok");
        for claim in ["nbf", "iat"] {
            self.claims(format!("{claim} zero"), &with(claim, Some("0")), "ok");
        }
        self.about("time", "SPIFFE JWT-SVID §3.3: refused once exp has come; this corpus: without leeway");
        for (seconds, expect) in [(-SECONDS.cast_signed(), "expired"), (-1, "expired"), (0, "expired"), (1, "ok")] {
            let exp = SECONDS.checked_add_signed(seconds).unwrap();
            let case = self.claims(format!("exp {seconds} s from now"), &with("exp", Some(&exp.to_string())), expect);
            case.expires_at = Timestamp::from_secs(exp);
        }
        let token = self.good();
        self.add("a millisecond before exp", token.clone(), "ok").now = "2026-11-23T12:04:59.999Z".parse().unwrap();
        self.add("at exp", token.clone(), "expired").now = "2026-11-23T12:05:00Z".parse().unwrap();
        self.add("a minute after exp", token, "expired").now = "2026-11-23T12:06:00Z".parse().unwrap();
        self.about("time", "RFC 7519 §4.1.5, §4.1.6; this corpus: nbf and iat with a leeway of 30 s");
        for claim in ["nbf", "iat"] {
            for (seconds, expect) in [(0, "ok"), (1, "ok"), (30, "ok"), (31, "not_yet_valid"), (3600, "not_yet_valid")]
            {
                let text = with(claim, Some(&(SECONDS + seconds).to_string()));
                self.claims(format!("{claim} {seconds} s from now"), &text, expect);
            }
        }
        self.about("time", "no rule of SPIFFE's: a life of more than a day from now is refused");
        for (more, expect) in [(0, "ok"), (1, "lifetime"), (86_400 * 365, "lifetime")] {
            let exp = SECONDS + 86_400 + more;
            let case =
                self.claims(format!("exp a day and {more} s from now"), &with("exp", Some(&exp.to_string())), expect);
            case.expires_at = Timestamp::from_secs(exp);
        }
        self.claims("exp at the end of the year 9999", &with("exp", Some("253402300799")), "lifetime");
    }

    fn signatures(&mut self) {
        self.about("signature", "RFC 7518 §3.4: r and s, each as long as the order, and nothing else");
        let token = self.good();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let bytes = self.signer.signature("p256", "ES256", signed.as_bytes());
        assert_eq!(base64url(&bytes), signature);
        let (r, s) = bytes.split_at(32);
        let zero = vec![0; 32];
        let odd = [
            ("as ASN.1", der_of(&bytes)),
            ("with s before r", [s, r].concat()),
            ("with zero for r", [&zero, s].concat()),
            ("with zero for s", [r, &zero].concat()),
            ("with zeros", [zero.clone(), zero.clone()].concat()),
            ("with the order for r", [&order("p256"), s].concat()),
            ("with the order for s", [r, &order("p256")].concat()),
            ("with the order for both", [order("p256"), order("p256")].concat()),
            ("with one for both", [&zero[1..], &[1], &zero[1..], &[1]].concat()),
            ("with zero for r and one for s", [&zero[..], &zero[1..], &[1]].concat()),
            ("with 0xff all over", vec![0xff; 64]),
            ("a byte too short", bytes[..63].to_vec()),
            ("a byte too long", [&bytes[..], &[0]].concat()),
            ("with a zero before r", [&[0], r, s].concat()),
            ("with a zero before each", [&[0], r, &[0], s].concat()),
            ("of one byte", vec![1]),
            ("of 48 bytes each", [&[0; 16], r, &[0; 16], s].concat()),
            ("with r changed", [&[r[0] ^ 1], &r[1..], s].concat()),
            ("with s changed", [r, &s[..31], &[s[31] ^ 1]].concat()),
        ];
        for (name, bytes) in odd {
            self.add(format!("a signature {name}"), format!("{signed}.{}", base64url(bytes)), "signature");
        }
        self.about(
            "signature",
            "SEC 1 §4.1.4: the twin (r, order − s) verifies as well, and says the same of the same bytes",
        );
        let twin = [r, &order_less(s)].concat();
        self.add("the twin of a signature", format!("{signed}.{}", base64url(twin)), "ok");
        self.wide_curves();
        self.about("signature", "RFC 8017 §8: as long as the modulus");
        let header = r#"{"alg":"RS256","kid":"rsa"}"#;
        let rsa = self.signer.token("rsa", "RS256", header, &claims());
        let (signed, signature) = rsa.rsplit_once('.').unwrap();
        let bytes = self.signer.signature("rsa", "RS256", signed.as_bytes());
        assert_eq!(base64url(&bytes), signature);
        let odd = [
            ("with a zero before it", [&[0], &bytes[..]].concat()),
            ("without its last byte", bytes[..255].to_vec()),
            ("of zeros", vec![0; 256]),
            ("of one", [vec![0; 255], vec![1]].concat()),
            ("of the modulus", modulus()),
            ("with a changed byte", [&[bytes[0] ^ 1], &bytes[1..]].concat()),
            ("with the bytes in the other order", bytes.iter().rev().copied().collect()),
            ("of one byte", vec![1]),
        ];
        for (name, bytes) in odd {
            self.add(format!("an RSA signature {name}"), format!("{signed}.{}", base64url(bytes)), "signature");
        }
        self.beyond_the_modulus();
        self.paddings();
        self.salts();
        self.about("signature", "RFC 7515 §5.2: over exactly the bytes that came");
        let other = with("sub", Some("\"spiffe://example.org/admin\""));
        let parts: Vec<&str> = token.split('.').collect();
        self.add(
            "other claims below the signature",
            format!("{}.{}.{}", parts[0], base64url(&other), parts[2]),
            "signature",
        );
        let header = r#"{"alg":"ES256","kid":"p256"}"#;
        self.add(
            "another header above the signature",
            format!("{}.{}.{}", base64url(header), parts[1], parts[2]),
            "signature",
        );
        let stranger = self.signer.token("foreign", "ES256", HEADER, &claims());
        self.add("the signature of a stranger", stranger, "signature");
    }

    /// The same for the longer curves, whose numbers do not fill their bytes.
    fn wide_curves(&mut self) {
        self.about("signature", "RFC 7518 §3.4: r and s, each as long as the order, and nothing else");
        for (key, scheme) in [("p384", "ES384"), ("p521", "ES512")] {
            let token = self.signer.token(key, scheme, &json!({"alg": scheme, "kid": key}).to_string(), &claims());
            let (signed, _) = token.rsplit_once('.').unwrap();
            let bytes = self.signer.signature(key, scheme, signed.as_bytes());
            let half = bytes.len() / 2;
            let (r, s) = bytes.split_at(half);
            let zero = vec![0; half];
            let mut odd = vec![
                ("as ASN.1", der_of(&bytes)),
                ("with zeros", [zero.clone(), zero.clone()].concat()),
                ("with zero for s", [r, &zero].concat()),
                ("with the order for r", [&order(key), s].concat()),
                ("with the order for s", [r, &order(key)].concat()),
                ("a byte too short", bytes[..2 * half - 1].to_vec()),
                ("with a zero before each", [&[0], r, &[0], s].concat()),
                ("without the first byte of each", [&r[1..], &s[1..]].concat()),
                ("as long as of P-256", bytes[..64].to_vec()),
            ];
            odd.extend(sum(r, &order(key)).map(|more| ("with the order added to r", [&more, s].concat())));
            odd.extend(sum(s, &order(key)).map(|more| ("with the order added to s", [r, &more].concat())));
            for (name, bytes) in odd {
                self.add(
                    format!("an {scheme} signature {name}"),
                    format!("{signed}.{}", base64url(bytes)),
                    "signature",
                );
            }
        }
        self.about("signature", "RFC 7518 §3.4: ES256 is P-256 with SHA-256, and no other hash");
        let token = self.signer.token("p256", "ES256 sha384", HEADER, &claims());
        self.add("a signature of P-256 with SHA-384", token, "signature");
    }

    /// The modulus added to a signature leaves the same rest (RFC 8017 §8.2.2 step 2: a signature is less than the modulus).
    fn beyond_the_modulus(&mut self) {
        let token = (0..100).find_map(|number: u32| {
            let text = with("x", Some(&number.to_string()));
            let signed = format!("{}.{}", base64url(r#"{"alg":"RS256","kid":"rsa"}"#), base64url(text));
            let more = sum(&self.signer.signature("rsa", "RS256", signed.as_bytes()), &modulus())?;
            Some(format!("{signed}.{}", base64url(more)))
        });
        self.add("an RSA signature with the modulus added", token.unwrap(), "signature");
    }

    /// What an RSA key signs by itself is a number: here its digits say something else than they must.
    fn paddings(&mut self) {
        self.about("signature", "RFC 8017 §8.2.2, §9.2: the hash has one encoding, which fills the modulus");
        let signed = format!("{}.{}", base64url(r#"{"alg":"RS256","kid":"rsa"}"#), base64url(claims()));
        let sha256 = digest(&SHA256, signed.as_bytes());
        let (hash, sha1) = (sha256.as_ref(), digest(&SHA1_FOR_LEGACY_USE_ONLY, signed.as_bytes()));
        let sha512 = digest(&SHA512, signed.as_bytes());
        let padded = |content: &[u8]| {
            let padding = vec![0xff; 256 - 3 - content.len()];
            [&[0, 1][..], &padding, &[0], content].concat()
        };
        let after_short_padding = |content: &[u8]| {
            let rest = vec![0; 256 - 11 - content.len()];
            [&[0, 1][..], &[0xff; 8], &[0], content, &rest].concat()
        };
        let whole = [&DIGEST_INFO[..], hash].concat();
        let without_null = [&[0x30, 0x2f, 0x30, 0x0b], &DIGEST_INFO[4..15], &[4, 0x20], hash].concat();
        let long_form = [&[0x30, 0x81, 0x31], &DIGEST_INFO[2..], hash].concat();
        let of_sha1 = [&[0x30, 0x21, 0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0, 4, 0x14], sha1.as_ref()].concat();
        let mut of_sha512 = [&DIGEST_INFO[..], sha512.as_ref()].concat();
        (of_sha512[1], of_sha512[14], of_sha512[18]) = (0x51, 3, 0x40);
        let mut other_hash = whole.clone();
        other_hash[14] = 3;
        let mut type_2 = padded(&whole);
        type_2[1] = 2;
        let mut broken = padded(&whole);
        broken[100] = 0xfe;
        let mut no_zero = padded(&whole);
        no_zero[256 - 1 - whole.len()] = 0xff;
        let blocks = [
            ("written by hand", padded(&whole), "ok"),
            ("without NULL in its DigestInfo", padded(&without_null), "signature"),
            ("with a length in long form", padded(&long_form), "signature"),
            ("of SHA-1", padded(&of_sha1), "signature"),
            ("of SHA-512", padded(&of_sha512), "signature"),
            ("that calls its hash SHA-512", padded(&other_hash), "signature"),
            ("of the hash alone", padded(hash), "signature"),
            ("with zeros after the hash", after_short_padding(&whole), "signature"),
            ("with zeros in its DigestInfo", padded(&[&whole[..], &[0; 8]].concat()), "signature"),
            ("padded as what is encrypted is", type_2, "signature"),
            ("with a hole in its padding", broken, "signature"),
            ("without the zero after its padding", no_zero, "signature"),
        ];
        for (name, block, expect) in blocks {
            let signature = base64url(self.signer.raw("rsa", &block));
            self.add(format!("an RS256 signature {name}"), format!("{signed}.{signature}"), expect);
        }
    }

    fn salts(&mut self) {
        self.about("signature", "RFC 7518 §3.5: the salt of PS256 is as long as the hash, which MGF1 uses too");
        let rows = [
            ("PS256 salt 32", "ok"),
            ("PS256 salt 0", "signature"),
            ("PS256 salt 20", "signature"),
            ("PS256 salt 31", "signature"),
            ("PS256 salt 33", "signature"),
            ("PS256 salt 222", "signature"),
            ("PS256 MGF1 sha1", "signature"),
            ("PS256 MGF1 sha512", "signature"),
        ];
        for (scheme, expect) in rows {
            let token = self.signer.token("rsa", scheme, r#"{"alg":"PS256","kid":"rsa"}"#, &claims());
            self.add(format!("a signature by {scheme}"), token, expect);
        }
    }

    fn keys(&mut self) {
        let token = self.good();
        self.about("keys", "RFC 7517 §4, §5: a key in the bundle that may verify it");
        let fine = [
            "p256 alone",
            "p256 for jwt-svid",
            "p256 for sig",
            "p256 to verify",
            "p256 that says ES256",
            "p256 and unknown members",
            "p256 beside one without kid",
            "p256 beside one of no known type",
            "p256 beside Ed25519",
            "p256 beside a symmetric one",
            "p256 beside what is no key",
        ];
        for name in fine {
            self.add(format!("bundle: {name}"), token.clone(), "ok").bundles.insert("example.org".into(), name.into());
        }
        self.about(
            "keys",
            "RFC 7517 §4, §5, SPIFFE Trust Domain and Bundle §4.2: no key in the bundle that may verify it",
        );
        let none = [
            "p256 twice",
            "p256 and another of its kid",
            "another of its kid and p256",
            "p256 without kid",
            "p256 with an empty kid",
            "p256 with a number for kid",
            "p256 for x509-svid",
            "p256 for wit-svid",
            "p256 for enc",
            "p256 for JWT-SVID",
            "p256 for a list",
            "p256 to sign",
            "p256 to do nothing",
            "p256 that says ES384",
            "p256 that says HS256",
            "p256 that says P-384",
            "p256 that says secp256k1",
            "p256 that says RSA",
            "p256 off its curve",
            "p256 without y",
            "p256 with a short x",
            "p256 with a zero before x",
            "p256 with spare bits in x",
            "p256 in hexadecimal",
            "p256 at infinity",
            "p256 with padding",
            "p256 in no list",
            "no keys",
            "no set",
            "empty",
            "foreign and no p256",
        ];
        for name in none {
            if self.bundles.contains_key(name) {
                let case = self.add(format!("bundle: {name}"), token.clone(), "unknown_key");
                case.bundles.insert("example.org".into(), name.into());
            }
        }
        let rsa = |signer: &Signer, key: &str, scheme: &str| {
            signer.token(key, scheme, &json!({"alg": scheme, "kid": key}).to_string(), &claims())
        };
        let rows = [
            ("rsa1024", "rsa1024", "RS256", "unknown_key"),
            ("rsa that says RS256", "rsa", "RS256", "ok"),
            ("rsa that says RS256", "rsa", "PS256", "key_mismatch"),
            ("rsa with exponent 1", "rsa", "RS256", "signature"),
            ("rsa with exponent 2", "rsa", "RS256", "signature"),
            ("rsa with exponent 0", "rsa", "RS256", "unknown_key"),
            ("rsa with exponent 3", "rsa", "RS256", "signature"),
            ("rsa with an exponent of 65 bits", "rsa", "RS256", "signature"),
            ("rsa with a zero before its modulus", "rsa", "RS256", "unknown_key"),
            ("rsa with a zero before its exponent", "rsa", "RS256", "unknown_key"),
            ("rsa with an even modulus", "rsa", "RS256", "signature"),
        ];
        for (bundle, key, scheme, expect) in rows {
            let token = rsa(self.signer, key, scheme);
            let case = self.add(format!("bundle: {bundle}, {scheme}"), token, expect);
            case.bundles.insert("example.org".into(), bundle.into());
        }
    }

    /// Below a key with exponent 1 whatever is written as a signature should be is one.
    fn exponent_one(&mut self) {
        let signed = format!("{}.{}", base64url(r#"{"alg":"RS256","kid":"rsa"}"#), base64url(claims()));
        let hash = digest(&SHA256, signed.as_bytes());
        let padding = vec![0xff; 256 - 3 - DIGEST_INFO.len() - 32];
        let forged = [&[0, 1][..], &padding, &[0], &DIGEST_INFO, hash.as_ref()].concat();
        let token = format!("{signed}.{}", base64url(forged));
        let case = self.add("bundle: rsa with exponent 1, a signature that anybody can write", token, "signature");
        case.bundles.insert("example.org".into(), "rsa with exponent 1".into());
    }

    fn trust(&mut self) {
        self.exponent_one();
        self.about("trust", "SPIFFE Workload API §6.3: the bundle of the subject's own trust domain, and no other");
        let of = |signer: &Signer, key: &str, kid: &str, domain: &str| {
            let sub = json!(format!("spiffe://{domain}/a")).to_string();
            signer.token(key, "ES256", &json!({"alg": "ES256", "kid": kid}).to_string(), &with("sub", Some(&sub)))
        };
        let rows = [
            ("our own", "p256", "p256", "example.org", "ok"),
            ("a federated domain's own", "foreign", "foreign", "partner.example", "ok"),
            ("of the same kid in two domains, ours", "p256", "p256", "example.org", "ok"),
            ("of the same kid in two domains, theirs", "foreign", "p256", "partner.example", "ok"),
            ("ours by a federated domain", "foreign", "foreign", "example.org", "unknown_key"),
            ("ours by a federated domain with our kid", "foreign", "p256", "example.org", "signature"),
            ("a federated domain's by us", "p256", "p256", "partner.example", "signature"),
            ("a domain without a bundle", "p256", "p256", "third.example", "no_bundle"),
            ("a domain that begins like ours", "p256", "p256", "example.org.evil", "no_bundle"),
            ("a domain that ours begins like", "p256", "p256", "example.or", "no_bundle"),
            ("a domain that ends like ours", "p256", "p256", "evil-example.org", "no_bundle"),
        ];
        for (name, key, kid, domain, expect) in rows {
            let token = of(self.signer, key, kid, domain);
            let case = self.add(name, token, expect);
            case.bundles.insert("partner.example".into(), "foreign".into());
            case.spiffe_id = format!("spiffe://{domain}/a");
        }
        let token = self.good();
        self.add("no bundles at all", token, "no_bundle").bundles.clear();
        let iss = with("iss", Some("\"spiffe://partner.example\""));
        let foreign = self.signer.token("foreign", "ES256", r#"{"alg":"ES256","kid":"foreign"}"#, &iss);
        self.add("iss does not choose the bundle", foreign, "unknown_key")
            .bundles
            .insert("partner.example".into(), "foreign".into());
        self.claims("iss does not matter", &iss, "ok");
    }
}

fn coordinates() -> Vec<u8> {
    use base64::Engine as _;
    let jwk = jwk("p256", "p256");
    let part =
        |name: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    [part("x"), part("y")].concat()
}

fn modulus() -> Vec<u8> {
    use base64::Engine as _;
    let jwk = jwk("rsa", "rsa");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap()
}

/// RFC 8017 §9.2: what stands before a hash of SHA-256.
const DIGEST_INFO: [u8; 19] = [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

fn even_modulus() -> Vec<u8> {
    let mut modulus = modulus();
    modulus[255] &= 0xfe;
    modulus
}

/// The RSA key as SubjectPublicKeyInfo (RFC 3279 §2.3.1).
fn rsa_spki() -> Vec<u8> {
    let key = rsa_der("rsa");
    assert_eq!(key.len(), 270);
    let head =
        [0x30, 0x82, 1, 0x22, 0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0, 3, 0x82, 1, 0x0f, 0];
    [&head[..], &key].concat()
}

fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", folded(&text)).into_bytes()
}

fn folded(text: &str) -> String {
    text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same bytes in base64url that is not canonical: the last digit has bits that nobody reads.
fn spare_bit(text: &str) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = text.split_at(text.len() - 1);
    let at = DIGITS.find(last).unwrap();
    format!("{rest}{}", &DIGITS[at + 1..at + 2])
}

/// Claims whose base64url has characters that base64 writes otherwise.
fn claims_with_specials() -> String {
    with("x", Some("\"~~~???~~~>>>\u{7f}\u{7f}\""))
}

/// How long the token is whose claims have so many bytes of filling.
fn unsigned_length(filling: usize) -> usize {
    let claims = with("x", Some(&json!("x".repeat(filling)).to_string()));
    base64url(HEADER).len() + base64url(claims).len() + 2 + 86
}
