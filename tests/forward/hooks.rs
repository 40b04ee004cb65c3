//! Hooks other than tc: XDP over veth pairs, prepared as the guide says, and what is said of pairs that are not.

use std::process::Command;

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::{Namespace, Network};
use lemonade_tests::wait;

use crate::serving::{datagrams, transfers, words};
use crate::stage::{V4, V6, ask, packets, start};

const XDP: &str = "forward.hook = \"xdp\"";

/// Runs a command line in a namespace, as a person would.
fn run(namespace: &Namespace, line: &str) -> String {
    let output = namespace.enter(|| Command::new("sh").args(["-c", line]).output().expect("sh runs"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// What docs/guide/forward.md asks for before XDP on veth pairs.
pub fn prepare(network: &Network) {
    for namespace in [&network.client, &network.backends] {
        run(namespace, "ethtool -K to_balancer tx off gro on");
    }
    for device in ["to_client", "to_backends"] {
        for version in ["ipv4", "ipv6"] {
            run(&network.balancer, &format!("sysctl -w net.{version}.conf.{device}.forwarding=1"));
        }
    }
}

/// Where a frontend with these lines asks for XDP in the driver, most packets of each interface were sent on there.
pub fn redirected(network: &Network, lines: &[&str]) {
    if !lines.contains(&XDP) {
        return;
    }
    for device in ["to_client", "to_backends"] {
        let counters = run(&network.balancer, &format!("ethtool -S {device}"));
        let sum = |name: &str| -> u64 {
            let own = counters.lines().filter_map(|line| line.trim().split_once(": "));
            own.filter(|(key, _)| key.ends_with(name)).map(|(_, n)| n.parse::<u64>().expect("a number")).sum()
        };
        let (all, sent) = (sum("xdp_packets"), sum("xdp_redirect"));
        assert!(sent > 100 && sent * 10 > all * 9, "{device}: {sent} of {all} were redirected at XDP");
    }
}

#[test]
fn at_xdp_transfers_are_exact_under_loss_over_ipv4() {
    let said = transfers("at_xdp_transfers_are_exact_under_loss_over_ipv4", &V4, &[XDP], prepare);
    let expected = "xdp on to_backends, to_client; goes on if the process is killed";
    assert!(said.is_none_or(|said| said == expected));
}

#[test]
fn at_xdp_transfers_are_exact_under_loss_over_ipv6() {
    transfers("at_xdp_transfers_are_exact_under_loss_over_ipv6", &V6, &[XDP], prepare);
}

#[test]
fn at_xdp_datagrams_pass_over_ipv4() {
    datagrams("at_xdp_datagrams_pass_over_ipv4", &V4, &[XDP], prepare);
}

#[test]
fn at_xdp_datagrams_pass_over_ipv6() {
    datagrams("at_xdp_datagrams_pass_over_ipv6", &V6, &[XDP], prepare);
}

#[test]
fn generic_xdp_serves_where_it_is_asked_for() {
    let test = "generic_xdp_serves_where_it_is_asked_for";
    let said = transfers(test, &V4, &["forward.hook = \"xdp-generic\""], prepare);
    let expected = "xdp-generic on to_backends, to_client; goes on if the process is killed";
    assert!(said.is_none_or(|said| said == expected));
}

fn plane(lemonade: &Lemonade) -> (String, String) {
    let status = lemonade.status();
    let of = |key: &str| status.frontend("web")[key].as_str().unwrap_or_default().to_owned();
    (of("plane"), of("plane_why"))
}

#[test]
fn an_unprepared_pair_is_refused_with_the_command_that_cures_it() {
    let test = "an_unprepared_pair_is_refused_with_the_command_that_cures_it";
    let Some(network) = Network::start(test) else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).frontend(&[XDP]);
    let refused = setup.clone().frontend(&["fallback = \"refuse\""]);
    let output = network.balancer.enter(|| {
        let binary = lemonade_tests::lemonade::binary();
        let mut process = Lemonade::spawn(Command::new(binary), &refused, |_| {});
        assert_ne!(process.wait(wait::SOON).code(), Some(0));
        process.output()
    });
    assert!(output.contains("ethtool -K to_balancer tx off"), "{output}");
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    let (served, why) = plane(&lemonade);
    assert_eq!(served, "proxy");
    for what in [
        "to_balancer, the peer of to_client, leaves checksums to be completed",
        "to_balancer, the peer of to_backends, drops what XDP sends while it does not join packets (GRO)",
        "the host does not forward ipv4 on to_client",
    ] {
        assert!(why.contains(what), "no `{what}` in {why}");
    }
    assert_eq!(ask(&network, V4.frontend(), 6).len(), 6, "the proxy serves");
    let (_, cure) = why.split_once("; run `").expect("a command");
    run(&network.balancer, cure.strip_suffix('`').expect("its end"));
    // What depends on the host is looked at again every five seconds.
    wait::until("the kernel serves", wait::SOON, || plane(&lemonade).0 == "forward");
    assert_eq!(plane(&lemonade).1, "hook xdp: as the file says");
    assert_eq!(words(&lemonade), "xdp on to_backends, to_client; goes on if the process is killed");
    assert_eq!(ask(&network, V4.frontend(), 30).len(), 30);
    redirected(&network, &[XDP]);
}

#[test]
fn a_reload_moves_flows_from_one_hook_to_another() {
    let test = "a_reload_moves_flows_from_one_hook_to_another";
    let Some(network) = Network::start(test) else { return };
    prepare(&network);
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends);
    let lemonade = start(&network, &setup);
    let (_, why) = plane(&lemonade);
    assert!(why.starts_with("hook tc: to_") && why.contains("is a veth"), "{why}");
    let load = network.client.enter(|| lemonade_tests::load::Load::start(V4.frontend(), 100));
    let mut held = network.client.enter(crate::killed::open);
    for hook in ["xdp", "xdp-generic", "tc", "xdp"] {
        lemonade.reload(&setup.clone().frontend(&[&format!("forward.hook = \"{hook}\"")]));
        assert!(words(&lemonade).starts_with(&format!("{hook} on to_backends, to_client")), "{hook}");
        let before = packets(&lemonade, "forwarded");
        network.client.enter(|| crate::killed::echoes(&mut held));
        wait::until("its packets are counted", wait::SOON, || packets(&lemonade, "forwarded") > before);
    }
    assert_eq!(load.stop().failed, [""; 0]);
}
