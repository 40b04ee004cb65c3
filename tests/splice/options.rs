//! Options of TCP that the ends agree on with the proxy, each with its own: timestamps, SACK, window scales.

use std::os::fd::AsRawFd as _;

use lemonade_tests::netns::Namespace;
use lemonade_tests::skip::full;
use lemonade_tests::socket;
use lemonade_tests::wait;

use crate::stage::{Stage, V4};
use crate::talk::{Talk, plan};
use crate::transfers::{held, orderly};

/// Few conversations, each long enough to be spliced on a busy machine too.
fn lasting(seed: u64, count: usize, largest: u64) -> Vec<Talk> {
    let plan = orderly(plan(seed, count, largest)).into_iter();
    plan.map(|talk| Talk { turns: 80, pause: 5, ..talk }).collect()
}

/// Sets whether the kernel of a namespace offers timestamps and SACK.
fn offers(namespace: &Namespace, [stamps, blocks]: [bool; 2]) {
    namespace.sysctl("ipv4/tcp_timestamps", if stamps { "1" } else { "0" });
    namespace.sysctl("ipv4/tcp_sack", if blocks { "1" } else { "0" });
}

#[test]
fn ends_that_agree_are_spliced_and_others_copied_with_and_without_timestamps_and_sack() {
    let test = "ends_that_agree_are_spliced_and_others_copied_with_and_without_timestamps_and_sack";
    let Some(stage) = Stage::start(test, V4, &["connect_timeout = \"30s\""]) else { return };
    for namespace in [&stage.network.client, &stage.network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 1000 < 5 drop");
    }
    let both = [[true, true], [true, false], [false, true], [false, false]];
    let count = if full() { 200 } else { 20 };
    for client in both {
        for backend in both {
            offers(&stage.network.client, client);
            offers(&stage.network.backends, backend);
            let kept = stage.kept("options");
            let talks = lasting(71, if client == backend { count } else { count / 2 }, 60_000);
            let spliced = held(&stage, &stage.network.client, &talks, 40) as usize;
            if client == backend {
                assert!(spliced * 2 >= talks.len(), "blocked: {spliced} of {} with {client:?}", talks.len());
            } else {
                assert_eq!(spliced, 0, "{client:?} and {backend:?}");
                wait::until("the reason is told", wait::SOON, || stage.kept("options") > kept);
            }
        }
    }
}

/// Window scales of a connection that the caller makes: the peer's and its own.
fn scales(stage: &Stage) -> [u8; 2] {
    let stream = socket::connect(stage.frontend).expect("the proxy accepts");
    let mut info = [0_u8; 8];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and there are as many.
    let result = unsafe {
        let value = info.as_mut_ptr().cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length)
    };
    assert_eq!(result, 0);
    [info[6] & 15, info[6] >> 4]
}

#[test]
fn windows_of_every_scale_are_translated() {
    let Some(stage) = Stage::start("windows_of_every_scale_are_translated", V4, &[]) else { return };
    let network = &stage.network;
    for namespace in [&network.client, &network.balancer, &network.backends] {
        namespace.sysctl("ipv4/tcp_rmem", "4096 131072 1073741824");
    }
    // The clamp of a route decides on the scale of connections by it.
    let route = |namespace: &Namespace, link: u8, host: &str, device: &str, scale: u8| {
        let window = 1_u32 << (15 + scale);
        let from = format!("10.77.{link}.{host}");
        namespace.ip(&format!(
            "route replace 10.77.{link}.0/24 dev {device} proto kernel scope link src {from} window {window}"
        ));
    };
    for scale in 0..15_u8 {
        let other = 14 - scale;
        route(&network.client, 1, "1", "to_balancer", scale);
        route(&network.backends, 2, "1", "to_balancer", other);
        route(&network.balancer, 1, "2", "to_client", (scale * 4) % 15);
        route(&network.balancer, 2, "2", "to_backends", (scale * 7) % 15);
        assert_eq!(network.client.enter(|| scales(&stage)), [(scale * 4) % 15, scale]);
        let talks = lasting(72 + u64::from(scale), if full() { 200 } else { 10 }, 300_000);
        let spliced = held(&stage, &network.client, &talks, 10) as usize;
        assert!(spliced * 2 >= talks.len(), "blocked: {spliced} of {} with scale {scale}", talks.len());
    }
}
