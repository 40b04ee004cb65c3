//! One connection, one request at a time, with blocking calls: the latency without a queue.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::closed::{percentile, tenths};
use super::sample::Closed;
use super::usage::Usage;
use super::wire::request;

/// How often one connection asks.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Address to connect to.
    #[arg(long)]
    target: SocketAddrV4,
    /// Bytes of a request and of an answer.
    #[arg(long, default_value_t = 64)]
    size: u32,
    /// Round trips at most.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// Seconds measured at most.
    #[arg(long)]
    seconds: f64,
    /// Seconds before the measured window.
    #[arg(long, default_value_t = 0.3)]
    warm: f64,
    /// Processes whose processor time is read.
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
}

/// Runs the load.
pub(super) fn run(plan: &Plan) -> Result<Closed> {
    let mut stream = TcpStream::connect(plan.target).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = request(plan.size, u64::from(plan.size));
    let mut answer = vec![0; plan.size as usize];
    let warm_end = Instant::now() + Duration::from_secs_f64(plan.warm);
    while Instant::now() < warm_end {
        turn(&mut stream, &request, &mut answer)?;
    }
    let mut latencies = Vec::with_capacity(1 << 18);
    let before = Usage::read(&plan.watch);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(plan.seconds);
    let mut now = start;
    while now < end && (latencies.len() as u64) < plan.count {
        turn(&mut stream, &request, &mut answer)?;
        let after = Instant::now();
        latencies.push(tenths(after - now));
        now = after;
    }
    let (watched, machine, own) = Usage::read(&plan.watch).since(&before);
    latencies.sort_unstable();
    Ok(Closed {
        seconds: start.elapsed().as_secs_f64(),
        done: latencies.len() as u64,
        errors: 0,
        p50_us: percentile(&latencies, 0.5),
        p99_us: percentile(&latencies, 0.99),
        watched,
        machine,
        own,
    })
}

fn turn(stream: &mut TcpStream, request: &[u8], answer: &mut [u8]) -> Result<()> {
    stream.write_all(request)?;
    stream.read_exact(answer).context("the answer did not come")
}
