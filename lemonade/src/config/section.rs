//! Deserialises one table at a time, past its errors: what does not fit is reported and left out.

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::raw::{RawBackend, RawConfig};
use super::report::{Problem, Report, Step};
use super::wording;

/// Tables at the top of the file.
pub(super) const SECTIONS: [&str; 6] = ["runtime", "admin", "log", "telemetry", "frontend", "pool"];

/// Reads the whole document.
pub(super) fn config(report: &mut Report<'_>) -> RawConfig {
    let mut raw = RawConfig::default();
    for (key, value) in report.document().root() {
        let path = vec![Step::Key(key.get_ref().to_string())];
        match key.get_ref().as_ref() {
            "runtime" => raw.runtime = read(value, &path, report),
            "admin" => raw.admin = read(value, &path, report),
            "log" => raw.log = read(value, &path, report),
            "telemetry" => raw.telemetry = read(value, &path, report),
            "frontend" => each(value, &path, report, |name, value, path, report| {
                raw.frontend.insert(name.to_owned(), read(value, path, report));
            }),
            "pool" => each(value, &path, report, |name, value, path, report| {
                let (rest, list) = without_backends(value);
                let mut pool: super::raw::RawPool = read(&rest, path, report);
                if let Some(list) = list {
                    pool.backend = backends(list, path, report);
                }
                raw.pool.insert(name.to_owned(), pool);
            }),
            other => report.push(Problem {
                offset: Some(key.span().start),
                path,
                message: format!("unknown table or key {other:?}"),
                hint: wording::choices(other, &SECTIONS),
            }),
        }
    }
    raw
}

/// Reads one table; each error takes its entry out, until what is left can be read.
fn read<T: DeserializeOwned + Default>(
    value: &Spanned<DeValue<'_>>,
    path: &[Step],
    report: &mut Report<'_>,
) -> T {
    // Copied a second time only if there is an error to look for.
    let mut error = match T::deserialize(ValueDeserializer::from(value.clone())) {
        Ok(read) => return read,
        Err(error) => error,
    };
    let mut left = value.clone();
    loop {
        let span = error.span().unwrap_or_else(|| left.span());
        // A variable's text that looks like a number may be meant as text.
        if let Some(text) = report.document().variable_at(span.start)
            && let Some(found) = find(&mut left, span.start)
            && !found.is_str()
        {
            *found = DeValue::String(text.to_owned().into());
        } else {
            let mut path = path.to_vec();
            let removed = cut(&mut left, &span, &mut path);
            let (message, hint) = wording::value(error.message());
            report.push(Problem { offset: Some(span.start), path, message, hint });
            if !removed || report.full() {
                return T::default();
            }
        }
        error = match T::deserialize(ValueDeserializer::from(left.clone())) {
            Ok(read) => return read,
            Err(error) => error,
        };
    }
}

/// The simple value at a place.
fn find<'v, 'i>(value: &'v mut Spanned<DeValue<'i>>, start: usize) -> Option<&'v mut DeValue<'i>> {
    let at = value.span().start;
    match value.get_mut() {
        DeValue::Table(table) => table.iter_mut().find_map(|(_, value)| find(value, start)),
        DeValue::Array(items) => items.iter_mut().find_map(|item| find(item, start)),
        simple @ (DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)) => (at == start).then_some(simple),
    }
}

/// Removes the entry that a span lies in, and extends the path to it.
fn cut(value: &mut Spanned<DeValue<'_>>, span: &std::ops::Range<usize>, path: &mut Vec<Step>) -> bool {
    let DeValue::Table(table) = value.get_mut() else { return false };
    let holds = |outer: std::ops::Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let name = key.get_ref().to_string();
        path.push(Step::Key(name.clone()));
        if cut(value, span, path) {
            return true;
        }
        if holds(key.span()) || holds(value.span()) {
            found = Some(name);
            break;
        }
        path.pop();
    }
    found.is_some_and(|name| table.remove(name.as_str()).is_some())
}

/// Visits each table of a table of tables.
fn each<'d>(
    value: &Spanned<DeValue<'_>>,
    path: &[Step],
    report: &mut Report<'d>,
    mut visit: impl FnMut(&str, &Spanned<DeValue<'_>>, &[Step], &mut Report<'d>),
) {
    let section = match path.first() {
        Some(Step::Key(key)) => key.as_str(),
        Some(Step::Index(_)) | None => "",
    };
    let DeValue::Table(table) = value.get_ref() else {
        report.push(Problem {
            offset: Some(value.span().start),
            path: path.to_vec(),
            message: format!("{section} is not a table of tables"),
            hint: format!("write [{section}.NAME]"),
        });
        return;
    };
    for (key, value) in table {
        let mut path = path.to_vec();
        path.push(Step::Key(key.get_ref().to_string()));
        if value.get_ref().is_table() {
            visit(key.get_ref(), value, &path, report);
        } else {
            report.push(Problem {
                offset: Some(key.span().start),
                path,
                message: format!("{:?} is not a {section}", key.get_ref()),
                hint: format!("write [{section}.NAME] and the keys below it"),
            });
        }
    }
}

/// Backends are read one by one, so that an error in one costs no second look at the others.
fn without_backends<'i, 'v>(
    value: &'v Spanned<DeValue<'i>>,
) -> (Spanned<DeValue<'i>>, Option<&'v Spanned<DeValue<'i>>>) {
    let DeValue::Table(table) = value.get_ref() else { return (value.clone(), None) };
    let rest: DeTable<'i> = table
        .iter()
        .filter(|(key, _)| key.get_ref() != "backend")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    (Spanned::new(value.span(), DeValue::Table(rest)), table.get("backend"))
}

fn backends(list: &Spanned<DeValue<'_>>, path: &[Step], report: &mut Report<'_>) -> Vec<RawBackend> {
    let mut path = path.to_vec();
    path.push(Step::Key("backend".to_owned()));
    let DeValue::Array(items) = list.get_ref() else {
        report.push(Problem {
            offset: Some(list.span().start),
            path,
            message: "backend is not a list of tables".to_owned(),
            hint: "write [[pool.NAME.backend]], with two brackets".to_owned(),
        });
        return Vec::new();
    };
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            path.push(Step::Index(index));
            let backend = read(item, &path, report);
            path.pop();
            backend
        })
        .collect()
}
