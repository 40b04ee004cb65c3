//! Many connections at once on the short way, and readers that have stopped.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use lemonade::proxy::relay::sk_msg::unread::Unread;
use lemonade_common::sk_msg::MOST_UNREAD;
use lemonade_tests::backend::Backend;
use lemonade_tests::kernel_log::quietly;
use lemonade_tests::load::{Header, Kind};
use lemonade_tests::plane::{Plane as _, Served, SkMsg};
use lemonade_tests::setup::Setup;
use lemonade_tests::trace::{Event, Length, finish, read_to_end, write_until_blocked};
use lemonade_tests::{socket, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Barrier;

use crate::stages::{DOWN, Side, Stage};

fn counter(served: &dyn Served, name: &str) -> u64 {
    let process = served.process().expect("a process of its own");
    process.metrics().maybe(&format!("lemonade_frontend_relay_{name}_total"), &[("relay", "sk_msg")])
}

/// One connection: tagged bytes there and back, while all others are open too.
async fn echoed(address: SocketAddr, seed: u64, all: &Barrier) -> std::io::Result<()> {
    let mut client = tokio::net::TcpStream::connect(address).await?;
    client.write_all(&Header { kind: Kind::Flow, seed, up: 0, down: 0 }.encode()).await?;
    let mut at = 0;
    for size in [1, 100, 5_000, 1, 40_000, 300] {
        let mut chunk = vec![0; size];
        stream::fill(seed, at, &mut chunk);
        client.write_all(&chunk).await?;
        chunk.fill(0);
        client.read_exact(&mut chunk).await?;
        stream::check(seed, at, &chunk).map_err(|wrong| std::io::Error::other(wrong.to_string()))?;
        at += size as u64;
        if at == 1 {
            all.wait().await;
        }
    }
    client.shutdown().await?;
    match client.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(std::io::Error::other("bytes after the last echo")),
    }
}

/// Messages of which no whole number fits what a reader takes at once: its last read of the short way is a short one.
const ODD: usize = 10_007;

/// Nothing follows that would wake a relay which had taken the short read for all there is.
#[test]
fn what_went_by_tcp_behind_the_short_way_is_read_though_nothing_follows() {
    quietly(|| {
        let stage = Stage::start(&SkMsg);
        let line = Unread::open().expect("sock_diag(7)");
        for side in [Side::Client, Side::Backend] {
            let (mut sender, mut reader) = stage.connect(side);
            let own = (sender.peer_addr().expect("connected"), sender.local_addr().expect("bound"));
            let (mut taken, mut by_tcp) = (0, 0);
            // More of them would not fit the window that TCP has told already, and their arrival would wake the relay.
            while by_tcp < 3 {
                let full = || line.of(own.0, own.1).expect("an open socket") + ODD as u32 > MOST_UNREAD;
                if full() {
                    // The relay may be about to read.
                    std::thread::sleep(Duration::from_millis(50));
                    by_tcp += u32::from(full());
                }
                let mut chunk = vec![0; ODD];
                stream::fill(side.seed(), taken, &mut chunk);
                sender.write_all(&chunk).expect("room in the socket");
                taken += ODD as u64;
            }
            reader.set_read_timeout(Some(Duration::from_secs(20))).expect("an open socket");
            let (mut at, mut chunk) = (0, vec![0; 64 << 10]);
            while at < taken {
                let count = reader.read(&mut chunk).unwrap_or_else(|error| {
                    panic!("{side:?}: {error}: the reader got {at} of {taken} bytes")
                });
                assert_ne!(count, 0, "{side:?}: FIN behind {at} of {taken} bytes");
                stream::check(side.seed(), at, &chunk[..count]).expect("the bytes that were sent");
                at += count as u64;
            }
        }
    });
}

#[test]
fn a_thousand_connections_at_once_each_get_their_own_bytes() {
    const COUNT: u64 = 1_000;
    quietly(|| {
        let backends = [Backend::start("a"), Backend::start("b")];
        let served = SkMsg.start(&Setup::single(&backends.each_ref().map(|backend| backend.address)));
        let address = served.address();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let failed: Vec<String> = runtime.expect("a runtime").block_on(async {
            let all = Arc::new(Barrier::new(COUNT as usize));
            let mut flows = tokio::task::JoinSet::new();
            for seed in 0..COUNT {
                let all = Arc::clone(&all);
                flows.spawn(async move { echoed(address, seed, &all).await });
            }
            let done = flows.join_all().await;
            done.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
        });
        assert_eq!(failed, [""; 0]);
        assert_eq!((counter(&*served, "promoted"), counter(&*served, "kept")), (COUNT, 0));
    });
}

#[test]
fn two_hundred_stopped_readers_hold_no_more_than_the_documented_bound() {
    const PAIRS: usize = 200;
    // What a hop holds when it is full: what TCP may, and what may be unread on the short way.
    let limit = |name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("a Linux host");
        text.split_whitespace().last().and_then(|most| most.parse().ok()).expect("three numbers")
    };
    let limit = limit("tcp_rmem") + limit("tcp_wmem") + 2 * u64::from(MOST_UNREAD) + (64 << 10);
    quietly(|| {
        let stage = Stage::start(&SkMsg);
        let line = Unread::open().expect("sock_diag(7)");
        let mut pairs: Vec<(TcpStream, TcpStream)> =
            (0..PAIRS).map(|_| stage.connect(Side::Backend)).collect();
        let taken: Vec<u64> = std::thread::scope(|scope| {
            let writers = pairs
                .iter_mut()
                .map(|(backend, _)| scope.spawn(move || write_until_blocked(backend, DOWN, limit)));
            let writers: Vec<_> = writers.collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let mut most = 0;
        for (_, client) in &pairs {
            let ends = (client.local_addr().expect("bound"), client.peer_addr().expect("connected"));
            let unread = line.of(ends.0, ends.1).expect("the socket is open");
            assert!(unread <= MOST_UNREAD, "{unread} bytes are unread, {MOST_UNREAD} may be");
            most = most.max(unread);
        }
        println!(
            "at most {most} bytes unread, {} taken on average",
            taken.iter().sum::<u64>() / PAIRS as u64
        );
        assert!(u64::from(most) > u64::from(MOST_UNREAD) / 2, "blocked: the short way was not full");
        assert!(counter(&*stage.served, "demoted") >= PAIRS as u64, "sends had to wait for each reader");
        for ((backend, client), taken) in pairs.iter_mut().zip(taken) {
            // The others were not held up.
            client.write_all(&[7]).expect("an open connection");
            let mut byte = [0];
            assert_eq!((socket::read(backend, &mut byte).expect("an open connection"), byte), (1, [7]));
            finish(backend);
            assert_eq!(read_to_end(client, DOWN, Length::Exact), [Event::Bytes(taken), Event::Fin]);
        }
    });
}
