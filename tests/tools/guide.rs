//! The guides say what is so: configurations are accepted, links lead somewhere, alerts have their cures.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lemonade_tests::lemonade::binary;
use lemonade_tests::tools::{root, said};
use toml::{Table, Value};

/// The guides and the pages at the top, each with its text.
pub fn pages() -> Vec<(PathBuf, String)> {
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
pub fn blocks(text: &str, language: &str) -> Vec<String> {
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

/// The anchors that a page of the book has: one for each heading, as mdBook makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut outside = |line: &&str| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    };
    let slug = |heading: &str| -> String {
        let kept = |c: char| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        };
        heading.trim_start_matches('#').trim().chars().filter_map(kept).collect()
    };
    text.lines().filter(&mut outside).map(slug).collect()
}

/// The book has what is below docs, and nothing else: what lies beside it is named, not linked.
#[test]
fn each_link_of_the_book_leads_to_something_in_it() {
    let book = root().join("docs");
    let mut seen = 0;
    for (page, text) in pages().into_iter().filter(|(page, _)| page.starts_with(&book)) {
        let folder = page.parent().expect("a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.is_empty() || link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { folder.join(path) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{}: no {link}", page.display()));
            assert!(
                target.is_file() && target.starts_with(&book),
                "{}: {link} is not in the book",
                page.display()
            );
            let there = || anchors(&fs::read_to_string(&target).expect("a page"));
            assert!(anchor.is_empty() || there().contains(anchor), "{}: no {link}", page.display());
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen} links");
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
