//! The `sidemint` command: arguments → one command → exit code.

use std::process::ExitCode;
use std::time::Duration;

use sidemint::cli::{self, Cli, CliError, Exit};

/// How long what still runs may take to stop, so that the reason of a failure is the last line that is said.
const STOP: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let cli = Cli::from_env();
    // Fails only when a provider is installed already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = match cli.runtime() {
        // `block_on` polls the command on this thread, which lives as long as the process: `exec` relies on that.
        Ok(runtime) => {
            let result = runtime.block_on(cli.run());
            // A stuck blocking call must not keep a finished command alive.
            runtime.shutdown_timeout(STOP);
            result
        }
        Err(error) => Err(CliError::new(Exit::Failed, format!("cannot start: {error}; check the process's limits"))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            cli::complain(&error.message);
            ExitCode::from(error.exit as u8)
        }
    }
}
