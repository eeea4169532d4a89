use std::time::Duration;

use super::*;
use crate::identity::Proof;
use crate::policy::document::Decision as DecisionFile;
use crate::policy::snapshot::Leaver;

const DECISION: &str = "schema = 1\ntier = \"TIER\"\nkind = \"machine\"\ndecision_owner = \"g\"\nreview_by = 2027-01-01\n\
                        max_task = \"1h\"\nmax_residual = \"30s\"\ngrants = { a = \"\" }\n";
const HEAD: &str = "(principal, action == Action::\"begin\", resource == Scope::\"s\")";

fn names(list: &[&str]) -> BTreeSet<ParamName> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}

fn rules(text: &str, params: &[&str]) -> Result<Rules, Vec<RuleProblem>> {
    let text = text.replace("HEAD", HEAD);
    let scope = "s".parse().unwrap();
    let parsed = parse_together(&[text.as_bytes()]).remove(0);
    Engine::new().unwrap().decision(&mut Validators::default(), text.as_bytes(), parsed, &scope, &names(params))
}

fn caller() -> Caller {
    Caller::recorded("spiffe://example.org/a/b".parse().unwrap(), Proof::X509Svid, Timestamp::MAX)
}

fn ask(params: &[&str]) -> Ask {
    let params = params.iter().map(|name| (name.parse().unwrap(), "v".to_owned())).collect();
    Ask { scope: "s".parse().unwrap(), params, reason: None, approval: None, ttl: None }
}

fn asked(text: &str, params: &[&str], ask: &Ask) -> Verdict {
    let engine = Engine::new().unwrap();
    let decision = DecisionFile::parse(DECISION.replace("TIER", "baseline").as_bytes()).unwrap();
    let slice =
        engine.slice(&ask.scope, &decision, &Ends::default(), &rules(text, params).unwrap().rules, &[]).unwrap();
    let now = "2026-11-23T16:00:00.5Z".parse().unwrap();
    engine.ask_rules(&slice, &engine.question(&slice, &caller(), ask, 90, now).unwrap())
}

#[test]
fn every_member_of_the_vocabulary_is_there_with_its_documented_value() {
    let text = r#"@id("all") permit HEAD when {
        principal == Workload::"spiffe://example.org/a/b" &&
        context.verified.spiffe_id == "spiffe://example.org/a/b" &&
        context.verified.trust_domain == "example.org" &&
        context.verified.path == "a/b" &&
        context.verified.proof == "x509-svid" &&
        context.verified.now == datetime("2026-11-23T16:00:00Z") &&
        !(context.verified has approval) &&
        context.asserted.ttl == 90 &&
        context.asserted.params.customer == "v" && context.asserted.params["in"] == "v" &&
        context.asserted has reason && context.asserted.reason == "because" &&
        context.asserted has approval && context.asserted.approval == "a" &&
        resource.tier == "baseline" && resource.kind == "machine" &&
        resource.review_until == datetime("2027-01-09T00:00:00Z") && !(resource has expires_at) &&
        resource.ends_at == datetime("2027-01-09T00:00:00Z") && !(resource has owner_until)
    };"#;
    let mut ask = ask(&["customer", "in"]);
    (ask.reason, ask.approval) = (Some(" because ".to_owned()), Some("a".to_owned()));
    assert_eq!(asked(text, &["customer", "in"], &ask), Verdict::Permit(vec!["all".to_owned()]));
}

#[test]
fn requests_conform_to_the_schema() {
    // Requests are built without a check against the schema, so this holds the two together.
    let engine = Engine::new().unwrap();
    let (schema, _) = Schema::from_cedarschema_str(&schema_text(&names(&["customer"]), "")).unwrap();
    let decision = DecisionFile::parse(DECISION.replace("TIER", "elevated").as_bytes()).unwrap();
    let empty = Rules::default();
    let slice = engine.slice(&"s".parse().unwrap(), &decision, &Ends::default(), &empty.rules, &[]).unwrap();
    let mut ask = ask(&["customer"]);
    for _ in 0..2 {
        let question = engine.question(&slice, &caller(), &ask, 90, Timestamp::MAX).unwrap().request;
        let context = question.context().unwrap().clone();
        context.validate(&schema, question.action().unwrap()).unwrap();
        (ask.reason, ask.approval) = (Some("r".to_owned()), Some("a".to_owned()));
    }
    let entities = slice.entities.iter().cloned();
    Entities::from_entities(entities, Some(&schema)).unwrap();
}

#[test]
fn optional_members_must_be_asked_for_with_has() {
    for member in
        ["context.asserted.reason == \"x\"", "context.asserted.approval == \"x\"", "context.verified.approval == \"x\""]
    {
        assert!(rules(&format!("@id(\"a\") permit HEAD when {{ {member} }};"), &[]).is_err(), "{member}");
    }
}

#[test]
fn rules_see_the_parameters_of_their_scope_and_no_others() {
    assert!(rules("@id(\"a\") permit HEAD when { context.asserted.params.x == \"y\" };", &["x"]).is_ok());
    assert!(rules("@id(\"a\") permit HEAD when { context.asserted.params.x == \"y\" };", &["z"]).is_err());
    assert!(rules("@id(\"a\") permit HEAD when { context.asserted.params.x == 1 };", &["x"]).is_err());
}

#[test]
fn a_scope_in_the_condition_does_not_replace_the_head() {
    for text in [
        "@id(\"a\") permit (principal, action, resource) when { resource == Scope::\"s\" };",
        "@id(\"a\") permit (principal, action, resource is Scope);",
        "@id(\"a\") permit (principal, action, resource in Scope::\"s\");",
        "@id(\"a\") permit (principal, action, resource == Scope::\"t\");",
        "@id(\"a\") permit HEAD; @id(\"b\") forbid (principal, action, resource == Scope::\"t\");",
    ] {
        let problems = rules(text, &[]).unwrap_err();
        assert!(problems[0].message.contains("must say resource == Scope::\"s\""), "{problems:?}");
    }
}

#[test]
fn an_error_in_any_rule_is_an_error_even_when_another_permits() {
    let text =
        "@id(\"ok\") permit HEAD; @id(\"sum\") forbid HEAD when { context.asserted.ttl + 9223372036854775807 == 0 };";
    assert!(matches!(asked(text, &[], &ask(&[])), Verdict::Error(detail) if detail.contains("sum")));
}

#[test]
fn guardrails_apply_until_the_last_instant_before_the_end() {
    let engine = Engine::new().unwrap();
    let decision = DecisionFile::parse(DECISION.replace("TIER", "baseline").as_bytes()).unwrap();
    let slice = engine.slice(&"s".parse().unwrap(), &decision, &Ends::default(), &[], &[]).unwrap();
    let at =
        |now| engine.ask_guardrails(&slice, &engine.question(&slice, &caller(), &ask(&[]), 1, now).unwrap()).unwrap();
    let end = decision.review_until;
    assert_eq!(at(end - Duration::from_millis(1)), Vec::<String>::new());
    assert_eq!(at(end), ["guardrail-review-overdue"]);
    assert_eq!(at(end - Duration::from_secs(9)), Vec::<String>::new());
}

#[test]
fn folded_guardrails_decide_as_they_do_one_by_one() {
    let engine = Engine::new().unwrap();
    let permit = Rules { rules: parse(format!("@id(\"p\") permit {HEAD};").as_bytes()).unwrap(), warnings: Vec::new() };
    let overdue: Timestamp = "2027-01-09T00:00:00Z".parse().unwrap();
    let expired: Timestamp = "2026-12-01T00:00:00Z".parse().unwrap();
    let gone: Timestamp = "2026-12-15T00:00:00Z".parse().unwrap();
    let mut forbade = BTreeSet::new();
    let combinations = ["baseline", "elevated", "break-glass"]
        .into_iter()
        .flat_map(|tier| [(tier, false, false), (tier, false, true), (tier, true, false), (tier, true, true)]);
    for (tier, end, leaves) in combinations {
        let mut text = DECISION.replace("TIER", tier);
        if end {
            text = text.replacen("max_task", "expires_at = 2026-12-01T00:00:00Z\nmax_task", 1);
        }
        let decision = DecisionFile::parse(text.as_bytes()).unwrap();
        let leaver = Leaver { id: "g".to_owned(), active_until: gone, stops_at: gone };
        let ends = Ends { owner: leaves.then_some(leaver) };
        let slice = engine.slice(&"s".parse().unwrap(), &decision, &ends, &permit.rules, &[]).unwrap();
        for at in [expired, gone, overdue] {
            for (now, reason) in [at - Duration::from_secs(1), at]
                .into_iter()
                .flat_map(|now| [None, Some("why".to_owned())].map(|reason| (now, reason)))
            {
                let ask = Ask { reason, ..ask(&[]) };
                let question = engine.question(&slice, &caller(), &ask, 1, now).unwrap();
                let apart = engine.ask_guardrails(&slice, &question).unwrap();
                let together = engine.ask_all(&slice, &question);
                assert_eq!(engine.ask_rules(&slice, &question), Verdict::Permit(vec!["p".to_owned()]));
                match apart.is_empty() {
                    true => assert_eq!(together, Verdict::Permit(vec!["p".to_owned()]), "{text} {now}"),
                    false => assert_eq!(together, Verdict::Deny(vec![FOLDED.to_owned()]), "{text} {now}"),
                }
                forbade.extend(apart);
            }
        }
    }
    assert_eq!(forbade.len(), engine.guardrails.num_of_policies(), "every guardrail was seen to forbid");
    assert!([APPROVAL_REQUIRED, REVIEW_OVERDUE, EXPIRED, OWNER_GONE].iter().all(|id| forbade.contains(*id)));
}

#[test]
fn the_context_is_of_this_caller_and_this_second_only() {
    let engine = Engine::new().unwrap();
    let decision = DecisionFile::parse(DECISION.replace("TIER", "baseline").as_bytes()).unwrap();
    let slice = engine.slice(&"s".parse().unwrap(), &decision, &Ends::default(), &[], &[]).unwrap();
    let now: Timestamp = "2026-11-23T16:00:00Z".parse().unwrap();
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    let (one, other) = (id("spiffe://example.org/a/b"), id("spiffe://example.org/a/c"));
    for (who, proof, at) in [
        (&one, Proof::JwtSvid, now),
        (&other, Proof::JwtSvid, now),
        (&other, Proof::Pod, now),
        (&other, Proof::Pod, now + Duration::from_secs(1)),
        (&one, Proof::JwtSvid, now),
    ] {
        let caller = Caller::recorded(who.clone(), proof, Timestamp::MAX);
        let asked = |engine: &Engine| {
            let question = engine.question(&slice, &caller, &ask(&[]), 1, at).unwrap();
            question.request.context().unwrap().get("verified").unwrap().to_string()
        };
        for _ in 0..2 {
            assert_eq!(asked(&engine), asked(&Engine::new().unwrap()), "{who} {proof} {at}");
        }
    }
}

#[test]
fn files_parsed_together_give_the_rules_of_each_file() {
    let two = "// permit (principal, action, resource);\n@id(\"a\") permit (principal, action, resource)\n\
               when { \"; // } permit\" == \"\" };@id(\"b\")forbid(principal,action,resource);// the end";
    let files = ["", two, "// nothing", "@id(\"c\")\npermit (principal, action, resource);\n"];
    let bytes: Vec<_> = files.iter().map(|file| file.as_bytes()).collect();
    let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    for (file, together) in files.iter().zip(parse_together(&bytes)) {
        let alone: PolicySet = file.parse().unwrap();
        let alone: Vec<_> = alone.policies().cloned().collect();
        assert_eq!(texts(&together.unwrap()), texts(&alone), "{file}");
    }
}

#[test]
fn parses_alone_a_file_whose_syntax_would_reach_into_the_next() {
    let alone = |files: &[&[u8]]| parse_together(files).iter().all(Option::is_none);
    let good = "@id(\"b\") permit (principal, action, resource);";
    let strange: [&str; 9] = [
        "@id(\"a\")",
        "@id(\"a\") permit (principal, action, resource)",
        "permit (principal, action, resource) when { \"",
        "permit (principal, action, resource) when { true }; \"",
        "permit (principal == ?principal, action, resource);",
        "/* permit",
        MARK,
        &format!("{MARK}{good}"),
        &format!("// {MARK}\n{good}"),
    ];
    for file in strange {
        for files in [[file, good], [good, file]] {
            assert!(alone(&files.map(str::as_bytes)), "{files:?}");
        }
    }
    assert!(alone(&[&[0xff], good.as_bytes()]));
    assert!(parse_together(&[]).is_empty());
}
