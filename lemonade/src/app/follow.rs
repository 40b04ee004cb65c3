//! What follows the configuration and the connections outside the planes, and what joins the kernel at the start.

#[cfg(target_os = "linux")]
use std::path::Path;
#[cfg(target_os = "linux")]
use std::sync::Arc;
use std::time::SystemTime;

use crate::control::controller::Effects;
use crate::control::journal::{Entry, Journal, Kind};
#[cfg(target_os = "linux")]
use crate::control::splices::{self, Splices};
use crate::log::LogHandle;
use crate::metrics::adapters::access::AccessWriter;
use crate::metrics::adapters::otlp::Otlp;
use crate::metrics::port::{AccessRecord, Recorder};
use crate::model::Config;
#[cfg(target_os = "linux")]
use crate::model::ProcessCell;
use crate::model::config::AccessLog;
use crate::proxy::adapters::bpf::{Kernel, Unavailable};
#[cfg(target_os = "linux")]
use crate::proxy::adapters::tokio_proxy::TokioProxy;
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

/// Writes down that the process begins to stop.
pub(super) fn note_stop(journal: &Journal, version: u64, live: u64, failure: Option<&str>) {
    let mut entry = Entry::new(SystemTime::now(), version, "stop", Kind::Config);
    let why = failure.map_or_else(|| "asked by a signal".to_owned(), str::to_owned);
    entry.diff = vec![format!("Lemonade stops: {why}; {live} live connections")];
    journal.append(&entry);
}

/// Writes down what the stop came to.
pub(super) fn note_end(journal: &Journal, version: u64, reset: u64) {
    let mut entry = Entry::new(SystemTime::now(), version, "stop", Kind::Config);
    entry.diff = vec![match reset {
        0 => "Lemonade stopped: every connection ended by itself".to_owned(),
        reset => format!("Lemonade stopped: {reset} connections were reset"),
    }];
    journal.append(&entry);
}

/// Puts into the kernel what this build, host and user allow; without it everything is served in userspace.
pub(super) fn join_kernel() -> Result<Kernel, Unavailable> {
    let kernel = Kernel::load().and_then(|mut kernel| kernel.attach().map(|()| kernel));
    match &kernel {
        Ok(kernel) => tracing::info!("kernel: {}", kernel.words()),
        Err(error) => tracing::info!("kernel: serving in userspace: {error}"),
    }
    kernel
}

/// Relay `splice`, which has taken the ports of flows that a killed process left, if programs are `possible` here.
#[cfg(target_os = "linux")]
pub(super) fn splices(
    plane: &Arc<TokioProxy>,
    process: &Arc<ProcessCell>,
    state_dir: &Path,
    possible: bool,
) -> Splices {
    let (offering, resuming) = (Arc::clone(plane), Arc::clone(plane));
    let offer = Box::new(move |relay| offering.take_splice(relay));
    let resume = Box::new(move |left| resuming.resume(left));
    let mut splices = Splices::new(Arc::clone(process), splices::owner(state_dir), offer, resume);
    if possible {
        splices.adopt();
    }
    splices
}

#[cfg(test)]
mod tests {
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
