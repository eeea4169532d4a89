//! Where the journal lies: the state directory and the file in it, private and its owner's, and whose journal it is.
//!
//! What others could have written, or put in place of it, is refused and not put right: nothing says what they did.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::durable_file;
use crate::identity::task_token::random;

/// The journal's name in the state directory.
pub(super) const FILE: &str = "journal.redb";
/// The name of the file that says which sidecar the state directory belongs to.
pub(super) const OWNER: &str = "sidecar-id";
const MAX_OWNER: u64 = 64;

/// Which sidecar a journal belongs to: a random number that its state directory has too, so that a journal which comes without its
/// directory is known for another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Owner {
    /// That of `directory`; `None` where it says nothing.
    pub(super) fn of(directory: &Path) -> io::Result<Option<Self>> {
        let file = match open(OpenOptions::new().read(true), &directory.join(OWNER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        ours(&file.metadata()?, OWNER, "see who wrote it")?;
        let mut text = String::new();
        file.take(MAX_OWNER).read_to_string(&mut text)?;
        let number = u64::from_str_radix(text.trim_end(), 16).ok().filter(|_| text.trim_end().len() == 16);
        number.map(|number| Some(Self(number))).ok_or_else(|| io::Error::other(format!("{OWNER} in it is damaged")))
    }

    /// That of `directory`, made now where it has none yet.
    pub(super) fn of_or_new(directory: &Path) -> io::Result<Self> {
        if let Some(owner) = Self::of(directory)? {
            return Ok(owner);
        }
        let mut bytes = [0; 8];
        random(&mut bytes).map_err(io::Error::other)?;
        durable_file::appear(&directory.join(OWNER), |mut file| {
            writeln!(file, "{}", Self(u64::from_be_bytes(bytes)))?;
            file.sync_all()
        })?;
        // Another sidecar may have been faster.
        Self::of(directory)?.ok_or_else(|| io::Error::other(format!("{OWNER} in it is gone again")))
    }
}

/// A file that is open, and where it was found.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    number: u64,
}

impl Place {
    /// That of `file`, which was found at `path`.
    pub(super) fn of(file: &File, path: &Path) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), number: metadata.ino() })
    }

    /// Whether the next start would find that very file there.
    pub(super) fn holds(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == (self.device, self.number))
    }
}

/// Makes sure that there is a journal at `path`, for its owner alone, and opens it. One that is there is not looked into; `lay_out`
/// fills a new one.
pub(super) fn prepare(
    directory: &Path,
    path: &Path,
    lay_out: impl FnOnce(File, Owner) -> io::Result<()>,
) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let place = fs::symlink_metadata(directory)?;
    if !place.is_dir() {
        return Err(io::Error::other("it is a link or no directory: name the directory itself"));
    }
    ours(&place, "it", "chmod 700 it, and look at what is in it")?;
    if place.mode() & 0o077 != 0 {
        // Whoever could look in saw names, and could write nothing: that is put right.
        tracing::warn!(directory = %directory.display(), mode = %format!("{:04o}", place.mode() & 0o7777), "made private: chmod 700");
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    let file = match open(OpenOptions::new().read(true).write(true), path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let owner = Owner::of_or_new(directory)?;
            // A file of this name always has in it what it should: one that has not was damaged, and is refused rather than begun
            // anew. Which of two sidecars that both make one may use it is for the lock to say.
            durable_file::appear(path, |file| lay_out(file, owner))?;
            open(OpenOptions::new().read(true).write(true), path)?
        }
        other => other?,
    };
    let journal = file.metadata()?;
    if !journal.is_file() {
        return Err(io::Error::other(format!("{FILE} in it is no file: move it away")));
    }
    ours(&journal, FILE, "see who wrote it; chmod 600 it if nobody else did")?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Opens a file in the state directory, no link and no other file through one.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Not blocking: a pipe in its place has nobody at its other end.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    options.custom_flags(flags).open(path).map_err(|error| {
        let name = path.file_name().unwrap_or_default().display();
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return io::Error::other(format!("{name} in it is a link: put the file itself there"));
        }
        error
    })
}

/// Refuses what belongs to another user, or what others may write.
fn ours(of: &fs::Metadata, what: &str, fix: &str) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    if of.uid() != user {
        return Err(io::Error::other(format!(
            "{what} belongs to user {}, this process is user {user}: give each sidecar a directory of its own",
            of.uid()
        )));
    }
    let mode = of.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(io::Error::other(format!("{what} has mode {mode:04o}, others may write it: {fix}")));
    }
    Ok(())
}
