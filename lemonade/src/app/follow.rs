//! What follows the configuration and the connections outside the planes.

use crate::control::controller::Effects;
use crate::log::LogHandle;
use crate::metrics::adapters::access::AccessWriter;
use crate::metrics::adapters::otlp::Otlp;
use crate::metrics::port::{AccessRecord, Recorder};
use crate::model::Config;
use crate::model::config::AccessLog;
use crate::systemd;

/// Access records for the log, those of a share of connections for telemetry too.
pub(super) struct Recorders {
    pub(super) access: AccessWriter,
    pub(super) telemetry: Otlp,
}

impl Recorder for Recorders {
    fn wants(&self, id: u64) -> bool {
        self.access.wants(id) || self.telemetry.wants(id)
    }

    fn record(&self, record: AccessRecord) {
        if self.telemetry.wants(record.id) {
            self.telemetry.record(record.clone());
        }
        self.access.record(record);
    }
}

/// Log level, access log and telemetry follow the configuration; the supervisor is told.
pub(super) struct Follow {
    pub(super) log: LogHandle,
    pub(super) access: AccessWriter,
    pub(super) telemetry: Otlp,
    /// Level that the configuration asked for last; a filter set through the admin socket stays until it changes.
    pub(super) level: Option<String>,
    pub(super) target: AccessLog,
}

impl Effects for Follow {
    fn begin(&mut self) {
        systemd::reloading();
        // A log rotator asks for a reload when it has moved the file away.
        self.access.reopen();
    }

    fn settled(&mut self, version: u64) {
        systemd::ready(&format!("serving, configuration version {version}"));
    }

    fn adopt(&mut self, config: &Config) -> Result<(), String> {
        let before = self.log.current();
        if self.level.as_ref() != Some(&config.log.level) {
            self.log.set(&config.log.level).map_err(|error| format!("log.level: {error}"))?;
        }
        if self.target != config.log.access {
            if let Err(error) = self.access.set(&config.log.access) {
                // What was in force a moment ago can be so again.
                let _ = self.log.set(&before);
                return Err(format!("log.access: {error}"));
            }
            self.target = config.log.access.clone();
        }
        self.telemetry.set(&config.telemetry);
        self.level = Some(config.log.level.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::compile::tests::config;
    use crate::log::Style;

    #[test]
    fn a_configuration_follows_as_a_whole_or_not_at_all() {
        let (telemetry, _exporter) = crate::metrics::adapters::otlp::channel(Arc::default());
        let (_subscriber, log) =
            crate::log::build("info", Style::Json, false, std::io::sink, &telemetry).unwrap();
        let access =
            AccessWriter::start(&AccessLog::Off, Style::Json, Box::new(std::io::sink()), Arc::default())
                .unwrap();
        let mut follow = Follow {
            log: log.clone(),
            access: access.clone(),
            telemetry,
            level: None,
            target: AccessLog::Off,
        };
        let wanted = |level: &str, access: AccessLog| {
            let mut wanted = (*config([], [])).clone();
            (wanted.log.level, wanted.log.access) = (level.to_owned(), access);
            wanted
        };
        let nowhere = AccessLog::File("/no/such/folder/access.log".into());

        follow.adopt(&wanted("warn", AccessLog::Off)).unwrap();
        log.set("debug").unwrap();
        follow.adopt(&wanted("debgu", AccessLog::On)).unwrap_err();
        assert!(!access.enabled(), "the level was refused");
        follow.adopt(&wanted("error", nowhere)).unwrap_err();
        assert_eq!(log.current(), "debug", "the access log was refused; a filter set by hand stays");

        follow.adopt(&wanted("error", AccessLog::On)).unwrap();
        assert!(access.enabled() && log.current() == "error");
    }
}
