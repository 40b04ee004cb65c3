//! What follows the configuration outside the planes.

use crate::control::controller::Effects;
use crate::log::LogHandle;
use crate::metrics::adapters::access::AccessWriter;
use crate::model::Config;
use crate::model::config::AccessLog;
use crate::systemd;

/// Log level and access log follow the configuration; the supervisor is told.
pub(super) struct Follow {
    log: LogHandle,
    access: AccessWriter,
    /// Level that the configuration asked for last; a filter set through the admin socket stays until it changes.
    level: Option<String>,
    target: AccessLog,
}

impl Follow {
    /// Follows from what the process was started with.
    pub(super) const fn new(log: LogHandle, access: AccessWriter, target: AccessLog) -> Self {
        Self { log, access, level: None, target }
    }
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
        self.level = Some(config.log.level.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::config;
    use crate::log::Style;
    use crate::metrics::port::Recorder;

    #[test]
    fn a_configuration_follows_as_a_whole_or_not_at_all() {
        let (_subscriber, log) = crate::log::build("info", Style::Json, false, std::io::sink).unwrap();
        let access = AccessWriter::start(
            &AccessLog::Off,
            Style::Json,
            Box::new(std::io::sink()),
            std::sync::Arc::default(),
        )
        .unwrap();
        let mut follow = Follow::new(log.clone(), access.clone(), AccessLog::Off);
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
