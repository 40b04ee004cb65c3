//! The log: where it goes, its shape, and a filter that can be changed at run time. Telemetry hears what it says.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::metrics::adapters::otlp::Otlp;
use crate::model::config::{Log, LogFormat};

/// Shape of a line, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Pretty,
    /// One JSON object.
    Json,
}

/// Sends the log of the whole process to stderr and to `telemetry`; tells the style that access records should have
/// beside it.
///
/// # Errors
/// The filter cannot be read, or a log was set up before.
pub fn init(log: &Log, telemetry: &Otlp) -> Result<(LogHandle, Style), String> {
    let terminal = std::io::stderr().is_terminal();
    let style = style(log.format, terminal);
    let (subscriber, handle) = build(&log.level, style, terminal, std::io::stderr, telemetry)?;
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_| "the log of this process was set up before".to_owned())?;
    Ok((handle, style))
}

/// Reads a filter.
///
/// # Errors
/// What is wrong with it and what to write instead.
pub fn parse(filter: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let filter = filter.trim();
    if filter.is_empty() {
        return Err("the log filter is empty; write a level such as `info`".to_owned());
    }
    // A misspelt level would be read as the name of a part of the program, and silence everything else.
    for part in filter.split(',').map(str::trim) {
        let word = part.chars().all(|letter| letter.is_ascii_alphanumeric());
        let level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        if word && !level {
            let levels = LEVELS.join("`, `");
            return Err(format!("unknown log level `{part}`; write one of `{levels}`, or `part=level`"));
        }
    }
    EnvFilter::try_new(filter).map_err(|error| {
        format!("cannot read the log filter `{filter}`: {error}; write a level such as `info`, or `info,lemonade::health=debug`")
    })
}

/// Changes the filter of a log while it runs; clones change the same log.
#[derive(Clone, Debug)]
pub struct LogHandle {
    reload: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

impl LogHandle {
    /// Puts `filter` in force.
    ///
    /// # Errors
    /// The filter cannot be read; the one before stays in force.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload.reload(parsed).map_err(|error| format!("cannot change the log filter: {error}"))?;
        filter.trim().clone_into(&mut current);
        Ok(())
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A log that goes to `writer` and to `telemetry`, and the handle that changes its filter.
///
/// # Errors
/// The filter cannot be read.
pub fn build<W>(
    filter: &str,
    style: Style,
    colours: bool,
    writer: W,
    telemetry: &Otlp,
) -> Result<(impl tracing::Subscriber + Send + Sync, LogHandle), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (layer, reload) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match style {
        Style::Pretty => lines.with_ansi(colours).with_target(false).boxed(),
        Style::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let handle = LogHandle { reload, current: Arc::new(Mutex::new(filter.trim().to_owned())) };
    let log = lines.and_then(telemetry.log_records()).with_filter(layer);
    Ok((tracing_subscriber::registry().with(log).with(telemetry.control_spans()), handle))
}

fn style(format: LogFormat, terminal: bool) -> Style {
    match (format, terminal) {
        (LogFormat::Pretty, _) | (LogFormat::Auto, true) => Style::Pretty,
        (LogFormat::Json, _) | (LogFormat::Auto, false) => Style::Json,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn nowhere() -> Otlp {
        crate::metrics::adapters::otlp::channel(Arc::default()).0
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn a_filter_changes_at_run_time_and_a_bad_one_changes_nothing() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, handle) =
            build("warn", Style::Json, false, move || writer.clone(), &nowhere()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("hidden");
            assert_eq!(lines.take(), "");
            handle.set(" info ").unwrap();
            tracing::info!(pool = "web", "shown");
            let line: serde_json::Value = serde_json::from_str(&lines.take()).unwrap();
            assert_eq!(
                (&line["message"], &line["pool"], &line["level"]),
                (&"shown".into(), &"web".into(), &"INFO".into())
            );

            let refused = handle.set("debgu").unwrap_err();
            assert!(refused.contains("`debgu`") && refused.contains("`debug`"), "{refused}");
            assert!(handle.set("lemonade=loud").unwrap_err().contains("lemonade=loud"));
            assert!(handle.set("  ").is_err());
            assert_eq!(handle.current(), "info");
            tracing::info!("still shown");
            assert!(!lines.take().is_empty());
        });
        assert!(handle.set("debug").is_err(), "the log is gone");
        assert_eq!(handle.current(), "info");
    }

    #[test]
    fn lines_are_coloured_only_for_a_terminal() {
        for colours in [false, true] {
            let lines = Lines::default();
            let writer = lines.clone();
            let (subscriber, _handle) =
                build("info", Style::Pretty, colours, move || writer.clone(), &nowhere()).unwrap();
            tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
            let text = lines.take();
            assert!(text.contains("hello"));
            assert_eq!(text.contains('\u{1b}'), colours, "{text:?}");
        }
        assert_eq!(style(LogFormat::Auto, true), Style::Pretty);
        assert_eq!(style(LogFormat::Auto, false), Style::Json);
        assert_eq!(style(LogFormat::Pretty, false), Style::Pretty);
        assert_eq!(style(LogFormat::Json, true), Style::Json);
    }
}
