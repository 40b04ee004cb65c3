//! A backend in a process of its own, so that a test can kill it.
//!
//! Its arguments are `reads` or `deaf` and an IP address of its own. It prints where it listens, then per connection
//! sends a tagged stream for ever. With `deaf` it never reads, so that bytes lie unread when it dies.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};

use lemonade_tests::trace::write_until_error;

/// Seed of the stream that it sends.
const SEED: u64 = 77;

fn main() {
    let deaf = std::env::args().nth(1).is_some_and(|mode| mode == "deaf");
    let own: IpAddr = std::env::args().nth(2).expect("an address").parse().expect("an address");
    let listener = TcpListener::bind((own, 0)).expect("a free port");
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr().expect("a bound socket")).expect("a reader");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        if !deaf {
            let mut reader = stream.try_clone().expect("a second descriptor");
            std::thread::spawn(move || while reader.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
        }
        std::thread::spawn(move || write_until_error(&mut stream, SEED));
    }
}
