//! What is wrong with a query, in words for people.

use axum::extract::rejection::QueryRejection;

use super::words::clean;

/// Words why a query cannot be read, and what may be written.
pub(super) fn words(error: &QueryRejection) -> String {
    let text = error.body_text();
    clean(&reworded(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text)))
}

fn reworded(text: &str) -> String {
    if let Some(rest) = text.strip_prefix("unknown field ") {
        let (name, known) = expected(rest);
        return format!("there is no parameter {name}; there are: {known}");
    }
    if let Some(name) = text.strip_prefix("missing field ") {
        return format!("the parameter {name} is missing");
    }
    if let Some(name) = text.strip_prefix("duplicate field ") {
        return format!("the parameter {name} stands there twice; write it once");
    }
    let Some((name, trouble)) = text.split_once(": ") else { return text.to_owned() };
    if let Some(rest) = trouble.strip_prefix("unknown variant ") {
        let (word, known) = expected(rest);
        return format!("{name}: {word} is not known; write one of: {known}");
    }
    if trouble.contains("digit") || trouble.contains("number too") || trouble.contains("integer") {
        return format!("{name}: write a whole number");
    }
    if trouble.contains("`true` or `false`") {
        return format!("{name}: write true or false");
    }
    format!("{name}: {trouble}")
}

/// What was written, and what is known, from "`x`, expected one of `a`, `b`".
fn expected(text: &str) -> (&str, String) {
    let (word, rest) = text.split_once(", ").unwrap_or((text, ""));
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    (word, known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_the_words_of_the_parser() {
        let cases = [
            (
                "what: unknown variant `x`, expected one of `config`, `health`, `admin`",
                "what: `x` is not known; write one of: config, health, admin",
            ),
            (
                "unknown field `x`, expected `client` or `frontend`",
                "there is no parameter `x`; there are: client, frontend",
            ),
            ("limit: invalid digit found in string", "limit: write a whole number"),
            ("ended: provided string was not `true` or `false`", "ended: write true or false"),
            ("missing field `client`", "the parameter `client` is missing"),
        ];
        for (raw, words) in cases {
            assert_eq!(reworded(raw), words);
        }
    }
}
