//! How a small file is written so that it is whole or absent after a crash: beside its name, synced, renamed, and its
//! folder synced. Every file that is replaced or must appear whole is written here.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::NamedTempFile;

/// Puts `bytes` in the place of `path` with this mode, whatever the umask says. A reader sees the old file or the new one,
/// whole; a link at `path` is replaced and not followed. When this returns, the new file and its name are on the disk.
///
/// # Errors
/// When the folder is absent or the file cannot be written; what was at `path` is then still there. When the folder cannot be
/// synced; the new file is then there, and may be gone after a crash of the machine.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_whole(path, bytes, mode)?;
    sync_folder(folder_of(path))
}

/// As [`replace`], for what is of no use after the machine has restarted: whole, and its name is not made durable.
///
/// # Errors
/// When the folder is absent or the file cannot be written; what was at `path` is then still there.
pub(crate) fn replace_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = beside(path, folder_of(path))?;
    temporary.write_all(bytes)?;
    temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    Ok(())
}

/// Makes the file `path` with mode 0600 and lets `fill` write and sync it; no reader sees it before it is filled. A file
/// that another process has made there by then stays, and this one is dropped.
///
/// # Errors
/// When the folder is absent, `fill` fails or the file cannot be written; there is no new file at `path` then.
pub(crate) fn appear(path: &Path, fill: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    let folder = folder_of(path);
    let temporary = beside(path, folder)?;
    // Opened by itself: what `fill` locks must not stay locked.
    fill(temporary.reopen()?)?;
    match temporary.persist_noclobber(path) {
        Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => {}
        other => drop(other?),
    }
    sync_folder(folder)
}

/// Makes a new file with these bytes and mode 0600. Its bytes are on the disk when this returns; its name is not, before
/// [`sync_folder`]: for folders that are filled and then renamed as a whole.
///
/// # Errors
/// When there is such a file already, or it cannot be written.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes what was created, renamed or removed in `folder` last.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new file of mode 0600 in `folder`, removed when it is dropped. Its name begins with a dot: readers of policy folders
/// and tools that copy them leave such names out.
fn beside(path: &Path, folder: &Path) -> io::Result<NamedTempFile> {
    let name = path.file_name().unwrap_or_default().display();
    tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".new").tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn replaces_a_file_with_the_mode_asked_for_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (bytes, mode) in [("old", 0o644), ("new", 0o440), ("", 0o600)] {
            replace(&path, bytes.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        assert_eq!(names(folder.path()), 1);
        assert!(replace(&folder.path().join("none/file"), b"x", 0o600).is_err());
    }

    #[test]
    fn replaces_a_link_and_not_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("link"), folder.path().join("other"));
        fs::write(&other, "other").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        replace(&path, b"mine", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_file_that_could_not_be_written_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert!(path.is_dir());
        assert_eq!(names(folder.path()), 1);
    }

    #[test]
    fn creates_a_file_with_its_content_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let fill = |text: &'static str| move |mut file: File| file.write_all(text.as_bytes());
        assert!(appear(&path, |_| Err(io::Error::other("no"))).is_err());
        assert_eq!(names(folder.path()), 0);
        for text in ["first", "second"] {
            appear(&path, fill(text)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), 1);
        assert!(create(&path, b"x").is_err());
    }
}
