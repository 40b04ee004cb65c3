//! What was found, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of Lemonade.
    pub version: String,
    /// What does not depend on a configuration.
    pub sections: Vec<Section>,
    /// What a configuration would get; absent without one.
    pub configuration: Option<Configuration>,
}

/// Lines that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Its title.
    pub name: String,
    /// What was looked at, in order.
    pub lines: Vec<Line>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Whether it is as Lemonade needs it.
    pub verdict: Verdict,
    /// What was seen, or why it could not be seen.
    pub detail: String,
    /// What would change the verdict; empty where nothing has to change.
    pub cure: String,
}

/// Whether something is as Lemonade needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Pass,
    /// It is not.
    Fail,
    /// It cannot be seen from here.
    NotPossible,
}

impl Verdict {
    /// Its name in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotPossible => "not possible",
        }
    }
}

/// What a configuration would get on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Its file.
    pub file: String,
    /// Whether it would run as asked.
    pub runs_as_asked: bool,
    /// What it asks of the host.
    pub lines: Vec<Line>,
    /// How each frontend would be carried, by name.
    pub frontends: Vec<Route>,
}

/// How a frontend would be carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Name of the frontend.
    pub frontend: String,
    /// Relay that the configuration asks for.
    pub asked: String,
    /// Plane that it gets.
    pub data_plane: String,
    /// Relay that it gets.
    pub relay: String,
    /// Why no better one.
    pub why: String,
    /// What would change that.
    pub change: String,
}

impl Line {
    /// All is well.
    pub fn pass(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Pass, detail: detail.into(), cure: String::new() }
    }

    /// Something is missing, and `cure` brings it.
    pub fn fail(name: &str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Fail, detail: detail.into(), cure: cure.into() }
    }

    /// It could not be seen; `cure` lets it be seen.
    pub fn not_possible(name: &str, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::NotPossible, detail: why.into(), cure: cure.into() }
    }
}

impl Report {
    /// Draws the table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.draw(&mut out).expect("writing to a string does not fail");
        out
    }

    fn draw(&self, out: &mut String) -> std::fmt::Result {
        let asked = self.configuration.iter().flat_map(|own| &own.lines);
        let lines = self.sections.iter().flat_map(|section| &section.lines).chain(asked);
        let width = lines.map(|line| line.name.chars().count()).max().unwrap_or_default();
        writeln!(out, "Lemonade {}", self.version)?;
        for section in &self.sections {
            write!(out, "\n{}\n", section.name.to_uppercase())?;
            draw_lines(&section.lines, width, out)?;
        }
        let Some(own) = &self.configuration else {
            return writeln!(out, "\nWith --config FILE: what each frontend of it would get.");
        };
        write!(out, "\nCONFIGURATION {}\n", clean(&own.file))?;
        draw_lines(&own.lines, width, out)?;
        for route in &own.frontends {
            let Route { frontend, asked, data_plane, relay, why, change } = route;
            writeln!(out, "\nFRONTEND {frontend}: plane {data_plane}, relay {relay} (asked: {asked})")?;
            writeln!(out, "  why not a better one  {why}")?;
            writeln!(out, "  what changes that     {change}")?;
        }
        let verdict = if own.runs_as_asked { "would run as asked" } else { "would NOT run as asked" };
        writeln!(out, "\nThe configuration {verdict}.")
    }
}

fn draw_lines(lines: &[Line], width: usize, out: &mut String) -> std::fmt::Result {
    for (at, line) in lines.iter().enumerate() {
        let verdict = line.verdict.as_str();
        writeln!(out, "  {verdict:<12}  {:<width$}  {}", line.name, clean(&line.detail))?;
        // One cure for several lines stands below the last of them.
        let again = lines.get(at + 1).is_some_and(|next| next.cure == line.cure);
        if !line.cure.is_empty() && !again {
            writeln!(out, "  {:<12}  {:<width$}  -> {}", "", "", clean(&line.cure))?;
        }
    }
    Ok(())
}

/// Paths and causes come from files and the kernel: no control character of theirs reaches the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let lines = vec![
            Line::pass("kernel", "Linux 6.18"),
            Line::fail("CAP_BPF", "not held", "run as root"),
            Line::not_possible("map type hash", "bpf(2)\u{1b} is not permitted", ""),
        ];
        Report {
            version: "1.2.3".to_owned(),
            sections: vec![Section { name: "host".to_owned(), lines }],
            configuration: None,
        }
    }

    #[test]
    fn each_line_shows_verdict_detail_and_cure() {
        let table = report().table();
        let expected = [
            "HOST",
            "  pass          kernel         Linux 6.18",
            "  fail          CAP_BPF        not held",
            "                               -> run as root",
            "  not possible  map type hash  bpf(2)? is not permitted",
        ];
        assert!(table.contains(&expected.join("\n")), "{table}");
        assert!(table.contains("With --config FILE"), "{table}");
    }

    #[test]
    fn a_configuration_says_what_each_frontend_gets() {
        let route = Route {
            frontend: "web".to_owned(),
            asked: "auto".to_owned(),
            data_plane: "proxy".to_owned(),
            relay: "copy".to_owned(),
            why: "because".to_owned(),
            change: "this".to_owned(),
        };
        let own = Configuration {
            file: "a.toml".to_owned(),
            runs_as_asked: false,
            lines: vec![Line::fail("max_connections", "too many", "fewer")],
            frontends: vec![route],
        };
        let report = Report { configuration: Some(own), ..report() };
        let table = report.table();
        for words in [
            "FRONTEND web: plane proxy, relay copy (asked: auto)",
            "because",
            "this",
            "would NOT run",
            "-> fewer",
        ] {
            assert!(table.contains(words), "{words} is missing in\n{table}");
        }
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
