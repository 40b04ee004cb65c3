//! Status and metrics as tests read them: the only file that knows their field names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

/// Answer of `/api/v1/status`.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// Reads the JSON text.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_else(|error| panic!("status is not JSON: {error}\n{text}")))
    }

    /// Version of the configuration in force.
    ///
    /// # Panics
    /// When the status does not carry it.
    pub fn config_version(&self) -> u64 {
        self.0["config"]["version"].as_u64().unwrap_or_else(|| panic!("no config version in {}", self.0))
    }

    /// Why the newest configuration seen was refused, if it was.
    pub fn reload_error(&self) -> Option<String> {
        let errors = self.0["config"]["refused"]["errors"].as_array()?;
        Some(errors.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"))
    }

    /// When the newest configuration seen was refused, if it was.
    pub fn refused_at(&self) -> Option<&str> {
        self.0["config"]["refused"]["at"].as_str()
    }

    /// Changes that wait for the next start.
    pub fn pending_restart(&self) -> String {
        self.0["config"]["pending_restart"].to_string()
    }

    /// Phase of the process.
    pub fn phase(&self) -> &str {
        self.0["phase"].as_str().unwrap_or_default()
    }

    /// Real addresses of a frontend; empty when there is none of that name.
    ///
    /// # Panics
    /// When one is not an address.
    pub fn listening(&self, frontend: &str) -> Vec<SocketAddr> {
        let entry = self.entries("frontends").into_iter().find(|entry| entry["name"] == frontend);
        let listed = entry.and_then(|entry| entry["listening"].as_array()).map_or(&[][..], Vec::as_slice);
        listed
            .iter()
            .map(|text| text.as_str().and_then(|text| text.parse().ok()).expect("an address"))
            .collect()
    }

    /// Names of the frontends.
    pub fn frontends(&self) -> Vec<String> {
        self.entries("frontends")
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .map(str::to_owned)
            .collect()
    }

    /// Entry of a frontend.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn frontend(&self, name: &str) -> &Value {
        let found = self.entries("frontends").into_iter().find(|frontend| frontend["name"] == name);
        found.unwrap_or_else(|| panic!("no frontend {name} in {}", self.0))
    }

    /// Entry of a pool.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pool(&self, name: &str) -> &Value {
        let found = self.entries("pools").into_iter().find(|pool| pool["name"] == name);
        found.unwrap_or_else(|| panic!("no pool {name} in {}", self.0))
    }

    /// Entry of a backend.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn backend(&self, pool: &str, name: &str) -> &Value {
        let backends = self.pool(pool)["backends"].as_array().expect("backends of a pool");
        let found = backends.iter().find(|backend| backend["name"] == name);
        found.unwrap_or_else(|| panic!("no backend {name} in {}", self.0))
    }

    /// Names of a pool's backends.
    pub fn backends(&self, pool: &str) -> Vec<String> {
        let backends = self.pool(pool)["backends"].as_array().expect("backends of a pool");
        backends.iter().filter_map(|backend| backend["name"].as_str()).map(str::to_owned).collect()
    }

    /// Whether a backend is up.
    pub fn is_up(&self, pool: &str, name: &str) -> bool {
        self.backend(pool, name)["status"] == "up"
    }

    fn entries(&self, list: &str) -> Vec<&Value> {
        self.0[list].as_array().map(|entries| entries.iter().collect()).unwrap_or_default()
    }
}

/// One line of the metrics text.
#[derive(Debug, Clone)]
struct Line {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Answer of `/metrics`.
#[derive(Debug, Clone)]
pub struct Metrics {
    lines: Vec<Line>,
}

impl Metrics {
    /// Reads the Prometheus text format, version 0.0.4.
    ///
    /// # Panics
    /// When a line is malformed.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            lines: lines.map(|line| parse_line(line).unwrap_or_else(|| panic!("bad line: {line}"))).collect(),
        }
    }

    /// Sum of `name` over the lines that carry `labels`.
    ///
    /// # Panics
    /// When there is no metric of that name.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        assert!(
            self.lines.iter().any(|line| line.name == name),
            "no metric {name}; there are {:?}",
            self.names()
        );
        self.maybe(name, labels)
    }

    /// As [`Self::sum`]; 0 when there is no such metric.
    pub fn maybe(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let carries = |line: &&Line| {
            labels.iter().all(|&(key, value)| line.labels.get(key).is_some_and(|found| found == value))
        };
        let named = self.lines.iter().filter(|line| line.name == name);
        named.filter(carries).map(|line| line.value).sum::<f64>() as u64
    }

    /// Names, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.lines.iter().map(|line| line.name.as_str()).collect();
        names.dedup();
        names
    }

    /// Connections of the process accepted, ended and alive.
    pub fn connections(&self) -> (u64, u64, u64) {
        let of = |name| self.sum(name, &[]);
        (
            of("lemonade_connections_opened_total"),
            of("lemonade_connections_closed_total"),
            of("lemonade_connections_live"),
        )
    }

    /// Bytes from clients and to clients, over all frontends.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.sum("lemonade_frontend_upstream_bytes_total", &[]),
            self.sum("lemonade_frontend_downstream_bytes_total", &[]),
        )
    }

    /// Connections refused for `reason`.
    pub fn refused(&self, reason: &str) -> u64 {
        self.sum("lemonade_frontend_refused_total", &[("reason", reason)])
    }

    /// Connections refused for any reason.
    pub fn refused_in_all(&self) -> u64 {
        self.sum("lemonade_frontend_refused_total", &[])
    }

    /// Picks of a backend of pool `web`.
    pub fn picks(&self, backend: &str) -> u64 {
        self.maybe("lemonade_backend_picks_total", &[("pool", "web"), ("backend", backend)])
    }
}

fn parse_line(line: &str) -> Option<Line> {
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], line[end + 1..].trim()),
        None => line.split_once(' ')?,
    };
    let value = value.split(' ').next()?.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Line { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let labels = labels.strip_suffix('}')?.split_terminator("\",");
    let labels = labels.map(|label| {
        let (key, value) = label.split_once("=\"")?;
        Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Some(Line { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value })
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn metrics_are_summed_by_label() {
        let text = "# TYPE x counter\nx_total{a=\"1\",b=\"q\"} 3\nx_total{a=\"2\",b=\"q\"} 4\ny 5\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("x_total", &[("b", "q")]), 7);
        assert_eq!(metrics.sum("x_total", &[("a", "2"), ("b", "q")]), 4);
        assert_eq!(metrics.sum("y", &[]), 5);
    }
}
