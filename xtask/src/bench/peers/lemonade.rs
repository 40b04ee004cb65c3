//! Lemonade: one file, watched.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Place, Relay, Stage};

/// Name of the file.
pub(super) const FILE: &str = "lemonade.toml";
/// Where its pages are: below the ports that clients get over loopback.
pub const ADMIN: &str = "127.0.0.1:990";
/// Frontends of the scale file, each with its own pool.
pub const SCALE_FRONTENDS: u16 = 1_000;
/// Backends of each pool of the scale file.
pub const SCALE_POOL: u16 = 10;

/// Writes the configuration of the comparison.
pub(super) fn config(place: &Place, backends: &[u8], relay: Relay) -> String {
    let mut text = head(place);
    let carried = match (relay, &place.cgroup) {
        (Relay::SkMsg, Some(cgroup)) => format!("relay = \"sk_msg\"\naccelerate_cgroup = {cgroup:?}"),
        (Relay::Forward, _) => "data_plane = \"forward\"\nfallback = \"refuse\"".to_owned(),
        (Relay::Splice, _) => "relay = \"splice\"".to_owned(),
        (Relay::Sockmap, _) => "relay = \"sockmap\"".to_owned(),
        (Relay::Copy | Relay::SkMsg, _) => "relay = \"copy\"".to_owned(),
    };
    let connects = if relay == Relay::Forward { "" } else { "connect_timeout = \"1s\"" };
    let retries = if relay == Relay::Forward { "" } else { "retries = 3" };
    let _ = write!(
        text,
        r#"
[frontend.bench]
listen = ["{listen}"]
pool = "bench"
{carried}
{connects}
idle_timeout = "10m"

[pool.bench]
strategy = "round_robin"
{retries}

[pool.bench.health]
kind = "tcp"
interval = "500ms"
fast_interval = "500ms"
fall = 2
"#,
        listen = place.stage.listen(),
    );
    for id in backends {
        let _ = write!(
            text,
            "\n[[pool.bench.backend]]\nname = \"b{id}\"\naddress = \"{}\"\n",
            place.stage.backend(*id)
        );
    }
    text
}

/// Writes a file of many frontends and backends; `changed` moves the port of the last backend.
pub fn scale_file(place: &Place, changed: bool) -> String {
    let mut text = head(place);
    let backend = Stage::Apart.backend(1);
    let listen = Stage::Apart.listen();
    for frontend in 0..SCALE_FRONTENDS {
        let _ = write!(
            text,
            "\n[frontend.f{frontend}]\nlisten = [\"{}:{}\"]\npool = \"p{frontend}\"\n\n[pool.p{frontend}]\n",
            listen.ip(),
            listen.port() + frontend,
        );
        for index in 0..SCALE_POOL {
            // The addresses are of one host that answers on one port; probes to the others are refused.
            let last = frontend + 1 == SCALE_FRONTENDS && index + 1 == SCALE_POOL;
            let port = if changed && last { 30_001 } else { 20_000 + frontend * SCALE_POOL + index };
            let _ = write!(
                text,
                "\n[[pool.p{frontend}.backend]]\nname = \"b{index}\"\naddress = \"{}:{port}\"\n",
                backend.ip()
            );
        }
    }
    text
}

fn head(place: &Place) -> String {
    format!(
        r#"[runtime]
workers = {workers}
state_dir = "{state}"

[admin]
socket = "{socket}"
listen = "{ADMIN}"

[log]
level = "warn"
access = "off"
"#,
        workers = place.workers,
        state = place.dir.join("state").display(),
        socket = Admin::socket(place).display(),
    )
}

/// Lemonade's admin socket.
#[derive(Clone, Debug)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// Names the socket of an instance.
    pub fn of(place: &Place) -> Self {
        Self { socket: Self::socket(place) }
    }

    fn socket(place: &Place) -> PathBuf {
        place.dir.join("admin.sock")
    }

    /// Reads the sum of a metric over its labels; nothing when it does not exist yet.
    pub fn metric(&self, ends_with: &str) -> Result<Option<f64>> {
        let text = self.read("/metrics")?;
        let mut sum = None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let bare = name.split('{').next().unwrap_or(name);
            if bare.ends_with(ends_with) {
                *sum.get_or_insert(0.0) += value.trim().parse::<f64>().unwrap_or(0.0);
            }
        }
        Ok(sum)
    }

    /// Reads what relay `splice` tells of its hand-overs: how many, and microseconds of each.
    pub fn hand_overs(&self) -> Result<(f64, f64)> {
        let status: serde_json::Value = {
            let answer = self.read("/api/v1/status")?;
            serde_json::from_str(&answer[answer.find('{').context("no JSON")?..])?
        };
        let relays = status["relays"].as_array().context("no relays")?;
        let own = relays.iter().find(|own| own["relay"] == "splice").context("no relay splice")?;
        let words = own["findings"]["why"].as_str().unwrap_or_default();
        let before = |word: &str| {
            let front = words.split_once(word).map(|(front, _)| front)?;
            front.rsplit(' ').next()?.parse().ok()
        };
        before(" hand-overs").zip(before(" us each")).with_context(|| format!("no hand-overs in: {words}"))
    }

    /// Lists what was refused and what was tried again, to say why a connection failed.
    pub fn reasons(&self) -> Result<String> {
        let text = self.read("/metrics")?;
        let told = text.lines().filter_map(|line| line.strip_prefix("lemonade_")?.rsplit_once(' '));
        let words = ["refused_total", "retries_total", "hedges_total", "exhausted_total", "failures_total"];
        let shown = told
            .filter(|(name, value)| *value != "0" && words.iter().any(|word| name.contains(word)))
            .map(|(name, value)| format!("{name} {value}"));
        Ok(shown.collect::<Vec<_>>().join(", "))
    }

    /// Reads a path.
    pub fn read(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("cannot reach {}", self.socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lemonade\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200"), "{path} answered \"{status}\"");
        Ok(answer)
    }
}
