//! Load generator and backend of the bench: one thread, one epoll, re-executed inside a namespace.

mod bulk;
mod closed;
mod first;
mod hold;
mod ping;
mod poll;
mod sample;
mod serve;
mod steady;
mod talk;
mod usage;
mod watch;
mod wire;

use std::io::{Write, stdout};
use std::net::SocketAddrV4;

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

pub use sample::{Bulk, Closed, Direction, First, Held, Outcome, Steady, Talks};
pub use usage::{cpu_seconds, machine_seconds, now_ns};

/// What one process of the load side does.
#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Answers requests until it is killed.
    #[command(hide = true)]
    Serve {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddrV4,
        /// Number that every byte of an answer carries.
        #[arg(long)]
        id: u8,
    },
    /// Sends the next request when the answer is there.
    #[command(hide = true)]
    Closed(closed::Plan),
    /// Sends one request at a time on one connection, blocking.
    #[command(hide = true)]
    Ping(ping::Plan),
    /// Moves bytes in one direction as fast as they go.
    #[command(hide = true)]
    Bulk(bulk::Plan),
    /// Opens idle connections, holds them until a line on stdin, closes them.
    #[command(hide = true)]
    Hold(hold::Plan),
    /// Opens connections at a fixed rate and records each.
    #[command(hide = true)]
    Steady(steady::Plan),
    /// Asks now and then on connections that last.
    #[command(hide = true)]
    Talk(talk::Plan),
    /// Watches an admin interface as pages and a scraper do, until it is killed.
    #[command(hide = true)]
    Watch(watch::Plan),
    /// Asks until the wanted number of backends have answered without a failure between.
    #[command(hide = true)]
    First(first::Plan),
}

impl Load {
    /// Runs to the end and prints the sample as one line of JSON on stdout.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Serve { listen, id } => serve::run(listen, id),
            Self::Closed(plan) => print(&closed::run(&plan)?),
            Self::Ping(plan) => print(&ping::run(&plan)?),
            Self::Bulk(plan) => print(&bulk::run(&plan)?),
            Self::Hold(plan) => hold::run(&plan),
            Self::Steady(plan) => print(&steady::run(&plan)?),
            Self::Talk(plan) => print(&talk::run(&plan)?),
            Self::Watch(plan) => watch::run(&plan),
            Self::First(plan) => print(&first::run(&plan)?),
        }
    }
}

fn print(sample: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    serde_json::to_writer(&mut out, sample)?;
    writeln!(out)?;
    Ok(out.flush()?)
}
