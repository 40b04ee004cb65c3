//! More flows than there is room for are copied, and say why.

use std::sync::PoisonError;
use std::time::Duration;

use lemonade::control::splices::owner;
use lemonade::proxy::adapters::bpf::Splice;
use lemonade_common::FlowKey;
use lemonade_common::splice::Leg;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::ends::{Pair, Scene};
use crate::killed::{TURN, listed, restart, until_on};
use crate::stage::{V4, parse};

/// What a killed process would have left: room for two flows, of which one is taken.
fn leave_little_room(scene: &Scene) {
    let left = Splice::load_or_adopt(owner(&scene.lemonade.folder().join("state")), 2);
    let left = left.expect("the programs pass the verifier");
    let ends = ["198.18.0.1:1", "198.18.0.2:2", "198.18.0.3:3", "198.18.0.4:4"].map(parse);
    let legs = [(0, ends[0], ends[1]), (1, ends[2], ends[3])]
        .map(|(side, peer, own)| (FlowKey::tcp(peer, own), Leg { slot: 1, side, ..Leg::default() }));
    left.begin(1, [0; 2], [0; 2]);
    left.join(&legs).expect("there is room");
    // Of no frontend, accepted when the host started, and it may be idle for longer than any test.
    left.set_memo(1, [0, 0, 1 << 40, 0, 0]);
    assert!(left.hand_over(1, left.state(1)));
    // As if it were killed: nothing is undone.
    std::mem::forget(left);
}

#[test]
fn what_finds_no_room_is_copied_and_says_why() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut scene) = Scene::start("what_finds_no_room_is_copied_and_says_why", V4, |setup| setup) else {
        return;
    };
    scene.lemonade.signal(Signal::INT);
    scene.lemonade.wait(wait::SOON);
    leave_little_room(&scene);
    restart(&mut scene);
    until_on(&scene);
    // The self-tests give their slot back.
    std::thread::sleep(Duration::from_secs(1));
    let kept = |scene: &Scene| scene.lemonade.status().frontend("web")["kept"]["full"].as_u64().unwrap_or(0);
    let first = scene.spliced(V4[0]);
    let mut second = scene.connect(V4[0]);
    for _ in 0..50 {
        second.exchange(1_000);
    }
    wait::until("the reason is told", wait::SOON, || kept(&scene) == 1);
    second.exchange(500_000);
    assert_eq!(scene.relay("promoted_total"), 1);
    // The room of one that has ended serves another.
    let Pair { client, backend } = first;
    client.shutdown(std::net::Shutdown::Write).expect("a live socket");
    drop((backend, client));
    wait::until("it has ended", wait::SOON, || listed(&scene).len() == 2);
    // Until its last packets cannot come any more.
    std::thread::sleep(Duration::from_secs(4));
    let mut third = scene.spliced(V4[0]);
    third.exchange(100_000);
    second.exchange(100_000);
}
