//! What relay `splice` keeps in the kernel outlives a killed process, and the next one goes on with it.

use std::path::Path;

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Splice;
use lemonade_common::FlowKey;
use lemonade_common::splice::{Count, FORWARD};
use lemonade_tests::netns::Network;

use crate::splice::{DATA, Flow, NEXT, REDIRECT, SLOT, V4, V6};

fn sets(owner: u64) -> usize {
    let names = std::fs::read_dir(Path::new("/sys/fs/bpf/lemonade")).into_iter().flatten().flatten();
    let owner = format!("{owner:016x}-");
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with(&owner)).count()
}

#[test]
fn flows_that_were_handed_over_outlive_a_killed_process() {
    let test = "flows_that_were_handed_over_outlive_a_killed_process";
    let Some(network) = Network::start(test) else { return };
    let mut random = Rng::new();
    let owner = random.u64(..);
    let (kept, watched) = (Flow::start(V4, &mut random), Flow::start(V6, &mut random));
    let load = |flows| Splice::load_or_adopt(owner, flows).expect("the programs pass the verifier");
    network.balancer.enter(|| {
        let first = load(8);
        assert!(first.outlives() && first.legs().expect("a list").is_empty());
        assert_eq!(Splice::left_by(owner), (true, 0));
        first.own();
        assert_eq!(first.attach().expect("root may"), ["to_backends", "to_client"]);
        let kept = kept.moved(first).watched();
        kept.splice.set_memo(SLOT, [9; 5]);
        kept.hand_over();
        // Another one is begun and not handed over, in another slot.
        let [leg, other] = [0, 1].map(|at| {
            let [peer, own] = watched.ends[at];
            let mut leg = watched.leg(at);
            leg.slot = SLOT + 1;
            (FlowKey::tcp(peer, own), leg)
        });
        kept.splice.begin(SLOT + 1, [0; 2], [0; 2]);
        kept.splice.join(&[leg, other]).expect("there is room");
        assert_eq!(kept.splice.legs().expect("a list").len(), 2);
        let data = kept.segment(0, DATA, b"hello");
        assert_eq!(kept.arrives(&data).0, REDIRECT);
        let legs = kept.splice.legs().expect("a list");
        // As if it were killed: nothing is undone.
        let kept = {
            let next = kept.moved(load(8));
            std::mem::forget(kept);
            next
        };
        assert_eq!(sets(owner), 1);
        // A start that fails leaves what there was.
        drop(kept);
        assert_eq!(sets(owner), 1);
        let next = load(100);
        assert_eq!(next.slots(), 8, "the room is that of what is kept");
        let found = next.legs().expect("a list");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(SLOT, legs[&SLOT])], "not what was only watched");
        assert_ne!(next.state(SLOT) & FORWARD, 0);
        assert_eq!((next.memo(SLOT), next.seen(SLOT, 0).bytes), ([9; 5], 5));
        assert_eq!(next.counts()[Count::Forwarded as usize], 1);
        assert_eq!(next.attach().expect("root may"), ["to_backends", "to_client"]);
        let trial = next.trial(false, &data.build()).expect("a trial");
        assert_eq!(trial.action, REDIRECT);
        let stranger = watched.segment(0, DATA, b"hello").build();
        assert_eq!(next.trial(false, &stranger).expect("a trial").action, NEXT);
        assert_eq!(next.remove_others(), 0);
        next.own();
        // An end in order leaves nothing.
        drop(next);
        assert_eq!(sets(owner), 0);
        assert_eq!(load(100).slots(), 100);
    });
    assert_eq!(sets(owner), 0);
}
