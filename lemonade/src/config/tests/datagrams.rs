//! protocol = "udp": defaults, and ports that both protocols use.

use std::time::Duration;

use super::*;
use crate::model::config::{HealthKind, Protocol};

const BOTH: &str = "[frontend.stream]\nlisten = \"0.0.0.0:53\"\npool = \"web\"\n\
                    [frontend.web]\nlisten = \"0.0.0.0:53\"\nprotocol = \"udp\"\npool = \"web\"\n";

#[test]
fn a_session_is_idle_sooner_than_a_connection_and_nothing_is_tuned_for_tcp() {
    let config = check(&file("protocol = 'udp'", "", "")).expect("valid");
    let frontend = &config.frontends["web"];
    assert_eq!((frontend.protocol, frontend.idle_timeout), (Protocol::Udp, Duration::from_secs(60)));
    assert_eq!((frontend.hedge_after, frontend.keepalive, frontend.user_timeout), (None, None, None));
    let config = check(&file("protocol = 'udp'\nidle_timeout = '7s'", "", "")).expect("valid");
    assert_eq!(config.frontends["web"].idle_timeout, Duration::from_secs(7));
    let config = check(&file("", "", "")).expect("valid");
    assert_eq!(config.frontends["web"].idle_timeout, Duration::from_mins(10));
}

#[test]
fn a_pool_of_datagrams_alone_is_not_probed_unless_asked() {
    let kind = |text: &str| check(text).expect("valid").pools["web"].health.kind.clone();
    assert_eq!(kind(&file("protocol = 'udp'", "", "")), HealthKind::Off);
    assert_eq!(kind(&file("protocol = 'udp'", "health.kind = 'tcp'", "")), HealthKind::Tcp);
    assert_eq!(kind(&file("", "", "")), HealthKind::Tcp);
    assert_eq!(kind(&format!("{BOTH}{POOL}{BACKEND}")), HealthKind::Tcp, "connections come to it too");
}

#[test]
fn a_port_may_be_used_for_both_protocols_and_by_two_frontends_of_one_only_once() {
    check(&format!("{BOTH}{POOL}retries = 1\n{BACKEND}"))
        .expect("valid: the frontend of connections retries");
    let twice = BOTH.replacen(
        "[frontend.web]\nlisten = \"0.0.0.0:53\"",
        "[frontend.web]\nlisten = \"127.0.0.1:53\"",
        1,
    );
    check(&format!("{twice}{POOL}{BACKEND}")).expect("valid");
    let udp = twice.replacen("pool", "protocol = \"udp\"\npool", 1);
    let error = errors(&format!("{udp}{POOL}{BACKEND}"));
    assert!(error.contains("127.0.0.1:53 takes the same connections as 0.0.0.0:53"), "{error}");
}

#[test]
fn a_change_of_a_pool_of_datagrams_is_held_to_the_same_rules() {
    let before = format!(
        "[frontend.web]\nlisten = \"127.0.0.1:53\"\nprotocol = \"udp\"\npool = \"web\"\n{POOL}{BACKEND}"
    );
    let accepted =
        Accepted { text: before.clone(), config: std::sync::Arc::new(check(&before).expect("valid")) };
    let text = before.replace(POOL, "[pool.web]\nretries = 3\n");
    let error = parse_after(Some(&accepted), Path::new("f.toml"), &text, &[]).expect_err("refused");
    assert!(error.to_string().contains("retries is about connects"), "{error}");
    let text = before.replace("9001", "9002");
    let config = parse_after(Some(&accepted), Path::new("f.toml"), &text, &[]).expect("valid");
    assert_eq!(config.pools["web"].health.kind, HealthKind::Off);
}

#[test]
fn what_is_in_force_is_told_so_that_it_can_be_read_back() {
    let texts = [file("protocol = 'udp'", "", ""), format!("{BOTH}{POOL}retries = 1\n{BACKEND}")];
    for text in texts {
        let config = check(&format!("{text}name = 'a'\n")).expect("valid");
        let told = toml::to_string(&written(&config)).expect("TOML");
        assert_eq!(check(&told).expect("what is in force can be read"), config, "{told}");
    }
}
