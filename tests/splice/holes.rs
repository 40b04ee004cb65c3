//! Bytes that come out of order are acknowledged on their own: who takes a connection over in the middle of that must not
//! forget them.

use lemonade_tests::wait;
use std::io::{Read as _, Write as _};

use crate::ends::{Pair, Scene};
use crate::stage::V4;

/// Bytes before the first that gets lost: with some of the parts the connection begins to last.
const BEFORE: usize = 62_000;

/// Segments that get lost, and their bytes.
const PARTS: usize = 10;
const PART: usize = 777 - 20 - 32;

#[test]
fn a_connection_is_not_handed_over_while_a_socket_waits_for_what_was_lost() {
    let test = "a_connection_is_not_handed_over_while_a_socket_waits_for_what_was_lost";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    for client_sends in [true, false] {
        let before = scene.relay("promoted_total");
        let Pair { mut client, mut backend } = scene.connect(V4[0]);
        let (near, far, namespace) = if client_sends {
            (&mut client, &mut backend, &scene.network.client)
        } else {
            (&mut backend, &mut client, &scene.network.backends)
        };
        // It loses packets of 777 bytes, which is what the parts have with the headers of IPv4, TCP and timestamps, and lets
        // one pass every 150 ms.
        let lossy = namespace.fault("to_balancer", "swallow");
        let block: Vec<u8> = (0..BEFORE + PARTS * PART + 300).map(|at| (at % 251) as u8).collect();
        let (first, rest) = block.split_at(BEFORE);
        let (parts, last) = rest.split_at(PARTS * PART);
        near.write_all(first).expect("the connection lives");
        for part in parts.chunks(PART) {
            near.write_all(part).expect("the connection lives");
        }
        near.write_all(last).expect("the connection lives");
        let mut got = vec![0; block.len()];
        let (early, late) = got.split_at_mut(BEFORE + (PARTS - 1) * PART);
        far.read_exact(early).expect("the bytes arrive");
        assert_eq!(scene.relay("promoted_total"), before, "it was handed over with a hole in a stream");
        far.read_exact(late).expect("the bytes arrive");
        assert!(got == block);
        drop(lossy);
        let mut pair = Pair { client, backend };
        wait::until("the connection is spliced", wait::SOON, || {
            pair.exchange(100);
            scene.relay("promoted_total") == before + 1
        });
        pair.exchange(100_000);
    }
    for namespace in [&scene.network.client, &scene.network.backends] {
        assert_eq!(namespace.tcp_counter("TCPSACKReneging"), 0, "bytes were acknowledged and forgotten");
    }
}
