//! Bytes that are no requests, or bad ones, through both doors of the admin interface of a running process.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use lemonade_tests::admin::{send, send_to};
use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;

/// Memory that hostile inputs may cost for good.
const ROOM: u64 = 32 * 1024 * 1024;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/admin");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

fn started() -> (Backend, Lemonade) {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    (backend, lemonade)
}

/// It answers, serves, and has not grown.
fn unharmed(lemonade: &mut Lemonade, before: u64) {
    assert!(lemonade.exited().is_none(), "it lives");
    assert_eq!(http::get_unix(&lemonade.socket(), "/healthz").expect("it answers").status, 200);
    assert_eq!(calls(lemonade.address("web"), 3), ["a"; 3]);
    let grown = lemonade.resident().saturating_sub(before);
    assert!(grown < ROOM, "{grown} bytes more");
}

fn send_by_tcp(lemonade: &Lemonade, input: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(lemonade.admin_address()).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    send(stream, input)
}

#[test]
fn the_admin_corpus_gets_answers_of_http_and_tcp_changes_nothing() {
    let (_backend, mut lemonade) = started();
    let before = lemonade.resident();
    let (version, filter) = (lemonade.status().config_version(), lemonade.status().0["log_filter"].clone());
    let files = corpus();
    assert!(files.len() >= 20, "the corpus lies beside the fuzz targets");
    for (name, input) in &files {
        let answer = send_by_tcp(&lemonade, input);
        let changes = name.starts_with("backend-") || name == "log-filter.http" || name == "plan.http";
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(!changes || text.starts_with("HTTP/1.1 403"), "{name}: {text}");
    }
    assert_eq!(lemonade.status().config_version(), version);
    assert_eq!(lemonade.status().0["log_filter"], filter);
    for (_, input) in &files {
        send_to(&lemonade.socket(), input);
    }
    unharmed(&mut lemonade, before);
}

#[test]
fn bytes_cut_doubled_and_flipped_leave_the_admin_interface_up_and_bounded() {
    let (_backend, mut lemonade) = started();
    let before = lemonade.resident();
    let mut random = fastrand::Rng::with_seed(17);
    let files = corpus();
    let socket = lemonade.socket();
    let inputs: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            let (_, first) = random.choice(&files).expect("a corpus");
            let (_, second) = random.choice(&files).expect("a corpus");
            let mut bytes = first[..random.usize(0..=first.len())].to_vec();
            bytes.extend_from_slice(&second[random.usize(0..=second.len())..]);
            for _ in 0..random.usize(0..6) {
                if !bytes.is_empty() {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
            }
            bytes
        })
        .collect();
    // Many are no whole request and wait for the rest in vain, so they come side by side.
    std::thread::scope(|scope| {
        for part in inputs.chunks(25) {
            let socket = &socket;
            scope.spawn(move || part.iter().for_each(|input| drop(send_to(socket, input))));
        }
    });
    unharmed(&mut lemonade, before);
}
