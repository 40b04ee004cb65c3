//! What a user sees: errors with places and suggestions, defaults, overrides.

mod datagrams;
mod examples;
mod hostile;
mod overrides;
mod rules;
mod sockets;

use std::path::Path;

use super::*;

const FRONTEND: &str = "[frontend.web]\nlisten = \"127.0.0.1:8080\"\npool = \"web\"\n";
const POOL: &str = "[pool.web]\n";
const BACKEND: &str = "[[pool.web.backend]]\naddress = \"127.0.0.1:9001\"\n";

fn check(text: &str) -> Result<Config, ConfigError> {
    parse_text(Path::new("test.toml"), text, &[])
}

/// A valid file with lines added to its frontend, pool and backend.
fn file(frontend: &str, pool: &str, backend: &str) -> String {
    format!("{FRONTEND}{frontend}\n{POOL}{pool}\n{BACKEND}{backend}\n")
}

fn errors(text: &str) -> String {
    check(text).expect_err("refused").to_string()
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let config = check(&format!("{FRONTEND}{BACKEND}")).expect("valid");
    let frontend = &config.frontends["web"];
    assert_eq!(frontend.listen, ["127.0.0.1:8080".parse().expect("address")]);
    assert_eq!(frontend.hedge_after, Some(std::time::Duration::from_millis(200)));
    let pool = &config.pools["web"];
    assert_eq!(
        (pool.retries, pool.backends[0].weight, pool.backends[0].name.as_str()),
        (2, 1, "127.0.0.1:9001")
    );
    assert_eq!(config.runtime.relay_buffer, 262_144);
}

#[test]
fn every_error_is_told_at_once_in_the_order_of_the_file() {
    let text = "[frontend.web]
listen = \"127.0.0.1:8080\"
idle_timeout = 5
relay = \"splic\"
pool = \"wbe\"
colour = \"blue\"
[[pool.web.backend]]
weight = 70000
address = \"a:1\"
[[pool.web.backend]]
[pool.web.health]
kind = \"htp\"
rise = 0
";
    let expected = "\
test.toml:3:16: frontend.web.idle_timeout: 5 has no unit; write \"5s\" or \"5ms\"
test.toml:4:9: frontend.web.relay: unknown word \"splic\"; did you mean \"splice\"? there are: auto, copy, sockmap, sk_msg, splice
test.toml:5:8: frontend.web.pool: there is no pool \"wbe\"; did you mean \"web\"? there are: web
test.toml:6:1: frontend.web.colour: unknown key \"colour\"; there are: listen, protocol, pool, data_plane, fallback, relay, accelerate_cgroup, max_connections, connect_timeout, hedge_after, idle_timeout, keepalive, user_timeout, forward
test.toml:8:10: pool.web.backend[0].weight: integer 70000 does not fit here; write a whole number from 0 to 65535
test.toml:10:1: pool.web.backend[1].address: address is missing; write such as address = \"127.0.0.1:9001\"
test.toml:12:8: pool.web.health.kind: unknown word \"htp\"; did you mean \"http\"? there are: tcp, http, off
test.toml:13:8: pool.web.health.rise: 0 would change the state without a probe; write 1 or more";
    assert_eq!(errors(text), expected);
}

#[test]
fn columns_count_characters() {
    let text = file("", "health = { kind = 'http', host = 'ü', rise = 0 }", "name = 'ä'");
    let error = check(&text).expect_err("refused");
    let positions: Vec<_> = error.diagnostics.iter().map(|d| d.position).collect();
    assert_eq!(positions, [Some((6, 34)), Some((6, 46)), Some((9, 8))], "{error}");
}

#[test]
fn syntax_errors_are_told_together_one_per_line() {
    let text = format!("{FRONTEND}max_connections =\nidle_timeout = 5m\n{BACKEND}weight = -1\nweight = 2\n");
    let expected = "\
test.toml:4:18: the value is missing; write key = value
test.toml:5:16: 5m is not a value; write text in quotes: \"5m\"
test.toml:8:10: pool.web.backend[0].weight: integer -1 does not fit here; write a whole number from 0 to 65535
test.toml:9:1: \"weight\" stands here a second time; a key or table may stand only once; remove or rename one of them";
    assert_eq!(errors(&text), expected);
}

#[test]
fn a_torn_table_is_one_error_not_many() {
    let error = check("[frontend.web\nlisten = \"127.0.0.1:80\"\npool = \"web\"\n").expect_err("refused");
    assert_eq!(error.diagnostics.len(), 1, "{error}");
}

#[test]
fn only_fifty_errors_are_told_and_the_others_counted() {
    let mut text = format!("{FRONTEND}{BACKEND}");
    for port in 0..70 {
        text.push_str(&format!("[[pool.web.backend]]\naddress = \"127.0.0.1:9001\"\nname = \"n{port}\"\n"));
    }
    let error = check(&text).expect_err("refused");
    assert_eq!(error.diagnostics.len(), 51);
    assert!(error.to_string().ends_with("and at least 20 more errors; correct these first"), "{error}");
}

#[test]
fn what_is_not_reloadable_is_named() {
    let old = check(&file("", "", "")).expect("valid");
    let new = check(&format!(
        "[runtime]\nworkers = 2\nlame_duck = \"1s\"\n[admin]\nlisten = \"off\"\n{}",
        file("", "", "")
    ))
    .expect("valid");
    assert_eq!(needs_restart(&old, &new), ["runtime.workers", "admin.listen"]);
    assert!(needs_restart(&new, &new).is_empty());
}
