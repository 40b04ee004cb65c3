//! What clients and operators see of a frontend whose packets pass through the kernel.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::{call_on, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::{http, transfer, wait};
use rustix::process::Signal;

use crate::stage::{Addresses, V4, V6, ask, await_ended, packets, parse, start};

#[test]
fn connections_pass_through_the_kernel_and_are_counted() {
    let Some(network) = Network::start("connections_pass_through_the_kernel_and_are_counted") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let names = ask(&network, V4.frontend(), 90);
    let shares = tally(&names);
    assert_eq!(shares.len(), 3, "{shares:?}");
    await_ended(&lemonade, 90);
    let metrics = lemonade.metrics();
    let of_backends = |name: &str| metrics.sum(name, &[("pool", "web")]);
    assert_eq!(of_backends("lemonade_backend_picks_total"), 90);
    for (name, count) in &shares {
        assert_eq!(metrics.picks(name), *count as u64, "{name}");
    }
    assert_eq!(metrics.sum("lemonade_frontend_connections_opened_total", &[("frontend", "web")]), 90);
    assert_eq!(metrics.sum("lemonade_frontend_forwarded", &[("frontend", "web")]), 1);
    assert_eq!(packets(&lemonade, "opened"), 90);
    assert!(packets(&lemonade, "forwarded") > 90 * 4);
    let (up, down) = metrics.bytes();
    assert!(up > 90 * 89 && down > 90 * 80, "{up} up, {down} down");
    assert_eq!(words(&lemonade), "tc on to_backends, to_client; goes on if the process is killed");
    // What the client's hash says is where it goes.
    let explained = http::get_unix(&lemonade.socket(), "/api/v1/explain?client=10.77.1.1:4321&frontend=web");
    let explained = explained.expect("the admin socket answers").body;
    assert!(explained.contains("slot ") && explained.contains("of the ring"), "{explained}");
    lemonade.signal(Signal::INT);
    assert!(lemonade.wait(wait::SOON).success());
}

/// Calls until the kernel lets the port go, which it says before it has sent anything.
fn again<T>(call: &impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => std::thread::yield_now(),
            called => return called,
        }
    }
}

/// A client that comes again from the same port at once takes the place of its former flow, before anybody has looked at that.
#[test]
fn bytes_of_flows_that_others_follow_are_counted() {
    const CALLS: u64 = 40;
    let Some(network) = Network::start("bytes_of_flows_that_others_follow_are_counted") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends));
    let call = || {
        let from: SocketAddr = parse("10.77.1.1:5555");
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        // It resets at its end, so that the port is free.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&V4.frontend().into())?;
        call_on(socket.into())
    };
    network
        .client
        .enter(|| (0..CALLS).for_each(|n| drop(again(&call).unwrap_or_else(|error| panic!("{n}: {error}")))));
    // A call with its answer, and the handshake's headers and those of a reset.
    await_ended(&lemonade, CALLS);
    wait::until("all bytes are counted", wait::SOON, || {
        let (up, down) = lemonade.metrics().bytes();
        up > CALLS * (89 + 250) && down > CALLS * (80 + 250)
    });
    let (up, down) = lemonade.metrics().bytes();
    assert!(up < CALLS * 1_000 && down < CALLS * 1_000, "{up} up, {down} down");
}

#[test]
fn a_forwarded_flow_is_listed_and_says_why_it_went_where_it_went() {
    let Some(network) = Network::start("a_forwarded_flow_is_listed_and_says_why_it_went_where_it_went")
    else {
        return;
    };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends));
    let told = |words: &[&str]| {
        let socket = lemonade.socket();
        let output = run(&[words, &["--admin", socket.to_str().expect("UTF-8")]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let held = network.client.enter(|| TcpStream::connect(V4.frontend())).expect("a connection");
    let client = held.local_addr().expect("a connected socket").to_string();
    let listed = told(&["connections"]);
    assert!(listed.contains(&client) && listed.contains("forward/nat"), "{listed}");
    let why = told(&["why", &client]);
    for part in ["went to backend web/", "over forward/nat", "slot ", "the kernel picked", "lives for"] {
        assert!(why.contains(part), "no `{part}` in {why}");
    }
    drop(held);
    await_ended(&lemonade, 1);
    let (_, rest) = why.split_once("went to backend web/").expect("a backend");
    let (backend, _) = rest.split_once(' ').expect("its name");
    assert_eq!(lemonade.metrics().picks(backend), 1, "the kernel counted it there");
    let why = told(&["why", &client]);
    assert!(why.contains("(closed)"), "{why}");
    assert!(told(&["connections", "--ended"]).contains(&client));
}

#[test]
fn trace_tells_what_the_kernel_decides_and_what_it_drops() {
    let Some(network) = Network::start("trace_tells_what_the_kernel_decides_and_what_it_drops") else {
        return;
    };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends));
    let traced = |filter: [&str; 2], event: &dyn Fn()| {
        std::thread::scope(|scope| {
            let trace = scope.spawn(|| {
                let socket = lemonade.socket();
                let admin = socket.to_str().expect("UTF-8");
                let [name, value] = filter;
                let output = run(&["trace", "-n", "1", "--frontend", "web", name, value, "--admin", admin]);
                String::from_utf8(output.stdout).expect("text")
            });
            // The reader may come a moment late.
            while !trace.is_finished() {
                event();
                std::thread::sleep(Duration::from_millis(100));
            }
            trace.join().expect("no panic")
        })
    };
    let decision = traced(["--kind", "decision"], &|| {
        ask(&network, V4.frontend(), 1);
    });
    assert!(decision.contains("because: round_robin, slot "), "{decision}");
    assert!(decision.contains("; forwarded in the kernel\n"), "{decision}");
    let dying = network.client.enter(|| TcpStream::connect(V4.frontend())).expect("a connection");
    dying.set_ttl(1).expect("option of a live socket");
    let dropped = traced(["--reason", "hop_limit"], &|| {
        // What is not acknowledged is sent again.
        let _ = (&dying).write_all(b"?");
    });
    assert!(dropped.contains("DROPPED hop_limit: its time to live ended here"), "{dropped}");
    let ended = traced(["--kind", "end"], &|| {
        let reset = network.client.enter(|| TcpStream::connect(V4.frontend())).expect("a connection");
        socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("option of a live socket");
    });
    assert!(
        ended.contains(": the client reset it (client_reset); ") && ended.contains(" at web/"),
        "{ended}"
    );
    assert!(!ended.contains(" 0B up") && !ended.contains(" 0B down"), "both directions count: {ended}");
}

/// Exact transfers under loss, with these lines of the frontend after `prepare`; says what the status says of the plane.
pub fn transfers(test: &str, addresses: &Addresses, lines: &[&str], prepare: fn(&Network)) -> Option<String> {
    let network = Network::start(test)?;
    prepare(&network);
    let backends = addresses.speaking(&network);
    let lemonade = start(&network, &addresses.setup(&backends).frontend(lines));
    for namespace in [&network.client, &network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 1 drop");
    }
    let mut plan = transfer::plan(5, 60, 16 << 20);
    plan.iter_mut().for_each(|transfer| {
        transfer.up = transfer.up.min(4 << 20);
        transfer.down = transfer.down.min(4 << 20);
    });
    let failures = network.client.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(transfer::run(addresses.frontend(), &plan, 30))
    });
    assert_eq!(failures, [""; 0]);
    for backend in &backends {
        assert!(backend.truth().served() > 0, "a backend served none");
        assert_eq!(backend.truth().failures(), [""; 0]);
    }
    await_ended(&lemonade, 60);
    crate::hooks::redirected(&network, lines);
    Some(words(&lemonade))
}

/// What the status says of the plane.
pub fn words(lemonade: &Lemonade) -> String {
    lemonade.status().0["forward"]["words"].as_str().expect("words").to_owned()
}

#[test]
fn transfers_are_exact_under_loss_over_ipv4() {
    transfers("transfers_are_exact_under_loss_over_ipv4", &V4, &[], |_| ());
}

#[test]
fn transfers_are_exact_under_loss_over_ipv6() {
    transfers("transfers_are_exact_under_loss_over_ipv6", &V6, &[], |_| ());
}

#[test]
fn a_source_keeps_its_backend() {
    let Some(network) = Network::start("a_source_keeps_its_backend") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends).pool(&["strategy = \"source_hash\""]));
    let first = ask(&network, V4.frontend(), 30);
    assert!(first.iter().all(|name| *name == first[0]), "{first:?}");
    // Behind the same seed the proxy picks the same one.
    let proxied =
        V4.setup(&backends).pool(&["strategy = \"source_hash\""]).frontend(&["data_plane = \"proxy\""]);
    lemonade.reload(&proxied);
    assert_eq!(lemonade.status().frontend("web")["plane"], "proxy");
    assert_eq!(ask(&network, V4.frontend(), 30), first);
}

/// Datagrams and their answers, as [`transfers`].
pub fn datagrams(test: &str, addresses: &Addresses, lines: &[&str], prepare: fn(&Network)) -> Option<String> {
    let network = Network::start(test)?;
    prepare(&network);
    let servers: Vec<UdpSocket> = network.backends.enter(|| {
        addresses.backends.iter().map(|own| UdpSocket::bind(parse(own)).expect("our address")).collect()
    });
    let at: Vec<_> = servers.iter().map(|server| server.local_addr().expect("a bound socket")).collect();
    let mut setup = lemonade_tests::setup::Setup::single(&at);
    setup.frontends[0] = lemonade_tests::setup::Frontend::on("web", addresses.frontend, "web");
    let setup = setup.runtime(&["drain_timeout = \"1s\""]).frontend(&[
        "protocol = \"udp\"",
        "data_plane = \"forward\"",
        "forward.connection_table = 4096",
    ]);
    let setup = setup.frontend(lines);
    for server in servers {
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            server.set_read_timeout(Some(Duration::from_secs(30))).expect("a live socket");
            while let Ok((n, from)) = server.recv_from(&mut buffer) {
                server.send_to(&buffer[..n], from).expect("the balancer is near");
            }
        });
    }
    let lemonade = start(&network, &setup);
    let any = if addresses.frontend().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Kept open: the port of one that has closed may be that of the next, whose datagrams are of the same session then.
    let _clients: Vec<UdpSocket> = network.client.enter(|| {
        let talk = |n: usize| {
            let client = UdpSocket::bind(any).expect("a free port");
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("a live socket");
            client.connect(addresses.frontend()).expect("a route");
            for round in 0..3 {
                let sent = vec![(n + round) as u8; 1 + n * 33];
                client.send(&sent).expect("a route");
                let mut got = [0; 2_048];
                let length = client.recv(&mut got).expect("an answer from the frontend's own address");
                assert_eq!(&got[..length], sent);
            }
            client
        };
        (0..40).map(talk).collect()
    });
    wait::until("every datagram is counted", wait::SOON, || {
        let metrics = lemonade.metrics();
        let of = |way: &str| metrics.sum(&format!("lemonade_frontend_{way}_datagrams_total"), &[]);
        (of("upstream"), of("downstream")) == (120, 120)
    });
    wait::until("sessions last until idle_timeout", wait::SOON, || {
        lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == 40
    });
    let metrics = lemonade.metrics();
    assert!(["a", "b", "c"].iter().all(|name| metrics.picks(name) > 0));
    crate::hooks::redirected(&network, lines);
    Some(words(&lemonade))
}

#[test]
fn sessions_of_datagrams_leave_a_dead_server_and_end_when_they_are_silent() {
    let test = "sessions_of_datagrams_leave_a_dead_server_and_end_when_they_are_silent";
    let Some(network) = Network::start(test) else { return };
    // Each answers probes over TCP beside its datagrams.
    let probed = V4.backends(&network);
    let at: Vec<_> = probed.iter().map(|backend| backend.address).collect();
    for address in at.clone() {
        let server = network.backends.enter(|| UdpSocket::bind(address)).expect("our address");
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            server.set_read_timeout(Some(Duration::from_secs(60))).expect("a live socket");
            while let Ok((_, from)) = server.recv_from(&mut buffer) {
                server.send_to(address.ip().to_string().as_bytes(), from).expect("the balancer is near");
            }
        });
    }
    let setup = V4.setup(&probed).frontend(&["protocol = \"udp\"", "idle_timeout = \"3s\""]).health(&[
        "kind = \"tcp\"",
        "interval = \"100ms\"",
        "fast_interval = \"100ms\"",
        "fall = 2",
    ]);
    let lemonade = start(&network, &setup);
    let client = network.client.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a free port");
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("a live socket");
    network.client.enter(|| client.connect(V4.frontend())).expect("a route");
    let who = || {
        wait::for_some("an answer", wait::SOON, || {
            let mut buffer = [0; 64];
            client.send(b"who").ok()?;
            let length = client.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    };
    let first = who();
    assert_eq!(who(), first, "a session stays");
    let own = at.iter().position(|address| address.ip().to_string() == first).expect("one of them");
    probed[own].refuse();
    wait::until("the session has left", wait::SOON, || who() != first);
    let second = who();
    assert_eq!(who(), second, "and stays with the next");
    wait::until("silent sessions are forgotten", wait::SOON, || {
        let metrics = lemonade.metrics();
        let of = |name: &str| metrics.sum(&format!("lemonade_forward_{name}"), &[]);
        (of("flows_live"), of("table_entries")) == (0, 0)
    });
}

#[test]
fn datagrams_pass_through_the_kernel_over_ipv4() {
    datagrams("datagrams_pass_through_the_kernel_over_ipv4", &V4, &[], |_| ());
}

#[test]
fn datagrams_pass_through_the_kernel_over_ipv6() {
    datagrams("datagrams_pass_through_the_kernel_over_ipv6", &V6, &[], |_| ());
}
