//! The two text formats: OpenMetrics, and the one before it for readers that do not ask for OpenMetrics.

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, which every reader knows and browsers show.
    Plain,
}

impl Format {
    /// What a reader that sent `accept` understands.
    pub fn wanted(accept: Option<&str>) -> Self {
        match accept {
            Some(types) if types.contains("application/openmetrics-text") => Self::OpenMetrics,
            Some(_) | None => Self::Plain,
        }
    }

    /// `Content-Type` of the text.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Turns OpenMetrics text into this format.
    pub fn of(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Plain => plain(&text),
        }
    }
}

/// The older format names a family as its samples are named, has no type for facts, and no end mark.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // The suffix follows from the type, which stands on the next line.
            help = rest;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            let words = help.strip_prefix(name).unwrap_or_default().trim_end_matches('.');
            out.extend(["# HELP ", name, suffix, words, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if line != "# EOF" {
            out.extend([line, "\n"]);
        }
    }
    out
}
