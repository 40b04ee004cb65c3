//! A retransmission may begin with bytes that have arrived: TCP leaves it to the reader to skip them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use lemonade::metrics::port::End;
use lemonade::model::relay::RelayCell;
use lemonade::proxy::adapters::bpf::Kernel;
use lemonade::proxy::flow::Direction;
use lemonade::proxy::relay::sockmap::Carried;
use lemonade_tests::stream;
use socket2::{Domain, Protocol, Socket, Type};

use super::{alone, pair, relay};

/// Queues of `TCP_REPAIR_QUEUE` (linux/tcp.h).
const RECEIVED: u32 = 1;
const SENT: u32 = 2;

/// What `TCP_REPAIR_WINDOW` tells and takes: `snd_wl1`, `snd_wnd`, `max_window`, `rcv_wnd`, `rcv_wup`.
type Window = [u32; 5];

fn set<T>(socket: &Socket, option: libc::c_int, value: &T) {
    let (at, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `length` bytes of `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, at, length) };
    assert_eq!(result, 0, "option {option}: {}", std::io::Error::last_os_error());
}

fn told<T: Default>(socket: &Socket, option: libc::c_int) -> T {
    let (mut value, mut length) = (T::default(), size_of::<T>() as libc::socklen_t);
    let at = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most `length` bytes of `value`, whose bytes may be any.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, at, &raw mut length) };
    assert_eq!(result, 0, "option {option}: {}", std::io::Error::last_os_error());
    value
}

fn sequence(socket: &Socket, queue: u32) -> u32 {
    set(socket, libc::TCP_REPAIR_QUEUE, &queue);
    told(socket, libc::TCP_QUEUE_SEQ)
}

/// The same connection from a socket that has sent `fewer` bytes.
fn set_back(client: TcpStream, fewer: u32) -> TcpStream {
    let (local, peer): (SocketAddr, _) =
        (client.local_addr().expect("bound"), client.peer_addr().expect("connected"));
    let old = Socket::from(client);
    set(&old, libc::TCP_REPAIR, &1_u32);
    let (sent, received) = (sequence(&old, SENT), sequence(&old, RECEIVED));
    let [_, window, largest, own, _]: Window = told(&old, libc::TCP_REPAIR_WINDOW);
    // In repair, it closes without a word to its peer.
    drop(old);
    let new = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    // In repair, it may have a port that others use too.
    set(&new, libc::TCP_REPAIR, &1_u32);
    new.bind(&local.into()).expect("the old one is closed");
    for (queue, next) in [(SENT, sent.wrapping_sub(fewer)), (RECEIVED, received)] {
        set(&new, libc::TCP_REPAIR_QUEUE, &queue);
        set(&new, libc::TCP_QUEUE_SEQ, &next);
    }
    new.connect(&peer.into()).expect("in repair, it asks nobody");
    set(&new, libc::TCP_REPAIR_WINDOW, &[received.wrapping_sub(1), window, largest, own, received]);
    set(&new, libc::TCP_REPAIR, &0_u32);
    new.into()
}

#[test]
fn bytes_that_come_again_in_front_of_new_ones_are_not_passed_on_twice() {
    const SEED: u64 = 3;
    const FIRST: usize = 9_000;
    const AGAIN: usize = 5_000;
    const NEW: usize = 700;
    let _alone = alone();
    let mut kernel = Kernel::load().expect("the object is loaded");
    let relay = relay(&mut kernel, "sockmap");
    let cell = RelayCell::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let near_client = listener.accept().expect("a connection").0;
    let (near_backend, mut backend) = pair(Protocol::TCP);
    for near in [&near_client, &near_backend] {
        near.set_nonblocking(true).expect("a live socket");
    }
    backend.set_read_timeout(Some(Duration::from_secs(20))).expect("a live socket");
    let mut sent = vec![0; FIRST + NEW];
    stream::fill(SEED, 0, &mut sent);
    let peers = std::thread::spawn(move || {
        let mut got = vec![0; FIRST + NEW];
        client.write_all(&sent[..FIRST]).expect("an open connection");
        backend.read_exact(&mut got[..FIRST]).expect("what was sent");
        backend.write_all(b"k").expect("an open connection");
        client.read_exact(&mut [0]).expect("an answer");
        let mut client = set_back(client, AGAIN as u32);
        client.set_nodelay(true).expect("a live socket");
        client.write_all(&sent[FIRST - AGAIN..]).expect("an open connection");
        backend.read_exact(&mut got[FIRST..]).expect("what is new");
        let wrong = stream::check(SEED, 0, &got).err();
        backend.set_read_timeout(Some(Duration::from_millis(300))).expect("a live socket");
        let more = backend.read(&mut [0; 64]).unwrap_or(0);
        // The sender's sequence numbers are behind by now; a reset ends it whatever they are.
        lemonade_tests::socket::reset(backend);
        (wrong.map(|wrong| wrong.to_string()), more)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let carried = runtime.block_on(async {
        let meter = |_: Direction, _: u64| {};
        let idle = Duration::from_secs(60);
        let carried = relay.carry(&near_client, &near_backend, &meter, &cell, idle, std::future::pending());
        tokio::time::timeout(Duration::from_secs(50), carried).await.expect("a reset ends it")
    });
    assert_eq!(peers.join().expect("no panic"), (None, 0), "what was wrong, and bytes too many");
    assert_eq!(carried, Carried::End(End::BackendReset));
    assert!(cell.read().bytes >= (FIRST + NEW) as u64, "blocked: {:?}", cell.read());
}
