//! Configuration: TOML text to a validated [`Config`], all errors at once, watched for changes.

use std::path::Path;

use crate::model::Config;

pub mod adapters;
mod change;
mod document;
pub mod error;
mod file;
mod notes;
pub mod port;
mod raw;
mod report;
mod restart;
mod schema;
mod section;
mod validate;
mod value;
mod wording;
mod written;

#[cfg(test)]
mod tests;

pub use change::Accepted;
pub use error::{ConfigError, Diagnostic};
pub use notes::{notes, unheeded, unheeded_words};
pub use restart::needs_restart;
pub use schema::schema;
pub use written::written;

use document::Document;
use report::Report;

/// Parses and validates a text that was read from `file`, with environment overrides (`LEMONADE__SECTION__KEY`) laid over it.
///
/// Variables with another prefix are ignored.
///
/// # Errors
/// Every error in it, at most 50 in full.
pub fn parse_text(file: &Path, text: &str, env: &[(String, String)]) -> Result<Config, ConfigError> {
    let (mut document, problems) = Document::parse(text);
    let broken = !problems.is_empty();
    let torn = document.torn(&problems);
    let overlay = document.overlay(env);
    let mut report = Report::new(&document, problems);
    if torn {
        return Err(report.into_error(file));
    }
    overlay.into_iter().for_each(|problem| report.push(problem));
    let raw = section::config(&mut report);
    report.reading_done();
    // What a broken line has left out would only cause errors that are none.
    if broken || report.full() {
        return Err(report.into_error(file));
    }
    let config = validate::config(raw, &mut report);
    if report.is_empty() { Ok(config) } else { Err(report.into_error(file)) }
}

/// As [`parse_text`], at a cost that follows the change where only a few pools differ from what was accepted before.
///
/// # Errors
/// As [`parse_text`].
pub fn parse_after(
    before: Option<&Accepted>,
    file: &Path,
    text: &str,
    env: &[(String, String)],
) -> Result<Config, ConfigError> {
    let overridden = env.iter().any(|(variable, _)| variable.starts_with(document::PREFIX));
    let changed = before.filter(|_| !overridden).and_then(|before| change::read(before, text));
    changed.map_or_else(|| parse_text(file, text, env), Ok)
}

/// Reads, parses and validates a file.
///
/// # Errors
/// Why the file cannot be read, or every error in it.
pub fn read(path: &Path, env: &[(String, String)]) -> Result<Config, ConfigError> {
    parse_text(path, &file::text(path)?, env)
}
