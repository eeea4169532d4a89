//! `sidemint svid`: fetch and print one's own SVIDs, as the Workload API gives them to this very process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use zeroize::Zeroizing;

use super::{CliError, CliResult, Exit, Output, print, setting};
use crate::clock::SystemClock;
use crate::durable_file;
use crate::identity::workload_api::client::{Client, X509Material};
use crate::identity::workload_api::endpoint::{ENVIRONMENT, Endpoint};
use crate::identity::workload_api::{JwtSvid, WorkloadApiError};
use crate::identity::{SpiffeId, SpiffeIdError};

/// How long the Workload API may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Fetch and print your own SVIDs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, clap::Subcommand)]
enum Kind {
    /// Print a JWT-SVID for one audience. It is a secret: whoever has it can act as you at that audience.
    Jwt {
        /// Who shall accept it, e.g. sidemint.
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        audience: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print an X.509-SVID's identity, expiry and certificates, never its private key.
    X509 {
        /// Write svid.pem, svid_key.pem (mode 0600) and bundle.pem into this directory.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Which of your identities; the default one if not given.
    #[arg(long, value_parser = parse_id)]
    spiffe_id: Option<SpiffeId>,
    /// The Workload API, unix:///PATH or tcp://IP:PORT; $SPIFFE_ENDPOINT_SOCKET if not given.
    #[arg(long, value_name = "ADDRESS")]
    workload_api: Option<String>,
    /// The user whom the SPIFFE agent runs as, where Sidemint cannot tell from its socket.
    #[arg(long, env = "SIDEMINT_IDENTITY_WORKLOAD_API_UID", value_name = "UID")]
    workload_api_uid: Option<u32>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn parse_id(text: &str) -> Result<SpiffeId, SpiffeIdError> {
    text.parse()
}

/// Runs `sidemint svid`.
///
/// # Errors
/// Usage (2) when there is no or a wrong address, denied (3) when no such identity is issued to this process,
/// unavailable (4) when the Workload API does not answer, failed (1) for what cannot be used or written.
pub async fn run(args: Args) -> CliResult {
    let printed = match args.kind {
        Kind::Jwt { audience, common } => {
            let client = client(&common)?;
            let svid = client.fetch_jwt_svid(common.spiffe_id.as_ref(), &audience, LIMIT).await;
            print_jwt(&svid.map_err(|error| explain(&error, client.endpoint()))?, &audience, common.output)
        }
        Kind::X509 { write, common } => {
            let client = client(&common)?;
            let svids = client.fetch_x509_svids(LIMIT).await.map_err(|error| explain(&error, client.endpoint()))?;
            let svid = choose(&svids, common.spiffe_id.as_ref())?;
            let files = write.as_deref().map(|directory| write_files(svid, directory)).transpose()?;
            Zeroizing::new(print_x509(svid, files.as_deref(), common.output))
        }
    };
    print(printed.as_bytes())?;
    Ok(Exit::Ok as u8)
}

fn client(common: &Common) -> Result<Client, CliError> {
    let address = setting(common.workload_api.as_deref(), ENVIRONMENT, "");
    if address.is_empty() {
        let fix = "set it to the address of your agent, e.g. unix:///run/spire/agent/api.sock, or give --workload-api";
        return Err(CliError::new(Exit::Usage, format!("{ENVIRONMENT} is not set: {fix}")));
    }
    let endpoint: Endpoint = address
        .parse()
        .map_err(|error| CliError::new(Exit::Usage, format!("{address:?} is no Workload API: {error}")))?;
    Ok(Client::new(endpoint, common.workload_api_uid, Arc::new(SystemClock)))
}

fn explain(error: &WorkloadApiError, endpoint: &Endpoint) -> CliError {
    let (exit, fix) = match error {
        WorkloadApiError::Unavailable(_) => {
            (Exit::Unavailable, "is the SPIFFE agent running, and is this its address?")
        }
        WorkloadApiError::Denied(_) => (
            Exit::Denied,
            "register this process with the agent (for SPIRE: an entry whose selectors match it), and mind that new entries take some seconds",
        ),
        WorkloadApiError::Untrusted(_) => (Exit::Failed, "or give --workload-api-uid"),
        WorkloadApiError::Invalid(_) => {
            (Exit::Failed, "compare the versions and the clocks of the agent and of this machine")
        }
    };
    CliError::new(exit, format!("{error} (at {endpoint}): {fix}"))
}

fn choose<'a>(svids: &'a [X509Material], wanted: Option<&SpiffeId>) -> Result<&'a X509Material, CliError> {
    let found = svids.iter().find(|all| wanted.is_none_or(|id| all.svid.spiffe_id == *id));
    found.ok_or_else(|| {
        let mut issued: Vec<&str> = svids.iter().map(|all| all.svid.spiffe_id.as_str()).collect();
        if issued.is_empty() {
            issued.push("none that can be used");
        }
        let issued = issued.join(", ");
        CliError::new(Exit::Denied, format!("that identity is not issued to this process; issued are: {issued}"))
    })
}

fn print_jwt(svid: &JwtSvid, audience: &str, output: Output) -> Zeroizing<String> {
    // exposed: printing the token is what this command is for
    let token = svid.token.expose();
    Zeroizing::new(match output {
        Output::Text => format!("{token}\n"),
        Output::Json => {
            let (spiffe_id, expires_at) = (&svid.spiffe_id, svid.expires_at);
            let told = json!({"spiffe_id": spiffe_id, "audience": audience, "expires_at": expires_at, "token": token});
            format!("{told}\n")
        }
    })
}

fn print_x509(material: &X509Material, files: Option<&[PathBuf]>, output: Output) -> String {
    let X509Material { svid, chain, .. } = material;
    let chain = pem("CERTIFICATE", chain);
    match output {
        Output::Json => {
            let told = json!({
                "spiffe_id": svid.spiffe_id, "expires_at": svid.expires_at, "hint": svid.hint, "chain": chain, "files": files,
            });
            format!("{told}\n")
        }
        Output::Text => {
            let hint = svid.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
            let files: String =
                files.unwrap_or_default().iter().map(|file| format!("wrote: {}\n", file.display())).collect();
            format!("spiffe_id: {}\nexpires_at: {}\n{hint}{files}{chain}", svid.spiffe_id, svid.expires_at)
        }
    }
}

/// PEM (RFC 7468) of these DER texts, one after the other.
fn pem<T: AsRef<[u8]>>(label: &str, ders: &[T]) -> String {
    let mut text = String::new();
    for der in ders {
        text.push_str(&pem_block(label, der.as_ref()));
    }
    text
}

fn pem_block(label: &str, der: &[u8]) -> String {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    // sized beforehand, so that no half-written private key is left behind in a buffer that was outgrown
    let mut text = String::with_capacity(encoded.len() + encoded.len() / 64 + 2 * label.len() + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for (at, character) in encoded.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

/// Writes the SVID, its key and its bundle; each appears whole or not at all.
fn write_files(material: &X509Material, directory: &Path) -> Result<Vec<PathBuf>, CliError> {
    let key = Zeroizing::new(pem_block("PRIVATE KEY", material.private_key.as_ref()));
    let chain = pem("CERTIFICATE", &material.chain);
    let bundle = pem("CERTIFICATE", &material.bundle);
    let files = [("svid_key.pem", key.as_str(), 0o600), ("svid.pem", &chain, 0o644), ("bundle.pem", &bundle, 0o644)];
    files
        .into_iter()
        .map(|(name, text, mode)| {
            let path = directory.join(name);
            durable_file::replace(&path, text.as_bytes(), mode).map(|()| path.clone()).map_err(|error| {
                let path = path.display();
                CliError::new(
                    Exit::Failed,
                    format!("cannot write {path}: {error}; give a directory that you may write to"),
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;

    use super::*;
    use crate::clock::Timestamp;
    use crate::identity::workload_api::OwnSvid;
    use crate::secret::{Secret, SecretBytes};

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Command::try_parse_from(line.split_whitespace()).map(|command| command.args)
    }

    fn material(spiffe_id: &str) -> X509Material {
        let expires_at = Timestamp::from_secs(1_795_452_513);
        X509Material {
            svid: OwnSvid { spiffe_id: spiffe_id.parse().unwrap(), expires_at, hint: None },
            chain: vec![vec![1; 100], vec![2]],
            private_key: SecretBytes::new(b"hunter2".to_vec()),
            bundle: vec![vec![3]],
        }
    }

    #[tokio::test]
    async fn reports_a_missing_socket_as_unavailable_and_says_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/none.sock", directory.path().display());
        for line in ["svid jwt --audience sidemint", "svid x509"] {
            let error = run(parse(&format!("{line} --workload-api {address}")).unwrap()).await.unwrap_err();
            assert_eq!(error.exit, Exit::Unavailable);
            assert!(error.message.contains(&address) && error.message.contains("agent running"), "{error}");
            assert!(!error.message.contains('\n'));
        }
    }

    #[tokio::test]
    async fn a_wrong_address_is_a_usage_error() {
        let error = run(parse("svid x509 --workload-api http://localhost").unwrap()).await.unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.contains("unix:///"), "{error}");
    }

    #[test]
    fn rejects_a_missing_audience_and_an_invalid_spiffe_id() {
        for line in [
            "svid jwt",
            "svid jwt --audience=",
            "svid x509 --spiffe-id spiffe://example.org",
            "svid x509 --spiffe-id a",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_identity_that_is_not_issued_is_denied() {
        let error = explain(&WorkloadApiError::Denied("no identity issued".into()), &"unix:///a".parse().unwrap());
        assert_eq!(error.exit, Exit::Denied);
        let svids = [material("spiffe://example.org/a"), material("spiffe://example.org/b")];
        let other = "spiffe://example.org/c".parse().unwrap();
        let error = choose(&svids, Some(&other)).unwrap_err();
        assert_eq!(error.exit, Exit::Denied);
        assert!(error.message.contains("spiffe://example.org/a, spiffe://example.org/b"), "{error}");
        assert_eq!(choose(&[], None).unwrap_err().exit, Exit::Denied);
        assert_eq!(choose(&svids, None).unwrap().svid, svids[0].svid);
        assert_eq!(choose(&svids, Some(&svids[1].svid.spiffe_id)).unwrap().svid, svids[1].svid);
    }

    #[test]
    fn text_output_of_a_jwt_svid_is_the_token_alone() {
        let svid = JwtSvid {
            spiffe_id: "spiffe://example.org/a".parse().unwrap(),
            token: Secret::new("a.b.c".into()),
            expires_at: Timestamp::from_secs(1_795_452_513),
        };
        assert_eq!(*print_jwt(&svid, "sidemint", Output::Text), "a.b.c\n");
        let told: serde_json::Value = serde_json::from_str(&print_jwt(&svid, "sidemint", Output::Json)).unwrap();
        assert_eq!(
            told,
            json!({"spiffe_id": "spiffe://example.org/a", "audience": "sidemint", "expires_at": "2026-11-23T16:48:33Z", "token": "a.b.c"})
        );
    }

    #[test]
    fn the_private_key_is_never_printed_and_written_for_the_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let material = material("spiffe://example.org/a");
        let files = write_files(&material, directory.path()).unwrap();
        // again over what is there: rotation
        assert_eq!(write_files(&material, directory.path()).unwrap(), files);
        let encoded = STANDARD.encode(b"hunter2");
        for output in [Output::Text, Output::Json] {
            let printed = print_x509(&material, Some(&files), output);
            assert!(!printed.contains(&encoded) && !printed.contains("PRIVATE"), "{printed}");
            assert!(printed.contains("spiffe://example.org/a") && printed.contains("BEGIN CERTIFICATE"), "{printed}");
        }
        let key = directory.path().join("svid_key.pem");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
        let expected = format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n");
        assert_eq!(fs::read_to_string(key).unwrap(), expected);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        let none = directory.path().join("none");
        assert_eq!(write_files(&material, &none).unwrap_err().exit, Exit::Failed);
    }

    #[test]
    fn pem_has_lines_of_64_characters() {
        let text = pem("CERTIFICATE", &[vec![0; 100], vec![0; 48]]);
        assert_eq!(text.matches("BEGIN").count(), 2);
        assert!(text.lines().all(|line| line.len() <= 64 && !line.is_empty()), "{text}");
    }
}
