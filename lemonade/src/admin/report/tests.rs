//! What a person reads, literally.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::admin::status::RefusalStatus;
use crate::admin::table::WIDTH;
use crate::metrics::snapshot::ProcessCounters;
use crate::model::tcp::{TcpCounters, TcpCounts, TcpSource};
use crate::shutdown::Phase;

fn backend(name: &str, status: Up, why: &str) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        address: "192.0.2.1:80".to_owned(),
        status,
        why: why.to_owned(),
        since: None,
        weight: 1,
        enabled: true,
        changed: None,
        live: 2,
        connecting: 0,
        picks: 1_234,
        failures: 3,
        resets: 0,
        connect_ms: Some(0.25),
        first_byte_ms: None,
        tcp: None,
        outcomes: Vec::new(),
    }
}

fn status() -> Status {
    let rates = Rates {
        opened_per_second: 12.5,
        refused_per_second: 0.0,
        bytes_up_per_second: 2048.0,
        bytes_down_per_second: 1e6,
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 42,
        uptime_seconds: 3_725,
        phase: Phase::Running,
        workers: 2,
        log_filter: "info".to_owned(),
        kernel: "nothing: bpf(2) is not permitted".to_owned(),
        relays: Vec::new(),
        forward: None,
        config: ConfigStatus {
            file: "lemonade.toml".to_owned(),
            version: 3,
            table_version: 7,
            at: "2026-01-02T03:04:05.000Z".to_owned(),
            cause: "file changed".to_owned(),
            refused: None,
            pending_restart: Vec::new(),
        },
        process: ProcessCounters { live: 4, opened: 120_000, closed: 119_996, ..ProcessCounters::default() },
        last_10s: rates,
        last_60s: rates,
        journal_dropped: 0,
        frontends: vec![FrontendStatus {
            name: "web".to_owned(),
            configured: vec!["127.0.0.1:0".parse().unwrap()],
            listening: vec!["127.0.0.1:8080".parse().unwrap(), "[::1]:8080".parse().unwrap()],
            protocol: "tcp".to_owned(),
            plane: "proxy".to_owned(),
            plane_why: String::new(),
            relay: "copy".to_owned(),
            relay_why: String::new(),
            relays: BTreeMap::new(),
            pool: "web".to_owned(),
            live: 4,
            opened: 120_000,
            closed: 119_996,
            bytes_up: 5_000,
            bytes_down: 7_000_000_000,
            datagrams: None,
            refused: BTreeMap::from([("queue_full".to_owned(), 5)]),
            last_10s: Some(rates),
            last_60s: None,
        }],
        pools: vec![PoolStatus {
            name: "web".to_owned(),
            strategy: "round_robin".to_owned(),
            queued: 1,
            retries: 2,
            hedges: 3,
            budget_exhausted: 0,
            backends: vec![
                backend("a", Up::Up, "2 good in a row: HTTP 200"),
                backend("b", Up::Down, "3 failed in a row: connection refused"),
            ],
        }],
    }
}

#[test]
fn a_running_process_is_one_screen() {
    let expected = "\
Lemonade 0.1.0: running, up 1h 2m 5s, pid 42, 2 workers, log filter info
Config    lemonade.toml, version 3 (table 7), file changed at 2026-01-02T03:04:05.000Z
Kernel    nothing: bpf(2) is not permitted
Traffic   4 live, 120000 opened, 119996 closed
  10 s    12.5 connections/s, 0.0 refused/s, 2.0KiB/s up, 976.6KiB/s down
  60 s    12.5 connections/s, 0.0 refused/s, 2.0KiB/s up, 976.6KiB/s down

FRONTEND  ADDRESS            POOL  RELAY       LIVE  OPENED  REFUSED  /S 10S  /S 60S      UP    DOWN
web       127.0.0.1:8080 +1  web   proxy/copy     4  120.0k        5    12.5       -  4.9KiB  6.5GiB

POOL web: round_robin, 1 waiting, 2 retries, 3 hedges
  BACKEND  ADDRESS       STATUS  WEIGHT  LIVE  PICKS  FAILED  CONNECT  1ST BYTE
  a        192.0.2.1:80  up           1     2   1234       3    0.2ms         -
  b        192.0.2.1:80  DOWN         1     2   1234       3    0.2ms         -
    3 failed in a row: connection refused
";
    assert_eq!(report(&status(), false), expected);
}

#[test]
fn a_refused_configuration_and_what_is_lost_stand_at_the_top() {
    let mut status = status();
    status.config.refused = Some(RefusalStatus {
        at: "2026-01-02T03:05:00.000Z".to_owned(),
        cause: "SIGHUP".to_owned(),
        errors: vec!["lemonade.toml:3:9: pool.web.strategy: unknown \u{1b}[2J".to_owned()],
    });
    status.config.pending_restart.push("runtime.workers".to_owned());
    status.process.events_dropped = 4;
    let text = report(&status, false);
    assert!(text.contains(
        "REFUSED   SIGHUP at 2026-01-02T03:05:00.000Z: still running version 3\n  lemonade.toml:3:9: "
    ));
    assert!(text.contains("Waits for the next start: runtime.workers\n"));
    assert!(text.contains("4 events lost"));
    assert!(!text.contains('\u{1b}'), "neither colours nor somebody else's escape codes");
    assert!(report(&status, true).contains("\u{1b}[31m  b  "));
}

#[test]
fn what_tcp_tells_of_a_backend_stands_below_it() {
    let mut status = status();
    let counts = TcpCounts { connect_us: 1_300, closes: 9, resets: 1, early_resets: 0 };
    let kernel =
        TcpCounters { source: TcpSource::Kernel, srtt_us: 250, retransmits: 4, counts: Some(counts) };
    status.pools[0].backends[0].tcp = Some(kernel);
    status.pools[0].backends[1].tcp =
        Some(TcpCounters { source: TcpSource::TcpInfo, counts: None, ..kernel });
    let text = report(&status, false);
    assert!(
        text.ends_with(
            "\
  TCP  ADDRESS       TOLD BY      RTT  HANDSHAKE  SENT AGAIN  CLOSED  RESET
  a    192.0.2.1:80  kernel    0.25ms     1.30ms           4       9      1
  b    192.0.2.1:80  tcp_info  0.25ms          -           4       -      -
"
        ),
        "{text}"
    );
}

proptest! {
    #[test]
    fn no_table_is_wider_than_the_screen(
        names in prop::collection::vec("\\PC{0,90}", 1..5),
        why in "\\PC{0,200}",
        numbers in prop::array::uniform4(any::<u64>()),
    ) {
        let mut status = status();
        let [live, picks, failures, bytes] = numbers.map(|number| number / 2);
        status.frontends[0].name.clone_from(&names[0]);
        (status.frontends[0].live, status.frontends[0].opened) = (live, picks);
        (status.frontends[0].bytes_up, status.frontends[0].bytes_down) = (bytes, bytes);
        let one = |name: &String| BackendStatus { live, picks, failures, ..backend(name, Up::Down, &why) };
        status.pools[0].backends = names.iter().map(one).collect();
        let text = report(&status, false);
        let tables = text.lines().skip(6).filter(|line| !line.starts_with("POOL"));
        for line in tables {
            prop_assert!(line.chars().count() <= WIDTH, "{}", line);
        }
    }
}

#[test]
fn a_forwarded_frontend_says_so_and_a_kept_one_says_why() {
    let mut own = status();
    own.forward = Some(ForwardStatus {
        words: "tc on eth0, eth1".to_owned(),
        live: 3,
        opened: 40,
        closed: 37,
        entries: 8,
        room: 32_768,
        packets: BTreeMap::from([("forwarded".to_owned(), 900), ("opened".to_owned(), 40)]),
        dropped: BTreeMap::new(),
    });
    let mut other = own.frontends[0].clone();
    (own.frontends[0].plane, own.frontends[0].relay) = ("forward".to_owned(), "nat".to_owned());
    other.plane_why = "backend web/a (10.0.0.1) is on this host".to_owned();
    own.frontends.push(other);
    let text = report(&own, false);
    let expected = "Forward   tc on eth0, eth1; 3 flows live, 40 opened, 8 of 32768 entries; packets: forwarded 900, opened 40\n";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("forward/nat")
            && text.contains("\n  proxy: backend web/a (10.0.0.1) is on this host\n"),
        "{text}"
    );
}
