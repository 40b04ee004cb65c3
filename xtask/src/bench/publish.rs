//! Where the results go: the bench folder, and the docs when asked.

use std::fs;

use anyhow::{Context, Result};

use super::install::Folders;
use super::peers::Peer;
use super::results::Results;
use super::svg;
use super::table::{Setting, json, markdown};

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// Prints the table and writes the files.
pub fn publish(
    folders: &Folders,
    results: &Results,
    setting: &Setting,
    peers: &[Peer],
    docs: bool,
) -> Result<()> {
    let table = markdown(results, setting, peers);
    let caption = format!("Medians of {} round(s). {}.", setting.rounds, setting.machine);
    let picture = svg::chart(results, peers, &caption);
    println!("\n{table}");
    fs::write(folders.bench.join("result.md"), &table)?;
    fs::write(folders.bench.join("result.svg"), &picture)?;
    let all = serde_json::to_string_pretty(&json(results, setting, peers))?;
    fs::write(folders.bench.join("result.json"), all + "\n")?;
    println!("written: {}/result.{{md,json,svg}}", folders.bench.display());
    if docs {
        let folder = folders.root.join("docs");
        fs::create_dir_all(&folder)?;
        let page = folder.join("performance.md");
        let old = fs::read_to_string(&page).unwrap_or_else(|_| empty_page());
        fs::write(&page, between_markers(&old, &table).context("docs/performance.md")?)?;
        fs::write(folder.join("performance.svg"), picture)?;
        println!("written: docs/performance.md, docs/performance.svg");
    }
    Ok(())
}

fn empty_page() -> String {
    format!(
        "# Performance\n\nMeasured by `cargo xtask bench`. Compare inside one run, as ratios.\n\n\
         ![Lemonade beside its peers](performance.svg)\n\n{BEGIN}\n{END}\n"
    )
}

/// Replaces what stands between the markers.
fn between_markers(page: &str, table: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).with_context(|| format!("has no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("has no line {END}"))?;
    Ok(format!("{head}{BEGIN}\n{}\n{END}{tail}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = between_markers(&page, "new\n").expect("markers are there");
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(between_markers(&new, "new").expect("still there"), new);
    }

    #[test]
    fn a_page_without_markers_is_left_alone() {
        assert!(between_markers("text", "new").is_err());
        assert!(between_markers(&empty_page(), "new").is_ok());
    }
}
