//! What the pages cite is there: links and anchors, numbers of threats, requirements and invariants, tests, files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold no text of ours.
const NOT_OURS: [&str; 6] = [".git", "target", "node_modules", "corpus", "proptest-regressions", "artifacts"];
/// Words of the glossary's last table that have no other use: no page says them.
const NOT_USED: [&str; 14] = [
    "mend",
    "mends",
    "mended",
    "taken back",
    "take back",
    "takes back",
    "told expiry",
    "left alone",
    "glance",
    "speaks until",
    "whom we believe",
    "believed",
    "carried out",
    "owed",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `folder` with one of these endings, in order. An ending of "" takes every text file.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if !NOT_OURS.contains(&name.as_str()) {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let mut found = files(root(), &[".md"]);
    found.extend(files(&root().join("tests/corpus"), &[".md"]));
    assert!(found.len() > 10, "{found:?}");
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The lines of a page outside its code blocks, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut code = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            found.push((number + 1, line));
        }
    }
    found
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// What stands between backticks.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The anchors of a page: those of its headings as GitHub makes them, and every `id="…"`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() < line.len() && title.starts_with(' ') {
            let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let slug: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
            let times = seen.entry(slug.clone()).or_default();
            found.insert(if *times == 0 { slug.clone() } else { format!("{slug}-{times}") });
            *times += 1;
        }
        for rest in line.split("id=\"").skip(1) {
            found.extend(rest.split('"').next().map(str::to_owned));
        }
    }
    found
}

/// Says what is wrong with `target`, as it is named in a file of `folder`.
fn missing(folder: &Path, page: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path = if path.is_empty() { page.to_owned() } else { folder.join(path) };
    if !path.exists() {
        return Some(format!("{target}: no such file"));
    }
    let anchor = anchor.filter(|_| path.extension().is_some_and(|ending| ending == "md"))?;
    (!anchors(&read(&path)).contains(anchor)).then(|| format!("{target}: no such heading"))
}

fn nothing_wrong(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_link_leads_somewhere() {
    let (mut problems, mut links) = (Vec::new(), 0);
    for page in pages() {
        let text = read(&page);
        for (number, line) in prose(&text) {
            for rest in without_code(line).split("](").skip(1) {
                let target = rest.split(')').next().unwrap().split(' ').next().unwrap();
                if ["https://", "http://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
                    continue;
                }
                links += 1;
                let wrong = missing(page.parent().unwrap(), &page, target);
                problems.extend(wrong.map(|wrong| format!("{}:{number}: {wrong}", shown(&page))));
            }
        }
    }
    nothing_wrong(&problems);
    assert!(links > 50, "{links}");
}

/// The text files in which something of the documentation may be cited.
fn citing() -> Vec<PathBuf> {
    let mut found = pages();
    for folder in ["src", "tests", "benches", "fuzz", "config", "docker"] {
        found.extend(files(
            &root().join(folder),
            &[".rs", ".py", ".toml", ".yaml", ".yml", ".cedar", "run", "setup", "check"],
        ));
    }
    for file in ["Cargo.toml", "clippy.toml", "deny.toml", "docs/openapi.yaml"] {
        found.push(root().join(file));
    }
    found.retain(|path| *path != root().join(file!()) && path.is_file());
    found
}

/// The numbers such as T07 that a line cites. In code: those of its comment, and what begins a text ("I3 intent …").
fn numbers(line: &str, is_page: bool) -> Vec<String> {
    let mut texts = Vec::new();
    if is_page {
        texts.push(without_code(line));
    } else {
        texts.extend(line.split_once("//").map(|(_, comment)| comment.to_owned()));
        let starts = line.split('"').skip(1).step_by(2).filter_map(|text| text.split(' ').next());
        texts.extend(starts.filter(|start| start.len() <= 3).map(str::to_owned));
    }
    let words = texts.iter().flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-'));
    let is_number = |word: &&str| {
        let rest = word.strip_prefix(['T', 'G', 'I']).unwrap_or_default();
        (1..=2).contains(&rest.len()) && rest.bytes().all(|digit| digit.is_ascii_digit())
    };
    words.filter(is_number).map(str::to_owned).collect()
}

#[test]
fn every_threat_requirement_and_invariant_that_is_cited_is_in_the_threat_model() {
    let model = read(&root().join("docs/threat-model.md"));
    let first = |line: &str| line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
    let known: BTreeSet<_> =
        model.lines().filter_map(|line| line.strip_prefix("### ").or(line.strip_prefix("| "))).map(first).collect();
    let (mut problems, mut cited) = (Vec::new(), 0);
    for path in citing() {
        let is_page = path.extension().is_some_and(|ending| ending == "md");
        for (number, line) in read(&path).lines().enumerate() {
            for name in numbers(line, is_page) {
                cited += 1;
                if !known.contains(&name) {
                    problems.push(format!("{}:{}: {name}", shown(&path), number + 1));
                }
            }
        }
    }
    nothing_wrong(&problems);
    assert!(cited > 100, "{cited}");
}

#[test]
fn no_page_is_cited_that_is_not_in_the_repository() {
    let records = files(&root().join("docs/decisions"), &[".md"]);
    let records: Vec<_> = records.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let mut problems = Vec::new();
    for path in citing() {
        for (number, line) in read(&path).lines().enumerate() {
            let at = format!("{}:{}", shown(&path), number + 1);
            for gone in ["design §", "design.md", "security.md", "peers.md", "house.md", "style.md", "protocols/"] {
                if line.contains(gone) {
                    problems.push(format!("{at}: {gone:?} is not in the repository"));
                }
            }
            // "decision 0005"
            for rest in line.split("decision 0").skip(1) {
                let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
                if number.len() == 3 && !records.iter().any(|name| name.starts_with(&format!("0{number}-"))) {
                    problems.push(format!("{at}: there is no decision 0{number}"));
                }
            }
            // `docs/NAME.md` and `docs/NAME.md#heading`
            for rest in line.split("docs/").skip(1) {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || "-_./#".contains(c))).unwrap_or(rest.len());
                let target = rest[..end].trim_end_matches('.');
                if target.contains(".md") {
                    let page = root().join("docs");
                    problems.extend(missing(&page, &page, target).map(|wrong| format!("{at}: docs/{wrong}")));
                }
            }
        }
    }
    nothing_wrong(&problems);
}

/// The names of all functions in the sources and tests, and the texts of the interop cases.
fn functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files(&root().join("src"), &[".rs"]).into_iter().chain(files(&root().join("tests"), &[".rs"])) {
        for rest in read(&path).split("fn ").skip(1) {
            found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

/// Whether `name` is a test, or with a `…` at its end the beginning of one.
fn is_test(functions: &BTreeSet<String>, name: &str) -> bool {
    let name = name.rsplit("::").next().unwrap();
    match name.strip_suffix('…') {
        Some(start) => functions.range(start.to_owned()..).next().is_some_and(|found| found.starts_with(start)),
        None => functions.contains(name),
    }
}

/// The tests that a page says show something: in the columns and paragraphs of "shown by" and "seen by".
fn shown_by(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut columns, mut in_item) = (Vec::new(), Vec::new(), false);
    for (number, line) in prose(text) {
        let cells: Vec<_> = line.split('|').collect();
        let is_row = line.starts_with('|');
        if !is_row {
            columns.clear();
            in_item = line.starts_with("- Shown by:") || (in_item && line.starts_with("  "));
        } else if columns.is_empty() {
            let says = |cell: &str| cell.contains("shown by") || cell.contains("seen by");
            columns = (1..cells.len()).filter(|at| says(cells[*at])).collect();
            // a table without such a column: none of its rows is a header
            columns.push(usize::MAX);
        }
        let texts: Vec<&str> =
            if in_item { vec![line] } else { columns.iter().filter_map(|at| cells.get(*at).copied()).collect() };
        for span in texts.into_iter().flat_map(code_spans) {
            // a test's name is a sentence; what has fewer words is something else
            if span.matches('_').count() >= 2 && !span.contains(|c: char| c.is_uppercase() || c.is_whitespace()) {
                found.push((number, span.to_owned()));
            }
        }
    }
    found
}

#[test]
fn every_test_that_a_page_names_as_evidence_is_there() {
    let functions = functions();
    for (page, least) in [("docs/threat-model.md", 120), ("CONTRIBUTING.md", 20)] {
        let named = shown_by(&read(&root().join(page)));
        assert!(named.len() >= least, "{page}: {}", named.len());
        let gone = named.iter().filter(|(_, name)| !is_test(&functions, name));
        nothing_wrong(&gone.map(|(number, name)| format!("{page}:{number}: no test {name}")).collect::<Vec<_>>());
    }
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let mut problems = Vec::new();
    for page in pages() {
        let text = read(&page);
        // what was there once is told in the change log
        for (number, line) in prose(&text).into_iter().filter(|_| !page.ends_with("CHANGELOG.md")) {
            for span in code_spans(line) {
                let ours = ["src/", "tests/", "docs/", "config/", "benches/", "fuzz/", "docker/", ".ci/", ".github/"];
                let is_path = ours.iter().any(|folder| span.starts_with(folder));
                // NAME stands for any name, and a pattern for many
                let is_form = span.contains(|c: char| c.is_uppercase() || c.is_whitespace() || "*{…<:".contains(c));
                if is_path && !is_form && !root().join(span).exists() {
                    problems.push(format!("{}:{number}: {span}", shown(&page)));
                }
            }
        }
    }
    nothing_wrong(&problems);
}

#[test]
fn pages_use_the_terms_of_the_glossary() {
    let mut problems = Vec::new();
    for page in pages().into_iter().filter(|page| !page.ends_with("docs/glossary.md")) {
        let text = read(&page);
        for (number, line) in prose(&text) {
            let line = format!(" {} ", without_code(line).to_lowercase());
            let words: String = line.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
            for word in NOT_USED {
                if words.contains(&format!(" {word} ")) {
                    problems.push(format!("{}:{number}: {word}", shown(&page)));
                }
            }
        }
    }
    nothing_wrong(&problems);
}

#[test]
fn every_decision_record_has_its_four_parts_and_its_number() {
    let mut numbers = BTreeSet::new();
    for page in files(&root().join("docs/decisions"), &[".md"]) {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        let number: String = name.chars().take_while(char::is_ascii_digit).collect();
        let text = read(&page);
        assert!(text.starts_with(&format!("# {number}: ")), "{name}: its title does not begin with its number");
        for part in ["context", "decision", "consequences", "when-to-look-again"] {
            assert!(anchors(&text).contains(part), "{name}: no part {part}");
        }
        assert!(numbers.insert(number), "{name}: its number is another's");
    }
    assert!(numbers.len() >= 10, "{numbers:?}");
}

#[test]
fn the_pages_name_the_version_of_rust_that_the_package_needs() {
    let cargo = read(&root().join("Cargo.toml"));
    let version = cargo.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    for page in ["README.md", "SECURITY.md", "RELEASING.md"] {
        let text = read(&root().join(page));
        let named: Vec<_> =
            text.split("Rust 1.").skip(1).map(|rest| rest.split(|c: char| !c.is_numeric()).next()).collect();
        assert!(!named.is_empty(), "{page} names no version of Rust");
        assert!(
            named.iter().all(|minor| version == format!("1.{}", minor.unwrap())),
            "{page}: {named:?}, not {version}"
        );
    }
}
