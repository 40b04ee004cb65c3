//! Out of descriptors: accepting pauses and goes on; it never spins, never dies, and says so.

use std::net::TcpStream;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::call;
use lemonade_tests::setup::Setup;
use lemonade_tests::view::Metrics;
use lemonade_tests::wait;

#[test]
fn want_of_descriptors_pauses_accepting_and_passes() {
    const DESCRIPTORS: u32 = 96;
    let backend = Backend::start("a");
    // A limit above what the descriptors allow, so that they run out.
    let setup = Setup::single(&[backend.address]).runtime(&["max_connections = 1000"]);
    let mut lemonade = Lemonade::start_limited(&setup, DESCRIPTORS);
    let web = lemonade.address("web");
    assert_eq!(call(web).expect("it serves"), "a");

    let crowd: Vec<TcpStream> = (0..2 * DESCRIPTORS).filter_map(|_| TcpStream::connect(web).ok()).collect();
    wait::until("the log says so", wait::SOON, || {
        let output = lemonade.output().to_lowercase();
        output.contains("descriptor") || output.contains("emfile") || output.contains("too many open files")
    });
    let before = lemonade.processor_time();
    std::thread::sleep(Duration::from_secs(2));
    let spent = lemonade.processor_time() - before;
    assert!(spent < Duration::from_secs(1), "{spent:?} of processor time in 2 s of waiting");
    assert!(lemonade.exited().is_none(), "it lives on:\n{}", lemonade.output());
    let lines = lemonade.output().lines().filter(|line| line.to_lowercase().contains("descriptor")).count();
    assert!(lines < 1000, "{lines} log lines about descriptors");

    let arrived = 1 + crowd.len() as u64;
    drop(crowd);
    // Those who waited behind the limit still want two descriptors each; who calls among them may be refused for it.
    wait::until("the crowd is through", wait::SOON, || {
        let answer = http::get_unix(&lemonade.socket(), "/metrics").ok();
        answer.filter(|answer| answer.status == 200).is_some_and(|answer| {
            let (opened, _, live) = Metrics::parse(&answer.body).connections();
            opened >= arrived && live == 0
        })
    });
    for _ in 0..20 {
        assert_eq!(call(web).expect("it serves"), "a");
    }
    let metrics = lemonade.metrics();
    let noticed = metrics.sum("lemonade_accept_pauses_total", &[]) + metrics.refused("no_descriptors");
    assert!(noticed > 0, "the want of descriptors is counted");
    wait::until("nothing leaks", wait::SOON, || lemonade.metrics().connections().2 == 0);
}
