//! The network of the bench: a client, a balancer and a backends namespace in a row.
//!
//! ```text
//! client 10.201.1.2 -- 10.201.1.1 balancer 10.201.2.1 -- 10.201.2.11 .12 .13 backends
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::process::{inside, output, send};

const PREFIX: &str = "lemonbench";
const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 201, 1, 1);
/// Core of the balancer when pinned.
pub const BALANCER_CORE: u32 = 1;
/// Core of load and backends when pinned.
pub const LOAD_CORE: u32 = 0;

/// One of the three namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the load comes from.
    Client,
    /// Where the balancer runs.
    Balancer,
    /// Where the backends answer.
    Backends,
}

impl Side {
    const ALL: [Self; 3] = [Self::Client, Self::Balancer, Self::Backends];

    fn suffix(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Balancer => "balancer",
            Self::Backends => "backends",
        }
    }

    fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Client => &["south"],
            Self::Balancer => &["north", "south"],
            Self::Backends => &["north"],
        }
    }
}

/// Where client and backends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Each on its side of the balancer.
    Apart,
    /// Both on the balancer's own host, over its loopback.
    SameHost,
}

impl Stage {
    /// Where the balancer listens; over loopback below the ports that clients get, one of which would connect to itself.
    pub fn listen(self) -> SocketAddrV4 {
        match self {
            Self::Apart => SocketAddrV4::new(BALANCER, 8080),
            Self::SameHost => SocketAddrV4::new(Ipv4Addr::LOCALHOST, 800),
        }
    }

    /// Address of a backend by its number, from 1.
    pub fn backend(self, id: u8) -> SocketAddrV4 {
        match self {
            Self::Apart => SocketAddrV4::new(Ipv4Addr::new(10, 201, 2, 10 + id), 9001),
            Self::SameHost => SocketAddrV4::new(Ipv4Addr::LOCALHOST, 900 + u16::from(id)),
        }
    }

    /// Returns the namespace in which a side is.
    pub fn namespace_of(self, side: Side) -> Side {
        match self {
            Self::Apart => side,
            Self::SameHost => Side::Balancer,
        }
    }
}

/// The namespaces of this process; removed, with all that runs in them, when it goes out of scope.
#[derive(Debug)]
pub struct Net {
    pid: u32,
}

impl Net {
    /// Removes what dead runs have left, then builds the namespaces.
    pub fn build() -> Result<Self> {
        sweep();
        let net = Self { pid: std::process::id() };
        for side in Side::ALL {
            ip(&["netns", "add", &net.name(side)])?;
            ip(&["-n", &net.name(side), "link", "set", "lo", "up"])?;
        }
        net.link(Side::Client, "10.201.1.2/24", Side::Balancer, "10.201.1.1/24")?;
        net.link(Side::Balancer, "10.201.2.1/24", Side::Backends, "10.201.2.11/24")?;
        let backends = net.name(Side::Backends);
        for id in [2, 3] {
            let address = format!("{}/24", Stage::Apart.backend(id).ip());
            ip(&["-n", &backends, "addr", "add", &address, "dev", "north"])?;
        }
        net.route(Side::Client, "10.201.1.0/24", "south", None)?;
        net.route(Side::Client, "default", "south", Some("10.201.1.1"))?;
        net.route(Side::Balancer, "10.201.1.0/24", "north", None)?;
        net.route(Side::Balancer, "10.201.2.0/24", "south", None)?;
        net.route(Side::Backends, "10.201.2.0/24", "north", None)?;
        net.route(Side::Backends, "default", "north", Some("10.201.2.1"))?;
        for side in Side::ALL {
            net.tune(side)?;
        }
        Ok(net)
    }

    /// Returns the name of a namespace.
    pub fn name(&self, side: Side) -> String {
        format!("{PREFIX}-{}-{}", self.pid, side.suffix())
    }

    /// Binds the receive work of each side to its core, or lets it run anywhere.
    pub fn pin_receive(&self, pinned: bool) -> Result<()> {
        for side in Side::ALL {
            let core = if side == Side::Balancer { BALANCER_CORE } else { LOAD_CORE };
            let mask = if pinned { 1 << core } else { 0 };
            for device in side.devices() {
                // Only `ip netns exec` shows the devices of a namespace under /sys.
                let file = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
                let script = format!("echo {mask:x} > {file}");
                ip(&["netns", "exec", &self.name(side), "sh", "-c", &script])?;
            }
        }
        Ok(())
    }

    /// Sets the ports that sockets of a namespace get: all but a few, or few so that the forward plane has the others.
    pub fn ports(&self, side: Side, few: bool) -> Result<()> {
        let range = if few { "1024 9999" } else { "1024 65000" };
        let args = ["-ec".to_owned(), format!("echo '{range}' > /proc/sys/net/ipv4/ip_local_port_range")];
        output(&mut inside(&self.name(side), None, Path::new("sh"), &args)).map(drop)
    }

    /// Loads an nftables file in a namespace.
    pub fn nft(&self, side: Side, rules: &Path) -> Result<()> {
        let args = ["-f".to_owned(), rules.display().to_string()];
        output(&mut inside(&self.name(side), None, Path::new("nft"), &args)).map(drop)
    }

    /// Removes all nftables rules of a namespace.
    pub fn nft_flush(&self, side: Side) -> Result<()> {
        let args = ["flush", "ruleset"].map(str::to_owned);
        output(&mut inside(&self.name(side), None, Path::new("nft"), &args)).map(drop)
    }

    /// Counts established sockets of all sides by their congestion control.
    pub fn congestion(&self) -> Result<Vec<(Side, usize, usize)>> {
        let mut counts = Vec::new();
        for side in Side::ALL {
            let args = ["-Htin", "state", "established"].map(str::to_owned);
            let listing = output(&mut inside(&self.name(side), None, Path::new("ss"), &args))?;
            let details: Vec<&str> =
                listing.lines().filter(|line| line.starts_with(char::is_whitespace)).collect();
            let cubic = details.iter().filter(|line| line.split_whitespace().any(|w| w == "cubic")).count();
            counts.push((side, cubic, details.len()));
        }
        Ok(counts)
    }

    fn link(&self, left: Side, left_address: &str, right: Side, right_address: &str) -> Result<()> {
        let (left, right) = (self.name(left), self.name(right));
        ip(&[
            "link", "add", "south", "netns", &left, "type", "veth", "peer", "name", "north", "netns", &right,
        ])?;
        for (name, device, address) in [(&left, "south", left_address), (&right, "north", right_address)] {
            ip(&["-n", name, "addr", "add", address, "dev", device])?;
            ip(&["-n", name, "link", "set", device, "up"])?;
        }
        Ok(())
    }

    /// Sets cubic by route: a namespace may not be able to choose it by sysctl.
    fn route(&self, side: Side, to: &str, device: &str, via: Option<&str>) -> Result<()> {
        let name = self.name(side);
        let mut args = vec!["-n", &name, "route", "replace", to, "dev", device];
        match via {
            Some(via) => args.extend(["via", via]),
            None => args.extend(["proto", "kernel", "scope", "link"]),
        }
        args.extend(["congctl", "cubic"]);
        ip(&args)
    }

    fn tune(&self, side: Side) -> Result<()> {
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/tcp_tw_reuse", "1"),
            ("ipv4/tcp_max_syn_backlog", "16384"),
            ("core/somaxconn", "16384"),
        ];
        let script: Vec<String> =
            settings.iter().map(|(key, value)| format!("echo '{value}' > /proc/sys/net/{key}")).collect();
        let args = ["-ec".to_owned(), script.join("; ")];
        output(&mut inside(&self.name(side), None, Path::new("sh"), &args))?;
        self.ports(side, false)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for side in Side::ALL {
            remove(&self.name(side));
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args)).map(drop)
}

fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1)) else { continue };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            remove(&name);
        }
    }
}

/// Ends what still runs in a namespace, by id, and deletes it.
fn remove(name: &str) {
    let inhabitants = || -> Vec<u32> {
        let listing = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
        listing.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let pids = inhabitants();
        for pid in &pids {
            let _ = send(*pid, Signal::KILL);
        }
        if pids.is_empty() || Instant::now() > end {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Err(error) = ip(&["netns", "del", name]).context("a namespace is left") {
        eprintln!("{error:#}");
    }
}
