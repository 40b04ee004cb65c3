//! Where packets cannot be forwarded: the proxy serves and says why, or nothing starts.

use std::net::SocketAddr;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::{lemonade, wait};

use crate::stage::{V4, ask, parse, start};

/// A balancer in its namespace whose frontend the proxy has to serve.
fn kept(network: &Network, lemonade: &Lemonade, expected: &str) {
    let status = lemonade.status();
    let web = status.frontend("web");
    assert_eq!(web["plane"], "proxy");
    let why = web["plane_why"].as_str().expect("words");
    assert!(why.contains(expected), "{why}");
    assert_eq!(lemonade.metrics().sum("lemonade_frontend_forward_kept", &[("frontend", "web")]), 1);
    assert!(lemonade.output().contains("packets are not forwarded, the proxy serves"));
    assert_eq!(ask(network, V4.frontend(), 12).len(), 12);
}

/// As root, but without what programs in the kernel need.
fn unprivileged(setup: &Setup) -> Lemonade {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin,-bpf,-perfmon", "--inh-caps", "-sys_admin,-bpf,-perfmon"]);
    command.arg(lemonade::binary());
    Lemonade::start_through(command, setup, |_| {})
}

#[test]
fn without_privileges_the_proxy_serves_and_says_why() {
    let Some(network) = Network::start("without_privileges_the_proxy_serves_and_says_why") else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends);
    let lemonade = network.balancer.enter(|| unprivileged(&setup));
    kept(&network, &lemonade, "bpf(2) is not permitted; run as root, or with CAP_BPF");
}

#[test]
fn what_cannot_be_lowered_stays_with_the_proxy_until_it_can() {
    let Some(network) = Network::start("what_cannot_be_lowered_stays_with_the_proxy_until_it_can") else {
        return;
    };
    let port = V4.frontend().port();
    let at = V4.backends.map(|backend| SocketAddr::new(parse(backend).ip(), port));
    let _backends: Vec<Backend> = network
        .backends
        .enter(|| ["a", "b", "c"].iter().zip(at).map(|(name, at)| Backend::start_on(name, at)).collect());
    let setup = V4.setup_at(&at).frontend(&["forward.mode = \"dsr-l2\""]);
    let lemonade = start(&network, &setup);
    lemonade.reload(&setup.clone().backend(1, &["max_connections = 5"]));
    let why = "max_connections of backend web/b counts connections that live, and mode dsr-l2 does not see their ends";
    kept(&network, &lemonade, why);
    lemonade.reload(&setup);
    assert_eq!(lemonade.status().frontend("web")["plane"], "forward");
}

/// What `doctor` says of the file, and whether it runs as asked.
fn examined(network: &Network, setup: &Setup) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lemonade.toml");
    std::fs::write(&file, setup.text(folder.path())).expect("a writable folder");
    let arguments = ["doctor", "--config", file.to_str().expect("a plain path")];
    let output = network.balancer.enter(|| lemonade::run(&arguments));
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn doctor_says_beforehand_who_would_serve() {
    let Some(network) = Network::start("doctor_says_beforehand_who_would_serve") else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends);
    let (code, text) = examined(&network, &setup);
    assert!(text.contains("FRONTEND web: plane forward, relay nat (asked: forward)"), "{text}");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("hook tc: to_") && text.contains("is a veth"), "{text}");
    let (code, text) = examined(&network, &setup.clone().frontend(&["forward.hook = \"xdp\""]));
    assert!(text.contains("ethtool -K to_balancer tx off"), "{text}");
    assert_ne!(code, Some(0), "{text}");
    let (code, text) = examined(&network, &setup.clone().frontend(&["data_plane = \"proxy\""]));
    assert!(
        text.contains("`data_plane = \"forward\"` would send its packets on in the kernel; hook tc: to_"),
        "{text}"
    );
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = examined(&network, &setup.frontend(&["forward.snat_ports = \"40000-50000\""]));
    assert!(text.contains("snat_ports 40000-50000 overlap the ports 32768-60999"), "{text}");
    assert!(text.contains("FRONTEND web: plane proxy"), "{text}");
    assert_ne!(code, Some(0), "{text}");
}

#[test]
fn an_interface_that_comes_later_is_found() {
    let Some(network) = Network::start("an_interface_that_comes_later_is_found") else { return };
    let backends = V4.backends(&network);
    let setup =
        V4.setup(&backends).frontend(&["forward.interfaces = [\"to_client\", \"to_backends\", \"late\"]"]);
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    kept(&network, &lemonade, "there is no interface late");
    network.balancer.ip("link add late type veth peer name later");
    wait::until("the kernel serves", wait::SOON, || lemonade.status().frontend("web")["plane"] == "forward");
}

#[test]
fn refuse_does_not_start_and_keeps_what_is_in_force() {
    let Some(network) = Network::start("refuse_does_not_start_and_keeps_what_is_in_force") else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).frontend(&["fallback = \"refuse\""]);
    let missing = setup.clone().frontend(&["forward.interfaces = [\"nowhere\"]"]);
    let (code, output) = network.balancer.enter(|| {
        let mut process = Lemonade::spawn(std::process::Command::new(lemonade::binary()), &missing, |_| {});
        (process.wait(wait::SOON).code(), process.output())
    });
    assert_ne!(code, Some(0));
    let expected =
        "frontend.web: packets cannot be forwarded: there is no interface nowhere; or write fallback";
    assert!(output.contains(expected), "{output}");

    let lemonade = start(&network, &setup);
    lemonade.write(&missing.text(lemonade.folder()));
    wait::until("it is refused", wait::SOON, || lemonade.status().reload_error().is_some());
    assert!(lemonade.status().reload_error().is_some_and(|why| why.contains("no interface nowhere")));
    assert_eq!(lemonade.status().frontend("web")["plane"], "forward");
    assert_eq!(ask(&network, V4.frontend(), 12).len(), 12);
}
