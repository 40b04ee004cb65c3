//! Talking to a running Lemonade: one request, one answer, and what to say when it is not a good one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::client::{self, fetch};
use crate::admin::default_socket;

/// Where the instance is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Instance {
    /// Admin socket of the instance to ask
    #[arg(long, value_name = "SOCKET", env = "LEMONADE_ADMIN", hide_env_values = true, global = true)]
    admin: Option<OsString>,
}

/// What a command came to; each has an exit code of its own.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It could not be carried out.
    Failed(anyhow::Error),
    /// Something that was named or written is not right.
    BadInput(String),
    /// The configuration is not of the version that was expected.
    Stale(String),
}

/// Exit code of bad input: a configuration, a name or the command line, as clap uses it.
pub(super) const BAD_INPUT: u8 = 2;

/// Exit code of `--if-version` with another version in force.
pub(super) const STALE: u8 = 3;

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Trouble {
    /// In words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Failed(error) => format!("{error:#}"),
            Self::BadInput(why) | Self::Stale(why) => why.clone(),
        }
    }

    /// Says it on stderr and gives its exit code.
    pub(super) fn tell(&self) -> ExitCode {
        super::complain(&self.words());
        match self {
            Self::Failed(_) => ExitCode::FAILURE,
            Self::BadInput(_) => ExitCode::from(BAD_INPUT),
            Self::Stale(_) => ExitCode::from(STALE),
        }
    }
}

/// What a command comes to.
pub(super) type Answer<T = ()> = Result<T, Trouble>;

impl Instance {
    /// Takes what was named before the command. It goes before the variable, which looks the same from here.
    pub(super) fn name(&mut self, before: Option<OsString>) {
        self.admin = before.or_else(|| self.admin.take());
    }

    pub(super) fn socket(&self) -> PathBuf {
        // A variable that is set to nothing says nothing.
        let named = self.admin.as_ref().filter(|name| !name.is_empty());
        named.map_or_else(default_socket, PathBuf::from)
    }

    /// `GET path`.
    pub(super) fn read<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        read(&self.bytes_of(path)?)
    }

    /// `GET path`, as it comes.
    pub(super) fn bytes_of(&self, path: &str) -> Answer<Vec<u8>> {
        self.send("GET", path, Vec::new(), client::TIMEOUT)
    }

    /// Sends `body` and reads the answer.
    pub(super) fn send(&self, method: &str, path: &str, body: Vec<u8>, limit: Duration) -> Answer<Vec<u8>> {
        let socket = self.socket();
        let (code, answer) = super::runtime()?.block_on(fetch(&socket, method, path, body, limit))?;
        let why = || explanation(&answer);
        match code {
            200 => Ok(answer),
            400 | 404 | 422 => Err(Trouble::BadInput(why())),
            412 => Err(Trouble::Stale(why())),
            _ => Err(anyhow::anyhow!("{} answered {code}: {}", socket.display(), why()).into()),
        }
    }
}

/// Reads an answer.
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> Answer<T> {
    let read = serde_json::from_slice(answer);
    Ok(read.context("the answer cannot be read; are this command and the running Lemonade of one version?")?)
}

/// The reason in an answer: text, or the lines of an outcome.
fn explanation(answer: &[u8]) -> String {
    match serde_json::from_slice::<crate::admin::steer::Outcome>(answer) {
        Ok(outcome) => outcome.lines.join("\n"),
        Err(_) => String::from_utf8_lossy(answer).trim().to_owned(),
    }
}

/// A path with a query made of the pairs that are there.
pub(super) fn query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut text = path.to_owned();
    let mut mark = '?';
    for (key, value) in pairs {
        let Some(value) = value else { continue };
        text.push_str(&format!("{mark}{key}={}", escaped(value)));
        mark = '&';
    }
    text
}

fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:,".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(escape).collect()
}

/// JSON for programs.
pub(super) fn print_json(value: &impl Serialize) -> Answer {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(super::print(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_keeps_what_it_is_given_apart() {
        let pairs = [("a", Some("x y&z".to_owned())), ("b", None), ("c", Some("[::1]:80->1".to_owned()))];
        assert_eq!(query("/p", &pairs), "/p?a=x%20y%26z&c=%5B::1%5D:80-%3E1");
    }
}
