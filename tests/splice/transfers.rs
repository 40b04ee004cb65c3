//! Every byte arrives once and in its place, whenever a conversation is handed over.

use lemonade_tests::netns::Namespace;
use lemonade_tests::skip::full;

use crate::stage::{Stage, V4, V6};
use crate::talk::{Ending, Talk, hold, plan};

/// Holds conversations; at least half of them must have been spliced, and all bytes counted.
pub fn exact(stage: &Stage, talks: &[Talk], concurrency: usize) {
    let spliced = held(stage, &stage.network.client, talks, concurrency);
    assert!(spliced * 2 >= talks.len() as u64, "blocked: {spliced} of {} were spliced", talks.len());
    assert!(stage.relay("bytes_total") > 0);
}

/// Holds conversations from `place`, all of whose bytes must be counted; tells how many were spliced.
pub fn held(stage: &Stage, place: &Namespace, talks: &[Talk], concurrency: usize) -> u64 {
    let before = (stage.relay("promoted_total"), stage.lemonade.metrics().bytes());
    let failures = place.enter(|| hold(stage.frontend, talks, concurrency));
    let spliced = stage.relay("promoted_total") - before.0;
    println!("{} talks, {} failures, {spliced} spliced", talks.len(), failures.len());
    println!("{}", stage.lemonade.status().frontend("web")["kept"]);
    assert_eq!(failures, [""; 0]);
    assert_eq!(stage.backend.failures(), [""; 0]);
    stage.ended();
    let sum = |of: fn((u64, u64)) -> u64| {
        talks
            .iter()
            .map(|talk| of(talk.bytes()) + u64::from(talk.ending == Ending::BackendResets && of((1, 0)) == 1))
            .sum::<u64>()
    };
    let (up, down) = stage.lemonade.metrics().bytes();
    let (up, down) = (up - before.1.0, down - before.1.1);
    assert_eq!((up, down), (sum(|bytes| bytes.0), sum(|bytes| bytes.1)));
    assert_eq!(stage.relay("live"), 0);
    spliced
}

#[test]
fn conversations_are_spliced_in_the_middle_and_lose_nothing() {
    let Some(stage) = Stage::start("conversations_are_spliced_in_the_middle_and_lose_nothing", V4, &[])
    else {
        return;
    };
    exact(&stage, &plan(51, if full() { 20_000 } else { 1_400 }, 400_000), 50);
}

#[test]
fn conversations_by_ipv6_are_spliced_too() {
    let Some(stage) = Stage::start("conversations_by_ipv6_are_spliced_too", V6, &[]) else { return };
    exact(&stage, &plan(52, if full() { 2_000 } else { 200 }, 400_000), 30);
}

/// Conversations that end in order: a lost RST is not sent again, on a direct connection neither.
pub fn orderly(mut plan: Vec<Talk>) -> Vec<Talk> {
    for (index, talk) in plan.iter_mut().enumerate() {
        talk.ending = Ending::ALL[index % 2];
    }
    plan
}

/// A stage on which `percent` of all packets get lost on their way into every namespace.
fn lossy(test: &str, percent: u32) -> Option<Stage> {
    let stage = Stage::start(test, V4, &["connect_timeout = \"30s\"", "user_timeout = \"2m\""])?;
    for namespace in [&stage.network.client, &stage.network.balancer, &stage.network.backends] {
        namespace.filter(&format!("meta l4proto tcp numgen random mod 100 < {percent} drop"));
    }
    Some(stage)
}

#[test]
fn loss_on_both_links_costs_no_byte() {
    let Some(stage) = lossy("loss_on_both_links_costs_no_byte", 1) else { return };
    exact(&stage, &orderly(plan(53, if full() { 2_000 } else { 200 }, 400_000)), 50);
}

#[test]
fn loss_of_one_packet_in_twenty_costs_no_byte() {
    let Some(stage) = lossy("loss_of_one_packet_in_twenty_costs_no_byte", 5) else { return };
    exact(&stage, &orderly(plan(54, if full() { 2_000 } else { 150 }, 100_000)), 150);
}
