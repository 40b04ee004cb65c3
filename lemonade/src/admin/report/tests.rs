//! What a person reads, literally.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::admin::status::{RefusalStatus, RemovedStatus};
use crate::metrics::snapshot::ProcessCounters;
use crate::model::relay::{Findings, KernelRelay};
use crate::model::tcp::{TcpCounters, TcpCounts, TcpSource};
use crate::shutdown::Phase;

const PIPE: Look = Look { width: None, colours: false };

/// A terminal of the usual size.
const TERMINAL: Look = Look { width: Some(80), colours: false };

fn backend(name: &str, status: Up, why: &str) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        address: "192.0.2.1:80".to_owned(),
        status,
        why: why.to_owned(),
        since: (status == Up::Down).then(|| "2026-01-02T03:04:00.123Z".to_owned()),
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
        removed: Vec::new(),
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
            kept: BTreeMap::new(),
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
            retries: 1,
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
Config    lemonade.toml, version 3 (table 7), file changed at 2026-01-02T03:04:05Z
Kernel    nothing: bpf(2) is not permitted
Traffic   4 live, 120000 opened, 119996 closed
  10 s    12.5 connections/s, 0.0 refused/s, 2.0KiB/s up, 976.6KiB/s down
  60 s    12.5 connections/s, 0.0 refused/s, 2.0KiB/s up, 976.6KiB/s down

FRONTEND  ADDRESS         POOL  RELAY       LIVE  OPENED  REFUSED  /S 10S  /S 60S      UP    DOWN
web       127.0.0.1:8080  web   proxy/copy     4  120.0k        5    12.5       -  4.9KiB  6.5GiB
          [::1]:8080

POOL web: round_robin, 1 of 2 backends up, 1 waiting, 1 retry, 3 hedges
  BACKEND  ADDRESS       STATUS  WEIGHT  LIVE  PICKS  FAILED  CONNECT  1ST BYTE
  a        192.0.2.1:80  up           1     2   1234       3    250us         -
  b        192.0.2.1:80  DOWN         1     2   1234       3    250us         -
    since 2026-01-02T03:04:00Z: 3 failed in a row: connection refused
";
    assert_eq!(report(&status(), false, PIPE), expected);
}

/// Two frontends and three backends with long paths, reasons and whole IPv4 addresses.
fn small() -> Status {
    let mut own = status();
    own.config.file = "/etc/lemonade/a/folder/of/its/own/lemonade.toml".to_owned();
    own.kernel = "TCP counters of backends (sock_ops) in /sys/fs/cgroup/system.slice/lemonade.service; \
                  no program forwards, because no frontend asks for it"
        .to_owned();
    let mut api = own.frontends[0].clone();
    (api.name, api.pool) = ("api".to_owned(), "api".to_owned());
    api.listening = vec!["192.168.100.200:21001".parse().unwrap()];
    own.frontends[0].listening[0] = "192.168.100.200:21000".parse().unwrap();
    own.frontends.push(api);
    let mut pool = own.pools[0].clone();
    pool.name = "api".to_owned();
    pool.backends = vec![backend("c", Up::Up, "2 good in a row: HTTP 200")];
    pool.backends[0].address = "192.168.100.201:65535".to_owned();
    own.pools.push(pool);
    own
}

#[test]
fn a_small_configuration_fits_a_terminal_of_80_columns_and_24_lines() {
    let text = report(&small(), false, TERMINAL);
    assert!(text.lines().count() < 24, "with the line of the prompt:\n{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for words in ["192.168.100.200:21000", "192.168.100.200:21001", "[::1]:8080", "1ST BYTE", "REFUSED"] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    assert!(text.contains(" no program forwards,\n          because no"), "{text}");
}

#[test]
fn a_reason_that_stands_above_is_not_said_again_for_each_relay() {
    let why = "this build has no kernel programs";
    let relay = |relay: KernelRelay, why: &str| RelaySnapshot {
        relay,
        usable: false,
        failed: 0,
        findings: Findings { why: why.to_owned(), tests: Vec::new() },
    };
    let mut own = status();
    own.kernel = format!("nothing: {why}");
    own.relays = vec![relay(KernelRelay::Sockmap, why), relay(KernelRelay::SkMsg, why)];
    let text = report(&own, false, PIPE);
    assert!(text.contains("\nRelay     sockmap, sk_msg: OFF, for the same reason\n"), "{text}");
    own.relays[0].findings.why = "kept out of use".to_owned();
    let text = report(&own, false, PIPE);
    assert!(text.contains("\nRelay     sockmap: OFF, kept out of use\nRelay     sk_msg: OFF, for"), "{text}");
}

#[test]
fn what_left_the_file_is_told_while_connections_of_it_live() {
    let mut own = status();
    own.removed.push(RemovedStatus {
        what: "backend web/gone".to_owned(),
        address: Some("10.0.0.9:80".to_owned()),
        live: 3,
        reset_at: Some("2026-01-02T03:04:35Z".to_owned()),
    });
    let words = "\nRemoved   backend web/gone (10.0.0.9:80): removed, draining: 3 live, reset at 2026-01-02T03:04:35Z\n";
    assert!(report(&own, false, PIPE).contains(words));
}

#[test]
fn a_pipe_gets_every_name_and_reason_whole() {
    let mut own = status();
    let names = ["a", "b"].map(|end| format!("{}-{end}", "name-of-sixty-four".repeat(3)));
    let why = "3 failed in a row: ".to_owned() + &"a reason that goes on ".repeat(9) + "and ends.";
    own.pools[0].backends = names.iter().map(|name| backend(name, Up::Down, &why)).collect();
    let text = report(&own, false, PIPE);
    for words in names.iter().chain([&why]) {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    let text = report(&own, false, TERMINAL);
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("  name")).collect();
    assert!(rows[0].contains("…") && rows[0] != rows[1], "both ends are kept: {rows:?}");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&text).matches(&words(&why)).count(), 2, "broken between words, never cut: {text}");
}

#[test]
fn a_state_has_one_word_and_a_changed_weight_is_told() {
    let mut own = status();
    own.pools[0].backends[0].weight = 0;
    own.pools[0].backends[1].enabled = false;
    let changed = Some("weighed at run time".to_owned());
    own.pools[0]
        .backends
        .push(BackendStatus { changed, ..backend("c", Up::Up, "weighed at run time; good") });
    let words: Vec<&str> = own.pools[0].backends.iter().map(BackendStatus::word).collect();
    assert_eq!(words, ["draining", "disabled", "up"]);
    let text = report(&own, false, PIPE);
    assert!(text.contains("  draining  ") && text.contains("  disabled  "), "{text}");
    assert!(text.ends_with("\n    weighed at run time; good\n"), "{text}");
    assert!(text.contains("1 of 3 backends up"), "{text}");
}

#[test]
fn a_screen_that_is_too_low_says_how_many_lines_are_left_out() {
    let mut own = status();
    let text = report(&own, false, TERMINAL);
    let all = text.lines().count();
    assert_eq!(
        first_lines(&own, false, TERMINAL, all),
        text.trim_end(),
        "nothing is left out where all fits"
    );
    let shown = first_lines(&own, false, TERMINAL, 10);
    assert_eq!(shown.lines().count(), 10);
    assert!(shown.starts_with("Lemonade 0.1.0") && !shown.ends_with('\n'), "{shown}");
    let more = all - 9;
    let last = format!("({more} lines more, 1 backend is DOWN: `lemonade status` or `top` shows all)");
    assert_eq!(shown.lines().last(), Some(last.as_str()));
    assert!(last.len() <= 80);
    own.pools[0].backends.pop();
    let shown = first_lines(&own, false, TERMINAL, 10);
    assert!(shown.ends_with(" lines more: `lemonade status` or `top` shows all)"), "{shown}");
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
    let text = report(&status, false, PIPE);
    assert!(text.contains(
        "REFUSED   SIGHUP at 2026-01-02T03:05:00Z: still running version 3\n  lemonade.toml:3:9: "
    ));
    assert!(text.contains("Waits for the next start: runtime.workers\n"));
    assert!(text.contains("4 events lost"));
    assert!(!text.contains('\u{1b}'), "neither colours nor somebody else's escape codes");
    assert!(report(&status, false, Look { colours: true, ..PIPE }).contains("\u{1b}[31m  b  "));
}

#[test]
fn what_tcp_tells_of_a_backend_is_shown_when_asked_for() {
    let mut status = status();
    let counts = TcpCounts { connect_us: 1_300, closes: 9, resets: 1, early_resets: 0 };
    let kernel =
        TcpCounters { source: TcpSource::Kernel, srtt_us: 250, retransmits: 4, counts: Some(counts) };
    status.pools[0].backends[0].tcp = Some(kernel);
    status.pools[0].backends[1].tcp =
        Some(TcpCounters { source: TcpSource::TcpInfo, counts: None, ..kernel });
    assert!(!report(&status, false, PIPE).contains("RTT"), "a small screen has no room for it unasked");
    let text = report(&status, true, PIPE);
    let expected = "
TCP    ADDRESS       TOLD BY     RTT  HANDSHAKE  SENT AGAIN  CLOSED  RESET
web/a  192.0.2.1:80  kernel    250us      1.3ms           4       9      1
web/b  192.0.2.1:80  tcp_info  250us          -           4       -      -
";
    assert!(text.ends_with(expected), "{text}");
    status.pools.clear();
    assert!(report(&status, true, PIPE).contains("no connection was made"));
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
        for width in [72, 80, 200] {
            let text = report(&status, true, Look { width: Some(width), colours: false });
            for line in text.lines() {
                prop_assert!(line.chars().count() <= width, "{}", line);
            }
            prop_assert!(text.contains(":8080"), "a port was lost in\n{}", text);
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
    let text = report(&own, false, PIPE);
    let expected = "Forward   tc on eth0, eth1; 3 flows live, 40 opened, 8 of 32768 entries; packets: forwarded 900, opened 40\n";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("forward/nat")
            && text.contains("\n  proxy: backend web/a (10.0.0.1) is on this host\n"),
        "{text}"
    );
}
