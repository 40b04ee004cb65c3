//! Problems as they are found: a path, a message, a hint; turned into diagnostics at the end.

use std::fmt::Write as _;
use std::path::Path;

use super::document::{Document, Place};
use super::error::{ConfigError, Diagnostic};

/// Diagnostics shown at most; the rest is counted.
pub(super) const SHOWN: usize = 50;

/// One step of a path into the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Key of a table.
    Key(String),
    /// Place in a list, from 0.
    Index(usize),
}

/// One error, before its place is turned into line and column.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Place in the text; `None` when it has none.
    pub(super) offset: Option<usize>,
    /// Key it is about.
    pub(super) path: Vec<Step>,
    /// What is wrong.
    pub(super) message: String,
    /// What to write instead.
    pub(super) hint: String,
}

/// Every problem found so far.
pub(super) struct Report<'d> {
    document: &'d Document<'d>,
    problems: Vec<Problem>,
    broken: Vec<usize>,
    unread: usize,
}

impl<'d> Report<'d> {
    /// A report on a document with syntax errors; only the first of each line is told.
    pub(super) fn new(document: &'d Document<'d>, syntax: Vec<Problem>) -> Self {
        let mut report = Self { document, problems: Vec::new(), broken: Vec::new(), unread: 0 };
        for problem in syntax {
            let line = problem.offset.and_then(|offset| document.line_start(offset));
            report.push(problem);
            report.broken.extend(line);
        }
        report
    }

    /// The document.
    pub(super) const fn document(&self) -> &'d Document<'d> {
        self.document
    }

    /// Adds a problem, unless it stands in a line that is broken anyway.
    pub(super) fn push(&mut self, problem: Problem) {
        let line = problem.offset.and_then(|offset| self.document.line_start(offset));
        if self.broken.is_empty() || line.is_none_or(|line| !self.broken.contains(&line)) {
            self.problems.push(problem);
        }
    }

    /// Ends the reading: values reported so far are absent from now on.
    pub(super) const fn reading_done(&mut self) {
        self.unread = self.problems.len();
    }

    /// Whether enough was found to stop looking.
    pub(super) const fn full(&self) -> bool {
        self.problems.len() >= SHOWN
    }

    /// Whether nothing was found.
    pub(super) const fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// A place to report from.
    pub(super) fn at(&mut self, path: &[&str]) -> Spot<'_, 'd> {
        let path = path.iter().map(|key| Step::Key((*key).to_owned())).collect();
        Spot { report: self, path }
    }

    /// The diagnostics by position, those beyond [`SHOWN`] only counted.
    pub(super) fn into_error(mut self, file: &Path) -> ConfigError {
        self.problems.sort_by_key(|problem| problem.offset.unwrap_or(usize::MAX));
        let more = self.problems.len().saturating_sub(SHOWN);
        let mut diagnostics: Vec<Diagnostic> =
            self.problems.iter().take(SHOWN).map(|problem| self.diagnostic(problem)).collect();
        if more > 0 {
            diagnostics.push(Diagnostic {
                position: None,
                field: String::new(),
                message: format!("and at least {more} more errors"),
                hint: "correct these first".to_owned(),
            });
        }
        ConfigError { file: file.to_owned(), diagnostics }
    }

    fn diagnostic(&self, problem: &Problem) -> Diagnostic {
        let field = dotted(&problem.path);
        let (position, field) = match problem.offset.map(|offset| self.document.place(offset)) {
            Some(Place::Text(line, column)) => (Some((line, column)), field),
            Some(Place::Variable(variable)) => (None, variable.to_owned()),
            None => (None, field),
        };
        Diagnostic {
            position,
            field: short(&field),
            message: short(&problem.message),
            hint: short(&problem.hint),
        }
    }
}

/// A table of the file, to report from.
pub(super) struct Spot<'r, 'd> {
    report: &'r mut Report<'d>,
    path: Vec<Step>,
}

impl<'d> Spot<'_, 'd> {
    /// Reports a value.
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.path.push(Step::Key(key.to_owned()));
        self.wrong_here(message, hint);
        self.path.pop();
    }

    /// Whether the file or a variable says `key`; it may still be the default that it says.
    pub(super) fn says(&self, key: &str) -> bool {
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        self.report.document.key_offset(&path).is_some()
    }

    /// Reports an item of a list.
    pub(super) fn wrong_item(
        &mut self,
        key: &str,
        index: usize,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.path.push(Step::Key(key.to_owned()));
        self.path.push(Step::Index(index));
        self.wrong_here(message, hint);
        self.path.truncate(self.path.len() - 2);
    }

    /// Reports the table itself.
    pub(super) fn wrong_here(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        let offset = self.report.document.offset(&self.path);
        self.push(offset, message.into(), hint.into());
    }

    /// Reports the name of the table.
    pub(super) fn wrong_name(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        let offset = self.report.document.key_offset(&self.path);
        self.push(offset, message.into(), hint.into());
    }

    fn push(&mut self, offset: Option<usize>, message: String, hint: String) {
        // A value that could not be read is absent: that it is missing is no news.
        let known = self
            .report
            .problems
            .iter()
            .take(self.report.unread)
            .any(|known| !known.path.is_empty() && self.path.starts_with(&known.path));
        if !known {
            self.report.push(Problem { offset, path: self.path.clone(), message, hint });
        }
    }

    /// The table below a key.
    pub(super) fn under(&mut self, key: &str) -> Spot<'_, 'd> {
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        Spot { report: self.report, path }
    }

    /// The table at a place of a list.
    pub(super) fn item(&mut self, key: &str, index: usize) -> Spot<'_, 'd> {
        let mut spot = self.under(key);
        spot.path.push(Step::Index(index));
        spot
    }
}

/// Names and values of a file may be of any length, and end up in a log line.
fn short(text: &str) -> String {
    const LONGEST: usize = 800;
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(LONGEST / 4).collect();
    kept.push_str(" ...");
    kept
}

/// `pool.web.backend[1].weight`
fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
                    text.push_str(key);
                } else {
                    let _infallible = write!(text, "{key:?}");
                }
            }
            Step::Index(index) => {
                let _infallible = write!(text, "[{index}]");
            }
        }
    }
    text
}
