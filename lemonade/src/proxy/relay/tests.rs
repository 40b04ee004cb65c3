//! What the peers of a relayed connection see, over real sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::State;
use super::copy::{Stop, copy};
use crate::metrics::port::End;
use crate::proxy::flow::Direction;
use crate::proxy::socket::reset_on_close;

const SOON: Duration = Duration::from_secs(5);

/// A client and a backend with a relay between them.
struct Relayed {
    client: TcpStream,
    backend: TcpStream,
    relay: JoinHandle<(End, State)>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), accepted.unwrap().0)
}

async fn relayed() -> Relayed {
    relayed_by(16 * 1024).await
}

async fn relayed_by(size: usize) -> Relayed {
    let ((client, near_client), (near_backend, backend)) = tokio::join!(pair(), pair());
    let relay = tokio::spawn(async move {
        let mut state = State::default();
        let stop = copy(&near_client, &near_backend, &mut state, size, &|_: Direction, _: u64| {}).await;
        let Stop::End(end) = stop else { panic!("nobody asked to hand over") };
        // Both sockets close here: that is the last FIN.
        (end, state)
    });
    Relayed { client, backend, relay }
}

async fn end_of(relay: JoinHandle<(End, State)>) -> (End, State) {
    timeout(SOON, relay).await.expect("the relay ends").unwrap()
}

/// Writes until nothing more is taken, so that the relay holds bytes that it cannot pass on.
async fn block(stream: &mut TcpStream) {
    let chunk = vec![7; 64 * 1024];
    while timeout(Duration::from_millis(200), stream.write_all(&chunk)).await.is_ok() {}
}

#[tokio::test]
async fn half_close_passes_in_both_orders_and_ends_in_order() {
    for client_first in [true, false] {
        let Relayed { client, backend, relay } = relayed().await;
        let (mut first, mut second) = if client_first { (client, backend) } else { (backend, client) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut read = Vec::new();
        timeout(SOON, second.read_to_end(&mut read)).await.unwrap().unwrap();
        assert_eq!(read, b"question");
        second.write_all(b"answer after the other side's end").await.unwrap();
        second.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, first.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"answer after the other side's end");
        let (end, state) = end_of(relay).await;
        assert_eq!(end, End::Closed);
        assert!(state.quiescent() && state.up.read == state.up.written);
    }
}

#[tokio::test]
async fn a_reset_after_fin_is_seen_although_nothing_is_read_any_more() {
    let Relayed { mut client, mut backend, relay } = relayed().await;
    client.shutdown().await.unwrap();
    assert_eq!(timeout(SOON, backend.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    reset_on_close(&client);
    drop(client);
    assert_eq!(end_of(relay).await.0, End::ClientReset);
}

#[tokio::test]
async fn a_client_reset_is_seen_while_the_backend_does_not_read() {
    let Relayed { mut client, backend: _held, relay } = relayed().await;
    block(&mut client).await;
    reset_on_close(&client);
    drop(client);
    assert_eq!(end_of(relay).await.0, End::ClientReset);
}

#[tokio::test]
async fn what_a_backend_sent_before_its_reset_arrives() {
    let Relayed { mut client, mut backend, relay } = relayed().await;
    backend.write_all(b"last words").await.unwrap();
    let mut words = [0; 10];
    timeout(SOON, client.read_exact(&mut words)).await.unwrap().unwrap();
    reset_on_close(&backend);
    drop(backend);
    let (end, state) = end_of(relay).await;
    assert_eq!((end, &words), (End::BackendReset, b"last words"));
    assert!(!state.untouched());
}

#[tokio::test]
async fn a_connection_reset_before_its_first_byte_is_untouched() {
    let Relayed { client: _held, backend, relay } = relayed().await;
    reset_on_close(&backend);
    drop(backend);
    let (end, state) = end_of(relay).await;
    assert_eq!(end, End::BackendReset);
    assert!(state.untouched());
}

#[tokio::test]
async fn every_byte_arrives_in_order_both_ways_at_once() {
    for size in [16 * 1024, 256 * 1024] {
        every_byte_arrives(relayed_by(size).await).await;
    }
}

async fn every_byte_arrives(Relayed { client, backend, relay }: Relayed) {
    const SIZE: usize = 4 << 20;
    let byte = |i: usize, salt: usize| ((i / 251) ^ (i * 31) ^ salt) as u8;
    let run = async |stream: TcpStream, salt: usize| {
        let (mut reader, mut writer) = stream.into_split();
        let sent: Vec<u8> = (0..SIZE).map(|i| byte(i, salt)).collect();
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let ((), got) = tokio::join!(write, reader.read_to_end(&mut read));
        got.unwrap();
        read
    };
    let (from_backend, from_client) =
        timeout(SOON * 4, async { tokio::join!(run(client, 1), run(backend, 2)) }).await.unwrap();
    assert!(from_client.len() == SIZE && (0..SIZE).all(|i| from_client[i] == byte(i, 1)));
    assert!(from_backend.len() == SIZE && (0..SIZE).all(|i| from_backend[i] == byte(i, 2)));
    let (end, state) = end_of(relay).await;
    assert_eq!((end, state.up.written, state.down.written), (End::Closed, SIZE as u64, SIZE as u64));
}
