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

use crate::link;

/// Number of the next network of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

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

    /// Sets a value below `/proc/sys/net` of this namespace.
    ///
    /// # Panics
    /// When the kernel does not take it.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    /// Adds a packet filter rule for what comes in.
    ///
    /// # Panics
    /// When nft refuses it.
    pub fn filter(&self, rule: &str) {
        let hook = "type filter hook input priority 0";
        self.nft(&format!("table inet test {{\nchain in {{\n{hook};\n{rule}\n}}\n}}\n"));
    }

    /// Takes every packet filter rule away.
    ///
    /// # Panics
    /// When there is none.
    pub fn no_filter(&self) {
        self.nft("delete table inet test\n");
    }

    fn nft(&self, rules: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), rules.as_bytes())
            .expect("nft reads");
        let status = child.wait().expect("nft ends");
        assert!(status.success(), "nft refused: {rules}");
    }

    /// Packets that the rule of [`Self::filter`] has counted.
    ///
    /// # Panics
    /// When nft fails.
    pub fn counted(&self) -> u64 {
        let listing =
            Command::new("ip").args(["netns", "exec", &self.name, "nft", "list", "ruleset"]).output();
        let listing = String::from_utf8_lossy(&listing.expect("nft runs").stdout).into_owned();
        let mut words = listing.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|word| word.parse().ok()).expect("a rule with a counter")
    }

    /// Lets a program of the object `unruly` see what leaves by `device`.
    ///
    /// # Panics
    /// When the object is not built, or tc refuses it.
    pub fn fault(&self, device: &'static str, program: &str) -> Fault<'_> {
        let folder = std::env::var("LEMONADE_BPF_OBJECTS").expect("the folder of the objects");
        self.tc(&format!("qdisc add dev {device} clsact"));
        self.tc(&format!("filter add dev {device} egress bpf da obj {folder}/unruly program {program}"));
        Fault { namespace: self, device }
    }

    /// Runs `tc` in this namespace.
    ///
    /// # Panics
    /// When it refuses.
    pub fn tc(&self, arguments: &str) {
        let words = ["tc", "-n", &self.name].into_iter().chain(arguments.split(' '));
        sh(&words.collect::<Vec<_>>());
    }

    /// Runs `ethtool` in this namespace.
    ///
    /// # Panics
    /// When it refuses.
    pub fn ethtool(&self, arguments: &str) {
        let words = ["ip", "netns", "exec", &self.name, "ethtool"].into_iter().chain(arguments.split(' '));
        sh(&words.collect::<Vec<_>>());
    }

    /// A counter of this namespace's TCP, such as `TCPSACKReneging`.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn tcp_counter(&self, name: &str) -> u64 {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"));
        let text = text.expect("a Linux host");
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let (_, value) = names.zip(values).find(|(own, _)| *own == name).expect("a counter of TCP");
        value.parse().expect("a number")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// A fault that is there until it is dropped.
pub struct Fault<'a> {
    namespace: &'a Namespace,
    device: &'static str,
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        let _ = Command::new("tc")
            .args(["-n", &self.namespace.name, "qdisc", "delete", "dev", self.device, "clsact"])
            .status();
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

    /// Lets packets of up to `bytes`, more than 64 KiB, leave to the links and arrive from them (BIG TCP).
    ///
    /// # Errors
    /// When this kernel does not let those of IPv4.
    pub fn large_packets(&self, bytes: u32) -> std::io::Result<()> {
        for (namespace, device) in self.links() {
            namespace.ip(&format!("link set {device} gso_max_size {bytes} gro_max_size {bytes}"));
            namespace.enter(|| link::large_packets_of_v4(device, bytes))?;
        }
        Ok(())
    }

    /// Sets the largest packet of every link.
    pub fn mtu(&self, bytes: u32) {
        for (namespace, device) in self.links() {
            namespace.ip(&format!("link set {device} mtu {bytes}"));
        }
    }

    fn links(&self) -> [(&Namespace, &'static str); 4] {
        let Self { client, balancer, backends } = self;
        [
            (client, "to_balancer"),
            (balancer, "to_client"),
            (balancer, "to_backends"),
            (backends, "to_balancer"),
        ]
    }

    /// Lets packets between the balancer and clients, or backends, overtake each other and come twice, each of them no larger
    /// than the link.
    pub fn disorder(&self, clients: bool) -> [Fault<'_>; 2] {
        let (near, device) =
            if clients { (&self.client, "to_client") } else { (&self.backends, "to_backends") };
        [(near, "to_balancer"), (&self.balancer, device)].map(|(namespace, device)| {
            namespace.ethtool(&format!("-K {device} tso off gso off gro off"));
            namespace.tc(&format!("qdisc add dev {device} root handle 1: htb default 1"));
            for (class, rate) in [("1:1", "10gbit quantum 60000"), ("1:2", "20mbit burst 1600 quantum 1500")]
            {
                namespace.tc(&format!("class add dev {device} parent 1: classid {class} htb rate {rate}"));
            }
            namespace.fault(device, "disorder")
        })
    }

    /// Puts a host behind two routers behind the clients, or the backends; packets larger than `mtu` do not fit between
    /// the routers. Returns the second router and the host, whose addresses are 10.77.5.2 and fd77:5::2.
    pub fn beyond(&self, clients: bool, mtu: u32) -> [Namespace; 2] {
        let (first, back) = if clients { (&self.client, 1) } else { (&self.backends, 2) };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [second, host] = ["router", "host"].map(|role| Namespace::make(role, number));
        for (near, far, link) in [(first, &second, 4), (&second, &host, 5)] {
            near.ip(&format!("link add beyond type veth peer name before netns {}", far.name));
            for (namespace, device, host) in [(near, "beyond", 1), (far, "before", 2)] {
                namespace.ip(&format!("addr add 10.77.{link}.{host}/24 dev {device}"));
                namespace.ip(&format!("addr add fd77:{link}::{host}/64 dev {device} nodad"));
                namespace.ip(&format!("link set {device} up"));
            }
        }
        first.ip(&format!("link set beyond mtu {mtu}"));
        second.ip(&format!("link set before mtu {mtu}"));
        for router in [first, &second] {
            router.sysctl("ipv4/ip_forward", "1");
            router.sysctl("ipv6/conf/all/forwarding", "1");
        }
        for (namespace, to, by) in [
            (&self.balancer, "5", format!("{back}.1")),
            (first, "5", "4.2".to_owned()),
            (&second, "1", "4.1".to_owned()),
            (&second, "2", "4.1".to_owned()),
            (&host, "1", "5.1".to_owned()),
            (&host, "2", "5.1".to_owned()),
        ] {
            namespace.ip(&format!("route add 10.77.{to}.0/24 via 10.77.{by}"));
            namespace.ip(&format!("route add fd77:{to}::/64 via fd77:{}", by.replace('.', "::")));
        }
        [second, host]
    }

    /// Lets the balancer route between clients and backends, beside what it balances.
    pub fn route(&self) {
        self.balancer.sysctl("ipv4/ip_forward", "1");
        self.balancer.sysctl("ipv6/conf/all/forwarding", "1");
        self.client.ip("route add 10.77.2.0/24 via 10.77.1.2");
        self.client.ip("route add fd77:2::/64 via fd77:1::2");
        self.backends.ip("route add 10.77.1.0/24 via 10.77.2.2");
        self.backends.ip("route add fd77:1::/64 via fd77:2::2");
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
    for (tool, version) in [("ip", "-V"), ("nft", "-V"), ("ethtool", "--version")] {
        let found = Command::new(tool).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status();
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
