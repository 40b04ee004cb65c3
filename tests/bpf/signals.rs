//! What the kernel tells of backends, and the cgroup that it is told for.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::skip;
use lemonade_tests::wait;
use rustix::process::Signal;
use socket2::SockRef;

/// Time in which a process ends.
const END: Duration = Duration::from_secs(20);

/// A backend that answers three bytes with three, and resets who sends `rst`.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream);
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut asked = [0; 3];
    while stream.read_exact(&mut asked).is_ok() {
        if &asked == b"rst" {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a live socket");
            return;
        }
        stream.write_all(&asked).expect("the proxy reads");
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the frontend accepts");
    stream.set_read_timeout(Some(END)).expect("a live socket");
    stream
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"abc").expect("the proxy reads");
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).expect("the backend answers");
    assert_eq!(&answer, b"abc");
}

/// The cgroup of a process, as its status names it.
fn cgroup(lemonade: &Lemonade) -> PathBuf {
    let status = lemonade.status();
    let words = status.0["kernel"].as_str().expect("a line about the kernel");
    let (_, path) = words.split_once("cgroup ").unwrap_or_else(|| panic!("nothing in the kernel: {words}"));
    path.into()
}

fn members(cgroup: &Path) -> String {
    fs::read_to_string(cgroup.join("cgroup.procs")).expect("a cgroup")
}

#[test]
fn resets_of_the_backend_count_and_those_of_the_proxy_do_not() {
    let mut lemonade = Lemonade::start(&Setup::single(&[backend()]));
    let address = lemonade.address("web");
    // One that ends in good order, one that the client resets (so the proxy resets the backend), one the backend resets.
    let mut good = connect(address);
    exchange(&mut good);
    good.shutdown(Shutdown::Write).expect("a live socket");
    assert_eq!(good.read(&mut [0; 1]).expect("the end"), 0);
    let mut ours = connect(address);
    exchange(&mut ours);
    SockRef::from(&ours).set_linger(Some(Duration::ZERO)).expect("a live socket");
    drop(ours);
    let mut theirs = connect(address);
    theirs.write_all(b"rst").expect("the proxy reads");
    assert!(theirs.read(&mut [0; 1]).is_err(), "a reset stays a reset");
    wait::until("the kernel counted all three", wait::SOON, || {
        lemonade.status().backend("web", "a")["tcp"]["closes"] == 3
    });
    let status = lemonade.status();
    let tcp = &status.backend("web", "a")["tcp"];
    assert_eq!((&tcp["resets"], &tcp["early_resets"]), (&1.into(), &0.into()), "{tcp}");
    assert_eq!(tcp["source"], "kernel");
    assert!(tcp["srtt_us"].as_u64() > Some(0) && tcp["connect_us"].as_u64() > Some(0), "{tcp}");
    let kernel_connect = tcp["connect_us"].as_u64().expect("a number");
    assert!(kernel_connect < 1_000_000, "a handshake over loopback took {kernel_connect} us");
    lemonade.signal(Signal::INT);
    lemonade.wait(END);
}

/// A backend that does as `serve` says with each connection.
fn backend_that(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address
}

#[test]
fn a_reset_before_any_byte_is_an_early_one() {
    let resetting = backend_that(|stream| {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a live socket");
    });
    let lemonade = Lemonade::start(&Setup::single(&[resetting]));
    assert!(connect(lemonade.address("web")).read(&mut [0; 1]).is_err(), "a reset stays a reset");
    wait::until("the kernel counted it", wait::SOON, || {
        lemonade.status().backend("web", "a")["tcp"]["early_resets"] == 1
    });
    assert_eq!(lemonade.status().backend("web", "a")["tcp"]["resets"], 1);
}

#[test]
fn what_a_probe_leaves_unread_is_no_reset_of_the_backend() {
    let endless = backend_that(|mut stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        let _ = stream.write_all(head);
        while stream.write_all(&[b'x'; 65_536]).is_ok() {}
    });
    let probes =
        ["kind = \"http\"", "interval = \"100ms\"", "fast_interval = \"100ms\"", "timeout = \"50ms\""];
    let lemonade = Lemonade::start(&Setup::single(&[endless]).health(&probes));
    wait::until("probes ended", wait::SOON, || {
        lemonade.status().backend("web", "a")["tcp"]["closes"].as_u64() > Some(2)
    });
    let status = lemonade.status();
    let tcp = &status.backend("web", "a")["tcp"];
    assert_eq!(tcp["resets"], 0, "{tcp}");
}

#[test]
fn the_time_of_a_handshake_counts_a_lost_syn_which_is_logged() {
    // The queue holds one connection; SYNs are dropped while it is there.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    listener.listen(0).expect("a bound socket");
    let listener: TcpListener = listener.into();
    let address = listener.local_addr().expect("a bound socket");
    let _first = TcpStream::connect(address).expect("room for one");
    let mut setup = Setup::single(&[address]).frontend(&["connect_timeout = \"10s\""]);
    setup.log = vec!["level = \"debug\"".to_owned()];
    let lemonade = Lemonade::start(&setup);
    let mut client = connect(lemonade.address("web"));
    wait::until("the SYN is sent again", wait::SOON, || lemonade.output().contains("was sent again"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    exchange(&mut client);
    wait::until("the kernel timed it", wait::SOON, || {
        lemonade.status().backend("web", "a")["tcp"]["connect_us"].as_u64() > Some(0)
    });
    let status = lemonade.status();
    let tcp = &status.backend("web", "a")["tcp"];
    assert!(tcp["connect_us"].as_u64() >= Some(1_000_000), "the first second is missing: {tcp}");
    assert!(tcp["retransmits"].as_u64() >= Some(1), "{tcp}");
    let line = format!("a SYN to port {} of a backend was sent again", address.port());
    assert!(lemonade.output().contains(&line), "{}", lemonade.output());
}

#[test]
fn the_cgroup_lasts_as_long_as_the_process() {
    let mut lemonade = Lemonade::start(&Setup::single(&[backend()]));
    let cgroup = cgroup(&lemonade);
    assert_eq!(members(&cgroup).trim(), lemonade.pid().as_raw_nonzero().to_string());
    lemonade.signal(Signal::INT);
    assert!(lemonade.wait(END).success(), "{}", lemonade.output());
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
}

#[test]
fn the_next_start_removes_what_a_killed_process_left() {
    let setup = Setup::single(&[backend()]);
    let mut killed = Lemonade::start(&setup);
    let left = cgroup(&killed);
    killed.signal(Signal::KILL);
    killed.wait(END);
    assert!(left.exists(), "a killed process cannot tidy up");
    let mut next = Lemonade::start(&setup);
    assert!(!left.exists(), "{} is left", left.display());
    next.signal(Signal::INT);
    next.wait(END);
}

#[test]
fn an_ordinary_user_is_served_in_userspace_and_told_why() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "an_ordinary_user_is_served_in_userspace_and_told_why",
            "needs root to become another user",
        );
    }
    // The workspace may lie where another user cannot look.
    let copy = tempfile::Builder::new().prefix("lemonade-bin-").tempdir().expect("a temporary folder");
    let program = copy.path().join("lemonade");
    fs::copy(binary(), &program).expect("a copy");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(copy.path(), open).expect("the folder is ours");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    let setup = Setup::single(&[backend()]);
    let mut lemonade = Lemonade::start_through(command, &setup, |command| {
        // The folder is made by this process, and its files by the other.
        let folder =
            command.get_args().last().map(|config| Path::new(config).parent().map(Path::to_path_buf));
        let folder = folder.flatten().expect("the folder of the configuration");
        std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).expect("we are root");
        command.process_group(0);
    });
    exchange(&mut connect(lemonade.address("web")));
    wait::until("TCP_INFO told of the backend", wait::SOON, || {
        lemonade.status().backend("web", "a")["tcp"]["source"] == "tcp_info"
    });
    let status = lemonade.status();
    let tcp = &status.backend("web", "a")["tcp"];
    assert!(tcp["srtt_us"].as_u64() > Some(0) && tcp["closes"].is_null(), "{tcp}");
    let words = status.0["kernel"].as_str().unwrap_or_default();
    assert!(words.starts_with("nothing: ") && words.contains("CAP_BPF"), "{words}");
    let lines = lemonade.output().lines().filter(|line| line.contains("serving in userspace")).count();
    assert_eq!(lines, 1, "{}", lemonade.output());
    lemonade.signal(Signal::INT);
    lemonade.wait(END);
}
