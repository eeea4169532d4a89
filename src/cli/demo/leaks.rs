//! The search for secrets where none may be: every file that the sidecar wrote, and what it said over HTTP.

use std::io;
use std::path::{Path, PathBuf};

use crate::secret::Secret;

/// The places (files, or names of texts) in which at least one of `secrets` occurs.
///
/// # Errors
/// When a file cannot be read: what was not searched is not clean.
pub(super) fn search(secrets: &[&Secret], folder: &Path, texts: &[(&str, &[u8])]) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(folder)? {
        if holds_one(&std::fs::read(&path)?, secrets) {
            found.push(path.strip_prefix(folder).unwrap_or(&path).display().to_string());
        }
    }
    found.extend(texts.iter().filter(|(_, text)| holds_one(text, secrets)).map(|(name, _)| (*name).to_owned()));
    Ok(found)
}

fn holds_one(bytes: &[u8], secrets: &[&Secret]) -> bool {
    // exposed: to be found where it must not be
    secrets.iter().any(|secret| occurs(bytes, secret.expose().as_bytes()))
}

fn occurs(bytes: &[u8], wanted: &[u8]) -> bool {
    !wanted.is_empty() && bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Regular files below `folder`.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_secret_in_the_middle_of_a_binary_file_and_in_a_text() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        std::fs::write(folder.path().join("state/journal"), b"\0\xffhunter2\0").unwrap();
        std::fs::write(folder.path().join("log"), b"hunter").unwrap();
        let (secret, other) = (Secret::new("hunter2".into()), Secret::new("other".into()));
        let texts: [(&str, &[u8]); 2] = [("metrics", b"x hunter2 y"), ("status", b"hunter 2")];
        assert_eq!(search(&[&other, &secret], folder.path(), &texts).unwrap(), ["state/journal", "metrics"]);
        assert!(search(&[&other], folder.path(), &texts).unwrap().is_empty());
    }
}
