//! The files that ship: they parse, and the annotated one tells the truth.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// Whether this build has kernel programs.
pub(super) const KERNEL: bool = cfg!(all(feature = "ebpf", target_os = "linux"));

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

fn annotated() -> String {
    fs::read_to_string(folder().join("lemonade.toml")).expect("annotated file")
}

#[test]
fn the_schema_is_up_to_date() {
    let path = folder().join("schema.json");
    let kept = fs::read_to_string(&path).expect("schema");
    assert!(kept == schema(), "config/schema.json is old: run `lemonade schema > config/schema.json`");
}

#[test]
fn every_example_is_valid_and_says_what_it_is_for() {
    let mut count = 0;
    for entry in fs::read_dir(folder().join("examples")).expect("examples") {
        let path = entry.expect("entry").path();
        let text = fs::read_to_string(&path).expect("text");
        match read(&path, &[]) {
            // One error, and no other.
            Err(error)
                if ["sk_msg", "splice"]
                    .iter()
                    .any(|relay| text.contains(&format!("relay = \"{relay}\"")))
                    && !KERNEL =>
            {
                assert_eq!(error.to_string().matches("frontend.").count(), 1, "{error}");
                assert!(error.to_string().contains("needs kernel programs"), "{error}");
            }
            read => drop(read.unwrap_or_else(|error| panic!("{error}"))),
        }
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("# ")), "{}", path.display());
        count += 1;
    }
    assert!(count >= 7);
}

#[test]
fn the_defaults_in_the_annotated_file_are_those_of_the_code() {
    let written = annotated();
    let uncommented: String = written
        .lines()
        .map(|line| {
            let is_key = line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
            format!("{}\n", if is_key { &line[1..] } else { line })
        })
        .collect();
    assert!(uncommented.contains("\nworkers = \"auto\"\n"));
    assert_eq!(check(&written).expect("valid"), check(&uncommented).expect("valid"));
}

#[test]
fn the_annotated_file_shows_every_key() {
    let schema: Value = serde_json::from_str(&schema()).expect("JSON");
    let text = annotated();
    for (part, definition) in schema["definitions"].as_object().expect("definitions") {
        for key in definition["properties"].as_object().into_iter().flat_map(|keys| keys.keys()) {
            let shown = text.lines().any(|line| {
                line.trim_start_matches('#').starts_with(&format!("{key} = "))
                    || line.starts_with('[') && line.trim_matches(['[', ']']).ends_with(&format!(".{key}"))
            });
            assert!(shown, "{part}: {key} is not in config/lemonade.toml");
        }
    }
}
