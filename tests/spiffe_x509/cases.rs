//! The cases. Each says what is presented, what is trusted, and what the verdict must be: `ok`, or the kind of refusal.

use std::collections::BTreeMap;

use crate::asn1::*;
use crate::generate::*;

/// One case.
pub(crate) struct Case {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    /// DER, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// Names of [`Cases::roots`] by trust domain.
    pub(crate) bundles: BTreeMap<String, Vec<String>>,
    pub(crate) accepted: Vec<String>,
    pub(crate) now: String,
    /// `ok`, or the kind of refusal.
    pub(crate) expect: String,
    /// Where the verdict is `ok`: whom the leaf names.
    pub(crate) spiffe_id: String,
    /// Where the verdict is `ok` and the case is about time: the earliest end of the path.
    pub(crate) expires_at: Option<&'static str>,
}

impl Case {
    pub(crate) fn naming(&mut self, spiffe_id: &str) -> &mut Self {
        self.spiffe_id = spiffe_id.into();
        self
    }

    pub(crate) fn at(&mut self, now: &str) -> &mut Self {
        self.now = now.into();
        self
    }

    pub(crate) fn until(&mut self, end: &'static str) -> &mut Self {
        self.expires_at = Some(end);
        self
    }

    pub(crate) fn trusting(&mut self, bundles: &[(&str, &[&str])]) -> &mut Self {
        let owned =
            |(domain, roots): &(&str, &[&str])| (domain.to_string(), roots.iter().map(ToString::to_string).collect());
        self.bundles = bundles.iter().map(owned).collect();
        self
    }

    pub(crate) fn accepting(&mut self, domains: &[&str]) -> &mut Self {
        self.accepted = domains.iter().map(ToString::to_string).collect();
        self
    }
}

/// All cases while they are made.
pub(crate) struct Cases<'s> {
    pub(crate) signer: &'s Signer,
    pub(crate) roots: BTreeMap<String, Vec<u8>>,
    pub(crate) all: Vec<Case>,
    group: &'static str,
}

/// Every case, in order.
pub(crate) fn all<'s>(signer: &'s Signer) -> Cases<'s> {
    let mut cases = Cases { signer, roots: BTreeMap::new(), all: Vec::new(), group: "" };
    cases.root("root", Draft::ca("Root", "Root", "root"), "root");
    for (group, make) in [
        ("spiffe_id", Cases::spiffe_id as fn(&mut Cases<'s>)),
        ("subject_alt_name", Cases::subject_alt_name),
        ("leaf_extensions", Cases::leaf_extensions),
        ("validity", Cases::validity),
        ("trust", Cases::trust),
        ("path", Cases::path),
        ("name_constraints", Cases::name_constraints),
        ("signature", Cases::signature),
        ("encoding", Cases::encoding),
    ] {
        cases.group = group;
        make(&mut cases);
    }
    cases
}

impl Cases<'_> {
    pub(crate) fn root(&mut self, id: &str, draft: Draft, key: &str) -> Vec<u8> {
        let der = draft.by(self.signer, key);
        self.roots.insert(id.into(), der.clone());
        der
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, chain: Vec<Vec<u8>>, expect: &str) -> &mut Case {
        self.all.push(Case {
            group: self.group,
            name: name.into(),
            chain,
            bundles: BTreeMap::from([(TD.into(), vec!["root".into()])]),
            accepted: vec![TD.into()],
            now: NOW.into(),
            expect: expect.into(),
            spiffe_id: ID.into(),
            expires_at: None,
        });
        self.all.last_mut().unwrap()
    }

    /// A leaf that the root signs itself.
    pub(crate) fn leaf(&mut self, name: impl Into<String>, draft: &Draft, expect: &str) -> &mut Case {
        let der = draft.by(self.signer, "root");
        self.add(name, vec![der], expect)
    }

    /// A good leaf below an intermediate that the root signs.
    pub(crate) fn below(&mut self, name: impl Into<String>, ca: &Draft, expect: &str) -> &mut Case {
        let chain = vec![Draft::leaf("CA").by(self.signer, "ca"), ca.by(self.signer, "root")];
        self.add(name, chain, expect)
    }

    /// A good leaf below a root of its own kind, named after the case.
    pub(crate) fn under(&mut self, name: &str, root: Draft, leaf: &Draft, expect: &str) -> &mut Case {
        let id = name.replace(' ', "_");
        self.root(&id, root, "root");
        self.leaf(name, leaf, expect).trusting(&[(TD, &[&id])])
    }

    fn spiffe_id(&mut self) {
        let leaf = Draft::leaf("Root");
        self.leaf("a good SVID", &leaf, "ok").until("2026-11-24T00:00:00Z");
        let mut uri_case = |name: String, text: &[u8], domain: &str, expect: &str| {
            let case = self.leaf(name, &leaf.clone().names(&[uri(text)]), expect);
            case.naming(&String::from_utf8_lossy(text)).trusting(&[(domain, &["root"])]).accepting(&[domain]);
        };
        let longest = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
        let (td255, td256) = ("a".repeat(255), "a".repeat(256));
        for text in [
            "spiffe://example.org/a",
            "spiffe://example.org/...",
            "spiffe://example.org/.a/b./c..d",
            "spiffe://example.org/ns/x/sa/y",
            "spiffe://example.org/9eebccd2-12bf-40a6-b262-65fe0487d453",
            "spiffe://example.org/A_b-C.d",
            "spiffe://example.org/spiffe",
            "spiffe://example.org/a/b/c/d/e/f/g/h/i/j",
            "spiffe://example/a",
            "spiffe://a/b",
            "spiffe://192.0.2.1/a",
            "spiffe://-._0/a",
            "spiffe://xn--exmple-cua.org/a",
            "spiffe://example.org./a",
            "spiffe://a..b/c",
            &longest,
            &format!("spiffe://{td255}/a"),
        ] {
            let domain = text.trim_start_matches("spiffe://").split('/').next().unwrap();
            uri_case(format!("accepts {}", shown(text)), text.as_bytes(), domain, "ok");
        }
        for text in [
            "",
            "/",
            "spiffe",
            "spiffe:",
            "spiffe:/",
            "spiffe://",
            "spiffe:///",
            "spiffe:///a",
            "spiffe:/example.org/a",
            "spiffe:example.org/a",
            "spiffe//example.org/a",
            "SPIFFE://example.org/a",
            "Spiffe://example.org/a",
            "spiffE://example.org/a",
            " spiffe://example.org/a",
            "spiffe://example.org/a ",
            "\tspiffe://example.org/a",
            "spiffe://example.org/a\n",
            "spiffe://example.org/a\r\n",
            "spiffe://example.org/a\0",
            "spiffe://example.org\0.evil.example/a",
            "https://example.org/a",
            "http://example.org/a",
            "ldap://example.org/a",
            "urn:spiffe:example.org:a",
            "file:///a",
            "spiffes://example.org/a",
            "xspiffe://example.org/a",
            "//example.org/a",
            "example.org/a",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org//",
            "spiffe://example.org//a",
            "spiffe://example.org/a/",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a//",
            "spiffe://example.org/.",
            "spiffe://example.org/..",
            "spiffe://example.org/./a",
            "spiffe://example.org/../a",
            "spiffe://example.org/a/.",
            "spiffe://example.org/a/..",
            "spiffe://example.org/a/./b",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/a/../../b",
            "spiffe://example.org/%61",
            "spiffe://example.org/a%2fb",
            "spiffe://example.org/a%2Fb",
            "spiffe://example.org/%2e%2e/a",
            "spiffe://example.org/a%00",
            "spiffe://example.org/a%",
            "spiffe://example%2eorg/a",
            "spiffe://%65xample.org/a",
            "spiffe://example.org?a",
            "spiffe://example.org/a?",
            "spiffe://example.org/a?b=c",
            "spiffe://example.org#a",
            "spiffe://example.org/a#",
            "spiffe://example.org/a#b",
            "spiffe://example.org:443/a",
            "spiffe://example.org:/a",
            "spiffe://example.org:0/a",
            "spiffe://user@example.org/a",
            "spiffe://user:password@example.org/a",
            "spiffe://@example.org/a",
            "spiffe://other.example@example.org/a",
            "spiffe://example.org\\@other.example/a",
            "spiffe://Example.org/a",
            "spiffe://EXAMPLE.ORG/a",
            "spiffe://example.orG/a",
            "spiffe://[2001:db8::1]/a",
            "spiffe://[::1]:443/a",
            "spiffe://*.example.org/a",
            "spiffe://*/a",
            "spiffe://example.org/*",
            "spiffe://example.org/a,spiffe://example.org/b",
            "spiffe://example.org/a spiffe://example.org/b",
            "spiffe://example.org/a;b",
            "spiffe://example.org/a=b",
            "spiffe://example.org/a\\b",
            &format!("{longest}a"),
            &format!("spiffe://example.org/{}", "a/".repeat(8000) + "a"),
            &format!("spiffe://{td256}/a"),
        ] {
            uri_case(format!("refuses {}", shown(text)), text.as_bytes(), TD, "spiffe_id");
        }
        for (what, text) in [
            ("a byte order mark before it", "\u{feff}spiffe://example.org/a"),
            ("an umlaut in the trust domain", "spiffe://exämple.org/a"),
            ("an umlaut in the path", "spiffe://example.org/ä"),
            ("a Cyrillic a in the path", "spiffe://example.org/\u{430}"),
            ("a full-width slash", "spiffe://example.org\u{ff0f}a"),
            ("a full-width full stop", "spiffe://example\u{ff0e}org/a"),
            ("a zero-width space", "spiffe://example.org/a\u{200b}"),
            ("a right-to-left mark", "spiffe://example.org/a\u{200f}"),
            ("a long s", "\u{17f}piffe://example.org/a"),
        ] {
            uri_case(format!("refuses {what}"), text.as_bytes(), TD, "subject_alt_name");
        }
        for (what, text) in [
            ("Latin-1", &b"spiffe://example.org/\xe4"[..]),
            ("bytes that are no UTF-8", b"spiffe://example.org/\xff\xfe"),
            ("an overlong slash", b"spiffe://example.org\xc0\xafa"),
            ("UTF-16", b"s\0p\0i\0f\0f\0e\0:\0/\0/\0a\0/\0b\0\x80"),
        ] {
            uri_case(format!("refuses {what}"), text, TD, "subject_alt_name");
        }
        // each ASCII character in the path and in the trust domain
        for byte in 0_u8..0x80 {
            let character = byte as char;
            let in_path = if matches!(character, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' | '/') {
                "ok"
            } else {
                "spiffe_id"
            };
            let text = format!("spiffe://example.org/a{character}b");
            uri_case(format!("character {byte:#04x} in a path"), text.as_bytes(), TD, in_path);
            if byte == b'/' {
                continue; // ends the trust domain
            }
            let in_domain =
                if matches!(character, 'a'..='z' | '0'..='9' | '.' | '_' | '-') { "ok" } else { "spiffe_id" };
            let domain = format!("a{character}b");
            let trusted = if in_domain == "ok" { domain.as_str() } else { TD };
            let text = format!("spiffe://{domain}/c");
            uri_case(format!("character {byte:#04x} in a trust domain"), text.as_bytes(), trusted, in_domain);
        }
    }

    fn subject_alt_name(&mut self) {
        let leaf = || Draft::leaf("Root");
        let directory = tlv(0xa4, name("SPIRE", "x"));
        let other = tlv(0xa0, [oid("1.2.3.4"), tlv(0xa0, tlv(0x0c, "x"))].concat());
        let registered = tlv(0x88, [0x2a, 0x03, 0x04]);
        let forms = [
            ("a DNS name", dns("report.example.org")),
            ("a wildcard DNS name", dns("*.example.org")),
            ("an IPv4 address", tlv(0x87, [192, 0, 2, 1])),
            ("an IPv6 address", tlv(0x87, [0; 16])),
            ("an e-mail address", tlv(0x81, "a@example.org")),
            ("a directory name", directory.clone()),
            ("another name", other.clone()),
            ("a registered id", registered.clone()),
        ];
        for (what, form) in &forms {
            self.leaf(format!("a URI and {what}"), &leaf().names(&[uri(ID), form.clone()]), "ok");
            self.leaf(format!("{what} and a URI"), &leaf().names(&[form.clone(), uri(ID)]), "ok");
            self.leaf(format!("{what} alone"), &leaf().names(std::slice::from_ref(form)), "no_uri");
            self.leaf(format!("two URIs around {what}"), &leaf().names(&[uri(ID), form.clone(), uri(ID)]), "many_uris");
        }
        let all: Vec<_> = forms.iter().map(|(_, form)| form.clone()).chain([uri(ID)]).collect();
        self.leaf("a name of every form", &leaf().names(&all), "ok");
        self.leaf("no subject alternative name", &leaf().with(SAN, None), "no_uri");
        self.leaf(
            "the SPIFFE ID as common name",
            &leaf().with(SAN, None).but(|d| d.subject = name("SPIRE", ID)),
            "no_uri",
        );
        self.leaf("the SPIFFE ID as DNS name", &leaf().names(&[dns(ID)]), "no_uri");
        self.leaf("critical", &leaf().with(SAN, Some(extension(SAN, true, seq(&[uri(ID)])))), "ok");
        let two = |first: &str, second: &str| leaf().names(&[uri(first), uri(second)]);
        self.leaf("one URI twice", &two(ID, ID), "many_uris");
        self.leaf("two workloads", &two(ID, "spiffe://example.org/b"), "many_uris");
        self.leaf("two trust domains", &two(ID, "spiffe://partner.example/b"), "many_uris");
        self.leaf("a SPIFFE ID and a web address", &two(ID, "https://example.org/a"), "many_uris");
        self.leaf("a web address and a SPIFFE ID", &two("https://example.org/a", ID), "many_uris");
        self.leaf("a SPIFFE ID and an empty URI", &two(ID, ""), "many_uris");
        self.leaf("a SPIFFE ID and the trust domain's", &two(ID, "spiffe://example.org"), "many_uris");
        self.leaf("two URIs in upper and lower case", &two(ID, "SPIFFE://example.org/a"), "many_uris");
        let spoilt: [(&str, Vec<u8>); 19] = [
            ("a second URI that is not ASCII", seq(&[uri(ID), uri("spiffe://example.org/\u{e4}")])),
            ("a second URI that is not UTF-8", seq(&[uri(ID), uri(b"\xff")])),
            ("a first URI that is not UTF-8", seq(&[uri(b"\xff"), uri(ID)])),
            ("a DNS name that is not ASCII", seq(&[uri(ID), tlv(0x82, "\u{e4}.example.org")])),
            ("an e-mail address that is not ASCII", seq(&[uri(ID), tlv(0x81, "\u{e4}@example.org")])),
            ("an IP address of five bytes", seq(&[uri(ID), tlv(0x87, [1; 5])])),
            ("an IP address of none", seq(&[uri(ID), tlv(0x87, [])])),
            ("an IP address with a mask", seq(&[uri(ID), tlv(0x87, [1; 8])])),
            ("a directory name that is none", seq(&[uri(ID), tlv(0xa4, [0x31, 0x00])])),
            ("another name without a value", seq(&[uri(ID), tlv(0xa0, oid("1.2.3.4"))])),
            ("a registered id cut short", seq(&[uri(ID), tlv(0x88, [0x2a, 0x83])])),
            ("a name of an unknown form", seq(&[uri(ID), tlv(0x89, "x")])),
            ("a name with a universal tag", seq(&[uri(ID), tlv(0x16, "x")])),
            ("a URI that is constructed", seq(&[tlv(0xa6, tlv(0x16, ID))])),
            ("a URI longer than what is there", tlv(0x30, [vec![0x86, 0x7f], ID.into()].concat())),
            ("bytes after the names", [seq(&[uri(ID)]), vec![0x00]].concat()),
            ("an empty list", seq(&[])),
            ("an empty value", Vec::new()),
            ("a SET in place of a SEQUENCE", tlv(0x31, uri(ID))),
        ];
        for (what, value) in spoilt {
            self.leaf(what, &leaf().with(SAN, Some(extension(SAN, false, value))), "subject_alt_name");
        }
        let many = |count: usize| vec![dns("a"); count].into_iter().chain([uri(ID)]).collect::<Vec<_>>();
        self.leaf("256 names", &leaf().names(&many(255)), "ok");
        self.leaf("257 names", &leaf().names(&many(256)), "subject_alt_name");
        let again = extension(SAN, false, seq(&[uri("spiffe://example.org/b")]));
        self.leaf("the extension twice", &leaf().and(again), "duplicate_extension");
        self.leaf(
            "the extension twice, alike",
            &leaf().and(extension(SAN, false, seq(&[uri(ID)]))),
            "duplicate_extension",
        );
        let issuer_name = extension("2.5.29.18", false, seq(&[uri("spiffe://example.org/b")]));
        self.leaf("an issuer alternative name beside it", &leaf().and(issuer_name.clone()), "ok");
        self.leaf("an issuer alternative name in its place", &leaf().with(SAN, None).and(issuer_name), "no_uri");
    }

    fn leaf_extensions(&mut self) {
        let leaf = || Draft::leaf("Root");
        let usage = |critical, value: Vec<u8>| leaf().with(KEY_USAGE, Some(extension(KEY_USAGE, critical, value)));
        let words = [
            "digitalSignature",
            "contentCommitment",
            "keyEncipherment",
            "dataEncipherment",
            "keyAgreement",
            "keyCertSign",
            "cRLSign",
            "encipherOnly",
            "decipherOnly",
        ];
        for (bit, word) in (0_u8..).zip(words) {
            let signs = matches!(bit, 5 | 6);
            let alone = if signs {
                "leaf_signs"
            } else if bit == 0 {
                "ok"
            } else {
                "key_usage"
            };
            self.leaf(format!("key usage {word} alone"), &usage(true, key_usage(&[bit])), alone);
            if bit > 0 {
                let both = if signs { "leaf_signs" } else { "ok" };
                self.leaf(format!("key usage digitalSignature and {word}"), &usage(true, key_usage(&[0, bit])), both);
                self.leaf(
                    format!("key usage digitalSignature and {word}, not critical"),
                    &usage(false, key_usage(&[0, bit])),
                    if signs { "leaf_signs" } else { "key_usage" },
                );
            }
        }
        self.leaf("every key usage", &usage(true, key_usage(&[0, 1, 2, 3, 4, 5, 6, 7, 8])), "leaf_signs");
        self.leaf("key usage without an issuer's bits", &usage(true, key_usage(&[0, 1, 2, 3, 4, 7, 8])), "ok");
        self.leaf("key usage not critical", &usage(false, key_usage(&[0])), "key_usage");
        self.leaf("no key usage", &leaf().with(KEY_USAGE, None), "key_usage");
        for (what, value) in [
            ("no bits", key_usage(&[])),
            ("eight zero bits", tlv(0x03, [0x00, 0x00])),
            ("an empty BIT STRING", tlv(0x03, [])),
            ("an empty value", Vec::new()),
            ("a padding of eight bits", tlv(0x03, [0x08, 0x80])),
            ("a padding that is not zero", tlv(0x03, [0x07, 0xff])),
            ("three bytes", tlv(0x03, [0x07, 0x80, 0x00, 0x80])),
            ("an OCTET STRING", tlv(0x04, [0x07, 0x80])),
            ("an INTEGER", tlv(0x02, [0x07, 0x80])),
            ("bytes after it", [key_usage(&[0]), vec![0x00]].concat()),
            ("a length beyond its end", vec![0x03, 0x04, 0x07, 0x80]),
        ] {
            self.leaf(format!("key usage: {what}"), &usage(true, value), "malformed");
        }
        let again = extension(KEY_USAGE, true, key_usage(&[0]));
        self.leaf("key usage twice", &leaf().and(again), "duplicate_extension");
        self.leaf(
            "key usage twice, the second signs",
            &leaf().and(extension(KEY_USAGE, true, key_usage(&[5]))),
            "duplicate_extension",
        );

        let purposes = |critical, value: Vec<u8>| leaf().with(EXTENDED, Some(extension(EXTENDED, critical, value)));
        let (any, code) = ("2.5.29.37.0", "1.3.6.1.5.5.7.3.3");
        for (what, list, expect) in [
            ("serverAuth and clientAuth", &[SERVER, CLIENT][..], "ok"),
            ("clientAuth and serverAuth", &[CLIENT, SERVER], "ok"),
            ("both and codeSigning", &[SERVER, CLIENT, code], "ok"),
            ("both and anyExtendedKeyUsage", &[any, SERVER, CLIENT], "ok"),
            ("both, one twice", &[SERVER, SERVER, CLIENT], "ok"),
            ("serverAuth alone", &[SERVER], "extended_key_usage"),
            ("clientAuth alone", &[CLIENT], "extended_key_usage"),
            ("anyExtendedKeyUsage alone", &[any], "extended_key_usage"),
            ("anyExtendedKeyUsage and clientAuth", &[any, CLIENT], "extended_key_usage"),
            ("codeSigning alone", &[code], "extended_key_usage"),
            ("serverAuth and codeSigning", &[SERVER, code], "extended_key_usage"),
            ("OCSPSigning alone", &["1.3.6.1.5.5.7.3.9"], "extended_key_usage"),
        ] {
            self.leaf(format!("extended key usage {what}"), &purposes(false, extended(list)), expect);
            self.leaf(format!("extended key usage {what}, critical"), &purposes(true, extended(list)), expect);
        }
        self.leaf("no extended key usage", &leaf().with(EXTENDED, None), "ok");
        for (what, value) in [
            ("an empty list", seq(&[])),
            ("an empty value", Vec::new()),
            ("an OBJECT IDENTIFIER cut short", seq(&[tlv(0x06, [0x2b, 0x86])])),
            ("an empty OBJECT IDENTIFIER", seq(&[oid(SERVER), oid(CLIENT), tlv(0x06, [])])),
            ("a member that is none", seq(&[oid(SERVER), oid(CLIENT), null()])),
            ("bytes after it", [extended(&[SERVER, CLIENT]), vec![0x05, 0x00]].concat()),
        ] {
            self.leaf(format!("extended key usage: {what}"), &purposes(false, value), "malformed");
        }
        let again = extension(EXTENDED, false, extended(&[SERVER, CLIENT]));
        self.leaf("extended key usage twice", &leaf().and(again), "duplicate_extension");

        let constraints = |critical, value: Vec<u8>| leaf().with(BASIC, Some(extension(BASIC, critical, value)));
        for critical in [true, false] {
            let how = if critical { "critical" } else { "not critical" };
            self.leaf(format!("basic constraints empty, {how}"), &constraints(critical, basic(false, None)), "ok");
            let written = seq(&[vec![0x01, 0x01, 0x00]]);
            self.leaf(format!("basic constraints FALSE written out, {how}"), &constraints(critical, written), "ok");
            self.leaf(format!("basic constraints cA, {how}"), &constraints(critical, basic(true, None)), "leaf_is_ca");
            self.leaf(
                format!("basic constraints cA and pathLen 0, {how}"),
                &constraints(critical, basic(true, Some(0))),
                "leaf_is_ca",
            );
        }
        self.leaf("no basic constraints", &leaf().with(BASIC, None), "ok");
        for (what, value) in [
            ("pathLen without cA", basic(false, Some(0))),
            ("a BOOLEAN of 01", seq(&[vec![0x01, 0x01, 0x01]])),
            ("a BOOLEAN of two bytes", seq(&[vec![0x01, 0x02, 0xff, 0xff]])),
            ("an empty BOOLEAN", seq(&[vec![0x01, 0x00]])),
            ("an empty value", Vec::new()),
            ("bytes after it", [basic(false, None), vec![0x00]].concat()),
            ("a member too many", seq(&[vec![0x01, 0x01, 0xff], tlv(0x02, [0]), tlv(0x02, [0])])),
            ("a negative pathLen", seq(&[vec![0x01, 0x01, 0xff], tlv(0x02, [0xff])])),
        ] {
            self.leaf(format!("basic constraints: {what}"), &constraints(true, value), "malformed");
        }
        let again = extension(BASIC, true, basic(true, None));
        self.leaf("basic constraints twice, the second cA", &leaf().and(again), "duplicate_extension");

        // how the rules combine: the first in the specification's order that is broken is the one told
        for (usage_word, usage, usage_kind) in [
            ("digitalSignature", Some((true, vec![0])), "ok"),
            ("keyCertSign too", Some((true, vec![0, 5])), "leaf_signs"),
            ("not critical", Some((false, vec![0])), "key_usage"),
            ("keyAgreement", Some((true, vec![4])), "key_usage"),
            ("none", None, "key_usage"),
        ] {
            for (basic_word, ca) in [("absent", None), ("false", Some(false)), ("true", Some(true))] {
                for (purpose_word, list) in
                    [("none", None), ("both", Some(&[SERVER, CLIENT][..])), ("one", Some(&[SERVER][..]))]
                {
                    let expect = match (ca, usage_kind, purpose_word) {
                        (Some(true), _, _) => "leaf_is_ca",
                        (_, "ok", "one") => "extended_key_usage",
                        (_, kind, _) => kind,
                    };
                    let draft = leaf()
                        .with(
                            KEY_USAGE,
                            usage.as_ref().map(|(critical, bits)| extension(KEY_USAGE, *critical, key_usage(bits))),
                        )
                        .with(BASIC, ca.map(|ca| extension(BASIC, true, basic(ca, None))))
                        .with(EXTENDED, list.map(|list| extension(EXTENDED, false, extended(list))));
                    let name = format!("key usage {usage_word}, cA {basic_word}, extended key usage {purpose_word}");
                    self.leaf(name, &draft, expect);
                }
            }
        }
    }

    fn validity(&mut self) {
        let edges = [
            ("2026-11-22T23:59:59Z", "a second before notBefore", -1),
            ("2026-11-23T00:00:00Z", "at notBefore", 0),
            ("2026-11-23T00:00:01Z", "a second after notBefore", 0),
            ("2026-11-23T23:59:59Z", "a second before notAfter", 0),
            ("2026-11-24T00:00:00Z", "at notAfter", 0),
            ("2026-11-24T00:00:01Z", "a second after notAfter", 1),
        ];
        let short = |draft: Draft| {
            draft.but(|d| (d.not_before, d.not_after) = (time("20261123000000"), time("20261124000000")))
        };
        let long = |draft: Draft| {
            draft.but(|d| (d.not_before, d.not_after) = (time("20260101000000"), time("20360101000000")))
        };
        for (now, when, side) in edges {
            let kind = |ca: bool| match (side, ca) {
                (0, _) => "ok",
                (-1, false) => "not_yet_valid",
                (-1, true) => "ca_not_yet_valid",
                (_, false) => "expired",
                (_, true) => "ca_expired",
            };
            self.leaf(format!("leaf {when}"), &Draft::leaf("Root"), kind(false)).at(now).until("2026-11-24T00:00:00Z");
            let chain = vec![
                long(Draft::leaf("CA")).by(self.signer, "ca"),
                short(Draft::ca("Root", "CA", "ca")).by(self.signer, "root"),
            ];
            self.add(format!("intermediate {when}"), chain, kind(true)).at(now).until("2026-11-24T00:00:00Z");
            self.root("short_root", short(Draft::ca("Root", "Root", "root")), "root");
            let case = self.leaf(format!("root {when}"), &long(Draft::leaf("Root")), kind(true));
            case.at(now).trusting(&[(TD, &["short_root"])]).until("2026-11-24T00:00:00Z");
        }
        let period =
            |from: Vec<u8>, until: Vec<u8>| Draft::leaf("Root").but(|d| (d.not_before, d.not_after) = (from, until));
        let start = || time("20261123000000");
        self.leaf(
            "notAfter before notBefore",
            &period(time("20261124000000"), time("20261123000000")),
            "not_yet_valid",
        );
        self.leaf("notAfter is notBefore", &period(time("20261123120000"), time("20261123120000")), "ok")
            .until("2026-11-23T12:00:00Z");
        self.leaf("notBefore in 1970", &period(time("19700101000000"), time("20261124000000")), "ok");
        self.leaf("notBefore in 1969", &period(time("19691231235959"), time("20261124000000")), "malformed");
        self.leaf("expired in 1970", &period(time("19700101000000"), time("19701231235959")), "expired");
        self.leaf("notAfter at the end of 2049", &period(start(), time("20491231235959")), "ok")
            .until("2036-01-01T00:00:00Z");
        self.leaf("notAfter at the start of 2050", &period(start(), time("20500101000000")), "ok")
            .until("2036-01-01T00:00:00Z");
        self.leaf("notAfter without an end", &period(start(), time("99991231235959")), "ok")
            .until("2036-01-01T00:00:00Z");
        self.leaf(
            "GeneralizedTime before 2050",
            &period(tlv(0x18, "20261123000000Z"), tlv(0x18, "20261124000000Z")),
            "ok",
        )
        .until("2026-11-24T00:00:00Z");
        self.leaf("29 February of a leap year", &period(start(), time("20280229000000")), "ok")
            .until("2028-02-29T00:00:00Z");
        self.leaf("29 February 2000", &period(time("20000229000000"), time("20280301000000")), "ok")
            .until("2028-03-01T00:00:00Z");
        for (what, end) in [
            ("29 February of another year", tlv(0x17, "270229000000Z")),
            ("29 February 2100", tlv(0x18, "21000229000000Z")),
            ("30 February", tlv(0x17, "280230000000Z")),
            ("31 April", tlv(0x17, "270431000000Z")),
            ("month 0", tlv(0x17, "270001000000Z")),
            ("month 13", tlv(0x17, "271301000000Z")),
            ("day 0", tlv(0x17, "270100000000Z")),
            ("day 32", tlv(0x17, "270132000000Z")),
            ("hour 24", tlv(0x17, "270101240000Z")),
            ("minute 60", tlv(0x17, "270101006000Z")),
            ("second 60", tlv(0x17, "270101000060Z")),
            ("no seconds", tlv(0x17, "2701010000Z")),
            ("no zone", tlv(0x17, "270101000000")),
            ("a small z", tlv(0x17, "270101000000z")),
            ("an offset", tlv(0x17, "270101000000+0000")),
            ("a fraction", tlv(0x18, "20270101000000.5Z")),
            ("a comma", tlv(0x18, "20270101000000,5Z")),
            ("a letter", tlv(0x17, "27O101000000Z")),
            ("a sign", tlv(0x17, "+70101000000Z")),
            ("a space", tlv(0x17, " 70101000000Z")),
            ("UTCTime with four digits of year", tlv(0x17, "20270101000000Z")),
            ("GeneralizedTime with two digits of year", tlv(0x18, "270101000000Z")),
            ("nothing", tlv(0x17, "")),
            ("text of another type", tlv(0x0c, "270101000000Z")),
            ("a DATE", tlv(0x16, "2027-01-01")),
        ] {
            self.leaf(format!("notAfter: {what}"), &period(start(), end.clone()), "malformed");
            self.leaf(format!("notBefore: {what}"), &period(end, time("20280101000000")), "malformed");
        }
        self.leaf("no notAfter", &period(start(), Vec::new()), "malformed");
        self.leaf(
            "a third time",
            &period(start(), [time("20270101000000"), time("20280101000000")].concat()),
            "malformed",
        );
    }
}

/// A text as it stands in the name of a case.
fn shown(text: &str) -> String {
    let text = text.escape_debug().to_string();
    if text.len() > 80 { format!("{}… ({} bytes)", &text[..40], text.len()) } else { format!("\"{text}\"") }
}
