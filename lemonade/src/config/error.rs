//! What is wrong with a configuration, for people.

use std::fmt;
use std::path::PathBuf;

/// One error: where, what, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line and column, from 1; `None` when it comes from an environment variable or has no place.
    pub position: Option<(usize, usize)>,
    /// Dotted key or environment variable: `pool.web.backend[1].weight`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead; empty when there is nothing to suggest.
    pub hint: String,
}

/// Every error of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File it was read from.
    pub file: PathBuf,
    /// At least one, by position.
    pub diagnostics: Vec<Diagnostic>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some((line, column)) = diagnostic.position {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": ")?;
            if !diagnostic.field.is_empty() {
                write!(f, "{}: ", diagnostic.field)?;
            }
            write!(f, "{}", diagnostic.message)?;
            if !diagnostic.hint.is_empty() {
                write!(f, "; {}", diagnostic.hint)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
