//! Source files as the rules see them.

use std::fs;
use std::path::Path;

use anyhow::Context;

const EXTENSIONS: [&str; 5] = ["rs", "toml", "sh", "yml", "py"];
const SKIPPED: [&str; 5] = [".git", "target", "artifacts", "corpus", "node_modules"];

/// One file.
pub struct Source {
    /// Path below the root, with `/`.
    pub path: String,
    /// Lines as they are.
    pub lines: Vec<String>,
    /// Lines of Rust without comments and without the trailing test module; of other files none.
    pub code: Vec<String>,
}

impl Source {
    /// Splits a text.
    pub fn new(path: &str, text: &str) -> Self {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let tests = lines.iter().position(|line| line.starts_with("mod tests {")).unwrap_or(lines.len());
        let rust = if path.ends_with(".rs") { &lines[..tests] } else { &[] };
        let code = rust.iter().map(|line| without_comment(line)).collect();
        Self { path: path.to_owned(), lines, code }
    }

    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is compiled only for tests.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.ends_with("/fixture.rs")
    }
}

fn without_comment(line: &str) -> String {
    // `://` is a URL in a string.
    let cut = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    line[..cut.map_or(line.len(), |(at, _)| at)].trim_end().to_owned()
}

/// Reads every source file below `root`.
pub fn read_all(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                folders.push(path);
            } else if kind.is_file() && is_source(&path) {
                // A test may keep a file that is no UTF-8 on purpose.
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let text = String::from_utf8_lossy(&text);
                let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                sources.push(Source::new(&below, &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}
