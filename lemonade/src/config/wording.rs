//! Messages of the parsers in words for people, and suggestions.

use std::ops::Range;

/// What to write in place of a word that is not known.
pub(super) fn choices(word: &str, allowed: &[&str]) -> String {
    // What is longer than any name resembles none, and would take long to compare.
    const LONGEST: usize = 64;
    let word = word.to_lowercase();
    let near = allowed
        .iter()
        .filter(|candidate| word.len() <= LONGEST && candidate.len() <= LONGEST)
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&word, candidate), candidate))
        .filter(|(likeness, candidate)| *likeness >= 0.6 || (word.len() >= 3 && candidate.starts_with(&word)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("did you mean {candidate:?}? "))
        .unwrap_or_default();
    const LISTED: usize = 20;
    let list = allowed.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match allowed.len() {
        0 => "there is none".to_owned(),
        count if count > LISTED => format!("{near}there are: {list} and {} more", count - LISTED),
        _ => format!("{near}there are: {list}"),
    }
}

/// Words a deserialisation error for people: message and hint.
pub(super) fn value(message: &str) -> (String, String) {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (key, allowed) = quoted(rest);
        return (format!("unknown key {key:?}"), choices(key, &allowed));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let (word, allowed) = quoted(rest);
        return (format!("unknown word {word:?}"), choices(word, &allowed));
    }
    if let Some(rest) =
        message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))
        && let Some((found, expected)) = rest.split_once(", expected ")
    {
        return (
            format!(
                "{} does not fit here",
                found.replace('`', "").replace(" as i128", "").replace(" as u128", "")
            ),
            format!("write {}", plain(expected)),
        );
    }
    if message == "wanted string or table" {
        return ("this is not a word in quotes".to_owned(), "write a string".to_owned());
    }
    match message.split_once("; ") {
        Some((message, hint)) => (message.to_owned(), hint.to_owned()),
        None => (message.to_owned(), String::new()),
    }
}

/// Words a syntax error for people: message and hint. The span is where it stands in the text.
pub(super) fn syntax(message: &str, text: &str, span: Range<usize>) -> (String, String) {
    let line_start = text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let line = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or("");
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let word = value.split('#').next().unwrap_or("").trim();
    let is_value = line.contains('=') && span.start > line_start + key.len();
    if message == "duplicate key" {
        let key = text.get(span).unwrap_or(key);
        return (
            format!("{key:?} stands here a second time"),
            "a key or table may stand only once; remove or rename one of them".to_owned(),
        );
    }
    if is_value && word.is_empty() {
        return ("the value is missing".to_owned(), "write key = value".to_owned());
    }
    if is_value && word.chars().all(|c| c.is_alphanumeric() || " _-.:/".contains(c)) {
        return (format!("{word} is not a value"), format!("write text in quotes: {word:?}"));
    }
    (message.to_owned(), String::new())
}

/// The first text in backticks, and those behind `expected`.
fn quoted(text: &str) -> (&str, Vec<&str>) {
    let (word, rest) = text.split_once(", expected ").unwrap_or((text, ""));
    (word.trim_matches('`'), rest.split('`').skip(1).step_by(2).collect())
}

fn plain(expected: &str) -> String {
    let (kind, rest) = expected.split_at(expected.find(", or ").unwrap_or(expected.len()));
    let kind = match kind {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list in [ ]",
        "a map" => "a table",
        "path string" => "a path in quotes",
        "a string" => "text in quotes",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    format!("{kind}{rest}")
}
