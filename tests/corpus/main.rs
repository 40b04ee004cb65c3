//! The corpora of the fuzz targets `reload` and `admin`, replayed; and inputs cut from them at random.

mod admin;

use std::fs;
use std::path::Path;

use lemonade_tests::sequence::{Outcome, replay};

/// The files with what must become of them.
fn corpus() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/reload");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<(String, String)> = entries
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, String::from_utf8_lossy(&fs::read(&path).expect("a readable file")).into_owned())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_reload_corpus_keeps_every_promise() {
    let files = corpus();
    assert!(files.len() >= 7, "the corpus lies beside the fuzz targets");
    for (name, text) in files {
        let Outcome { accepted, .. } = replay(&text);
        assert!(accepted >= 2, "{name}: a sequence has several valid configurations, {accepted} accepted");
    }
}

#[test]
fn lines_cut_doubled_and_swapped_keep_every_promise() {
    let mut random = fastrand::Rng::with_seed(9);
    let files = corpus();
    for _ in 0..300 {
        let (_, text) = random.choice(&files).expect("a corpus");
        let (_, other) = random.choice(&files).expect("a corpus");
        let mut lines: Vec<&str> = text.lines().chain(["==="]).chain(other.lines()).collect();
        for _ in 0..random.usize(0..4) {
            let (at, from) = (random.usize(..lines.len()), random.usize(..lines.len()));
            match random.u8(..3) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[from]),
                _ => lines.swap(at, from),
            }
        }
        replay(&lines.join("\n"));
    }
}
