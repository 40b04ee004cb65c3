//! Connections whose backends tell their names.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use lemonade_tests::load::{Header, Kind, NAME};
use lemonade_tests::netns::Network;
use lemonade_tests::wait;

/// Bytes of a question.
pub const BYTES: usize = 8;

/// A connection whose backend says its name with each answer.
pub struct Named {
    stream: TcpStream,
    /// Questions so far.
    pub asked: u64,
}

impl Named {
    pub fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
        let header = Header { kind: Kind::Named, seed: 1, up: 0, down: 0 };
        stream.write_all(&header.encode()).expect("a connection");
        Self { stream, asked: 0 }
    }

    /// So many from the client's side.
    pub fn several(network: &Network, address: SocketAddr, n: usize) -> Vec<Self> {
        network.client.enter(|| (0..n).map(|_| Self::open(address)).collect())
    }

    /// Waits until its backend ends it, asking again and again.
    pub fn await_end(mut self) {
        wait::until("the connection has ended", wait::SOON, || {
            let mut answer = [0; NAME + BYTES];
            self.stream.write_all(&[0; BYTES]).is_err() || self.stream.read_exact(&mut answer).is_err()
        });
    }

    /// Closes it in order; its backend must do so too.
    pub fn close(mut self) {
        self.stream.shutdown(Shutdown::Write).expect("a live connection");
        let mut rest = Vec::new();
        let read = self.stream.read_to_end(&mut rest);
        assert!(read.is_ok_and(|n| n == 0), "something else came than its end: {rest:?}");
    }

    pub fn ask(&mut self) {
        self.asked += 1;
        self.stream.write_all(&self.asked.to_be_bytes()).expect("its backend lives");
    }

    /// Its backend's name, which comes in front of what was asked last.
    pub fn hear(&mut self) -> String {
        let mut answer = [0; NAME + BYTES];
        self.stream.read_exact(&mut answer).expect("its backend lives");
        let (name, asked) = answer.split_at(NAME);
        assert_eq!(asked, self.asked.to_be_bytes(), "the answer to another question");
        String::from_utf8_lossy(name).trim_end().to_owned()
    }
}

/// Everybody asks before the first one hears.
pub fn homes(flows: &mut [Named]) -> Vec<String> {
    flows.iter_mut().for_each(Named::ask);
    flows.iter_mut().map(Named::hear).collect()
}
