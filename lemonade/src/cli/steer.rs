//! Changes: backends, reload, log filter.

use crate::admin::client::TIMEOUT;
use crate::admin::status::Status;
use crate::admin::steer::{BackendChange, Outcome, RELOAD_TIMEOUT};
use crate::control::overrides::Change;

use super::ask::{Answer, Instance, read};
use super::operate::{Backend, Target};
use super::print;

pub(super) fn backend(asked: Backend, instance: &Instance) -> Answer {
    let (target, change) = match asked {
        Backend::Drain(target) => (target, Change::Drain),
        Backend::Disable(target) => (target, Change::Disable),
        Backend::Enable(target) => (target, Change::Enable),
        Backend::Weight { target, weight } => (target, Change::Weight(weight)),
    };
    let Target { backend, if_version } = target;
    let body = serde_json::to_vec(&BackendChange { backend, change, if_version })?;
    tell(&read(&instance.send("POST", "/api/v1/backend", body, TIMEOUT)?)?)
}

pub(super) fn reload(instance: &Instance) -> Answer {
    tell(&read(&instance.send("POST", "/api/v1/reload", Vec::new(), RELOAD_TIMEOUT + TIMEOUT)?)?)
}

fn tell(outcome: &Outcome) -> Answer {
    let mut text = outcome.lines.join("\n");
    text.push_str(&format!("\nin force as version {}\n", outcome.version));
    Ok(print(text.as_bytes())?)
}

pub(super) fn log_level(filter: Option<String>, instance: &Instance) -> Answer {
    let answer = match filter {
        Some(filter) => instance.send("PUT", "/api/v1/log-filter", filter.into_bytes(), TIMEOUT)?,
        None => format!("{}\n", instance.read::<Status>("/api/v1/status")?.log_filter).into_bytes(),
    };
    Ok(print(&answer)?)
}
