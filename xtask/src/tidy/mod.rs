//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md that can be read off the text.

mod rules;
mod source;

#[cfg(test)]
mod tests;

use std::process::{Command, ExitCode};

use crate::workspace;
use rules::Violation;
use source::Source;

/// Prints each violation; fails if there is one.
pub fn main() -> anyhow::Result<ExitCode> {
    let violations = check()?;
    for violation in &violations {
        println!("{violation}");
    }
    println!("tidy: {} violations of {} rules", violations.len(), rules::rules().len());
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every violation in the workspace, in words.
pub fn check() -> anyhow::Result<Vec<String>> {
    let sources = source::read_all(workspace::root())?;
    let mut violations = check_sources(&sources);
    violations.extend(rules::unknown_at_top(top_level()?.iter().map(String::as_str)));
    Ok(violations.iter().map(Violation::to_string).collect())
}

fn check_sources(sources: &[Source]) -> Vec<Violation> {
    let mut violations: Vec<_> = rules::rules().iter().flat_map(|rule| rule.check(sources)).collect();
    violations.sort();
    violations
}

/// Names at the top of the workspace: what git tracks, or all there is without git.
fn top_level() -> anyhow::Result<Vec<String>> {
    let tracked = Command::new("git").args(["ls-files", "-z"]).current_dir(workspace::root()).output();
    let mut names: Vec<String> = match tracked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(|path| path.split('/').next().unwrap_or(path).to_owned())
            .collect(),
        Ok(_) | Err(_) => std::fs::read_dir(workspace::root())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<anyhow::Result<_>>()?,
    };
    names.sort();
    names.dedup();
    Ok(names)
}
