//! The configuration reference of the guides, made from the schema of the configuration.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Sections in the order of the annotated file, with the definition that describes each.
const SECTIONS: [(&str, &str); 9] = [
    ("[runtime]", "Runtime"),
    ("[admin]", "Admin"),
    ("[log]", "Log"),
    ("[telemetry]", "Telemetry"),
    ("[frontend.NAME]", "Frontend"),
    ("[frontend.NAME.forward]", "Forward"),
    ("[pool.NAME]", "Pool"),
    ("[pool.NAME.health]", "Health"),
    ("[[pool.NAME.backend]]", "Backend"),
];

const HEAD: &str = "\
# Configuration reference

Every key, made from `config/schema.json` by `cargo xtask schema`. How the file is read, reloaded and overridden is in
[configuration](configuration.md); the same keys with their defaults to copy from are in
`config/lemonade.toml`.
";

/// Names of what has keys and no section in the page.
pub fn missing(schema: &Value) -> Vec<&str> {
    let definitions = schema["definitions"].as_object().into_iter().flatten();
    let keyed = definitions.filter(|(_, definition)| definition.get("properties").is_some());
    let names = keyed.map(|(name, _)| name.as_str());
    names.filter(|name| SECTIONS.iter().all(|(_, known)| known != name)).collect()
}

/// Writes the page.
pub fn page(schema: &Value) -> String {
    let mut page = HEAD.to_owned();
    for (section, definition) in SECTIONS {
        let own = &schema["definitions"][definition];
        let _ = write!(page, "\n## `{section}`\n\n{}\n\n", text(own));
        page.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
        let required: Vec<_> = list(own, "required").filter_map(Value::as_str).collect();
        for (key, value) in properties(own) {
            // Those have a section of their own.
            if matches!((definition, key.as_str()), ("Pool", "health" | "backend") | ("Frontend", "forward"))
            {
                continue;
            }
            let default = match value.get("default") {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                Some(default) => format!("`{default}`"),
                None => "absent".to_owned(),
            };
            let meaning = text(value);
            let _ = writeln!(page, "| `{key}` | {} | {default} | {meaning} |", kind(schema, value));
        }
    }
    page.push_str(&words(schema));
    page
}

/// Words that a key may have, each with what it means.
fn words(schema: &Value) -> String {
    let mut page = "\n## Words\n".to_owned();
    let definitions = schema["definitions"].as_object().into_iter().flatten();
    for (name, definition) in definitions {
        let choices: Vec<_> =
            list(definition, "oneOf").filter(|choice| choice.get("const").is_some()).collect();
        if choices.is_empty() {
            continue;
        }
        let _ = write!(page, "\n### {name}\n\n{}\n\n| word | meaning |\n|---|---|\n", text(definition));
        for choice in choices {
            let _ = writeln!(page, "| `{}` | {} |", choice["const"], text(choice));
        }
    }
    page
}

/// What a value may be, in words.
fn kind(schema: &Value, value: &Value) -> String {
    if let Some(only) = value.get("const") {
        return format!("`{only}`");
    }
    if let Some(name) = value["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let definition = &schema["definitions"][name];
        let worded = list(definition, "oneOf").any(|choice| choice.get("const").is_some());
        return if worded { format!("[{name}](#{})", name.to_lowercase()) } else { name.to_lowercase() };
    }
    for key in ["allOf", "anyOf"] {
        let kinds: Vec<_> = list(value, key).map(|one| kind(schema, one)).collect();
        if !kinds.is_empty() {
            return kinds.join(" or ");
        }
    }
    match value["type"].as_str() {
        Some("array") => format!("list of {}", kind(schema, &value["items"])),
        Some("string") => "text".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    }
}

/// A description on one line that does not end the cell it stands in.
fn text(value: &Value) -> String {
    value["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

fn properties(definition: &Value) -> impl Iterator<Item = (&String, &Value)> {
    definition["properties"].as_object().into_iter().flat_map(Map::iter)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_has_its_value_its_default_and_its_meaning() {
        let schema = json!({"definitions": {
            "Pool": {
                "description": "Backends.",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "description": "A | B."},
                    "strategy": {"allOf": [{"$ref": "#/definitions/Strategy"}], "default": "round_robin", "description": "How."},
                    "source": {"anyOf": [{"const": "auto"}, {"type": "string"}], "default": "auto"},
                    "health": {},
                },
            },
            "Strategy": {"oneOf": [{"const": "round_robin", "description": "In turn."}]},
        }});
        let page = page(&schema);
        for line in [
            "| `name` | text | required | A \\| B. |",
            "| `strategy` | [Strategy](#strategy) | `\"round_robin\"` | How. |",
            "| `source` | `\"auto\"` or text | `\"auto\"` |  |",
            "| `\"round_robin\"` | In turn. |",
        ] {
            assert!(page.lines().any(|own| own == line), "{line} is missing in\n{page}");
        }
        assert_eq!(missing(&schema), [""; 0]);
        assert_eq!(missing(&json!({"definitions": {"Otel": {"properties": {}}}})), ["Otel"]);
        assert!(!page.contains("`health`"), "it has a section of its own");
    }
}
