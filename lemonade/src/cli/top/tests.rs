use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use serde_json::{Value, json};

use super::state::{Act, Seen, State, View};
use super::view::draw;
use crate::admin::status::{BackendStatus, FrontendStatus};
use crate::control::overrides::Change;

fn seen() -> Seen {
    let rates = json!({"opened_per_second": 12.5, "refused_per_second": 0.5, "bytes_up_per_second": 2048.0, "bytes_down_per_second": 0.0});
    let backend = |name: &str, status: &str, weight: u32| {
        json!({"name": name, "address": format!("192.0.2.1:{weight}"), "status": status, "why": format!("3 failed in a row: {name} refused"), "since": "2026-01-02T03:04:05.678Z",
            "weight": weight, "enabled": true, "changed": null, "live": 3, "connecting": 0, "picks": 9, "failures": 1,
            "resets": 0, "connect_ms": 0.2, "first_byte_ms": 4.5, "tcp": null, "outcomes": []})
    };
    let status = json!({
        "version": "0.1.0", "pid": 1, "uptime_seconds": 61, "phase": "running", "workers": 2, "log_filter": "info",
        "kernel": "nothing",
        "config": {"file": "f", "version": 4, "table_version": 7, "at": "", "cause": "", "refused": null, "pending_restart": []},
        "process": {"live": 5, "opened": 9, "closed": 4, "accept_pauses": 0, "events_dropped": 0, "telemetry_dropped": 0, "telemetry_failures": 0, "health_transitions": 0,
            "probes": 0, "reloads_accepted": 1, "reloads_refused": 0, "last_reload_failed": false},
        "last_10s": rates, "last_60s": rates, "journal_dropped": 0,
        "frontends": [{"name": "web", "configured": [], "listening": [], "plane": "proxy", "plane_why": "", "relay": "copy", "relay_why": "",
            "protocol": "tcp", "datagrams": null, "pool": "web", "live": 5, "opened": 9, "closed": 4, "bytes_up": 1, "bytes_down": 2,
            "relays": {}, "refused": {"queue_full": 2, "no_backend_up": 30}, "last_10s": rates, "last_60s": rates}],
        "relays": [], "pools": [{"name": "web", "strategy": "adaptive", "queued": 0, "retries": 0, "hedges": 0, "budget_exhausted": 0,
            "backends": [backend("a", "up", 1), backend("b", "down", 2), backend("c\u{1b}[2J", "up", 0)]}],
    });
    let sample =
        |picks: u32| json!({"live": 1, "picks": picks, "failures": 0, "first_byte_us": 0, "connect_us": 0});
    let series = json!({"at": "", "process": [{"live": 1, "opened": 4, "refused": 0, "bytes_up": 0, "bytes_down": 0}],
        "frontends": [],
        "backends": [{"pool": "web", "name": "a", "address": "192.0.2.1:1", "samples": [sample(0), sample(1), sample(4), sample(8)]}]});
    let row = |id: u64| {
        json!({"id": id, "state": "established", "frontend": "web", "pool": "web", "client": "[2001:db8::1]:50312",
            "local": "127.0.0.1:80", "plane": "proxy", "relay": "copy", "started": "", "age_seconds": 75.0,
            "idle_seconds": 0, "bytes_up": 1024, "bytes_down": 1024, "route": null, "end": null, "end_why": null})
    };
    let page = json!({"total": 40, "matching": 40, "connections": (0..40).map(row).collect::<Vec<Value>>()});
    let read = "the fixture has every field";
    Seen {
        status: serde_json::from_value(status).expect(read),
        series: serde_json::from_value(series).expect(read),
        page: serde_json::from_value(page).expect(read),
    }
}

fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen in memory");
    terminal.draw(|frame| draw(frame, state)).expect("it draws");
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

fn press(state: &mut State, keys: &str) -> Act {
    let mut act = Act::Nothing;
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\u{1b}' => KeyCode::Esc,
            '<' => KeyCode::Backspace,
            letter => KeyCode::Char(letter),
        };
        act = state.key(code, KeyModifiers::NONE);
    }
    act
}

#[test]
fn eighty_columns_and_twenty_four_lines_hold_what_matters() {
    let mut state = State::new(seen());
    let lines = screen(&state, 80, 24);
    let text = lines.join("\n");
    assert_eq!(lines[0], "lemonade 0.1.0, up 1m 1s, config 4, 5 live");
    for words in [
        "12.5/s, 0.5 refused/s, 2.0KiB/s up",
        "web/a",
        "4.5ms",
        "DOWN",
        "draining",
        "▁▄█",
        "proxy/copy",
        "q quit",
    ] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no control character of a name reaches the terminal");
    press(&mut state, "\t");
    let text = screen(&state, 80, 24).join("\n");
    for words in ["40 of 40 live connections, by -bytes", "[2001:db8::1]:50312", "75s", "2.0KiB"] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    press(&mut state, "3");
    let lines = screen(&state, 80, 24);
    assert!(lines[4].contains("no_backend_up") && lines[5].contains("queue_full"), "most first: {lines:?}");
}

#[test]
fn headings_times_and_states_are_whole_on_eighty_columns() {
    let mut seen = seen();
    seen.status.pools[0].backends[0].first_byte_ms = Some(405.1);
    seen.status.pools[0].backends[1].first_byte_ms = Some(0.06);
    seen.status.pools[0].backends[1].enabled = false;
    let lines = screen(&State::new(seen), 80, 24);
    let text = lines.join("\n");
    let head = lines.iter().find(|line| line.starts_with("BACKEND 1/3")).expect("the head of the backends");
    assert!(head.contains(" 1ST BYTE ") && head.ends_with("PICKS/S"), "{head}");
    for words in [" 405ms ", " 60us ", " disabled ", " draining ", "CONNECTIONS/S"] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
}

#[test]
fn long_names_keep_both_ends_and_the_rows_that_do_not_fit_are_told() {
    let mut seen = seen();
    let backend = seen.status.pools[0].backends[0].clone();
    let frontend = seen.status.frontends[0].clone();
    seen.status.pools[0].backends = (10..50)
        .map(|at| BackendStatus {
            name: format!("a-name-that-is-longer-than-it-should-be-{at}"),
            ..backend.clone()
        })
        .collect();
    seen.status.frontends =
        (10..42).map(|at| FrontendStatus { name: format!("web-{at}"), ..frontend.clone() }).collect();
    let mut state = State::new(seen);
    let text = screen(&state, 80, 24).join("\n");
    assert!(text.contains("web/a-name-t…should-be-10 "), "{text}");
    assert!(text.contains("web-14") && !text.contains("web-15"), "{text}");
    assert!(text.contains("+27 more") && text.contains("press 4"), "{text}");
    assert!(text.contains("BACKEND 1/40"), "{text}");
    state.key(KeyCode::End, KeyModifiers::NONE);
    let text = screen(&state, 80, 24).join("\n");
    assert!(text.contains("BACKEND 40/40") && text.contains("-49"), "{text}");
    press(&mut state, "4");
    let text = screen(&state, 80, 24).join("\n");
    assert!(text.contains("web-10") && text.contains("web-25") && !text.contains("web-41"), "{text}");
    for _ in 0..4 {
        state.key(KeyCode::PageDown, KeyModifiers::NONE);
    }
    let text = screen(&state, 80, 24).join("\n");
    assert!(text.contains("web-41") && !text.contains("web-10"), "{text}");
}

#[test]
fn a_connection_keeps_its_port_its_names_ends_and_its_bytes() {
    let mut seen = seen();
    let own = &mut seen.page.connections[0];
    own.client = "[2001:db8:1111:2222:3333:4444:5555:6666]:50312".parse().expect("an address");
    own.frontend = "a-frontend-of-zone-b".to_owned();
    own.relay = "sk_msg".to_owned();
    own.bytes_down = 1_047_500_000_000;
    let mut state = State::new(seen);
    press(&mut state, "2");
    let lines = screen(&state, 80, 24);
    let row = lines.iter().find(|line| line.contains(":50312")).expect("the port is there");
    for words in ["[2001", "a-fr…one-b", "proxy/sk_msg", "975.6GiB"] {
        assert!(row.contains(words), "{words} is missing in {row}");
    }
}

#[test]
fn a_backend_that_is_down_says_since_when_and_why() {
    let mut state = State::new(seen());
    let down = "web/b (192.0.2.1:2) DOWN since 2026-01-02T03:04:05Z: 3 failed in a row: b refused";
    let told = |state: &State| screen(state, 80, 24)[20..].join(" ");
    assert!(told(&state).contains(down), "of another than the selected one: {}", told(&state));
    press(&mut state, "jj");
    assert!(told(&state).contains("draining: 3 failed in a row: c"), "{}", told(&state));
}

#[test]
fn a_message_is_whole_and_goes_with_the_next_key_or_after_seconds() {
    let mut state = State::new(seen());
    let outcome = "web/a: weight 1 -> 0; backend web/a gets no new connections and has none; \
                   pool web: 1 of 2 backends may be picked; not in the file: lasts until the next start, \
                   or until the file says something new of it";
    let told = |state: &State| screen(state, 80, 24)[20..].join(" ");
    state.tell(outcome.to_owned());
    assert!(told(&state).contains(outcome), "{}", told(&state));
    press(&mut state, "j");
    assert!(!told(&state).contains("weight 1 -> 0"), "{}", told(&state));
    state.tell(outcome.to_owned());
    for _ in 0..9 {
        state.see(seen());
    }
    assert!(told(&state).contains(outcome), "{}", told(&state));
    state.see(seen());
    assert!(!told(&state).contains("weight 1 -> 0"), "{}", told(&state));
    state.fail("nobody answers".to_owned());
    assert!(told(&state).contains("nobody answers"));
    state.see(seen());
    assert!(!told(&state).contains("nobody answers"), "an answer ends it");
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    let mut state = State::new(seen());
    for view in ["1", "2", "3", "4"] {
        press(&mut state, view);
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            screen(&state, width, height);
        }
    }
    screen(&State::default(), 80, 24);
}

#[test]
fn a_change_is_confirmed_and_tied_to_the_version_on_the_screen() {
    let mut state = State::new(seen());
    press(&mut state, "jd");
    assert!(screen(&state, 80, 24)[23].contains("drain web/b, until the next start?"));
    assert!(matches!(press(&mut state, "n"), Act::Nothing));
    let Act::Change(change) = press(&mut state, "dy") else { panic!("confirmed") };
    assert_eq!(
        (change.backend.as_str(), change.change, change.if_version),
        ("web/b", Change::Drain, Some(4))
    );
    let Act::Change(change) = press(&mut state, "kw12<5\n") else { panic!("a weight") };
    assert_eq!((change.backend.as_str(), change.change), ("web/a", Change::Weight(15)));
    assert!(matches!(press(&mut state, "wx\n"), Act::Nothing));
    assert!(state.message().contains("no weight"));
    press(&mut state, "2d");
    assert_eq!(state.prompt, None, "only a backend that is seen is changed");
}

#[test]
fn keys_sort_filter_and_leave() {
    let mut state = State::new(seen());
    assert!(matches!(press(&mut state, "s"), Act::LookAgain));
    assert_eq!(state.sort(), "-age");
    assert!(matches!(press(&mut state, "/web:\n"), Act::LookAgain));
    assert_eq!((state.filter(), state.view), (Some("web:"), View::Connections));
    press(&mut state, "\u{1b}");
    assert_eq!(state.filter(), None);
    assert!(matches!(press(&mut state, "q"), Act::Leave));
    assert!(matches!(state.key(KeyCode::Char('c'), KeyModifiers::CONTROL), Act::Leave));
    let mut fewer = seen();
    fewer.page.connections.truncate(1);
    state.selected = 30;
    state.see(fewer);
    assert_eq!(state.selected, 0, "the cursor stays on a row");
}

#[test]
fn packets_that_the_kernel_dropped_stand_with_the_refusals() {
    let mut seen = seen();
    let forward = json!({"words": "tc on eth0", "live": 1, "opened": 1, "closed": 0, "entries": 2, "room": 64,
        "packets": {"forwarded": 900, "table_full": 7}, "dropped": {"table_full": 7}});
    seen.status.forward = Some(serde_json::from_value(forward).expect("the fixture has every field"));
    let mut state = State::default();
    state.seen = Some(seen);
    press(&mut state, "3");
    let lines = screen(&state, 80, 24).join("\n");
    let row = lines.lines().find(|line| line.contains("(packets)")).expect("a row");
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["(packets)", "table_full", "7"]);
    assert!(!lines.contains("forwarded"), "{lines}");
}
