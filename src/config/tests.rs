//! Tests of the configuration as a whole.

use std::time::Duration;

use http::Uri;

use super::*;

const LEAST: &str = "[policy]\ndirectory = \"/p\"\ntrust = \"unsigned\"\n";

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut all = vec![("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire.sock"), ("HOME", "/root")];
    all.extend_from_slice(environment);
    Config::parse(text, "sidemint.toml", all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())))
}

#[test]
fn a_socket_and_a_policy_directory_are_enough() {
    let config = parse(LEAST, &[]).unwrap();
    assert_eq!(config.server.http.to_string(), "127.0.0.1:9870");
    assert_eq!(config.identity.workload_api, "unix:///run/spire.sock");
    assert_eq!(config.state.directory, Path::new("/root/.local/state/sidemint"));
    assert_eq!(config.pod_task, None);
}

#[test]
fn variables_given_to_a_command_in_a_task_are_no_unknown_keys() {
    let given = crate::server::dialect::ALL.iter().flat_map(|dialect| dialect.variables);
    let ours: Vec<_> = given.map(|variable| variable.name).filter(|name| name.starts_with(PREFIX)).collect();
    assert!(ours.contains(&"SIDEMINT_CREDENTIALS_URI"));
    for name in ours {
        assert!(parse(LEAST, &[(name, "x")]).is_ok(), "{name}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = parse(
        LEAST,
        &[
            ("SIDEMINT_SERVER_HTTP", "127.0.0.1:1"),
            ("SIDEMINT_LIMITS_TASKS", "7"),
            ("SIDEMINT_POLICY_SCOPES", "a,b/c"),
            ("SIDEMINT_POD_TASK_SCOPE", "a"),
            ("SIDEMINT_POD_TASK_TOKEN_FILE", "/t"),
            ("SIDEMINT_POD_TASK_RENEW", "false"),
            ("SIDEMINT_POD_TASK_PARAMS", "customer=c-42, month=11"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.http.port(), 1);
    assert_eq!(config.limits.tasks, 7);
    assert_eq!(config.policy.scopes.len(), 2);
    let pod = config.pod_task.unwrap();
    assert!(!pod.renew);
    assert_eq!(pod.params.len(), 2);
}

#[test]
fn each_mistake_is_one_line_that_names_its_key() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
    let cases: [Case; 31] = [
        ("[policy]\nrepository = \"/p\"", &[], "policy.root"),
        ("[policy]\nrepository = \"/p\"\ndirectory = \"/p\"", &[], "remove one of the two"),
        ("[policy]\nrepository = \"http://h/p\"\nroot = \"/r\"", &[], "https://"),
        ("[policy]\nrepository = \"https://a:b@h/p\"\nroot = \"/r\"", &[], "policy.repository"),
        ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\ntrust = \"unsigned\"", &[], "policy.trust"),
        ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\nca = \"/c\"", &[], "policy.ca"),
        ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\nminimum_version = 0", &[], "at least 1"),
        ("[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nproxy = \"h:1\"", &[], "policy.proxy"),
        ("[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nclient = \"x\"", &[], "policy.client"),
        (
            "[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nca = \"/c\"\nserver_id = \"spiffe://a/b\"",
            &[],
            "policy.server_id",
        ),
        ("[policy]\ndirectory = \"/p\"\ntrust = \"unsigned\"\nroot = \"/r\"", &[], "policy.root"),
        ("[vault]\nnamespace = \"a\"", &[], "vault.address"),
        ("[vault]\naddress = \"https://v\"\nnamespace = \"../a\"", &[], "vault.namespace"),
        ("[vault]\naddress = \"https://v\"\nrate = 0", &[], "vault.rate"),
        ("[vault]\naddress = \"https://v\"\nrevocation_rate = 0", &[], "vault.revocation_rate"),
        ("[audit]\nrotate_size = \"64MB\"", &[], "audit.rotate_size"),
        ("[audit]\nrotate_size = \"1KiB\"", &[], "at least 4096"),
        ("", &[], "policy.directory"),
        ("[policy]\ndirectory = \"/p\"", &[], "trust = \"unsigned\""),
        ("[policy]\ndirectory = \"/p\"\ntrust = \"signed\"", &[], "policy.trust"),
        ("[polcy]\n", &[], "[polcy]"),
        ("[server]\nhtpp = \"x\"", &[], "server.htpp"),
        ("server = 1", &[], "[server]"),
        ("[server]\nhttp = \"0.0.0.0:9870\"", &[], "loopback"),
        ("[server]\nhttp = 5", &[], "server.http"),
        ("[shutdown]\ntasks = \"stop\"", &[], "\"end\" or \"keep\""),
        ("[shutdown]\nlinger = \"soon\"", &[], "shutdown.linger"),
        ("[limits]\ntasks = 0", &[], "at least 1"),
        ("[identity]\naudience = \"sts.amazonaws.com\"", &[], "identity.audience"),
        ("", &[("SIDEMINT_SERVER_HTPP", "x")], "SIDEMINT_SERVER_HTPP"),
        ("not toml at all", &[], "sidemint.toml"),
    ];
    for (text, environment, names) in cases {
        // a section may stand in the file once only
        let text = if text.contains("[policy]") || text.is_empty() && environment.is_empty() {
            text.to_owned()
        } else {
            format!("{text}\n{LEAST}")
        };
        let error = parse(&text, environment).unwrap_err().to_string();
        assert!(error.contains(names), "{error:?} should name {names:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn a_repository_and_its_root_are_enough_and_are_polled_less() {
    let text = "[policy]\nrepository = \"https://policy.example.org/fleet/\"\nroot = \"/etc/root.json\"\n";
    let policy = parse(text, &[("SIDEMINT_POLICY_MINIMUM_VERSION", "7")]).unwrap().policy;
    assert_eq!(policy.poll, Duration::from_secs(30));
    let PolicyPlace::Signed(settings) = policy.place else { panic!("{policy:?}") };
    assert_eq!(settings.repository, RepositoryPlace::Http(Uri::from_static("https://policy.example.org/fleet/")));
    assert_eq!((settings.minimum_version, settings.timeout), (Some(7), Duration::from_secs(10)));
    assert!(!settings.client_svid && settings.ca.is_none() && settings.proxy.is_none());
}

#[test]
fn without_a_workload_api_it_says_which_variable_to_set() {
    let error = Config::parse(LEAST, "f", [("HOME".to_owned(), "/root".to_owned())]).unwrap_err();
    assert!(error.to_string().contains("SPIFFE_ENDPOINT_SOCKET"));
}

#[test]
fn keys_are_those_that_serde_reads() {
    let keys: Vec<_> = keys().collect();
    assert_eq!(keys.first(), Some(&("server", "http")));
    assert_eq!(keys.last(), Some(&("limits", "upstream_burst")));
    assert!(keys.contains(&("vault", "revocation_rate")) && keys.contains(&("pod_task", "params")));
}

#[test]
fn variables_are_read_as_their_key_is_typed() {
    let cases = [
        ("SIDEMINT_LIMITS_TASKS", "many", "limits.tasks (or SIDEMINT_LIMITS_TASKS): write a whole number"),
        ("SIDEMINT_LIMITS_TASKS", "-1", "limits.tasks"),
        ("SIDEMINT_AUDIT_SYNC", "yes", "audit.sync (or SIDEMINT_AUDIT_SYNC): write true or false"),
        ("SIDEMINT_POD_TASK_PARAMS", "customer", "write k=v separated by commas"),
        ("SIDEMINT_STATE_ABANDON", "aws,mars", "write \"aws\" or \""),
        ("SIDEMINT_IDENTITY_FEDERATED", "a.example,not one", "\"not one\" is invalid"),
        (
            "SIDEMINT_LOG_FORMAT",
            "xml",
            "log.format (or SIDEMINT_LOG_FORMAT): \"xml\" is unknown: write \"text\" or \"json\"",
        ),
    ];
    for (variable, text, says) in cases {
        let error = parse(LEAST, &[(variable, text)]).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} should say {says:?}");
    }
}

#[test]
fn an_empty_value_counts_as_not_set_and_hides_that_of_the_file() {
    let text = format!("{LEAST}[limits]\ntasks = 7\n[state]\nabandon = [\"aws\"]\n");
    let environment = [("SIDEMINT_LIMITS_TASKS", ""), ("SIDEMINT_STATE_ABANDON", ""), ("SIDEMINT_SERVER_HTTP", "")];
    let config = parse(&text, &environment).unwrap();
    assert_eq!((config.limits, config.state.abandon.len()), (LimitSettings::default(), 0));
    assert_eq!(config.server, ServerSettings::default());
    // but a key that does not exist is refused, whatever it is set to
    assert!(parse(&format!("{LEAST}[server]\nhtpp = \"\""), &[]).unwrap_err().to_string().contains("server.htpp"));
}

#[test]
fn errors_do_not_repeat_the_password_of_a_proxy() {
    let repository = "[policy]\nrepository = \"https://h\"\nroot = \"/r\"\n";
    for proxy in ["https://user:hunter2@proxy:3128", "http://user:hunter2@proxy", "user:hunter2@proxy:1/x"] {
        let error = parse(repository, &[("SIDEMINT_POLICY_PROXY", proxy)]).unwrap_err();
        assert!(error.to_string().contains("policy.proxy") && !error.to_string().contains("hunter2"), "{error}");
    }
}
