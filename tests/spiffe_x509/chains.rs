//! The cases about more than the leaf: trust, paths, name constraints, signatures, encodings.

use crate::asn1::*;
use crate::cases::Cases;
use crate::generate::*;

/// A trust domain and the names of its roots.
type Trusted<'a> = (&'a str, &'a [&'a str]);
/// What it is about; the leaf's names; permitted, excluded; the verdict.
type DnsCase = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str], &'static str);

const PARTNER: &str = "partner.example";
const PARTNER_ID: &str = "spiffe://partner.example/report";

impl Cases<'_> {
    pub(crate) fn trust(&mut self) {
        let leaf = || Draft::leaf("Root");
        self.root("other", Draft::ca("Other", "Other", "other"), "other");
        let good = leaf().by(self.signer, "root");
        let by_other = Draft::leaf("Other").by(self.signer, "other");
        let partner = Draft::leaf("Other").names(&[uri(PARTNER_ID)]).by(self.signer, "other");
        let (own, both): (&[Trusted<'_>], &[Trusted<'_>]) =
            (&[(TD, &["root"])], &[(TD, &["root"]), (PARTNER, &["other"])]);
        self.add("another root alone", vec![good.clone()], "unknown_issuer").trusting(&[(TD, &["other"])]);
        self.add("one of several roots", vec![good.clone()], "ok").trusting(&[(TD, &["other", "root"])]);
        self.add("the root twice", vec![good.clone()], "ok").trusting(&[(TD, &["root", "root"])]);
        self.add("our SPIFFE ID by another trust domain's root", vec![by_other.clone()], "unknown_issuer")
            .trusting(both)
            .accepting(&[TD, PARTNER]);
        self.add("the same with the roots pooled", vec![by_other], "ok").trusting(&[(TD, &["root", "other"])]);
        let impostor = leaf().names(&[uri(PARTNER_ID)]).by(self.signer, "root");
        self.add("another trust domain's SPIFFE ID by our root", vec![impostor], "unknown_issuer")
            .trusting(both)
            .accepting(&[TD, PARTNER]);
        self.add("a federated trust domain", vec![partner.clone()], "ok")
            .trusting(both)
            .accepting(&[TD, PARTNER])
            .naming(PARTNER_ID);
        self.add("a federated trust domain that is not configured", vec![partner.clone()], "trust_domain")
            .trusting(both);
        self.add("a configured trust domain without a bundle", vec![partner.clone()], "no_bundle")
            .trusting(own)
            .accepting(&[TD, PARTNER]);
        self.add("a configured trust domain with an empty bundle", vec![partner], "no_bundle")
            .trusting(&[(TD, &["root"]), (PARTNER, &[])])
            .accepting(&[TD, PARTNER]);
        self.add("no bundle at all", vec![good.clone()], "no_bundle").trusting(&[]);
        self.add("an empty bundle", vec![good.clone()], "no_bundle").trusting(&[(TD, &[])]);
        self.add("no trust domain accepted", vec![good.clone()], "trust_domain").accepting(&[]);
        self.add("a bundle of the trust domain above", vec![good.clone()], "trust_domain")
            .trusting(&[("org", &["root"])])
            .accepting(&["org"]);
        for domain in ["sub.example.org", "example.org.evil", "example.or", "xexample.org"] {
            let id = format!("spiffe://{domain}/ns/finance/sa/report");
            let der = leaf().names(&[uri(&id)]).by(self.signer, "root");
            self.add(format!("{domain} by the root of {TD}"), vec![der], "trust_domain");
        }
        // roots that can be none
        let ca = || Draft::ca("Root", "Root", "root");
        let usage = |bits: &[u8]| Some(extension(KEY_USAGE, true, key_usage(bits)));
        for (name, root, expect) in [
            ("a root that is no CA", ca().with(BASIC, Some(extension(BASIC, true, basic(false, None)))), "no_bundle"),
            ("a root without basic constraints", ca().with(BASIC, None), "no_bundle"),
            ("a root whose key usage lacks keyCertSign", ca().with(KEY_USAGE, usage(&[0, 6])), "no_bundle"),
            ("a root without key usage", ca().with(KEY_USAGE, None), "ok"),
            (
                "a root whose key usage is not critical",
                ca().with(KEY_USAGE, Some(extension(KEY_USAGE, false, key_usage(&[5])))),
                "ok",
            ),
            ("a root without any name", ca().with(SAN, None), "ok"),
            ("a root that names another trust domain", ca().names(&[uri("spiffe://partner.example")]), "ok"),
            ("a root that names a workload", ca().names(&[uri("spiffe://example.org/ca")]), "ok"),
            ("a root for clients", ca().and(extension(EXTENDED, false, extended(&[CLIENT]))), "ok"),
            ("a root for e-mail", ca().and(extension(EXTENDED, false, extended(&["1.3.6.1.5.5.7.3.4"]))), "ok"),
            ("a root with an unknown critical extension", ca().and(extension("1.2.3.4", true, null())), "no_bundle"),
            ("a root with an unknown extension", ca().and(extension("1.2.3.4", false, null())), "ok"),
            ("a root with an extension twice", ca().and(extension(BASIC, true, basic(true, None))), "no_bundle"),
            ("a root of version 1", ca().but(|d| (d.version, d.extensions) = (Vec::new(), Vec::new())), "no_bundle"),
            ("a root signed by another key", ca(), "ok"),
        ] {
            let key = if name == "a root signed by another key" { "other" } else { "root" };
            let id = name.replace(' ', "_");
            self.root(&id, root, key);
            self.add(name, vec![good.clone()], expect).trusting(&[(TD, &[&id])]);
        }
        self.root("not_self_signed", Draft::ca("Other", "Root", "root"), "other");
        self.add("a root that another CA issued", vec![good.clone()], "ok").trusting(&[(TD, &["not_self_signed"])]);
        self.root("same_name", Draft::ca("Root", "Root", "other"), "other");
        self.add("a root of the same name and another key", vec![good.clone()], "signature")
            .trusting(&[(TD, &["same_name"])]);
        self.add("the right one after it", vec![good.clone()], "ok").trusting(&[(TD, &["same_name", "root"])]);
        self.add("the right one before it", vec![good.clone()], "ok").trusting(&[(TD, &["root", "same_name"])]);
        self.root("expired", ca().but(|d| d.not_after = time("20260201000000")), "root");
        self.add("an expired root", vec![good.clone()], "ca_expired").trusting(&[(TD, &["expired"])]);
        self.add("an expired root and its renewal", vec![good.clone()], "ok").trusting(&[(TD, &["expired", "root"])]);
        let same = vec!["same_name"; 99];
        let hundred: Vec<_> = same.iter().copied().chain(["root"]).collect();
        self.add("the right one after 99 of the same name", vec![good.clone()], "ok").trusting(&[(TD, &hundred)]);
        let more: Vec<_> = same.iter().copied().chain(["same_name", "root"]).collect();
        self.add("the right one after 100 of the same name", vec![good.clone()], "too_complex")
            .trusting(&[(TD, &more)]);
        self.roots.insert("leaf_as_root".into(), good.clone());
        self.add("the leaf itself as root", vec![good.clone()], "no_bundle").trusting(&[(TD, &["leaf_as_root"])]);
        self.roots.insert("garbage".into(), b"garbage".to_vec());
        self.add("a root that is no certificate", vec![good.clone()], "no_bundle").trusting(&[(TD, &["garbage"])]);
        self.add("garbage beside the root", vec![good.clone()], "ok").trusting(&[(TD, &["garbage", "root"])]);
        let own_signature = Draft::leaf("").but(|d| (d.issuer, d.key) = (d.subject.clone(), public_key("ca")));
        let own_signature = own_signature.by(self.signer, "ca");
        self.add("a leaf that signed itself", vec![own_signature.clone()], "unknown_issuer");
        self.add(
            "a leaf that signed itself, presented twice",
            vec![own_signature.clone(), own_signature],
            "unknown_issuer",
        );
        let root = self.roots["root"].clone();
        self.add("the root presented too", vec![good.clone(), root.clone()], "ok");
        self.add("the root presented and not trusted", vec![good, root.clone()], "unknown_issuer")
            .trusting(&[(TD, &["other"])]);
        self.add("the root as leaf", vec![root], "spiffe_id");
        // an intermediate as root
        let ca = Draft::ca("Root", "CA", "ca").by(self.signer, "root");
        self.roots.insert("intermediate".into(), ca.clone());
        let below = Draft::leaf("CA").by(self.signer, "ca");
        self.add("an intermediate as root", vec![below.clone()], "ok").trusting(&[(TD, &["intermediate"])]);
        self.add("an intermediate as root, presented too", vec![below, ca], "ok").trusting(&[(TD, &["intermediate"])]);
    }

    pub(crate) fn path(&mut self) {
        let ca = || Draft::ca("Root", "CA", "ca");
        self.below("one intermediate", &ca(), "ok").until("2026-11-24T00:00:00Z");
        let (leaf, middle) = (Draft::leaf("CA").by(self.signer, "ca"), ca().by(self.signer, "root"));
        self.add("the intermediate missing", vec![leaf.clone()], "unknown_issuer");
        self.add("the intermediate twice", vec![leaf.clone(), middle.clone(), middle.clone()], "ok");
        self.add("the intermediate first", vec![middle.clone(), leaf.clone()], "spiffe_id");
        self.add("the leaf twice", vec![leaf.clone(), leaf.clone(), middle.clone()], "ok");
        let unrelated = Draft::ca("Else", "Elsewhere", "ca2").by(self.signer, "other");
        self.add("an unrelated CA before it", vec![leaf.clone(), unrelated.clone(), middle.clone()], "ok");
        self.add("an unrelated CA after it", vec![leaf.clone(), middle.clone(), unrelated.clone()], "ok");
        self.add("an unrelated CA in its place", vec![leaf.clone(), unrelated], "unknown_issuer");
        self.add("garbage after it", vec![leaf.clone(), middle.clone(), b"garbage".to_vec()], "malformed");
        self.add("an empty certificate after it", vec![leaf.clone(), middle.clone(), Vec::new()], "malformed");
        // what an intermediate must be
        let usage = |critical, bits: &[u8]| Some(extension(KEY_USAGE, critical, key_usage(bits)));
        let purposes = |list: &[&str]| ca().and(extension(EXTENDED, false, extended(list)));
        for (name, draft, expect) in [
            (
                "an intermediate that is no CA",
                ca().with(BASIC, Some(extension(BASIC, true, basic(false, None)))),
                "not_a_ca",
            ),
            ("an intermediate without basic constraints", ca().with(BASIC, None), "not_a_ca"),
            ("an intermediate without key usage", ca().with(KEY_USAGE, None), "not_a_ca"),
            (
                "an intermediate whose key usage lacks keyCertSign",
                ca().with(KEY_USAGE, usage(true, &[0, 6])),
                "not_a_ca",
            ),
            ("an intermediate with keyCertSign alone", ca().with(KEY_USAGE, usage(true, &[5])), "ok"),
            ("an intermediate with digitalSignature too", ca().with(KEY_USAGE, usage(true, &[0, 5, 6])), "ok"),
            ("an intermediate with both purposes", purposes(&[SERVER, CLIENT]), "ok"),
            ("an intermediate for clients", purposes(&[CLIENT]), "ok"),
            ("an intermediate for servers", purposes(&[SERVER]), "ca_extended_key_usage"),
            ("an intermediate for e-mail", purposes(&["1.3.6.1.5.5.7.3.4"]), "ca_extended_key_usage"),
            ("an intermediate for any purpose", purposes(&["2.5.29.37.0"]), "ca_extended_key_usage"),
            ("an intermediate without a name", ca().with(SAN, None), "ok"),
            ("an intermediate that names another trust domain", ca().names(&[uri("spiffe://partner.example")]), "ok"),
            ("an intermediate that names a workload", ca().names(&[uri("spiffe://example.org/ca")]), "ok"),
            ("an intermediate with two URIs", ca().names(&[uri("spiffe://example.org"), uri("spiffe://a")]), "ok"),
            ("an intermediate whose names cannot be read", ca().names(&[uri(b"\xff")]), "subject_alt_name"),
            (
                "an intermediate with an unknown critical extension",
                ca().and(extension("1.2.3.4", true, null())),
                "critical_extension",
            ),
            ("an intermediate with an unknown extension", ca().and(extension("1.2.3.4", false, null())), "ok"),
            (
                "an intermediate with an extension twice",
                ca().and(extension(BASIC, true, basic(true, None))),
                "duplicate_extension",
            ),
            (
                "an intermediate of version 1",
                ca().but(|d| (d.version, d.extensions) = (Vec::new(), Vec::new())),
                "version",
            ),
            ("an intermediate of a weak key", ca().but(|d| d.key = public_key("leaf-rsa1024")), "weak_key"),
            ("an intermediate of another key", ca().but(|d| d.key = public_key("ca2")), "signature"),
            ("an intermediate of another name", Draft::ca("Root", "Ca", "ca"), "unknown_issuer"),
            ("an intermediate of another issuer", Draft::ca("Toor", "CA", "ca"), "unknown_issuer"),
        ] {
            self.below(name, &draft, expect);
        }
        // a workload is no CA, however it signs
        let workload = Draft::leaf("Root").but(|d| (d.key, d.subject) = (public_key("ca"), name("SPIFFE", "CA")));
        self.below("a workload that signs a workload", &workload, "not_a_ca");
        // several ways up
        let same_name = Draft::ca("Root", "CA", "ca2").by(self.signer, "root");
        self.add(
            "two CAs of one name, the wrong one first",
            vec![leaf.clone(), same_name.clone(), middle.clone()],
            "ok",
        );
        self.add("two CAs of one name, the right one first", vec![leaf.clone(), middle.clone(), same_name], "ok");
        let expired = ca().but(|d| d.not_after = time("20260201000000")).by(self.signer, "root");
        self.add("an expired CA and its renewal", vec![leaf.clone(), expired.clone(), middle.clone()], "ok");
        self.add("an expired CA alone", vec![leaf.clone(), expired], "ca_expired");
        let crossed = Draft::ca("Other", "CA", "ca").by(self.signer, "other");
        self.add("cross-signed, the foreign way first", vec![leaf.clone(), crossed.clone(), middle.clone()], "ok");
        self.add("cross-signed, the foreign way alone", vec![leaf.clone(), crossed], "unknown_issuer");
        let crossed_root = Draft::ca("Other", "Root", "root").by(self.signer, "other");
        self.add("the root cross-signed by another", vec![leaf.clone(), middle.clone(), crossed_root.clone()], "ok");
        self.add("the root reached over its cross-signature", vec![leaf.clone(), middle, crossed_root], "ok")
            .trusting(&[(TD, &["other"])]);
        let (a, b) =
            (Draft::ca("B", "A", "ca").by(self.signer, "ca2"), Draft::ca("A", "B", "ca2").by(self.signer, "ca"));
        let ring = Draft::leaf("A").by(self.signer, "ca");
        self.add("CAs that sign each other in a ring", vec![ring, a, b], "unknown_issuer");
        // chains of every length, in order and out of it
        for depth in 1..=8_usize {
            let chain = self.chain(depth, |_, ca| ca);
            let expect = if depth <= 6 { "ok" } else { "too_large" };
            self.add(format!("{depth} intermediates"), chain.clone(), expect);
            let reversed: Vec<_> = chain[..1].iter().chain(chain[1..].iter().rev()).cloned().collect();
            self.add(format!("{depth} intermediates, the highest first"), reversed, expect);
            if depth > 1 {
                let without =
                    chain.iter().enumerate().filter(|(i, _)| *i != depth).map(|(_, der)| der.clone()).collect();
                let expect = if depth <= 7 { "unknown_issuer" } else { "too_large" };
                self.add(format!("{depth} intermediates without the highest"), without, expect);
            }
        }
        // path lengths
        for depth in 0..=3_usize {
            for limit in 0..=3_u8 {
                let constraint = || Some(extension(BASIC, true, basic(true, Some(limit))));
                let expect = if depth <= usize::from(limit) { "ok" } else { "path_length" };
                self.root(
                    &format!("path_length_{limit}"),
                    Draft::ca("Root", "Root", "root").with(BASIC, constraint()),
                    "root",
                );
                let chain = self.chain(depth, |_, ca| ca);
                self.add(format!("{depth} intermediates below a root of pathLen {limit}"), chain, expect)
                    .trusting(&[(TD, &[&format!("path_length_{limit}")])]);
                if depth > 0 {
                    let chain =
                        self.chain(depth, |i, ca| if i + 1 == depth { ca.with(BASIC, constraint()) } else { ca });
                    let expect = if depth - 1 <= usize::from(limit) { "ok" } else { "path_length" };
                    self.add(format!("{} CAs below a CA of pathLen {limit}", depth - 1), chain, expect);
                }
            }
        }
        let huge = extension(BASIC, true, seq(&[vec![0x01, 0x01, 0xff], tlv(0x02, [0x01, 0x00])]));
        self.below("pathLen 256", &ca().with(BASIC, Some(huge)), "malformed");
    }

    /// A leaf and this many intermediates above it, each changed by `change`; the highest is the root's.
    fn chain(&self, depth: usize, change: impl Fn(usize, Draft) -> Draft) -> Vec<Vec<u8>> {
        let title = |i: usize| if i == depth { "Root".to_owned() } else { format!("CA {i}") };
        let key = |i: usize| {
            if i == depth {
                "root"
            } else if i.is_multiple_of(2) {
                "ca"
            } else {
                "ca2"
            }
        };
        let mut chain = vec![Draft::leaf(&title(0)).by(self.signer, key(0))];
        for i in 0..depth {
            let ca = Draft::ca(&title(i + 1), &title(i), key(i));
            chain.push(change(i, ca).by(self.signer, key(i + 1)));
        }
        chain
    }

    pub(crate) fn name_constraints(&mut self) {
        let leaf = || Draft::leaf("Root");
        let root = |value: Vec<u8>| Draft::ca("Root", "Root", "root").and(extension(NAMES, true, value));
        let middle = |value: Vec<u8>| Draft::ca("Root", "CA", "ca").and(extension(NAMES, true, value));
        let hosts = |list: &[&str]| list.iter().map(uri).collect::<Vec<_>>();
        // on URIs: in the root and in an intermediate
        let on_uris: [(&str, &[&str], &[&str], &str); 27] = [
            ("permits the trust domain", &[TD], &[], "ok"),
            ("permits it in capitals", &["EXAMPLE.ORG"], &[], "ok"),
            ("permits it among others", &["partner.example", TD], &[], "ok"),
            ("permits another", &["partner.example"], &[], "name_constraints"),
            ("permits what is below it", &[".example.org"], &[], "name_constraints"),
            ("permits what is below its parent", &[".org"], &[], "ok"),
            ("permits its parent alone", &["org"], &[], "name_constraints"),
            ("permits a host below it", &["a.example.org"], &[], "name_constraints"),
            ("permits the end of its name", &["ample.org"], &[], "name_constraints"),
            ("permits a longer name", &["example.org.evil"], &[], "name_constraints"),
            ("excludes the trust domain", &[], &[TD], "name_constraints"),
            ("excludes it in capitals", &[], &["Example.Org"], "name_constraints"),
            ("excludes it among others", &[], &["partner.example", TD], "name_constraints"),
            ("excludes another", &[], &["partner.example"], "ok"),
            ("excludes what is below it", &[], &[".example.org"], "ok"),
            ("excludes what is below its parent", &[], &[".org"], "name_constraints"),
            ("excludes its parent alone", &[], &["org"], "ok"),
            ("excludes the end of its name", &[], &["ample.org"], "ok"),
            ("permits and excludes it", &[TD], &[TD], "name_constraints"),
            ("permits it and excludes another", &[TD], &["partner.example"], "ok"),
            ("permits its parent's and excludes it", &[".org"], &[TD], "name_constraints"),
            ("permits an empty host", &[""], &[], "name_constraint_form"),
            ("excludes an empty host", &[], &[""], "name_constraint_form"),
            ("permits a whole URI", &["spiffe://example.org"], &[], "name_constraint_form"),
            ("permits a wildcard", &["*.org"], &[], "name_constraint_form"),
            ("permits an address", &["192.0.2.1"], &[], "name_constraint_form"),
            ("permits a lone period", &["."], &[], "name_constraint_form"),
        ];
        for (what, permitted, excluded, expect) in on_uris {
            let value = constraints(&hosts(permitted), &hosts(excluded));
            self.under(&format!("a root {what}"), root(value.clone()), &leaf(), expect);
            // a CA that names no URI itself
            let silent = middle(value.clone()).with(SAN, None);
            self.below(format!("an intermediate {what}"), &silent, expect);
            let soft = Draft::ca("Root", "CA", "ca").and(extension(NAMES, false, value));
            self.below(format!("an intermediate {what}, not critical"), &soft, expect);
        }
        // on URIs: other trust domains
        for (domain, base, permitted, excluded) in [
            ("sub.example.org", ".example.org", "ok", "name_constraints"),
            ("a.b.example.org", ".example.org", "ok", "name_constraints"),
            ("sub.example.org", TD, "name_constraints", "ok"),
            ("evilexample.org", ".example.org", "name_constraints", "ok"),
            ("evilexample.org", TD, "name_constraints", "ok"),
            ("a_b", "a_b", "ok", "name_constraints"),
            ("example.org.", TD, "name_constraints", "name_constraints"),
            (".example.org", ".example.org", "name_constraints", "name_constraints"),
            ("a..example.org", ".example.org", "name_constraints", "name_constraints"),
            ("192.0.2.1", "example.org", "name_constraints", "name_constraints"),
        ] {
            let id = format!("spiffe://{domain}/a");
            for (verb, expect, value) in [
                ("permits", permitted, constraints(&hosts(&[base]), &[])),
                ("excludes", excluded, constraints(&[], &hosts(&[base]))),
            ] {
                let title = format!("{domain} where a root {verb} {base}");
                let root_id = title.replace(' ', "_");
                self.under(&title, root(value), &leaf().names(&[uri(&id)]), expect)
                    .trusting(&[(domain, &[&root_id])])
                    .accepting(&[domain])
                    .naming(&id);
            }
        }
        // several CAs
        let two = |cases: &Self, upper: Vec<u8>, lower: Vec<u8>| {
            cases.chain(2, |i, ca| {
                ca.with(SAN, None).and(extension(NAMES, true, if i == 0 { lower.clone() } else { upper.clone() }))
            })
        };
        for (what, upper, lower, expect) in [
            ("both permit", &[TD][..], &[".org"][..], "ok"),
            ("only the upper permits", &[TD], &["partner.example"], "name_constraints"),
            ("only the lower permits", &["partner.example"], &[TD], "name_constraints"),
        ] {
            let chain = two(self, constraints(&hosts(upper), &[]), constraints(&hosts(lower), &[]));
            self.add(format!("two intermediates, {what}"), chain, expect);
        }
        let constrained = root(constraints(&hosts(&[TD]), &[]));
        self.root("permits_example.org", constrained, "root");
        let ca = |id: &str| Draft::ca("Root", "CA", "ca").names(&[uri(id)]);
        self.below("an intermediate that the root permits", &ca("spiffe://example.org"), "ok")
            .trusting(&[(TD, &["permits_example.org"])]);
        self.below(
            "an intermediate that the root does not permit",
            &ca("spiffe://partner.example"),
            "name_constraints",
        )
        .trusting(&[(TD, &["permits_example.org"])]);
        self.below("an intermediate whose URI has no host", &ca("urn:ca"), "name_constraints")
            .trusting(&[(TD, &["permits_example.org"])]);
        self.below("an intermediate whose URI has a port", &ca("https://example.org:443/"), "name_constraints")
            .trusting(&[(TD, &["permits_example.org"])]);
        // on DNS names
        let named = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| dns(name)).chain([uri(ID)]).collect();
            Draft::leaf("Root").names(&names)
        };
        let dns_cases: [DnsCase; 15] = [
            ("no DNS name, one permitted", &[], &[TD], &[], "ok"),
            ("no DNS name, all excluded", &[], &[], &[""], "ok"),
            ("a permitted name", &["a.example.org"], &[TD], &[], "ok"),
            ("the permitted name itself", &["example.org"], &[TD], &[], "ok"),
            ("a permitted name in capitals", &["A.EXAMPLE.ORG"], &[TD], &[], "ok"),
            ("a permitted and another name", &["a.example.org", "partner.example"], &[TD], &[], "name_constraints"),
            ("a name that ends alike", &["evilexample.org"], &[TD], &[], "name_constraints"),
            ("a name that is not permitted", &["partner.example"], &[TD], &[], "name_constraints"),
            ("an excluded name", &["a.example.org"], &[], &[TD], "name_constraints"),
            ("a name beside the excluded", &["partner.example"], &[], &[TD], "ok"),
            ("any name, all excluded", &["a"], &[], &[""], "name_constraints"),
            ("any name, all permitted", &["a"], &[""], &[], "ok"),
            ("a permitted wildcard", &["*.example.org"], &[TD], &[], "ok"),
            ("a wildcard above the permitted", &["*.example.org"], &["a.example.org"], &[], "name_constraints"),
            (
                "a wildcard that stands for the excluded",
                &["*.example.org"],
                &[],
                &["a.example.org"],
                "name_constraints",
            ),
        ];
        for (what, names, permitted, excluded, expect) in dns_cases {
            let bases = |list: &[&str]| list.iter().map(|base| dns(base)).collect::<Vec<_>>();
            let value = constraints(&bases(permitted), &bases(excluded));
            self.under(&format!("DNS: {what}"), root(value), &named(names), expect);
        }
        // on other forms
        let address = tlv(0x87, [192, 0, 2, 0, 255, 255, 255, 0]);
        let directory = tlv(0xa4, name("SPIRE", ""));
        let email = tlv(0x81, "example.org");
        let other = tlv(0xa0, [oid("1.2.3.4"), tlv(0xa0, tlv(0x0c, "x"))].concat());
        let nobody = |draft: Draft| draft.but(|d| d.subject = seq(&[]));
        let with = |form: Vec<u8>| Draft::leaf("Root").names(&[uri(ID), form]);
        let mail_subject = tlv(0x31, seq(&[oid("1.2.840.113549.1.9.1"), tlv(0x16, "a@example.org")]));
        for (what, value, leaf, expect) in [
            ("addresses permitted, none there", constraints(std::slice::from_ref(&address), &[]), leaf(), "ok"),
            (
                "addresses permitted, one there",
                constraints(std::slice::from_ref(&address), &[]),
                with(tlv(0x87, [192, 0, 2, 1])),
                "name_constraint_form",
            ),
            ("addresses excluded, none there", constraints(&[], std::slice::from_ref(&address)), leaf(), "ok"),
            (
                "addresses excluded, one there",
                constraints(&[], &[address]),
                with(tlv(0x87, [198, 51, 100, 1])),
                "name_constraint_form",
            ),
            (
                "directory names permitted, an empty subject there",
                constraints(std::slice::from_ref(&directory), &[]),
                nobody(leaf()),
                "name_constraint_form",
            ),
            (
                "directory names permitted, a subject there",
                constraints(std::slice::from_ref(&directory), &[]),
                leaf(),
                "name_constraint_form",
            ),
            (
                "directory names excluded, a subject there",
                constraints(&[], &[directory]),
                leaf(),
                "name_constraint_form",
            ),
            ("e-mail permitted, none there", constraints(std::slice::from_ref(&email), &[]), leaf(), "ok"),
            (
                "e-mail permitted, an address there",
                constraints(std::slice::from_ref(&email), &[]),
                with(tlv(0x81, "a@example.org")),
                "name_constraint_form",
            ),
            (
                "e-mail excluded, one in the subject",
                constraints(&[], &[email]),
                leaf().but(|d| d.subject = seq(&[mail_subject])),
                "name_constraint_form",
            ),
            ("other names permitted, none there", constraints(std::slice::from_ref(&other), &[]), leaf(), "ok"),
            (
                "other names permitted, one there",
                constraints(std::slice::from_ref(&other), &[]),
                with(other.clone()),
                "name_constraint_form",
            ),
            (
                "other names excluded, another form there",
                constraints(&[], &[other]),
                with(tlv(0x88, [0x2a, 0x03])),
                "ok",
            ),
        ] {
            self.under(&format!("other forms: {what}"), root(value), &leaf, expect);
        }
        // encodings: a CA whose constraints cannot be read is none
        let base = |extra: Vec<u8>| seq(&[tlv(0xa0, seq(&[uri(TD), extra]))]);
        for (what, value) in [
            ("nothing", seq(&[])),
            ("an empty value", Vec::new()),
            ("an empty list", seq(&[tlv(0xa0, [])])),
            ("a minimum", base(tlv(0x80, [0x01]))),
            ("a minimum of 0", base(tlv(0x80, [0x00]))),
            ("a maximum", base(tlv(0x81, [0x01]))),
            ("the lists in the other order", seq(&[tlv(0xa1, seq(&[uri(TD)])), tlv(0xa0, seq(&[uri(TD)]))])),
            ("a list too many", seq(&[tlv(0xa0, seq(&[uri(TD)])), tlv(0xa2, seq(&[uri(TD)]))])),
            ("a host that is not ASCII", constraints(&[uri(b"\xff")], &[])),
            ("an address without a mask", constraints(&[tlv(0x87, [192, 0, 2, 1])], &[])),
            ("bytes after it", [constraints(&[uri(TD)], &[]), vec![0x00]].concat()),
        ] {
            self.below(format!("name constraints: {what}"), &middle(value), "malformed");
        }
    }

    pub(crate) fn signature(&mut self) {
        let leaf = || Draft::leaf("Root");
        let good = leaf().by(self.signer, "root");
        let length = good.len();
        for (what, at) in [("first", length - 256), ("middle", length - 128), ("last", length - 1)] {
            let mut der = good.clone();
            der[at] ^= 1;
            self.add(format!("one bit of the {what} byte of the signature turned"), vec![der], "signature");
        }
        for (what, part, bit) in
            [("SPIFFE ID", ID.as_bytes(), 1), ("subject", b"SPIRE", 1), ("end", b"261124000000Z", 1)]
        {
            let mut der = good.clone();
            let at = der.windows(part.len()).position(|window| window == part).unwrap() + part.len() - 2;
            der[at] ^= bit;
            self.add(format!("one bit of the {what} turned"), vec![der], "signature").naming("");
        }
        let tbs = leaf().tbs("rsa-sha256");
        let sealed = |signature: Vec<u8>| seq(&[tbs.clone(), tlv(0x30, algorithm("rsa-sha256")), tlv(0x03, signature)]);
        self.add("no signature", vec![sealed(vec![0])], "signature");
        self.add("an empty BIT STRING", vec![sealed(Vec::new())], "malformed");
        self.add("a signature of zeros", vec![sealed(vec![0; 257])], "signature");
        self.add("a signature that is not of whole bytes", vec![sealed([vec![1], vec![0; 256]].concat())], "malformed");
        self.add(
            "a signature cut short",
            vec![sealed([vec![0], good[length - 256..length - 1].to_vec()].concat())],
            "signature",
        );
        self.add(
            "a byte after the signature",
            vec![sealed([vec![0], good[length - 256..].to_vec(), vec![0]].concat())],
            "signature",
        );
        let by_other = leaf().by(self.signer, "other");
        self.add("signed by another key", vec![by_other], "signature");
        // schemes of the issuer
        for (key, scheme, expect) in [
            ("root", "rsa-sha256", "ok"),
            ("root", "rsa-sha384", "ok"),
            ("root", "rsa-sha512", "ok"),
            ("root", "rsa-sha1", "algorithm"),
            ("root", "rsa-md5", "algorithm"),
            ("p256", "ecdsa-sha256", "ok"),
            ("p256", "ecdsa-sha384", "ok"),
            ("p256", "ecdsa-sha512", "algorithm"),
            ("p256", "ecdsa-sha1", "algorithm"),
            ("p384", "ecdsa-sha256", "ok"),
            ("p384", "ecdsa-sha384", "ok"),
            ("p384", "ecdsa-sha512", "algorithm"),
            ("p384", "ecdsa-sha1", "algorithm"),
            ("p521", "ecdsa-sha256", "no_bundle"),
            ("p521", "ecdsa-sha512", "no_bundle"),
            ("ed25519", "ed25519", "ok"),
            ("rsa1024", "rsa-sha256", "no_bundle"),
        ] {
            let id = format!("root_{key}");
            let root = Draft::ca("Root", "Root", key).by(self.signer, "root");
            self.roots.insert(id.clone(), root);
            let der = leaf().signed(self.signer, key, scheme);
            self.add(format!("{scheme} by a root of {key}"), vec![der], expect).trusting(&[(TD, &[&id])]);
            if key != "root" {
                let chain = vec![
                    Draft::leaf("CA").signed(self.signer, key, scheme),
                    Draft::ca("Root", "CA", key).by(self.signer, "root"),
                ];
                let expect = match (key, expect) {
                    ("p521", _) => "algorithm",
                    ("rsa1024", _) => "weak_key",
                    (_, expect) => expect,
                };
                self.add(format!("{scheme} by an intermediate of {key}"), chain, expect);
            }
            if expect == "ok" && key != "root" {
                let mut der = leaf().signed(self.signer, key, scheme);
                let last = der.len() - 1;
                der[last] ^= 1;
                self.add(format!("{scheme} by a root of {key}, one bit turned"), vec![der], "signature")
                    .trusting(&[(TD, &[&id])]);
            }
        }
        // what the algorithm says
        let inner = |id: Vec<u8>| leaf().but(|d| d.inner = Some(id));
        self.leaf("SHA-384 inside, SHA-256 outside", &inner(algorithm("rsa-sha384")), "malformed");
        self.leaf(
            "SHA-256 inside, SHA-1 outside",
            &leaf().but(|d| {
                (d.inner, d.outer) = (Some(algorithm("rsa-sha256")), Some(algorithm("rsa-sha1")));
            }),
            "malformed",
        );
        let said = |id: Vec<u8>| leaf().but(|d| (d.inner, d.outer) = (Some(id.clone()), Some(id)));
        self.leaf("RSA without its NULL", &said(oid("1.2.840.113549.1.1.11")), "algorithm");
        self.leaf("RSA with other parameters", &said([oid("1.2.840.113549.1.1.11"), seq(&[])].concat()), "algorithm");
        self.leaf("RSA signature said to be ECDSA", &said(algorithm("ecdsa-sha256")), "algorithm");
        self.leaf("RSA signature said to be Ed25519", &said(algorithm("ed25519")), "algorithm");
        self.leaf("SHA-256 signature said to be SHA-384", &said(algorithm("rsa-sha384")), "signature");
        self.leaf("RSA signature said to be RSA-PSS", &said(oid("1.2.840.113549.1.1.10")), "algorithm");
        self.leaf(
            "an algorithm that is only a key's",
            &said([oid("1.2.840.113549.1.1.1"), null()].concat()),
            "algorithm",
        );
        self.leaf("an unknown algorithm", &said(oid("1.2.3.4")), "algorithm");
        self.leaf("no algorithm", &said(Vec::new()), "algorithm");
        // keys of the leaf
        for (key, expect) in [
            ("leaf", "ok"),
            ("leaf-p384", "ok"),
            ("leaf-p521", "algorithm"),
            ("leaf-secp256k1", "algorithm"),
            ("leaf-rsa1024", "weak_key"),
            ("leaf-rsa2047", "weak_key"),
            ("leaf-rsa2048", "ok"),
            ("leaf-rsa3072", "ok"),
            ("leaf-rsa4096", "ok"),
            ("leaf-ed25519", "ok"),
            ("leaf-x25519", "algorithm"),
            ("leaf-ed448", "algorithm"),
        ] {
            self.leaf(format!("a leaf of key {key}"), &leaf().but(|d| d.key = public_key(key)), expect);
        }
        let rsa =
            |bits: Vec<u8>| seq(&[seq(&[oid("1.2.840.113549.1.1.1"), null()]), tlv(0x03, [vec![0], bits].concat())]);
        for (what, key, expect) in [
            ("an RSA key of garbage", rsa(b"garbage".to_vec()), "malformed"),
            ("an RSA key without exponent", rsa(seq(&[tlv(0x02, [0x7f; 256])])), "malformed"),
            ("an RSA key of one bit", rsa(seq(&[tlv(0x02, [1]), tlv(0x02, [3])])), "weak_key"),
            ("an RSA key of 8200 bits", rsa(seq(&[tlv(0x02, [0x7f; 1025].as_slice()), tlv(0x02, [3])])), "weak_key"),
            ("an RSA key without NULL", seq(&[seq(&[oid("1.2.840.113549.1.1.1")]), tlv(0x03, [0])]), "algorithm"),
            (
                "an EC key with its curve written out",
                seq(&[seq(&[oid("1.2.840.10045.2.1"), seq(&[])]), tlv(0x03, [0, 4])]),
                "algorithm",
            ),
            ("an EC key without a curve", seq(&[seq(&[oid("1.2.840.10045.2.1")]), tlv(0x03, [0, 4])]), "algorithm"),
            ("a key of an unknown kind", seq(&[seq(&[oid("1.2.3.4")]), tlv(0x03, [0, 4])]), "algorithm"),
            ("a key that is no BIT STRING", seq(&[seq(&[oid("1.3.101.112")]), tlv(0x04, [0; 32])]), "malformed"),
            ("a key with something after it", [public_key("leaf"), null()].concat(), "malformed"),
        ] {
            self.leaf(what, &leaf().but(|d| d.key = key), expect);
        }
    }

    pub(crate) fn encoding(&mut self) {
        let leaf = || Draft::leaf("Root");
        let good = leaf().by(self.signer, "root");
        self.add("no certificate", Vec::new(), "no_certificate");
        self.add("an empty certificate", vec![Vec::new()], "malformed");
        self.add("PEM", vec![b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_vec()], "malformed");
        self.add("a text", vec![b"spiffe://example.org/a".to_vec()], "malformed");
        self.add("an empty SEQUENCE", vec![seq(&[])], "malformed");
        self.add("NULL", vec![null()], "malformed");
        self.add("only the signed part", vec![leaf().tbs("rsa-sha256")], "malformed");
        for cut in (1..good.len()).step_by(good.len() / 24) {
            self.add(format!("cut after {cut} bytes"), vec![good[..cut].to_vec()], "malformed");
        }
        self.add("cut before the last byte", vec![good[..good.len() - 1].to_vec()], "malformed");
        self.add("a byte after it", vec![[good.clone(), vec![0]].concat()], "malformed");
        self.add("another certificate after it", vec![[good.clone(), good.clone()].concat()], "malformed");
        self.add("8 certificates", vec![good.clone(); 8], "too_large");
        let large = leaf().and(extension("1.2.3.4", false, vec![0; 66_000]));
        self.leaf("66,000 bytes", &large, "too_large");
        let nearly = leaf().and(extension("1.2.3.4", false, vec![0; 60_000]));
        self.leaf("60,000 bytes", &nearly, "ok");
        // lengths and tags of the whole
        let content = &good[4..];
        let longer =
            [vec![0x30, 0x83, 0x00, (content.len() >> 8) as u8, content.len() as u8], content.to_vec()].concat();
        self.add("a length with a leading zero", vec![longer], "malformed");
        self.add("an indefinite length", vec![[vec![0x30, 0x80], content.to_vec(), vec![0, 0]].concat()], "malformed");
        self.add(
            "a length of four bytes",
            vec![[vec![0x30, 0x84, 0, 0, (content.len() >> 8) as u8, content.len() as u8], content.to_vec()].concat()],
            "malformed",
        );
        self.add("a reserved length", vec![[vec![0x30, 0xff], content.to_vec()].concat()], "malformed");
        self.add("a SET in place of the SEQUENCE", vec![[vec![0x31], good[1..].to_vec()].concat()], "malformed");
        self.add("a tag of two bytes", vec![[vec![0x3f, 0x10], good[1..].to_vec()].concat()], "malformed");
        // versions, serial numbers, names
        let explicit = |number: u8| vec![0xa0, 0x03, 0x02, 0x01, number];
        for (what, version, expect) in [
            ("version 1, left out", Vec::new(), "version"),
            ("version 1, written out", explicit(0), "version"),
            ("version 2", explicit(1), "version"),
            ("version 4", explicit(3), "version"),
            ("version 3 of two bytes", vec![0xa0, 0x04, 0x02, 0x02, 0x00, 0x02], "version"),
        ] {
            self.leaf(what, &leaf().but(|d| d.version = version), expect);
        }
        let bare = leaf().but(|d| (d.version, d.extensions) = (Vec::new(), Vec::new()));
        self.leaf("version 1 without extensions", &bare, "version");
        for (what, serial, expect) in [
            ("serial number 1", tlv(0x02, [1]), "ok"),
            ("a serial number of 20 bytes", tlv(0x02, [0x7f; 20]), "ok"),
            ("an empty serial number", tlv(0x02, []), "malformed"),
            ("a serial number with a leading zero", tlv(0x02, [0, 1]), "malformed"),
            ("a serial number that is none", tlv(0x04, [1]), "malformed"),
            ("no serial number", Vec::new(), "malformed"),
        ] {
            self.leaf(what, &leaf().but(|d| d.serial = serial), expect);
        }
        self.leaf("an empty subject", &leaf().but(|d| d.subject = seq(&[])), "ok");
        self.leaf("a subject of garbage", &leaf().but(|d| d.subject = tlv(0x30, b"garbage")), "malformed");
        self.leaf("a subject with an empty SET", &leaf().but(|d| d.subject = seq(&[tlv(0x31, [])])), "malformed");
        self.leaf("an issuer in capitals", &leaf().but(|d| d.issuer = name("SPIFFE", "ROOT")), "unknown_issuer");
        self.leaf(
            "an issuer of another string type",
            &leaf().but(|d| {
                d.issuer = seq(&[
                    tlv(0x31, seq(&[oid("2.5.4.10"), tlv(0x13, "SPIFFE")])),
                    tlv(0x31, seq(&[oid("2.5.4.3"), tlv(0x13, "Root")])),
                ]);
            }),
            "unknown_issuer",
        );
        self.leaf("an empty issuer", &leaf().but(|d| d.issuer = seq(&[])), "unknown_issuer");
        self.leaf(
            "unique identifiers",
            &leaf().but(|d| d.unique = [tlv(0x81, [0, 1]), tlv(0x82, [0, 1])].concat()),
            "malformed",
        );
        // extensions as such
        self.leaf("no extensions", &leaf().but(|d| d.extensions.clear()), "no_uri");
        self.leaf(
            "an empty list of extensions",
            &leaf().but(|d| (d.unique, d.extensions) = (tlv(0xa3, seq(&[])), Vec::new())),
            "malformed",
        );
        self.leaf(
            "extensions twice",
            &leaf().but(|d| d.unique = tlv(0xa3, seq(&[extension("1.2.3.4", false, null())]))),
            "malformed",
        );
        let unknown = |critical| extension("1.2.3.4", critical, null());
        self.leaf("an unknown extension", &leaf().and(unknown(false)), "ok");
        self.leaf("an unknown critical extension", &leaf().and(unknown(true)), "critical_extension");
        self.leaf("an unknown extension twice", &leaf().and(unknown(false)).and(unknown(false)), "duplicate_extension");
        let policy = || seq(&[oid("2.23.140.1.2.1")]);
        for (what, id, value) in [
            ("subject key identifier", "2.5.29.14", tlv(0x04, [1; 20])),
            ("authority key identifier", "2.5.29.35", seq(&[tlv(0x80, [1; 20])])),
            ("certificate policies", "2.5.29.32", seq(&[policy()])),
            ("policy mappings", "2.5.29.33", seq(&[seq(&[oid("1.2.3.4"), oid("1.2.3.5")])])),
            ("policy constraints", "2.5.29.36", seq(&[tlv(0x80, [5])])),
            ("inhibit anyPolicy", "2.5.29.54", tlv(0x02, [5])),
            ("issuer alternative name", "2.5.29.18", seq(&[dns("a")])),
            (
                "authority information access",
                "1.3.6.1.5.5.7.1.1",
                seq(&[seq(&[oid("1.3.6.1.5.5.7.48.2"), uri("http://a/")])]),
            ),
            ("TLS feature", "1.3.6.1.5.5.7.1.24", seq(&[tlv(0x02, [5])])),
            ("OCSP no check", "1.3.6.1.5.5.7.48.1.5", null()),
            ("the poison of precertificates", "1.3.6.1.4.1.11129.2.4.3", null()),
        ] {
            self.leaf(
                format!("{what}, critical"),
                &leaf().and(extension(id, true, value.clone())),
                "critical_extension",
            );
            self.leaf(format!("{what}, not critical"), &leaf().and(extension(id, false, value)), "ok");
        }
        let wrong = |parts: &[Vec<u8>]| leaf().and(seq(parts));
        let id = || oid("1.2.3.4");
        self.leaf("an extension without a value", &wrong(&[id()]), "malformed");
        self.leaf("an extension without an id", &wrong(&[tlv(0x04, [])]), "malformed");
        self.leaf(
            "an extension that says that it is not critical",
            &wrong(&[id(), vec![0x01, 0x01, 0x00], tlv(0x04, [])]),
            "ok",
        );
        self.leaf(
            "an extension of criticality 01",
            &wrong(&[id(), vec![0x01, 0x01, 0x01], tlv(0x04, [])]),
            "malformed",
        );
        self.leaf("an extension with something after it", &wrong(&[id(), tlv(0x04, []), null()]), "malformed");
        self.leaf("an extension whose value is no OCTET STRING", &wrong(&[id(), tlv(0x03, [0])]), "malformed");
        let extended =
            |count: u8| (0..count).fold(leaf(), |draft, n| draft.and(extension(&format!("1.2.3.{n}"), false, null())));
        self.leaf("64 extensions", &extended(60), "ok");
        self.leaf("65 extensions", &extended(61), "malformed");
    }
}
