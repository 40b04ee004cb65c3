//! The parsed file with the place of every key, and environment overrides laid over it.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::report::{Problem, Step};
use super::section::SECTIONS;

/// Variables with this prefix override the file.
pub(super) const PREFIX: &str = "LEMONADE__";

/// Syntax errors looked at: each costs a look at its line, and garbage has very many.
const SYNTAX_ERRORS: usize = 200;

/// A table of values that know where they stand.
///
/// A value that a variable has set stands behind the end of the text, one place per variable.
pub(super) struct Document<'i> {
    text: &'i str,
    root: DeTable<'i>,
    /// By place: the variable; and its text, where the place is that of its whole value.
    variables: Vec<(&'i str, Option<&'i str>)>,
}

/// What a place in the document is for a reader.
pub(super) enum Place<'i> {
    /// Line and column, from 1.
    Text(usize, usize),
    /// An environment variable.
    Variable(&'i str),
}

impl<'i> Document<'i> {
    /// Parses a text as far as possible; syntax errors are the second value.
    pub(super) fn parse(text: &'i str) -> (Self, Vec<Problem>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let problems = errors
            .iter()
            .take(SYNTAX_ERRORS)
            .map(|error| {
                let span = error.span().unwrap_or(text.len()..text.len());
                let offset = span.start;
                let (message, hint) = super::wording::syntax(error.message(), text, span);
                Problem { offset: Some(offset), path: Vec::new(), message, hint }
            })
            .collect();
        (Self { text, root: root.into_inner(), variables: Vec::new() }, problems)
    }

    /// Whether syntax errors have torn tables apart, so that keys may stand where they do not belong.
    pub(super) fn torn(&self, syntax: &[Problem]) -> bool {
        let mut starts = syntax.iter().filter_map(|problem| self.line_start(problem.offset?));
        starts.any(|start| self.text[start..].trim_start().starts_with('['))
    }

    /// Where the line of a place begins; `None` for a place that is not in the text.
    pub(super) fn line_start(&self, offset: usize) -> Option<usize> {
        let before = self.text.get(..offset)?;
        Some(before.rfind('\n').map_or(0, |end| end + 1))
    }

    /// Lays the variables over the file, in their order; what has no target is an error.
    pub(super) fn overlay(&mut self, env: &'i [(String, String)]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for pair in env {
            let (variable, value) = pair;
            let Some(segments) = variable.get(PREFIX.len()..).filter(|_| variable.starts_with(PREFIX)) else {
                continue;
            };
            let segments: Vec<&str> = segments.split("__").collect();
            let parsed = DeValue::parse(value)
                .map_or_else(|_not_toml| DeValue::String(Cow::Borrowed(value)), Spanned::into_inner);
            let at = self.next_place(variable, Some(value));
            let placed = Spanned::new(at..at + 1, self.placed(parsed, variable));
            if let Err((message, hint)) = set(&mut self.root, &segments, placed, 0) {
                problems.push(Problem { offset: Some(at), path: Vec::new(), message, hint });
            }
        }
        problems
    }

    fn next_place(&mut self, variable: &'i str, value: Option<&'i str>) -> usize {
        self.variables.push((variable, value));
        self.text.len() + self.variables.len()
    }

    /// Gives each value and key inside a variable's value a place of its own.
    fn placed(&mut self, value: DeValue<'i>, variable: &'i str) -> DeValue<'i> {
        match value {
            DeValue::Array(items) => {
                let mut array = DeArray::new();
                for item in items {
                    let at = self.next_place(variable, None);
                    array.push(Spanned::new(at..at + 1, self.placed(item.into_inner(), variable)));
                }
                DeValue::Array(array)
            }
            DeValue::Table(entries) => {
                let mut table = DeTable::new();
                for (key, value) in entries {
                    let at = self.next_place(variable, None);
                    let key = Spanned::new(at..at + 1, key.into_inner());
                    let at = self.next_place(variable, None);
                    table.insert(key, Spanned::new(at..at + 1, self.placed(value.into_inner(), variable)));
                }
                DeValue::Table(table)
            }
            simple @ (DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)) => simple,
        }
    }

    /// The top table.
    pub(super) const fn root(&self) -> &DeTable<'i> {
        &self.root
    }

    /// Text of the variable whose whole value is at this place.
    pub(super) fn variable_at(&self, offset: usize) -> Option<&'i str> {
        let index = offset.checked_sub(self.text.len() + 1)?;
        self.variables.get(index)?.1
    }

    /// Turns an offset into what a reader can look up.
    pub(super) fn place(&self, offset: usize) -> Place<'i> {
        if let Some(index) = offset.checked_sub(self.text.len() + 1)
            && let Some((variable, _)) = self.variables.get(index)
        {
            return Place::Variable(variable);
        }
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::Text(
            1 + before.bytes().filter(|byte| *byte == b'\n').count(),
            1 + before[line_start..].chars().count(),
        )
    }

    /// Where a path stands: the value, the key of a table, or the nearest parent of what is not there.
    pub(super) fn offset(&self, path: &[Step]) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let Step::Key(first) = first else { return None };
        let (key, value) = self.root.get_key_value(first.as_str())?;
        let mut place = spot(key.span().start, value);
        let mut value = value;
        for step in rest {
            let next = match (step, value.get_ref()) {
                (Step::Key(name), DeValue::Table(table)) => {
                    let Some((key, value)) = table.get_key_value(name.as_str()) else { break };
                    (spot(key.span().start, value), value)
                }
                (Step::Index(index), DeValue::Array(array)) => {
                    let Some(value) = array.get(*index) else { break };
                    (value.span().start, value)
                }
                _ => break,
            };
            (place, value) = next;
        }
        Some(place)
    }

    /// Where the key itself stands, for errors in names.
    pub(super) fn key_offset(&self, path: &[Step]) -> Option<usize> {
        let (Step::Key(last), parents) = path.split_last()? else { return None };
        let mut table = &self.root;
        for step in parents {
            let Step::Key(name) = step else { return None };
            let DeValue::Table(inner) = table.get(name.as_str())?.get_ref() else { return None };
            table = inner;
        }
        table.get_key_value(last.as_str()).map(|(key, _)| key.span().start)
    }
}

fn spot(key: usize, value: &Spanned<DeValue<'_>>) -> usize {
    if value.get_ref().is_table() { key } else { value.span().start }
}

/// Segments of variables are compared without case, and `_` in them also matches `-`.
fn same(segment: &str, name: &str) -> bool {
    segment.len() == name.len()
        && segment
            .bytes()
            .zip(name.bytes())
            .all(|(s, n)| s.eq_ignore_ascii_case(&n) || (s == b'_' && n == b'-'))
}

fn set<'i>(
    table: &mut DeTable<'i>,
    segments: &[&'i str],
    value: Spanned<DeValue<'i>>,
    depth: usize,
) -> Result<(), (String, String)> {
    let shape = || {
        (
            "names no key".to_owned(),
            "write LEMONADE__SECTION__KEY, such as LEMONADE__POOL__WEB__STRATEGY or LEMONADE__LOG__LEVEL"
                .to_owned(),
        )
    };
    let Some((segment, rest)) = segments.split_first() else { return Err(shape()) };
    if segment.is_empty() || (rest.is_empty() && depth == 0) {
        return Err(shape());
    }
    let lower = segment.to_ascii_lowercase();
    if depth == 0 && rest.len() == 1 && ["frontend", "pool"].contains(&lower.as_str()) {
        return Err(shape());
    }
    if depth == 0 && !SECTIONS.contains(&lower.as_str()) {
        return Err((format!("unknown table or key {lower:?}"), super::wording::choices(&lower, &SECTIONS)));
    }
    let name = if table.contains_key(lower.as_str()) {
        Some(lower.clone())
    } else {
        table.keys().map(|key| key.get_ref().as_ref()).find(|name| same(segment, name)).map(str::to_owned)
    };
    let place = value.span();
    let key =
        || Spanned::new(place.clone(), Cow::<str>::Owned(name.clone().unwrap_or_else(|| lower.clone())));
    if rest.is_empty() {
        // Replaces the key too, so that an error at the key names the variable.
        let key = key();
        table.remove(key.get_ref().as_ref());
        table.insert(key, value);
        return Ok(());
    }
    let existing = name.as_deref().and_then(|name| table.get_mut(name)).map(Spanned::get_mut);
    match existing {
        Some(DeValue::Table(inner)) => set(inner, rest, value, depth + 1),
        Some(DeValue::Array(items)) => set_item(items, segment, rest, value, depth),
        Some(_) => Err((format!("{lower} is a single value"), "end the variable's name there".to_owned())),
        None if depth == 1 => {
            let names: Vec<&str> = table.keys().map(|key| key.get_ref().as_ref()).collect();
            Err((format!("the file has no {lower:?} here"), super::wording::choices(&lower, &names)))
        }
        None => {
            let mut inner = DeTable::new();
            let result = set(&mut inner, rest, value, depth + 1);
            if result.is_ok() {
                table.insert(key(), Spanned::new(place.clone(), DeValue::Table(inner)));
            }
            result
        }
    }
}

/// Backends are named by their name, or by their place in the list from 0.
fn set_item<'i>(
    items: &mut DeArray<'i>,
    list: &str,
    segments: &[&'i str],
    value: Spanned<DeValue<'i>>,
    depth: usize,
) -> Result<(), (String, String)> {
    let Some((segment, rest)) = segments.split_first() else {
        return Err((format!("names no key of {list}"), String::new()));
    };
    let named = items.iter().position(|item| {
        let name = item.get_ref().get("name").and_then(|name| name.get_ref().as_str());
        name.is_some_and(|name| same(segment, name))
    });
    let index = named.or_else(|| segment.parse().ok());
    match index.and_then(|index| items.get_mut(index)).map(Spanned::get_mut) {
        Some(DeValue::Table(item)) => set(item, rest, value, depth + 2),
        _ => Err((
            format!("the list has no item {segment:?}"),
            "write the name of an item, or its place from 0".to_owned(),
        )),
    }
}
