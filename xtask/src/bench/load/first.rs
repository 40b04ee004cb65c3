//! The moment from which answers come.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::print;
use super::sample::{First, Held};
use super::usage::now_ns;
use super::wire::request;

const ANSWER: usize = 64;
const PAUSE: Duration = Duration::from_micros(300);

/// What counts as serving.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Different backends that must answer, with no failure in a row of three times as many answers.
    #[arg(long, default_value_t = 1)]
    backends: usize,
    /// Seconds after which it gives up.
    #[arg(long)]
    seconds: f64,
}

/// Says that it is there, then asks until it has seen enough.
pub(super) fn run(plan: &Plan) -> Result<First> {
    print(&Held::default())?;
    let end = Instant::now() + Duration::from_secs_f64(plan.seconds);
    let row = if plan.backends == 1 { 1 } else { 3 * plan.backends };
    let mut seen: Vec<u8> = Vec::new();
    for target in plan.target.iter().cycle() {
        if Instant::now() > end {
            break;
        }
        match ask(*target) {
            Ok(answer) => seen.push(answer),
            Err(error) => {
                seen.clear();
                if error.kind() != ErrorKind::TimedOut {
                    std::thread::sleep(PAUSE);
                }
            }
        }
        let last = &seen[seen.len().saturating_sub(row)..];
        if last.len() == row && last.iter().collect::<BTreeSet<_>>().len() >= plan.backends {
            return Ok(First { at_ns: Some(now_ns()) });
        }
        if plan.backends > 1 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(First::default())
}

fn ask(target: SocketAddrV4) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&target.into(), Duration::from_millis(250))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(&request(ANSWER as u32, ANSWER as u64))?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}
