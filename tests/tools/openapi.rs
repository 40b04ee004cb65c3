//! The admin API does what its document says, under made-up requests too.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::full;
use lemonade_tests::tools::{program, root, said};
use serde_json::Value;

/// A TCP address that leads to the unix socket, for a tester that knows only TCP.
fn bridge(socket: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let socket: PathBuf = socket.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
            let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
            std::thread::spawn(move || {
                pump(from_client, to_server, |server| server.shutdown(Shutdown::Write))
            });
            std::thread::spawn(move || {
                pump(server, client, |client: &TcpStream| client.shutdown(Shutdown::Write))
            });
        }
    });
    address
}

fn pump<R: io::Read, W: io::Write>(mut from: R, mut to: W, end: impl Fn(&W) -> io::Result<()>) {
    // Either side may be gone; then so is the other.
    let _ = io::copy(&mut from, &mut to);
    let _ = end(&to);
}

fn kept() -> Value {
    let text = fs::read_to_string(root().join("docs/openapi.json")).expect("the document");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_served_document_is_the_one_that_is_kept_and_its_reads_answer() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    calls(lemonade.address("web"), 1);
    let answer = http::get(lemonade.admin_address(), "/api/v1/openapi.json").expect("it answers");
    let served: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert!(served == kept(), "docs/openapi.json is stale; run `cargo xtask schema`");
    let paths = served["paths"].as_object().expect("paths");
    for (path, operations) in paths {
        // A stream does not end, and two paths want to know of whom.
        if operations.get("get").is_none() || path.ends_with("/events") {
            continue;
        }
        let query = match path.rsplit('/').next() {
            Some("why") => "?connection=127.0.0.1",
            Some("explain") => "?client=127.0.0.1",
            _ => "",
        };
        let answer = http::get(lemonade.admin_address(), &format!("{path}{query}")).expect("it answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[test]
fn schemathesis_finds_no_answer_that_the_document_does_not_have() {
    let test = "schemathesis_finds_no_answer_that_the_document_does_not_have";
    let Some(schemathesis) = program(test, "schemathesis") else { return };
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    calls(lemonade.address("web"), 3);
    let examples = if full() { "1000" } else { "25" };
    for address in [lemonade.admin_address(), bridge(&lemonade.socket())] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = Command::new(&schemathesis)
            .args(["run", &format!("http://{address}/api/v1/openapi.json")])
            .args(["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", examples])
            // Text that is a filter by its type need not be one by its words.
            .args(["--exclude-checks", "positive_data_acceptance"])
            // A stream does not end.
            .args(["--exclude-path", "/api/v1/events", "--request-timeout", "40"])
            .args(["--seed", "1", "--no-color"])
            .current_dir(folder.path())
            .output()
            .expect("schemathesis");
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(http::get(lemonade.admin_address(), "/readyz").expect("it answers").status, 200);
}
