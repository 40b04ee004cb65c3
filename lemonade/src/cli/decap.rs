//! `lemonade decap`: the backend's side of mode `dsr-ipip`.

use std::net::IpAddr;

use anyhow::Context as _;

use crate::proxy::adapters::bpf::Decap;
use crate::shutdown::Signals;

/// What is taken off, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Interface on which packets arrive; may be given several times
    #[arg(long, short, value_name = "INTERFACE", required = true)]
    interface: Vec<String>,
    /// Address of a balancer: source of its outer headers; may be given several times
    #[arg(long, short, value_name = "ADDRESS", required = true)]
    from: Vec<IpAddr>,
}

/// Takes headers off until SIGTERM or SIGINT, then says how many.
pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let mut decap = Decap::load(&options.from)?;
    for interface in &options.interface {
        decap.attach(interface)?;
    }
    super::print(b"unwrapping\n")?;
    signals.stop().await;
    let [done, strangers, refused] = decap.counts();
    let line = format!(
        "{done} packets unwrapped, {strangers} of other senders and {refused} others left as they were\n"
    );
    super::print(line.as_bytes())
}
