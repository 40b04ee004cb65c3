//! What belongs to the process: `[runtime]`, `[admin]` and `[log]`.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::config::raw::{RawAdmin, RawLog, RawRuntime};
use crate::config::report::Spot;
use crate::config::wording;
use crate::model::config::{AccessLog, Admin, Log, Runtime};

const BUFFER: std::ops::RangeInclusive<u64> = 4 * 1024..=4 * 1024 * 1024;

pub(super) fn runtime(raw: RawRuntime, spot: &mut Spot<'_, '_>) -> Runtime {
    if raw.workers.0.is_some_and(|workers| !(1..=1024).contains(&workers)) {
        spot.wrong("workers", "is not from 1 to 1024", "write a number of threads, or \"auto\"");
    }
    if raw.max_connections.0 == Some(0) {
        spot.wrong("max_connections", "0 would refuse every connection", "write a number, or \"auto\"");
    }
    if raw.state_dir.0.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
        spot.wrong("state_dir", "is empty", "write the path of a folder, or \"auto\"");
    }
    if raw.hash_seed.0.as_ref().is_some_and(String::is_empty) {
        spot.wrong("hash_seed", "is empty", "write any text, or \"auto\"");
    }
    let buffer = raw.relay_buffer.0;
    if !BUFFER.contains(&buffer) {
        spot.wrong("relay_buffer", "is not from 4KiB to 4MiB", "write such as \"64KiB\"");
    }
    if !(1..=1_000_000).contains(&raw.probes_per_second) {
        spot.wrong("probes_per_second", "is not from 1 to 1000000", "write such as 500");
    }
    Runtime {
        workers: raw.workers.0.map(usize::from),
        drain_timeout: raw.drain_timeout.0,
        lame_duck: raw.lame_duck.0,
        max_connections: raw.max_connections.0,
        state_dir: raw.state_dir.0,
        hash_seed: raw.hash_seed.0,
        relay_buffer: usize::try_from(buffer).unwrap_or(usize::MAX),
        probes_per_second: raw.probes_per_second,
    }
}

pub(super) fn admin(raw: RawAdmin, spot: &mut Spot<'_, '_>) -> Admin {
    // The kernel's limit for the path of a unix socket, without its closing zero.
    const LONGEST: usize = 107;
    if let Some(path) = &raw.socket.0 {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > LONGEST {
            spot.wrong("socket", format!("is longer than {LONGEST} bytes"), "write a shorter path");
        } else if !bytes.contains(&b'/') {
            spot.wrong("socket", format!("{path:?} is no path"), "write a path with a /, or \"auto\"");
        }
    }
    let listen = raw.listen.0.and_then(|text| {
        let Ok(address) = text.parse::<SocketAddr>() else {
            spot.wrong(
                "listen",
                format!("{text:?} is not an address with a port"),
                "write such as \"127.0.0.1:9900\", or \"off\"",
            );
            return None;
        };
        if !address.ip().to_canonical().is_loopback() && !raw.allow_public {
            spot.wrong(
                "listen",
                format!("{address} can be reached from other hosts, and there is no password"),
                "write a loopback address, or allow_public = true",
            );
        }
        Some(address)
    });
    Admin { socket: raw.socket.0, listen }
}

pub(super) fn log(raw: RawLog, spot: &mut Spot<'_, '_>) -> Log {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A word alone would be taken for a module, and everything else would fall silent.
    let stray = raw.level.split(',').map(str::trim).find(|part| {
        let level = part.rsplit_once('=').map_or(*part, |(_, level)| level);
        !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level.trim()))
    });
    if let Some(stray) = stray {
        spot.wrong("level", format!("{stray:?} is no level"), wording::choices(stray, &LEVELS));
    } else if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&raw.level) {
        spot.wrong("level", error.to_string(), "write such as \"info\" or \"info,lemonade::health=debug\"");
    }
    let access = match raw.access.as_str() {
        "on" => AccessLog::On,
        "off" => AccessLog::Off,
        path => {
            if !path.contains('/') {
                let message = format!("{path:?} is neither \"on\", \"off\" nor a path");
                spot.wrong("access", message, "write a path with a /, such as \"./access.log\"");
            }
            AccessLog::File(PathBuf::from(path))
        }
    };
    Log { level: raw.level, format: raw.format.into(), access }
}
