//! What CMD finds in its environment: the task's credentials, and nothing that an SDK would take before them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cli::client::Address;
use crate::cli::{CliError, Exit};
use crate::secret::Secret;
use crate::server::dialect::{self, Dialect, Value, Variable};

/// The hosts that must not be asked through a proxy: it would get the task's token (local-endpoints §0.3).
const DIRECT: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

/// A variable's new value; `None` takes it away.
pub(super) type Change = (&'static str, Option<OsString>);

/// Everything that is different in CMD's environment, where the sidecar `told` these variables.
///
/// # Errors
/// Failed, when it names no endpoint, or one elsewhere.
pub(super) fn changes(told: &BTreeMap<String, Secret>, token_file: &Path) -> Result<Vec<Change>, CliError> {
    // A task around this one has variables of its own: CMD must not reach that task by them.
    let removed = dialect::ALL.iter().flat_map(|dialect| {
        let own = dialect.variables.iter().map(|variable| variable.name);
        own.chain(dialect.displaced.iter().copied())
    });
    let mut changes: Vec<Change> = removed.map(|name| (name, None)).collect();
    let given = changes.len();
    for dialect in dialect::ALL.iter().filter(|dialect| is_told(dialect, told)) {
        for Variable { name, value } in dialect.variables {
            let value = match value {
                // exposed: an address, once it is checked
                Value::Url(_) => Some(checked_uri(told.get(*name).map(Secret::expose))?.into()),
                Value::TokenFile => Some(token_file.into()),
                // CMD has the file, and some SDKs prefer this one (local-endpoints §1.5)
                Value::Token => None,
            };
            changes.push((name, value));
        }
    }
    if changes.len() == given {
        checked_uri(None)?;
    }
    for name in ["NO_PROXY", "no_proxy"] {
        changes.push((name, Some(without_proxy(std::env::var_os(name).as_deref()))));
    }
    Ok(changes)
}

/// Whether the sidecar told of this dialect's endpoint.
fn is_told(dialect: &Dialect, told: &BTreeMap<String, Secret>) -> bool {
    let is_url = |variable: &&Variable| matches!(variable.value, Value::Url(_));
    dialect.variables.iter().find(is_url).is_some_and(|variable| told.contains_key(variable.name))
}

/// `before` with the loopback names that it lacks.
fn without_proxy(before: Option<&OsStr>) -> OsString {
    let mut value = before.unwrap_or_default().to_owned();
    let known = value.to_string_lossy().into_owned();
    if known.split(',').any(|host| host.trim() == "*") {
        return value;
    }
    for host in DIRECT {
        if known.split(',').any(|known| known.trim() == host) {
            continue;
        }
        if !value.is_empty() {
            value.push(",");
        }
        value.push(host);
    }
    value
}

/// The endpoint that the sidecar names. It must be on this host: CMD's SDK will send it the token in clear text.
///
/// # Errors
/// Failed, when the sidecar names none or one elsewhere.
fn checked_uri(uri: Option<&str>) -> Result<&str, CliError> {
    let on_this_host = |uri: &str| {
        let authority = uri.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        authority.is_some_and(|authority| matches!(authority.parse(), Ok(Address::Tcp { .. })))
    };
    uri.filter(|uri| on_this_host(uri) && !uri.contains(char::is_control)).ok_or_else(|| {
        let text =
            "the sidecar names no credentials endpoint on this host; does it serve HTTP on loopback (server.http)?";
        CliError::new(Exit::Failed, text)
    })
}

/// The file that holds the task's token: mode 0600 in a directory 0700 of its own, gone when dropped.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    /// Removes directory and file.
    _directory: TempDir,
}

impl TokenFile {
    /// Writes the token below `XDG_RUNTIME_DIR` (memory, of this user alone) or else the temporary directory.
    ///
    /// # Errors
    /// Failed, when the file cannot be written.
    pub(super) fn write(token: &Secret) -> Result<Self, CliError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
        let base = runtime.unwrap_or_else(std::env::temp_dir);
        Self::write_below(&base, token).map_err(|error| {
            let text = format!(
                "cannot write a token file below {}: {error}; set TMPDIR to a directory you may write",
                base.display()
            );
            CliError::new(Exit::Failed, text)
        })
    }

    fn write_below(base: &Path, token: &Secret) -> std::io::Result<Self> {
        let private = |mode| std::fs::Permissions::from_mode(mode);
        let directory = tempfile::Builder::new().prefix("sidemint-").permissions(private(0o700)).tempdir_in(base)?;
        let path = directory.path().join("token");
        let mut file = tempfile::Builder::new().permissions(private(0o600)).tempfile_in(directory.path())?;
        // exposed: this file is how CMD gets its token; no newline, which every SDK would refuse (local-endpoints §1.5)
        file.write_all(token.expose().as_bytes())?;
        file.persist(&path)?;
        Ok(Self { path, _directory: directory })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_added_to_the_hosts_that_need_no_proxy() {
        let with = |before: &str| without_proxy(Some(OsStr::new(before))).into_string().unwrap();
        assert_eq!(without_proxy(None), "127.0.0.1,localhost,::1");
        assert_eq!(with(""), "127.0.0.1,localhost,::1");
        assert_eq!(with("corp.example"), "corp.example,127.0.0.1,localhost,::1");
        assert_eq!(with("localhost, ::1"), "localhost, ::1,127.0.0.1");
        assert_eq!(with("*"), "*");
    }

    #[test]
    fn the_variables_of_a_task_around_this_one_are_removed() {
        let aws = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9870/v1/aws/credentials");
        let told = BTreeMap::from([(aws.0.to_owned(), Secret::new(aws.1.to_owned()))]);
        let after: BTreeMap<_, _> = changes(&told, Path::new("/token")).unwrap().into_iter().collect();
        assert_eq!(after[aws.0].as_deref(), Some(OsStr::new(aws.1)));
        for name in ["SIDEMINT_CREDENTIALS_URI", "SIDEMINT_TOKEN", "SIDEMINT_TOKEN_FILE"] {
            assert_eq!(after[name], None, "{name}");
        }
    }

    #[test]
    fn only_an_endpoint_on_this_host_is_given_to_the_command() {
        let good = "http://127.0.0.1:9870/v1/aws/credentials";
        assert_eq!(checked_uri(Some(good)).unwrap(), good);
        for bad in [
            None,
            Some("http://169.254.170.2/x"),
            Some("http://evil.example:80/x"),
            Some("https://127.0.0.1:1/x"),
            Some("http://127.0.0.1:1@evil.example:80/x"),
            Some("unix:///run/s.sock"),
        ] {
            assert_eq!(checked_uri(bad).unwrap_err().exit, Exit::Failed, "{bad:?}");
        }
    }

    #[test]
    fn the_token_file_is_private_without_a_newline_and_gone_afterwards() {
        let base = tempfile::tempdir().unwrap();
        let file = TokenFile::write_below(base.path(), &Secret::new("smt_token".into())).unwrap();
        let (path, directory) = (file.path().to_owned(), file.path().parent().unwrap().to_owned());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(std::fs::read(&path).unwrap(), b"smt_token");
        assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        drop(file);
        assert!(!path.exists() && !directory.exists());
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
