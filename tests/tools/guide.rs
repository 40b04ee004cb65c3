//! The guides say what is so: configurations are accepted, commands exist, links lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use lemonade_tests::lemonade::binary;
use lemonade_tests::tools::{root, said};
use toml::{Table, Value};

/// The guides and the pages at the top, each with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].iter().map(|page| root().join(page)).collect();
    for folder in ["docs", "docs/guide", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).expect("a folder of guides");
        pages.extend(entries.map(|entry| entry.expect("an entry").path()));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    assert!(pages.len() > 20, "{} pages", pages.len());
    pages.into_iter().map(|page| (page.clone(), fs::read_to_string(page).expect("a page"))).collect()
}

/// Fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let bodies = text.split(&fence).skip(1);
    bodies.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// A fragment made whole by what every configuration needs, and by nothing that it says itself.
fn whole(block: &str) -> String {
    let mut config: Table = block.parse().unwrap_or_else(|error| panic!("{error} in\n{block}"));
    let section = |config: &mut Table, name: &str| {
        config.entry(name).or_insert_with(|| Value::Table(Table::new()));
    };
    section(&mut config, "frontend");
    section(&mut config, "pool");
    let frontends = config["frontend"].as_table_mut().expect("a table");
    if frontends.is_empty() {
        frontends.insert("web".to_owned(), Value::Table(Table::new()));
    }
    let mut wanted = BTreeSet::new();
    for frontend in frontends.iter_mut().filter_map(|(_, one)| one.as_table_mut()) {
        frontend.entry("listen").or_insert_with(|| "127.0.0.1:0".into());
        let pool = frontend.entry("pool").or_insert_with(|| "web".into());
        wanted.insert(pool.as_str().expect("a name").to_owned());
    }
    let pools = config["pool"].as_table_mut().expect("a table");
    for name in wanted {
        pools.entry(name).or_insert_with(|| Value::Table(Table::new()));
    }
    for pool in pools.iter_mut().filter_map(|(_, one)| one.as_table_mut()) {
        let backend = Table::from_iter([("address".to_owned(), Value::from("127.0.0.1:9001"))]);
        pool.entry("backend").or_insert_with(|| Value::Array(vec![Value::Table(backend)]));
    }
    config.to_string()
}

/// Path of the automation, built once.
fn xtask() -> &'static Path {
    static XTASK: OnceLock<PathBuf> = OnceLock::new();
    XTASK.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "xtask"]).current_dir(root());
        assert!(cargo.status().expect("cargo runs").success(), "xtask cannot be built");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        target.join("debug/xtask")
    })
}

/// Commands of a shell block, without `sudo`, comments, pipes and what is written into a file.
fn commands(block: &str) -> Vec<Vec<String>> {
    let ends = |word: &String| !(word.starts_with('#') || ["|", ">", "&&", "&"].contains(&word.as_str()));
    let lines = block.replace("\\\n", " ");
    let words = lines.lines().map(|line| words(line.trim().trim_start_matches("sudo ")));
    words
        .map(|words| words.into_iter().take_while(ends).collect())
        .filter(|words: &Vec<_>| !words.is_empty())
        .collect()
}

/// Words of a line; quotes keep theirs together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars().chain([' ']) {
        match quote {
            Some(open) if letter == open => quote = None,
            None if letter == '"' || letter == '\'' => quote = Some(letter),
            None if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            Some(_) | None => word.push(letter),
        }
    }
    words
}

#[test]
fn each_configuration_in_the_guides_is_accepted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut checked = 0;
    for (page, text) in pages() {
        for block in blocks(&text, "toml") {
            let file = folder.path().join("lemonade.toml");
            fs::write(&file, whole(&block)).expect("a writable folder");
            let output = Command::new(binary()).arg("check").arg(&file).output().expect("lemonade");
            assert!(output.status.success(), "{}:\n{block}\n{}", page.display(), said(&output));
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked} configurations");
}

#[test]
fn each_command_in_the_guides_exists_with_its_arguments() {
    let mut checked = 0;
    for (page, text) in pages() {
        for words in blocks(&text, "sh").iter().flat_map(|block| commands(block)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (mut command, arguments) = match words.as_slice() {
                ["cargo", "xtask", arguments @ ..] => (Command::new(xtask()), arguments),
                [program, arguments @ ..] if Path::new(program).ends_with("lemonade") => {
                    (Command::new(binary()), arguments)
                }
                _ => continue,
            };
            // What stands before it is parsed, and nothing is done.
            let end = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
            let output = command.args(&arguments[..end]).arg("--help").output().expect("it starts");
            assert!(output.status.success(), "{}: {words:?}: {}", page.display(), said(&output));
            checked += 1;
        }
    }
    assert!(checked >= 20, "{checked} commands");
    let wrong = Command::new(binary()).args(["status", "--wrong", "--help"]).output().expect("lemonade");
    assert!(!wrong.status.success(), "an argument that does not exist would not be seen");
}

#[test]
fn links_lead_to_files_and_the_book_has_each_page() {
    let mut linked = BTreeSet::new();
    for (page, text) in pages() {
        let folder = page.parent().expect("a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.contains(char::is_whitespace) {
                continue;
            }
            let target = folder.join(path);
            assert!(target.exists(), "{}: no {link}", page.display());
            if page.ends_with("SUMMARY.md") {
                linked.insert(target.canonicalize().expect("it exists"));
            }
        }
    }
    for (page, _) in pages() {
        let own = page.starts_with(root().join("docs")) && !page.ends_with("SUMMARY.md");
        assert!(!own || linked.contains(&page), "docs/SUMMARY.md lacks {}", page.display());
    }
}

#[test]
fn each_alert_and_each_reason_has_its_cure() {
    let page = fs::read_to_string(root().join("docs/guide/troubleshooting.md")).expect("the page");
    let alerts = fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).expect("the alerts");
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("\n### {name}\n")), "{name} has no section");
    }
    for reason in lemonade_common::Reason::ALL {
        assert!(page.contains(&format!("`{}`", reason.as_str())), "{} has no row", reason.as_str());
    }
}
