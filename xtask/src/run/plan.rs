//! What the demo needs, read from the configuration it runs with.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use toml::{Table, Value};

/// Delays of the demo backends, in turn: different, so that strategies can tell them apart.
const DELAYS_MS: [u64; 3] = [2, 5, 10];

/// A demo backend to start.
#[derive(Debug, PartialEq, Eq)]
pub struct Demo {
    pub name: String,
    pub pool: String,
    pub listen: SocketAddr,
    pub delay: Duration,
}

impl Demo {
    fn shown(&self, id: u32) -> String {
        format!("{} ({} ms, process {id})", self.name, self.delay.as_millis())
    }
}

/// Addresses of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Frontend and address.
    pub frontends: Vec<(String, SocketAddr)>,
    pub admin: Option<SocketAddr>,
    /// One for each backend at a literal loopback address.
    pub demos: Vec<Demo>,
}

impl Plan {
    /// Reads the addresses out of a configuration that `lemonade check` accepts.
    ///
    /// # Errors
    /// It is not TOML.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let file: Table = text.parse().context("not a TOML file")?;
        let mut frontends = Vec::new();
        for (name, frontend) in table(&file, "frontend") {
            for address in strings(frontend.get("listen")).filter_map(|text| text.parse().ok()) {
                frontends.push((name.clone(), address));
            }
        }
        let admin = file.get("admin").and_then(|admin| admin.get("listen")).and_then(Value::as_str);
        let admin = admin.unwrap_or("127.0.0.1:9900").parse().ok();

        let mut demos: Vec<Demo> = Vec::new();
        let backends = table(&file, "pool").flat_map(|(pool, settings)| {
            settings.get("backend").and_then(Value::as_array).into_iter().flatten().map(move |b| (pool, b))
        });
        for (pool, backend) in backends {
            let text = |key| backend.get(key).and_then(Value::as_str);
            let Some(listen) = text("address").and_then(|address| address.parse::<SocketAddr>().ok()) else {
                continue;
            };
            if listen.ip().is_loopback() && demos.iter().all(|demo| demo.listen != listen) {
                let delay = Duration::from_millis(DELAYS_MS[demos.len() % DELAYS_MS.len()]);
                let name = text("name").map_or_else(|| listen.to_string(), str::to_owned);
                demos.push(Demo { name, pool: pool.clone(), listen, delay });
            }
        }
        Ok(Self { frontends, admin, demos })
    }

    /// Every address that must be free, with the setting that changes it.
    pub fn addresses(&self) -> impl Iterator<Item = (SocketAddr, String)> {
        let frontends =
            self.frontends.iter().map(|(name, at)| (*at, format!("`listen` of [frontend.{name}]")));
        let demos = self
            .demos
            .iter()
            .map(|demo| (demo.listen, format!("`address` of backend {} in [pool.{}]", demo.name, demo.pool)));
        let admin = self.admin.iter().map(|at| (*at, "`listen` of [admin]".to_owned()));
        frontends.chain(demos).chain(admin)
    }

    /// What to tell the user, who sees only this before the log begins; `ids` are the processes of the demo backends.
    pub fn next_steps(&self, ids: &[u32], config: &str, lemonade: &str) -> String {
        let mut text = String::from("\n");
        let demos: Vec<_> = self.demos.iter().zip(ids).map(|(demo, id)| demo.shown(*id)).collect();
        let mut line = |what: &str, how: &str| {
            let _ = writeln!(text, "  {what:<16} {how}");
        };
        line("demo backends", &demos.join(", "));
        if let Some((_, address)) = self.frontends.first() {
            line("try it", &format!("for i in 1 2 3 4 5 6; do curl -s http://{address}/; done"));
        }
        line("change it", &format!("edit {config} and save: it is reloaded at once"));
        line("watch it", &format!("{lemonade} status"));
        if let Some(admin) = self.admin {
            line("admin address", &format!("http://{admin}/metrics, /healthz, /readyz, /api/v1/status"));
        }
        line("stop it", "Ctrl-C lets open connections finish; a second one does not wait");
        text
    }
}

fn table<'a>(file: &'a Table, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    file.get(key).and_then(Value::as_table).into_iter().flatten()
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let many = value.and_then(Value::as_array).into_iter().flatten();
    value.into_iter().chain(many).filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [admin]
        listen = "127.0.0.1:9901"
        [frontend.web]
        listen = ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:7000-7010"]
        pool = "web"
        [frontend.db]
        listen = "127.0.0.1:5432"
        pool = "far"
        [[pool.web.backend]]
        name = "a"
        address = "127.0.0.1:9001"
        [[pool.web.backend]]
        address = "127.0.0.1:9002"
        [[pool.far.backend]]
        name = "remote"
        address = "192.0.2.1:5432"
        [[pool.far.backend]]
        name = "named"
        address = "db.example:5432"
    "#;

    #[test]
    fn only_backends_on_loopback_are_demonstrated() {
        let plan = Plan::read(FILE).unwrap();
        let demos: Vec<_> = plan.demos.iter().map(|demo| (demo.name.as_str(), demo.listen.port())).collect();
        assert_eq!(demos, [("a", 9001), ("127.0.0.1:9002", 9002)]);
        assert_ne!(plan.demos[0].delay, plan.demos[1].delay);
    }

    #[test]
    fn each_address_comes_with_the_setting_that_changes_it() {
        let plan = Plan::read(FILE).unwrap();
        let settings: Vec<_> = plan.addresses().map(|(at, setting)| format!("{at} {setting}")).collect();
        assert_eq!(
            settings,
            [
                "127.0.0.1:5432 `listen` of [frontend.db]",
                "127.0.0.1:8080 `listen` of [frontend.web]",
                "[::1]:8080 `listen` of [frontend.web]",
                "127.0.0.1:9001 `address` of backend a in [pool.web]",
                "127.0.0.1:9002 `address` of backend 127.0.0.1:9002 in [pool.web]",
                "127.0.0.1:9901 `listen` of [admin]",
            ]
        );
    }

    #[test]
    fn a_closed_admin_address_is_not_shown() {
        let plan = Plan::read("[admin]\nlisten = \"off\"").unwrap();
        assert_eq!(plan.admin, None);
        assert!(!plan.next_steps(&[], "c.toml", "lemonade").contains("admin"));
    }
}
