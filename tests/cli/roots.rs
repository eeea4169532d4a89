//! A machine without a trusted root: nobody could be asked by TLS, and a start says so.

use std::fs;
use std::process::{Command, Output};

/// `sidemint serve` with `keys` set, where the machine's roots are an empty file and an empty folder.
fn start(keys: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("policy")).unwrap();
    fs::create_dir(at("roots")).unwrap();
    fs::write(at("roots.pem"), "").unwrap();
    Command::new(env!("CARGO_BIN_EXE_sidemint"))
        .arg("serve")
        .env_clear()
        .env("SSL_CERT_FILE", at("roots.pem"))
        .env("SSL_CERT_DIR", at("roots"))
        .env("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/agent.sock")
        .env("SIDEMINT_POLICY_DIRECTORY", at("policy"))
        .env("SIDEMINT_POLICY_TRUST", "unsigned")
        .env("SIDEMINT_SERVER_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_ADMIN_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_STATE_DIRECTORY", at("state"))
        .env("SIDEMINT_AUDIT_OUTPUT", at("audit.jsonl"))
        .envs(keys.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn rejects_vault_by_tls_without_a_trusted_root() {
    let sts = ("SIDEMINT_AWS_STS_ENDPOINT", "http://127.0.0.1:9");
    let output = start(&[sts, ("SIDEMINT_VAULT_ADDRESS", "https://vault.example.org")]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("roots for vault.address: the system's roots") && told.contains("vault.ca"), "{told}");
}
