//! Frontends of datagrams, seen from their clients and backends.

mod exchange;
mod failure;
mod limits;
mod reload;

use std::net::SocketAddr;

use lemonade_tests::datagrams::Echo;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::setup::Setup;

/// Frontend `web` of datagrams on a free port in front of `backends`.
fn setup(backends: &[SocketAddr]) -> Setup {
    Setup::single(backends).frontend(&["protocol = \"udp\""])
}

/// Backends `a`, `b`, `c`...
fn backends(count: u8) -> (Vec<Echo>, Vec<SocketAddr>) {
    let backends: Vec<Echo> = (0..count).map(|n| Echo::start(b'a' + n)).collect();
    let addresses = backends.iter().map(|backend| backend.address).collect();
    (backends, addresses)
}

/// One counter of frontend `web`.
fn count(lemonade: &Lemonade, name: &str) -> u64 {
    lemonade.metrics().sum(&format!("lemonade_frontend_{name}"), &[("frontend", "web")])
}
