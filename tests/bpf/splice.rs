//! The programs of relay `splice`, run on packets that go nowhere: what leaves is compared with a model of its own.

use std::net::SocketAddr;

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Splice;
use lemonade_common::FlowKey;
use lemonade_common::csum::address_delta;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_common::splice::{ACKED, Count, FINISHED, FORWARD, HALT, Leg, REOPENED, RESET, STAMPED};
use lemonade_tests::netns::Network;
use lemonade_tests::segments::Segment;

/// Actions of tc.
pub(crate) const NEXT: u32 = u32::MAX;
pub(crate) const DROP: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;

/// PSH and ACK.
pub(crate) const DATA: u8 = 0x18;

pub(crate) const V4: [&str; 4] = ["198.51.100.7:40000", "192.0.2.1:80", "10.0.0.254:50000", "10.0.0.1:8080"];
pub(crate) const V6: [&str; 4] =
    ["[2001:db8::7]:40000", "[2001:db8::1]:80", "[fd00::fe]:50000", "[fd00::1]:8080"];

/// A flow between a client and a backend, and the balancer's addresses towards each.
pub(crate) struct Flow {
    pub(crate) splice: Splice,
    /// Peer and the balancer's own address, of client and backend.
    pub(crate) ends: [[SocketAddr; 2]; 2],
    /// Where each side's bytes end, and where what was sent to it does.
    pub(crate) numbers: [[u32; 2]; 2],
    scales: [[u8; 2]; 2],
    stamp_deltas: [u32; 2],
}

pub(crate) const SLOT: u32 = 3;

impl Flow {
    /// A flow that is watched.
    pub(crate) fn start(addresses: [&str; 4], random: &mut Rng) -> Self {
        let [client, frontend, own, backend] = addresses.map(|text| text.parse().expect("an address"));
        let ends: [[SocketAddr; 2]; 2] = [[client, frontend], [backend, own]];
        let numbers = [[random.u32(..), random.u32(..)], [random.u32(..), random.u32(..)]];
        let scales = [[random.u8(..15), random.u8(..15)], [random.u8(..15), random.u8(..15)]];
        let stamp_deltas = [random.u32(..), random.u32(..)];
        let splice = Splice::load(8).expect("the programs pass the verifier");
        Self { splice, ends, numbers, scales, stamp_deltas }.watched()
    }

    /// The same flow in another set of maps.
    pub(crate) fn moved(&self, splice: Splice) -> Self {
        let Self { ends, numbers, scales, stamp_deltas, .. } = *self;
        Self { splice, ends, numbers, scales, stamp_deltas }
    }

    /// The flow, made known to the programs.
    pub(crate) fn watched(self) -> Self {
        let (flow, ends, numbers) = (&self, self.ends, self.numbers);
        let legs = [0, 1].map(|at| (FlowKey::tcp(ends[at][0], ends[at][1]), flow.leg(at)));
        flow.splice.begin(SLOT, [0, 1].map(|at| numbers[at][0]), [0, 1].map(|at| numbers[at][1]));
        flow.splice.join(&legs).expect("there is room");
        self
    }

    pub(crate) fn leg(&self, at: usize) -> Leg {
        let (key, [dst, src]) = (FlowKey::tcp(self.ends[at][0], self.ends[at][1]), self.ends[1 - at]);
        let leaves = FlowKey::tcp(src, dst);
        let sum = |one: &[u8; 16], other: &[u8; 16]| address_delta(one, other);
        Leg {
            src: leaves.src,
            dst: leaves.dst,
            sport: leaves.sport,
            dport: leaves.dport,
            slot: SLOT,
            side: at as u32,
            sequence: self.sequence(at),
            acknowledgement: 0_u32.wrapping_sub(self.sequence(1 - at)),
            address_delta: sum(&key.src, &leaves.src) + sum(&key.dst, &leaves.dst),
            scales: [self.scales[at][0], self.scales[1 - at][1]],
            reserved: [0; 6],
        }
    }

    /// What the sequence numbers of a side change by.
    fn sequence(&self, at: usize) -> u32 {
        self.numbers[1 - at][1].wrapping_sub(self.numbers[at][0])
    }

    pub(crate) fn hand_over(&self) {
        for at in 0..2 {
            let [received, owed] = self.numbers[at];
            self.splice.promise(SLOT, at, received, owed, self.stamp_deltas[at]);
        }
        assert!(self.splice.hand_over(SLOT, self.splice.state(SLOT)));
    }

    /// The next segment of a side.
    pub(crate) fn segment(&self, at: usize, flags: u8, data: &[u8]) -> Segment {
        let [from, to] = self.ends[at];
        let [sequence, ack] = self.numbers[at];
        Segment { data: data.to_vec(), ..Segment::new(from, to, flags, sequence, ack) }
    }

    pub(crate) fn arrives(&self, segment: &Segment) -> (u32, Vec<u8>) {
        let trial = self.splice.trial(false, &segment.build()).expect("a trial");
        (trial.action, trial.packet)
    }

    pub(crate) fn leaves(&self, segment: &Segment) -> (u32, Vec<u8>) {
        let trial = self.splice.trial(true, &segment.build()).expect("a trial");
        (trial.action, trial.packet)
    }

    /// What a segment of a side must be behind the balancer.
    pub(crate) fn model(&self, at: usize, segment: &Segment) -> Segment {
        let [to, from] = self.ends[1 - at];
        let back = 0_u32.wrapping_sub(self.sequence(1 - at));
        let owed = self.numbers[at][1];
        // Below it the acknowledgement is raised, and blocks may be about what the other side has forgotten.
        let raised = (segment.ack.wrapping_sub(owed) as i32) < 0;
        let ack = if raised { owed } else { segment.ack };
        let left_out = if raised && !segment.blocks.is_empty() { 2 + 8 * segment.blocks.len() } else { 0 };
        let [told_by, _] = self.scales[at];
        let [_, read_by] = self.scales[1 - at];
        let window = (u64::from(segment.window) << told_by) >> read_by;
        let least = u64::from(segment.window != 0);
        let mine = self.stamp_deltas;
        Segment {
            from,
            to,
            ttl: 64,
            flags: segment.flags,
            sequence: segment.sequence.wrapping_add(self.sequence(at)),
            ack: if segment.flags & ACK != 0 { ack.wrapping_add(back) } else { segment.ack },
            window: window.clamp(least, 65_535) as u16,
            stamp: segment
                .stamp
                .map(|(value, echo)| (value.wrapping_add(mine[at]), echo.wrapping_sub(mine[1 - at]))),
            blocks: segment
                .blocks
                .iter()
                .filter(|_| !raised)
                .map(|(a, b)| (a.wrapping_add(back), b.wrapping_add(back)))
                .collect(),
            shifted: segment.shifted,
            nothings: segment.nothings + left_out,
            data: segment.data.clone(),
        }
    }
}

fn any(random: &mut Rng, flow: &Flow, at: usize) -> Segment {
    let mut segment =
        flow.segment(at, [DATA, DATA | FIN, ACK, RST, RST | ACK, FIN | ACK][random.usize(..6)], &[]);
    segment.ttl = random.u8(1..);
    segment.sequence = segment.sequence.wrapping_add(random.u32(..100_000));
    segment.ack = segment.ack.wrapping_add(random.u32(..100_000)).wrapping_sub(random.u32(..1_000));
    segment.window = random.u16(..);
    segment.shifted = random.bool();
    segment.stamp = random.bool().then(|| (random.u32(..), random.u32(..)));
    let most = if segment.stamp.is_some() { 3 } else { 4 };
    segment.blocks = (0..random.usize(..=most)).map(|_| (random.u32(..), random.u32(..))).collect();
    segment.data = (0..random.usize(..1_300)).map(|_| random.u8(..)).collect();
    if random.u8(..4) == 0 {
        segment.data.clear();
    }
    segment
}

#[test]
fn what_is_sent_on_is_what_the_model_says_in_both_directions() {
    let mut random = Rng::with_seed(21);
    let mut forwarded = 0;
    for round in 0..40 {
        let flow = Flow::start(if round % 2 == 0 { V4 } else { V6 }, &mut random);
        flow.hand_over();
        // Each side has acknowledged all that the balancer's sockets owe it.
        for at in 0..2 {
            assert_eq!(flow.arrives(&flow.segment(at, ACK, &[])).0, NEXT);
        }
        for _ in 0..150 {
            let at = random.usize(..2);
            let segment = any(&mut random, &flow, at);
            let (action, out) = flow.arrives(&segment);
            assert_eq!(action, REDIRECT, "{segment:?}");
            let model = flow.model(at, &segment);
            assert_eq!(out, model.build(), "{segment:?} became not {model:?}");
            forwarded += 1;
        }
        assert_eq!(flow.splice.counts()[Count::Forwarded as usize], 150);
        assert_eq!(flow.splice.seen(SLOT, 0).forwarded + flow.splice.seen(SLOT, 1).forwarded, 150);
    }
    println!("{forwarded} segments");
}

#[test]
fn a_watched_flow_is_counted_and_left_as_it_is() {
    let mut random = Rng::with_seed(22);
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut random);
        for count in 0..100 {
            let at = random.usize(..2);
            let segment = any(&mut random, &flow, at);
            assert_eq!(flow.splice.state(SLOT), count);
            assert_eq!(flow.arrives(&segment), (NEXT, segment.build()), "{segment:?}");
        }
        let state = flow.splice.state(SLOT);
        assert!(!flow.splice.hand_over(SLOT, state - 1), "a packet has come since");
        assert!(flow.splice.hand_over(SLOT, state));
        assert_eq!(flow.splice.state(SLOT), state | FORWARD);
    }
}

#[test]
fn what_a_hand_over_depends_on_is_noted() {
    let flow = Flow::start(V4, &mut Rng::with_seed(23));
    let [end, sent] = flow.numbers[0];
    let mut segment = flow.segment(0, DATA, &[1; 10]);
    segment.stamp = Some((77, 5));
    flow.arrives(&segment);
    let seen = flow.splice.seen(SLOT, 0);
    assert_eq!(seen.end, u64::from(end) + 10);
    assert_eq!((seen.ack, seen.stamp, seen.marks), (sent, 77, ACKED | STAMPED));
    assert!(seen.arrives_by != 0);
    // Short frames are filled up on their way; the filling is no data.
    let mut padded = flow.segment(0, ACK, &[]).build();
    padded.extend([0; 6]);
    flow.splice.trial(false, &padded).expect("a trial");
    assert_eq!(flow.splice.seen(SLOT, 0).end, u64::from(end) + 10);
    let mut last = flow.segment(0, FIN | ACK, &[1; 4]);
    last.sequence = end.wrapping_add(10);
    flow.arrives(&last);
    let seen = flow.splice.seen(SLOT, 0);
    assert_eq!((seen.end, seen.fin), (u64::from(end) + 15, end.wrapping_add(15)));
    assert_eq!(seen.marks, ACKED | STAMPED | FINISHED);
    let mut reset = flow.segment(0, RST, &[]);
    reset.sequence = end.wrapping_add(16);
    flow.arrives(&reset);
    assert_eq!(flow.splice.seen(SLOT, 0).marks & RESET, 0, "it is beyond what was sent");
    reset.sequence = end.wrapping_add(15);
    flow.arrives(&reset);
    assert_eq!(flow.splice.seen(SLOT, 0).marks & RESET, RESET);
}

#[test]
fn own_sockets_get_the_acknowledgements_of_what_they_sent() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(24));
        flow.hand_over();
        let owed = flow.numbers[1][1];
        let acks = |behind: u32| {
            let mut segment = flow.segment(1, ACK, &[]);
            segment.ack = owed.wrapping_sub(behind);
            segment
        };
        for behind in [300, 300, 100, 0] {
            assert_eq!(flow.arrives(&acks(behind)).0, NEXT, "{behind} are not acknowledged");
        }
        assert_eq!(flow.arrives(&acks(0)).0, REDIRECT, "a duplicate is about what was sent on");
    }
}

#[test]
fn blocks_are_left_out_while_own_sockets_owe() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(28));
        flow.hand_over();
        let mut data = flow.segment(1, DATA, &[1; 30]);
        data.ack = data.ack.wrapping_sub(1);
        data.blocks = vec![(data.ack.wrapping_add(5), data.ack.wrapping_add(9))];
        let model = flow.model(1, &data);
        assert!(model.blocks.is_empty() && model.nothings == 10);
        assert_eq!(flow.arrives(&data), (REDIRECT, model.build()));
        data.ack = data.ack.wrapping_add(1);
        let model = flow.model(1, &data);
        assert_eq!(model.blocks.len(), 1);
        assert_eq!(flow.arrives(&data), (REDIRECT, model.build()));
    }
}

#[test]
fn own_sockets_send_again_but_do_not_end_the_flow() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(25));
        let [peer, own] = flow.ends[0];
        let [end, sent] = flow.numbers[0];
        let mut again = Segment::new(own, peer, DATA, sent.wrapping_sub(5), end.wrapping_sub(9));
        again.stamp = Some((1000, 1));
        again.data = vec![1; 5];
        assert_eq!(flow.leaves(&again), (NEXT, again.build()));
        flow.hand_over();
        let fits = Segment { ack: end, ..again.clone() };
        assert_eq!(flow.leaves(&again), (NEXT, fits.build()), "all that it had, and nothing was sent on yet");
        // What was on its way to it at the hand-over is not acknowledged, in whatever form.
        let mut late = Segment::new(own, peer, ACK, sent, end.wrapping_add(700));
        late.blocks = vec![(end.wrapping_add(900), end.wrapping_add(950))];
        let fits = Segment { ack: end, blocks: vec![], nothings: 10, ..late.clone() };
        assert_eq!(flow.leaves(&late), (NEXT, fits.build()));
        // The backend acknowledges more of the client's bytes, at a later time.
        let mut answer = flow.segment(1, DATA, &[2; 20]);
        answer.ack = answer.ack.wrapping_add(50);
        for stamp in [1200, 800] {
            // A moment before or after that of the own socket's clock.
            answer.stamp = Some((0_u32.wrapping_sub(flow.stamp_deltas[1]).wrapping_add(stamp), 0));
            assert_eq!(flow.arrives(&answer).0, REDIRECT);
            again.stamp = Some((stamp + 5 - stamp / 100, 1));
            let fits = Segment { ack: end.wrapping_add(50), stamp: Some((1200, 1)), ..again.clone() };
            assert_eq!(flow.leaves(&again), (NEXT, fits.build()));
        }
        // Killed, it would end with the bytes that it still owes.
        let last = Segment { flags: DATA | FIN, ..again.clone() };
        let fits =
            Segment { flags: DATA, ack: end.wrapping_add(50), stamp: Some((1200, 1)), ..again.clone() };
        assert_eq!(flow.leaves(&last), (NEXT, fits.build()));
        let bare = Segment { data: vec![], sequence: sent, ..again.clone() };
        for flags in [RST, RST | ACK, FIN | ACK, SYN] {
            assert_eq!(flow.leaves(&Segment { flags, ..bare.clone() }).0, DROP);
        }
        let beyond = Segment { data: vec![1; 6], ..again.clone() };
        assert_eq!(flow.leaves(&beyond).0, DROP);
        assert_eq!(flow.splice.counts()[Count::Held as usize], 5);
        // Ended by the balancer, the peer gets RST from where it expects it.
        let mut ack = flow.segment(0, ACK, &[]);
        ack.ack = ack.ack.wrapping_add(20);
        assert_eq!(flow.arrives(&ack).0, REDIRECT);
        assert_eq!(flow.leaves(&again).0, DROP, "the peer has it");
        flow.splice.halt(SLOT);
        assert_eq!(flow.splice.state(SLOT) & (FORWARD | HALT), FORWARD | HALT);
        let reset = Segment::new(own, peer, RST | ACK, sent, end);
        let fits = Segment { sequence: sent.wrapping_add(20), ack: end.wrapping_add(50), ..reset.clone() };
        assert_eq!(flow.leaves(&reset), (NEXT, fits.build()));
        assert_eq!(flow.leaves(&again).0, DROP);
        assert_eq!(flow.arrives(&ack).0, DROP);
    }
}

#[test]
fn ends_that_begin_anew_leave_the_flow_once_it_is_over() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(29));
        flow.hand_over();
        let [peer, own] = flow.ends[0];
        let opens = Segment::new(peer, own, SYN, 77, 0);
        assert_eq!(flow.arrives(&opens).0, REDIRECT, "the backend answers for a flow that lives");
        let answers = Segment::new(own, peer, SYN | ACK, 99, 78);
        assert_eq!(flow.leaves(&answers).0, DROP);
        // One FIN after the other, each acknowledged.
        assert_eq!(flow.arrives(&flow.segment(0, FIN | ACK, &[])).0, REDIRECT);
        let mut fin = flow.segment(1, FIN | ACK, &[]);
        fin.ack = fin.ack.wrapping_add(1);
        assert_eq!(flow.arrives(&fin).0, REDIRECT);
        assert_eq!(flow.arrives(&opens).0, REDIRECT, "not yet over");
        let mut last = flow.segment(0, ACK, &[]);
        last.sequence = last.sequence.wrapping_add(1);
        last.ack = last.ack.wrapping_add(1);
        assert_eq!(flow.arrives(&last).0, REDIRECT);
        assert_eq!(flow.splice.seen(SLOT, 0).marks & REOPENED, 0);
        let noted = flow.splice.seen(SLOT, 0);
        assert_eq!(flow.arrives(&opens), (NEXT, opens.build()));
        assert_eq!(flow.splice.seen(SLOT, 0).marks & REOPENED, REOPENED);
        assert_eq!(flow.leaves(&answers), (NEXT, answers.build()));
        let data = Segment { data: vec![1; 9], ..Segment::new(peer, own, DATA, 78, 100) };
        assert_eq!(flow.arrives(&data), (NEXT, data.build()));
        assert_eq!((flow.splice.seen(SLOT, 0).end, flow.splice.seen(SLOT, 0).ack), (noted.end, noted.ack));
        assert_eq!(flow.arrives(&fin).0, REDIRECT, "the other leg goes on");
    }
}

#[test]
fn what_the_next_process_needs_is_kept_in_the_slot() {
    let flow = Flow::start(V4, &mut Rng::with_seed(30));
    assert_eq!(flow.splice.memo(SLOT), [0; 5]);
    let memo = [1, 2, 3, 4, u64::MAX];
    flow.splice.set_memo(SLOT, memo);
    let start = std::time::Instant::now();
    flow.arrives(&flow.segment(0, DATA, &[1; 30]));
    let seen = flow.splice.seen(SLOT, 0);
    assert_eq!((seen.bytes, flow.splice.seen(SLOT, 1).bytes, flow.splice.memo(SLOT)), (30, 0, memo));
    std::thread::sleep(std::time::Duration::from_millis(30));
    flow.arrives(&flow.segment(0, ACK, &[]));
    let passed = flow.splice.seen(SLOT, 0).seen - seen.seen;
    assert!((15_000_000..=start.elapsed().as_nanos() as u64 + 10_000_000).contains(&passed), "{passed} ns");
    assert_eq!(flow.splice.seen(SLOT, 1).seen, 0);
    flow.splice.begin(SLOT, [0; 2], [0; 2]);
    assert_eq!(flow.splice.memo(SLOT), [0; 5]);
}

#[test]
fn packets_of_no_flow_and_of_flows_that_are_gone_are_left_as_they_are() {
    let mut random = Rng::with_seed(26);
    let flow = Flow::start(V4, &mut random);
    flow.hand_over();
    let mut stranger = flow.segment(0, DATA, b"hello");
    stranger.from.set_port(40_001);
    assert_eq!(flow.arrives(&stranger), (NEXT, stranger.build()));
    assert_eq!(flow.leaves(&stranger), (NEXT, stranger.build()));
    let known = flow.segment(0, DATA, b"hello");
    assert_eq!(flow.arrives(&known).0, REDIRECT);
    let mut torn = known.build();
    torn.pop();
    assert_eq!(flow.splice.trial(false, &torn).expect("a trial").action, DROP);
    assert_eq!(flow.splice.counts()[Count::Malformed as usize], 1);
    flow.splice.part(&[FlowKey::tcp(flow.ends[0][0], flow.ends[0][1])]);
    assert_eq!(flow.arrives(&known), (NEXT, known.build()));
    for _ in 0..20_000 {
        let mut bytes = any(&mut random, &flow, 1).build();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(14..bytes.len().min(110));
            bytes[at] = random.u8(..);
        }
        let Ok(trial) = flow.splice.trial(random.bool(), &bytes) else { continue };
        assert!([NEXT, DROP, REDIRECT].contains(&trial.action), "{}", trial.action);
        assert_eq!(trial.packet.len(), bytes.len());
    }
}

#[test]
fn an_end_belongs_to_one_flow() {
    let flow = Flow::start(V6, &mut Rng::with_seed(27));
    let legs = [0, 1].map(|at| (FlowKey::tcp(flow.ends[at][0], flow.ends[at][1]), flow.leg(at)));
    assert!(flow.splice.join(&legs).is_err());
    // What failed at its second leg has left nothing of its first.
    let mut other = flow.ends[0];
    other[0].set_port(9);
    let fresh = FlowKey::tcp(other[0], other[1]);
    assert!(flow.splice.join(&[(fresh, legs[0].1), legs[1]]).is_err());
    assert!(flow.splice.join(&[(fresh, legs[0].1), (fresh.reversed(), legs[1].1)]).is_ok());
}

#[test]
fn the_programs_attach_to_what_carries_ethernet_and_has_an_address() {
    let test = "the_programs_attach_to_what_carries_ethernet_and_has_an_address";
    let Some(network) = Network::start(test) else { return };
    let splice = Splice::load(8).expect("the programs pass the verifier");
    let attached = || network.balancer.enter(|| splice.attach()).expect("root may");
    assert_eq!(attached(), ["to_backends", "to_client"], "not to loopback");
    // The other one's end goes too, and its links with it.
    network.client.ip("link del to_balancer");
    assert_eq!(attached(), ["to_backends"]);
}
