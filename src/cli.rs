//! The command line: one file per command.

use std::fmt;

/// How a command ends: the exit codes that users and scripts can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// It was asked wrongly: arguments or configuration.
    Usage = 2,
    /// Policy or a provider refused.
    Denied = 3,
    /// Something it needs is not there now.
    Unavailable = 4,
}

/// Why a command failed: one line that says what is wrong and what mends it, and the exit code.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// One line for the terminal.
    pub message: String,
}

impl CliError {
    /// An error that ends the command with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// What every command's `run` returns: its exit code, or an error to print.
pub type CliResult = Result<u8, CliError>;
