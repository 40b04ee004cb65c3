//! Configurations as text, assembled from the parts that a test cares about.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lines of `[runtime]`, beside the state folder.
    pub runtime: Vec<String>,
    /// `listen` of `[admin]`.
    pub admin: String,
    /// Lines of `[log]`.
    pub log: Vec<String>,
    /// Lines of `[telemetry]`.
    pub telemetry: Vec<String>,
    /// Frontends.
    pub frontends: Vec<Frontend>,
    /// Pools.
    pub pools: Vec<Pool>,
}

/// `[frontend.NAME]`
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub listen: Vec<String>,
    /// Its pool.
    pub pool: String,
    /// Further lines.
    pub lines: Vec<String>,
}

/// `[pool.NAME]`
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Lines of the pool.
    pub lines: Vec<String>,
    /// Lines of `[pool.NAME.health]`.
    pub health: Vec<String>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// `[[pool.NAME.backend]]`
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Further lines.
    pub lines: Vec<String>,
}

/// Copies lines into the form that the parts take.
pub fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

impl Setup {
    /// Frontend `web` on a free port in front of pool `web` with backends `a`, `b`, `c`...; health checks off.
    pub fn single(backends: &[SocketAddr]) -> Self {
        Self {
            runtime: lines(&["lame_duck = \"0s\"", "drain_timeout = \"60s\""]),
            admin: "127.0.0.1:0".to_owned(),
            log: lines(&["level = \"info\""]),
            telemetry: Vec::new(),
            frontends: vec![Frontend::new("web", "web")],
            pools: vec![Pool::new("web", backends)],
        }
    }

    /// Adds lines to `[runtime]`; a line replaces an earlier one of the same key.
    #[must_use]
    pub fn runtime(mut self, further: &[&str]) -> Self {
        merge(&mut self.runtime, further);
        self
    }

    /// Adds lines to `[telemetry]`.
    #[must_use]
    pub fn telemetry(mut self, further: &[&str]) -> Self {
        merge(&mut self.telemetry, further);
        self
    }

    /// Adds lines to the first frontend.
    #[must_use]
    pub fn frontend(mut self, further: &[&str]) -> Self {
        merge(&mut self.frontends[0].lines, further);
        self
    }

    /// Adds lines to the first pool.
    #[must_use]
    pub fn pool(mut self, further: &[&str]) -> Self {
        merge(&mut self.pools[0].lines, further);
        self
    }

    /// Replaces the health policy of the first pool.
    #[must_use]
    pub fn health(mut self, lines_of_health: &[&str]) -> Self {
        self.pools[0].health = lines(lines_of_health);
        self
    }

    /// Adds lines to backend `index` of the first pool.
    #[must_use]
    pub fn backend(mut self, index: usize, further: &[&str]) -> Self {
        merge(&mut self.pools[0].backends[index].lines, further);
        self
    }

    /// The TOML text of a process whose files live in `folder`.
    pub fn text(&self, folder: &Path) -> String {
        let mut text = String::new();
        let folder = folder.display();
        section(&mut text, "[runtime]", &self.runtime);
        add(&mut text, &format!("state_dir = \"{folder}/state\"\n"));
        section(&mut text, "[admin]", &[]);
        add(&mut text, &format!("socket = \"{folder}/admin.sock\"\nlisten = \"{}\"\n", self.admin));
        section(&mut text, "[log]", &self.log);
        section(&mut text, "[telemetry]", &self.telemetry);
        for Frontend { name, listen, pool, lines } in &self.frontends {
            section(&mut text, &format!("[frontend.{name}]"), lines);
            add(&mut text, &format!("listen = {listen:?}\npool = \"{pool}\"\n"));
        }
        for Pool { name, lines, health, backends } in &self.pools {
            section(&mut text, &format!("[pool.{name}]"), lines);
            section(&mut text, &format!("[pool.{name}.health]"), health);
            for Backend { name: backend, address, lines } in backends {
                section(&mut text, &format!("[[pool.{name}.backend]]"), lines);
                add(&mut text, &format!("name = \"{backend}\"\naddress = \"{address}\"\n"));
            }
        }
        text
    }
}

impl Frontend {
    /// A frontend on a free port.
    pub fn new(name: &str, pool: &str) -> Self {
        Self::on(name, "127.0.0.1:0", pool)
    }

    /// A frontend on `listen`.
    pub fn on(name: &str, listen: &str, pool: &str) -> Self {
        Self { name: name.to_owned(), listen: lines(&[listen]), pool: pool.to_owned(), lines: Vec::new() }
    }
}

impl Pool {
    /// A pool of backends `a`, `b`, `c`... without health checks.
    pub fn new(name: &str, backends: &[SocketAddr]) -> Self {
        let named = backends.iter().zip(0..).map(|(&address, n)| Backend::new(&letter(n), address)).collect();
        Self { name: name.to_owned(), lines: Vec::new(), health: lines(&["kind = \"off\""]), backends: named }
    }
}

impl Backend {
    /// A backend of weight 1.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.to_owned(), address, lines: Vec::new() }
    }
}

/// `a` to `z`, then `b26`, `b27`...
pub fn letter(n: usize) -> String {
    match u8::try_from(n) {
        Ok(n @ 0..26) => char::from(b'a' + n).to_string(),
        _ => format!("b{n}"),
    }
}

fn merge(lines: &mut Vec<String>, further: &[&str]) {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    for &line in further {
        lines.retain(|old| key(old) != key(line));
        lines.push(line.to_owned());
    }
}

fn section(text: &mut String, head: &str, lines: &[String]) {
    add(text, &format!("\n{head}\n"));
    for line in lines {
        add(text, &format!("{line}\n"));
    }
}

fn add(text: &mut String, part: &str) {
    text.write_str(part).expect("writing to a string");
}
