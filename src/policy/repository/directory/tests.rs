use std::os::unix::fs::symlink;

use super::*;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "decisions/finance/a.toml", "one");
    directory
}

fn write(directory: &Path, file: &str, text: impl AsRef<[u8]>) {
    let place = directory.join(file);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(place, text).unwrap();
}

fn files(fetched: Result<Fetched, PolicySourceError>) -> PolicyFiles {
    match fetched.unwrap() {
        Fetched::New(files) => files,
        other => panic!("{other:?}"),
    }
}

fn read(directory: &Path) -> Result<Vec<String>, String> {
    DirectorySource::new(directory).read().map(|read| read.files.into_keys().collect()).map_err(|error| error.message)
}

#[test]
fn reads_policy_files_of_the_known_folders_only() {
    let directory = directory();
    for file in ["boundaries/b.cedar", "scopes/a.toml", "grants/g.toml", "kill/list.toml", "owners/o.toml"] {
        write(directory.path(), file, "x");
    }
    for file in [
        "README.md",
        "a.toml",
        "decisions/README.md",
        "decisions/.a.toml.swp",
        ".git/a.toml",
        "grants/.old/g.toml",
        "other/a.toml",
    ] {
        write(directory.path(), file, "x");
    }
    let found = read(directory.path()).unwrap();
    assert_eq!(
        found,
        [
            "boundaries/b.cedar",
            "decisions/finance/a.toml",
            "grants/g.toml",
            "kill/list.toml",
            "owners/o.toml",
            "scopes/a.toml"
        ]
    );
}

#[test]
fn rejects_links_that_lead_out() {
    let (directory, outside) = (directory(), directory_with("x.toml"));
    let link = |from: PathBuf, name: &str| symlink(from, directory.path().join(name)).unwrap();
    link(outside.path().join("x.toml"), "decisions/x.toml");
    assert_eq!(read(directory.path()).unwrap_err(), "decisions/x.toml: leads out of the policy directory");
    fs::remove_file(directory.path().join("decisions/x.toml")).unwrap();
    link(outside.path().to_owned(), "scopes");
    assert_eq!(read(directory.path()).unwrap_err(), "scopes: leads out of the policy directory");
    fs::remove_file(directory.path().join("scopes")).unwrap();
    link("nowhere.toml".into(), "decisions/x.toml");
    assert_eq!(read(directory.path()).unwrap_err(), "decisions/x.toml: is a link that leads nowhere");
}

fn directory_with(file: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), file, "x");
    directory
}

#[test]
fn stops_at_a_cycle_of_links() {
    let directory = directory();
    symlink("..", directory.path().join("decisions/up")).unwrap();
    assert!(read(directory.path()).unwrap_err().contains("nested too deep"));
}

#[test]
fn rejects_a_file_that_is_too_large() {
    let directory = directory();
    write(directory.path(), "grants/g.toml", vec![b'#'; 256 * 1024]);
    assert!(read(directory.path()).is_ok());
    write(directory.path(), "grants/g.toml", vec![b'#'; 256 * 1024 + 1]);
    assert_eq!(read(directory.path()).unwrap_err(), "grants/g.toml: larger than 262144 bytes");
}

#[test]
fn rejects_what_is_not_a_plain_file_without_opening_it() {
    let directory = directory();
    // Opening a FIFO would hang.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("decisions/f.toml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(read(directory.path()).unwrap_err(), "decisions/f.toml: is no plain file");
}

#[test]
fn a_missing_directory_is_an_error_and_not_an_empty_policy() {
    assert!(read(Path::new("/nonexistent/policy")).is_err());
}

#[tokio::test]
async fn follows_the_links_of_a_kubernetes_config_map_and_their_swap() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "..2026_1/decisions/a.toml", "one");
    write(root, "..2026_2/decisions/a.toml", "two");
    symlink("..2026_1", root.join("..data")).unwrap();
    symlink("..data/decisions", root.join("decisions")).unwrap();
    let source = DirectorySource::new(root);
    let first = files(source.fetch(None).await);
    assert_eq!(first.files["decisions/a.toml"], "one");
    // As the kubelet does it: a new link, renamed over the old one.
    symlink("..2026_2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    let second = files(source.fetch(Some(&first.version)).await);
    assert_eq!(second.files["decisions/a.toml"], "two");
}

#[tokio::test]
async fn gives_files_only_when_they_differ_from_the_last_fetch() {
    let directory = directory();
    let source = DirectorySource::new(directory.path());
    let first = files(source.fetch(None).await);
    for _ in 0..3 {
        assert!(matches!(source.fetch(Some(&first.version)).await, Ok(Fetched::Unchanged)));
    }
    // Whoever has seen nothing, or something else, gets them again.
    assert_eq!(files(source.fetch(None).await).version, first.version);
    write(directory.path(), "decisions/finance/a.toml", "two");
    let second = files(source.fetch(Some(&first.version)).await);
    assert_ne!(second.version, first.version);
    // Touched, not changed.
    write(directory.path(), "decisions/finance/a.toml", "two");
    assert!(matches!(source.fetch(Some(&second.version)).await, Ok(Fetched::Unchanged)));
    fs::remove_file(directory.path().join("decisions/finance/a.toml")).unwrap();
    assert!(files(source.fetch(Some(&second.version)).await).files.is_empty());
}

#[tokio::test]
async fn a_change_within_one_tick_of_the_file_system_is_seen_by_the_next_fetch() {
    let directory = directory();
    let source = DirectorySource::new(directory.path());
    let first = files(source.fetch(None).await);
    // What a write in the same tick leaves behind: other bytes under a look that is known.
    write(directory.path(), "decisions/finance/a.toml", "two");
    let look = Walk::over(directory.path()).unwrap();
    source.state.last.lock().unwrap().as_mut().unwrap().fingerprint = look;
    let second = files(source.fetch(Some(&first.version)).await);
    assert_eq!(second.files["decisions/finance/a.toml"], "two");
}
