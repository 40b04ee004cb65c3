//! A client in a process of its own, so that a test can put it into a cgroup.
//!
//! `KIND ADDRESS NUMBER`: for each of so many sockets it prints who answered and whom the socket sees as its peer.
//! KIND is `tcp`, `connected` for datagrams of connected sockets, or `datagrams` for those of others, of which each asks twice.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use lemonade_tests::load::call_on;

const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, address, number] = &arguments[..] else { panic!("KIND ADDRESS NUMBER") };
    let address: SocketAddr = address.parse().expect("an address");
    for _ in 0..number.parse().expect("a number") {
        let said = match kind.as_str() {
            "tcp" => call(address),
            "connected" => datagram(address, true),
            _ => datagram(address, false),
        };
        match said {
            Ok((who, peer)) => println!("{who} {peer}"),
            Err(error) => println!("failed {error}"),
        }
    }
}

fn call(address: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    let stream = TcpStream::connect(address)?;
    let peer = stream.peer_addr()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok((call_on(stream)?, peer))
}

fn datagram(address: SocketAddr, connected: bool) -> std::io::Result<(String, SocketAddr)> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 64];
    let mut ask = || -> std::io::Result<(String, SocketAddr)> {
        if connected {
            socket.connect(address)?;
            socket.send(b"who")?;
        } else {
            socket.send_to(b"who", address)?;
        }
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
    };
    let first = ask()?;
    let again = ask()?;
    if first != again {
        return Err(std::io::Error::other(format!("{first:?}, then {again:?}")));
    }
    if connected && socket.peer_addr()? != first.1 {
        return Err(std::io::Error::other("getpeername says otherwise"));
    }
    Ok(first)
}
