//! Follows the stream of events and prints a line for each.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::admin::client::ClientError;
use crate::admin::connections::Row;
use crate::admin::table::bytes;
use crate::admin::words::clean;

use super::ask::{Answer, Trouble, query};
use super::operate::Trace;
use super::show::age;
use super::{complain, heard};

/// Silence after which the other side is gone: it shows every 5 seconds that it lives.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Lost {
    lost: u64,
}

pub(super) fn trace(asked: &Trace) -> Answer {
    let pairs = [
        ("kind", asked.kind.clone()),
        ("frontend", asked.frontend.clone()),
        ("backend", asked.backend.clone()),
        ("reason", asked.reason.clone()),
        ("client", asked.client.clone()),
        ("rate", asked.rate.map(|rate| rate.to_string())),
    ];
    let mut stream = open(asked, &query("/api/v1/events", &pairs))?;
    let mut left = asked.count.unwrap_or(u64::MAX);
    let (mut event, mut line) = (String::new(), String::new());
    while left > 0 {
        line.clear();
        if stream.read_line(&mut line).context("the stream broke off")? == 0 {
            complain("the stream ended: Lemonade has stopped");
            return Ok(());
        }
        let text = line.trim_end();
        if let Some(name) = text.strip_prefix("event: ") {
            name.clone_into(&mut event);
        }
        let Some(data) = text.strip_prefix("data: ") else { continue };
        if event == "lost" {
            let Lost { lost } = serde_json::from_str(data)?;
            complain(&format!(
                "{lost} events lost: too many for this reader; narrow them by --frontend, --backend, --reason, --client or --kind"
            ));
            continue;
        }
        let shown = if asked.json {
            format!("{{\"event\":\"{event}\",\"connection\":{data}}}\n")
        } else {
            sentence(&event, &serde_json::from_str(data)?)
        };
        if !heard(shown.as_bytes())? {
            return Ok(());
        }
        left -= 1;
    }
    Ok(())
}

/// Asks for the stream and reads the head of the answer. The body is read as lines: sizes of chunks are none that matter.
fn open(asked: &Trace, path: &str) -> Answer<BufReader<UnixStream>> {
    let socket = asked.instance.socket();
    let mut stream = UnixStream::connect(&socket).map_err(|error| ClientError::of(&socket, &error))?;
    stream.set_read_timeout(Some(SILENCE))?;
    // HTTP/1.0: the answer comes without chunks and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lemonade\r\n\r\n")?;
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head)? > 2 {}
    let code = head.split(' ').nth(1).unwrap_or_default();
    match code {
        "200" => Ok(stream),
        _ => {
            let mut why = String::new();
            stream.take(64 * 1024).read_to_string(&mut why)?;
            let why = why.trim().to_owned();
            Err(if code == "400" { Trouble::BadInput(why) } else { anyhow::anyhow!(why).into() })
        }
    }
}

fn sentence(event: &str, row: &Row) -> String {
    let Row { id, frontend, client, started, ended, pool, .. } = row;
    let tried: Vec<String> =
        row.failed.iter().map(|own| format!("{} ({})", own.backend, own.fault)).collect();
    let tried = if tried.is_empty() { String::new() } else { format!("; in vain: {}", tried.join(", ")) };
    let why = || row.end_why.clone().unwrap_or_default();
    let to = row.route.as_ref().map(|route| format!("{pool}/{} ({})", route.backend, route.address));
    let text = match (event, &row.route, &row.end) {
        ("decision", Some(route), _) if row.plane == "forward" => format!(
            "{} because: {}, {}; forwarded in the kernel",
            to.unwrap_or_default(),
            route.strategy,
            route.why
        ),
        ("refusal", _, Some(reason)) if row.plane == "forward" => format!("DROPPED {reason}: {}", why()),
        ("decision", Some(route), _) => format!(
            "{} because: {}, {}; connected in {:.2} ms{tried}",
            to.unwrap_or_default(),
            route.strategy,
            route.why,
            route.connect_ms
        ),
        (_, _, Some(end)) if event == "refusal" => format!("REFUSED {end}: {}{tried}", why()),
        (_, _, end) => format!(
            "ended after {} at {}: {} ({}); {} up, {} down",
            age(row.age_seconds),
            to.unwrap_or_else(|| "no backend".to_owned()),
            why(),
            end.as_deref().unwrap_or_default(),
            bytes(row.bytes_up),
            bytes(row.bytes_down)
        ),
    };
    // Flows in the kernel have no number.
    let id = if *id == 0 { "-".to_owned() } else { id.to_string() };
    let time = ended.as_ref().unwrap_or(started);
    format!("{time} {} {id} {client} -> {}\n", clean(frontend), clean(&text))
}
