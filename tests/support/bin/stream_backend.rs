//! A backend in a process of its own, so that a test can kill it.
//!
//! It prints its address, then per connection sends a tagged stream for ever. With `deaf` it never reads, so that
//! bytes lie unread when it dies.

use std::io::{Read, Write};
use std::net::TcpListener;

use lemonade_tests::trace::write_until_error;

/// Seed of the stream that it sends.
const SEED: u64 = 77;

fn main() {
    let deaf = std::env::args().nth(1).is_some_and(|mode| mode == "deaf");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
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
