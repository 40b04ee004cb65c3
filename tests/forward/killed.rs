//! A killed process takes nothing along: packets go on, and the next process takes over.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lemonade_tests::lemonade::{Lemonade, binary, run};
use lemonade_tests::load::{Header, Kind, Load};
use lemonade_tests::netns::Network;
use lemonade_tests::skip::full;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::serving::words;
use crate::stage::{V4, ask, start};

/// `lemonade cleanup` takes away what any killed process has left, so that these tests take turns.
pub static TURN: Mutex<()> = Mutex::new(());

/// A connection on which everything is echoed.
pub fn open() -> TcpStream {
    let mut stream = TcpStream::connect(V4.frontend()).expect("a connection");
    stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
    let header = Header { kind: Kind::Flow, seed: 1, up: 0, down: 0 };
    stream.write_all(&header.encode()).expect("a connection");
    stream
}

/// Says something, and hears it again.
pub fn echoes(stream: &mut TcpStream) {
    let mut got = [0; 5];
    stream.write_all(b"still").expect("the connection lives");
    stream.read_exact(&mut got).expect("an echo");
    assert_eq!(&got, b"still");
}

/// Where its maps and links have their names.
pub fn set(lemonade: &Lemonade) -> Option<PathBuf> {
    let own = format!("pid-{}", lemonade.pid().as_raw_nonzero());
    let sets = std::fs::read_dir("/sys/fs/bpf/lemonade").into_iter().flatten().flatten();
    sets.map(|set| set.path()).find(|set| set.join(&own).exists())
}

#[test]
fn a_killed_process_loses_no_flow_and_the_next_one_takes_over() {
    taken_over("a_killed_process_loses_no_flow_and_the_next_one_takes_over", "tc");
}

#[test]
fn at_xdp_a_killed_process_loses_no_flow_and_the_next_one_takes_over() {
    taken_over("at_xdp_a_killed_process_loses_no_flow_and_the_next_one_takes_over", "xdp");
}

fn taken_over(test: &str, hook: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start(test) else { return };
    crate::hooks::prepare(&network);
    let backends = V4.backends(&network);
    let hooked = format!("forward.hook = \"{hook}\"");
    let mut lemonade = start(&network, &V4.setup(&backends).frontend(&[&hooked]));
    let attached = format!("{hook} on to_backends, to_client; goes on if the process is killed");
    let mut held: Vec<TcpStream> = network.client.enter(|| (0..20).map(|_| open()).collect());
    let load = network.client.enter(|| Load::start(V4.frontend(), 100));
    for round in 0..if full() { 20 } else { 3 } {
        std::thread::sleep(Duration::from_millis(500));
        lemonade.signal(Signal::KILL);
        lemonade.wait(wait::SOON);
        std::thread::sleep(Duration::from_millis(500));
        held.iter_mut().for_each(echoes);
        network.balancer.enter(|| lemonade.restart());
        let status = lemonade.status();
        assert_eq!(status.frontend("web")["plane"], "forward", "round {round}");
        held.iter_mut().for_each(echoes);
        let told = lemonade.output();
        assert!(told.contains("takes over what a killed process left"), "round {round}: {told}");
        assert_eq!(words(&lemonade), attached, "round {round}");
    }
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0]);
    assert!(outcome.total() > 300, "{} calls", outcome.total());
    wait::until("the flows that live are known", wait::SOON, || {
        let metrics = lemonade.metrics();
        let of = |name: &str| metrics.sum(&format!("lemonade_forward_flows_{name}"), &[]);
        let known = metrics.sum("lemonade_frontend_connections_live", &[("frontend", "web")]);
        (of("live"), known) == (20, 20)
    });
    let client = held[0].local_addr().expect("a connected socket").to_string();
    let socket = lemonade.socket();
    let why = run(&["why", &client, "--admin", socket.to_str().expect("UTF-8")]);
    assert!(
        String::from_utf8_lossy(&why.stdout).contains("went to backend web/"),
        "its backend has its name"
    );
    // In order it takes everything along.
    let set = set(&lemonade).expect("it has names");
    drop(held);
    lemonade.signal(Signal::INT);
    assert!(lemonade.wait(wait::SOON).success());
    assert!(!set.exists(), "{} is left", set.display());
    assert!(!program_on(&network, "to_client"), "a program is left");
}

/// Whether a program at XDP is attached to an interface of the balancer.
fn program_on(network: &Network, device: &str) -> bool {
    let list = || Command::new("ip").args(["link", "show", device]).output().expect("ip runs");
    let said = network.balancer.enter(list);
    assert!(said.status.success());
    String::from_utf8_lossy(&said.stdout).contains("prog/xdp")
}

#[test]
fn at_xdp_what_a_killed_process_left_can_be_taken_away_or_replaced() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let test = "at_xdp_what_a_killed_process_left_can_be_taken_away_or_replaced";
    let Some(network) = Network::start(test) else { return };
    crate::hooks::prepare(&network);
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).frontend(&["forward.hook = \"xdp\""]);
    let mut lemonade = start(&network, &setup);
    let before = set(&lemonade).expect("it has names");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    assert!(program_on(&network, "to_client"), "it goes on");
    // Maps of another size are not taken over, and an interface has one program at XDP.
    let other = setup.frontend(&["forward.connection_table = 8192"]);
    lemonade.write(&other.text(lemonade.folder()));
    network.balancer.enter(|| lemonade.restart());
    assert_eq!(ask(&network, V4.frontend(), 30).len(), 30);
    assert!(!before.exists(), "the new one stands for it");
    wait::until("the new one is at XDP too", wait::SOON, || {
        words(&lemonade).starts_with("xdp on to_backends, to_client")
    });
    assert_eq!(ask(&network, V4.frontend(), 30).len(), 30);
    let left = set(&lemonade).expect("it has names");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    let said = run(&["cleanup"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains(&format!("removed {}\n", left.display())));
    assert!(!program_on(&network, "to_client"), "a program is left");
}

/// A build that calls itself by another version.
fn other_build(folder: &Path) -> PathBuf {
    let version = |path: &Path| {
        let output = Command::new(path).arg("--version").output().expect("it runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let said = version(binary());
    let (_, own) = said.trim().rsplit_once(' ').expect("a name and a version");
    let other: String = own.chars().map(|c| if c == '0' { '7' } else { c }).collect();
    assert_ne!(own, other, "both would be of one version");
    let path = folder.join("lemonade-other");
    std::fs::copy(binary(), &path).expect("a writable folder");
    let change = format!("s/{}/{other}/g", own.replace('.', "\\."));
    let edited = Command::new("sed").env("LC_ALL", "C").args(["-i", &change]).arg(&path).status();
    assert!(edited.expect("sed runs").success());
    assert_eq!(version(&path), said.replace(own, &other));
    path
}

#[test]
fn another_build_takes_over_and_so_does_the_former() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start("another_build_takes_over_and_so_does_the_former") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let builds = [other_build(lemonade.folder()), binary().to_owned()];
    let mut held: Vec<TcpStream> = network.client.enter(|| (0..20).map(|_| open()).collect());
    let load = network.client.enter(|| Load::start(V4.frontend(), 100));
    for (build, takeovers) in builds.iter().zip(1..) {
        lemonade.signal(Signal::KILL);
        lemonade.wait(wait::SOON);
        network.balancer.enter(|| lemonade.restart_by(build));
        assert_eq!(lemonade.status().frontend("web")["plane"], "forward", "{}", build.display());
        held.iter_mut().for_each(echoes);
        let told = lemonade.output();
        assert_eq!(told.matches("takes over what a killed process left").count(), takeovers, "{told}");
        let before = load.answered();
        wait::until("the load goes on", wait::SOON, || load.answered() > before + 50);
    }
    assert_eq!(load.stop().failed, [""; 0]);
}

#[test]
fn what_a_killed_process_left_can_be_taken_away() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start("what_a_killed_process_left_can_be_taken_away") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let set = set(&lemonade).expect("it has names");
    assert!(!String::from_utf8_lossy(&run(&["cleanup"]).stdout).contains("bpf"), "it is in use");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    assert_eq!(ask(&network, V4.frontend(), 3).len(), 3, "it goes on");
    let said = run(&["cleanup"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(&format!("removed {}\n", set.display())), "{said}");
    assert!(!Path::new(&set).exists());
    let refused = network.client.enter(|| TcpStream::connect(V4.frontend()));
    assert!(refused.is_err(), "the program is detached");
}

#[test]
fn what_does_not_fit_is_not_taken_over() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start("what_does_not_fit_is_not_taken_over") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let before = set(&lemonade).expect("it has names");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    let other = V4.setup(&backends).frontend(&["forward.connection_table = 8192"]);
    lemonade.write(&other.text(lemonade.folder()));
    network.balancer.enter(|| lemonade.restart());
    assert!(lemonade.output().contains("is of another version, connection_table or hash_seed"));
    assert_eq!(ask(&network, V4.frontend(), 30).len(), 30);
    assert!(!before.exists(), "the new one stands for it");
    // Nobody asks for the plane after the next kill.
    let left = set(&lemonade).expect("it has names");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    lemonade.write(&other.frontend(&["data_plane = \"proxy\""]).text(lemonade.folder()));
    network.balancer.enter(|| lemonade.restart());
    assert_eq!(ask(&network, V4.frontend(), 3).len(), 3);
    assert!(!left.exists(), "{} is left", left.display());
}
