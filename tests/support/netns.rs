//! Network namespaces: a client, a balancer and backends, each with a network stack of its own.
//!
//! ```text
//! client 10.77.1.1 fd77:1::1 --- 10.77.1.2 fd77:1::2 balancer 10.77.2.2 fd77:2::2 --- 10.77.2.1.. fd77:2::1.. backends
//! ```

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, deleted by name when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn make(role: &str, number: u32) -> Self {
        let name = format!("lemonade-test-{}-{number}-{role}", std::process::id());
        sh(&["ip", "netns", "add", &name]);
        sh(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// Runs `work` on a thread in this namespace; what it spawns (threads, processes) lives there too.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/var/run/netns/{}", self.name);
        let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let moved = move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(LinkNameSpaceType::Network),
                );
                moved.expect("root may move a thread");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` in this namespace.
    pub fn ip(&self, arguments: &str) {
        let words = ["ip", "-n", &self.name].into_iter().chain(arguments.split(' '));
        sh(&words.collect::<Vec<_>>());
    }

    /// Adds a packet filter rule for what comes in.
    ///
    /// # Panics
    /// When nft refuses it.
    pub fn filter(&self, rule: &str) {
        let hook = "type filter hook input priority 0";
        let rules = format!("table inet test {{\nchain in {{\n{hook};\n{rule}\n}}\n}}\n");
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), rules.as_bytes())
            .expect("nft reads");
        let status = child.wait().expect("nft ends");
        assert!(status.success(), "nft refused: {rule}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Client, balancer and backends, joined by two links.
pub struct Network {
    /// Where clients are.
    pub client: Namespace,
    /// Where the balancer is.
    pub balancer: Namespace,
    /// Where backends are.
    pub backends: Namespace,
}

impl Network {
    /// Makes the namespaces and links; `None`, with a line among the skips, when the host does not allow it.
    pub fn start(test: &str) -> Option<Self> {
        if let Err(why) = possible() {
            crate::skip::skip(test, &why);
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [client, balancer, backends] =
            ["client", "balancer", "backends"].map(|role| Namespace::make(role, number));
        for (near, far, link) in [(&client, "to_balancer", 1), (&backends, "to_balancer", 2)] {
            let balancers = if link == 1 { "to_client" } else { "to_backends" };
            near.ip(&format!("link add {far} type veth peer name {balancers} netns {}", balancer.name));
            for (namespace, device, host) in [(near, far, 1), (&balancer, balancers, 2)] {
                namespace.ip(&format!("addr add 10.77.{link}.{host}/24 dev {device}"));
                namespace.ip(&format!("addr add fd77:{link}::{host}/64 dev {device} nodad"));
                namespace.ip(&format!("link set {device} up"));
            }
        }
        for host in 3..6 {
            backends.ip(&format!("addr add 10.77.2.{host}/24 dev to_balancer"));
            backends.ip(&format!("addr add fd77:2::{host}/64 dev to_balancer nodad"));
        }
        Some(Self { client, balancer, backends })
    }

    /// Gives the backends a way to the client past the balancer, and addresses of the balancer's as their own.
    pub fn pass_by(&self, addresses: &[&str]) {
        self.client.ip(&format!("link add past type veth peer name past netns {}", self.backends.name));
        for (namespace, host) in [(&self.client, 1), (&self.backends, 2)] {
            namespace.ip(&format!("addr add 10.77.3.{host}/24 dev past"));
            namespace.ip(&format!("addr add fd77:3::{host}/64 dev past nodad"));
            namespace.ip("link set past up");
        }
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.backends.ip(&format!("addr add {address} dev lo{nodad}"));
        }
        self.backends.ip("route add 10.77.1.0/24 via 10.77.3.1 dev past");
        self.backends.ip("route add fd77:1::/64 via fd77:3::1 dev past");
    }
}

fn possible() -> Result<(), String> {
    static POSSIBLE: OnceLock<Result<(), String>> = OnceLock::new();
    POSSIBLE.get_or_init(probe).clone()
}

fn probe() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    for tool in ["ip", "nft"] {
        let found = Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|error| format!("needs {tool}: {error}"))?;
    }
    let name = format!("lemonade-test-{}-probe", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status();
    let _ = Command::new("ip").args(["netns", "delete", &name]).stderr(Stdio::null()).status();
    match made {
        Ok(status) if status.success() => Ok(()),
        _ => Err("network namespaces cannot be made here".to_owned()),
    }
}

fn sh(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().expect("ip runs");
    assert!(status.success(), "{words:?}: {status}");
}
