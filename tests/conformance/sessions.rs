//! Sessions by script: what both ends say, who closes first and how, drawn by chance and played alike on every plane.

use std::net::TcpStream;

use fastrand::Rng;
use lemonade_tests::plane::{Direct, Plane};
use lemonade_tests::skip::full;
use lemonade_tests::socket::{self, SILENCE, await_abort};
use lemonade_tests::stream;
use lemonade_tests::trace::{Event, finish, read_on};

use crate::stages::{Side, Stage};

/// One thing that is done; what it does to the opposite end is awaited before the next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It sends so many bytes.
    Say(Side, u64),
    /// It closes its way.
    Finish(Side),
    /// It resets.
    Reset(Side),
    /// It closes while bytes lie unread at it.
    Leave(Side),
}

/// A session from its seed; every end that a connection can have is drawn.
fn script(seed: u64) -> Vec<Step> {
    let mut random = Rng::with_seed(seed);
    let side = |random: &mut Rng| if random.bool() { Side::Client } else { Side::Backend };
    let mut steps = Vec::new();
    for _ in 0..random.usize(0..6) {
        let bits = random.u32(0..18);
        steps.push(Step::Say(side(&mut random), 1 + random.u64(0..1 << bits)));
    }
    let first = side(&mut random);
    let after = Step::Say(first.other(), 1 + random.u64(0..100_000));
    match random.u8(0..5) {
        0 => steps.extend([Step::Finish(first), after, Step::Finish(first.other())]),
        1 => steps.push(Step::Reset(first)),
        2 => steps.extend([Step::Finish(first), after, Step::Reset(first)]),
        3 => steps.extend([Step::Finish(first), after, Step::Reset(first.other())]),
        _ => steps.push(Step::Leave(first)),
    }
    steps
}

/// An end, with the bytes that it has sent.
struct End {
    stream: TcpStream,
    side: Side,
    sent: u64,
    /// Whether it has seen the FIN of the opposite end.
    told: bool,
}

/// What each end saw, in the order of the steps.
fn play(stage: &Stage, steps: &[Step]) -> Vec<(Side, Event)> {
    let (client, backend) = stage.connect(Side::Client);
    let end = |(stream, side)| Some(End { stream, side, sent: 0, told: false });
    let mut ends = [(client, Side::Client), (backend, Side::Backend)].map(end);
    let mut saw = Vec::new();
    for step in steps {
        let (Step::Say(side, _) | Step::Finish(side) | Step::Reset(side) | Step::Leave(side)) = *step;
        let [client, backend] = &mut ends;
        let (own, other) = if side == Side::Client { (client, backend) } else { (backend, client) };
        let far = other.as_mut().expect("both ends are there until one is reset");
        let event = match *step {
            Step::Say(_, bytes) => say(own.as_mut().expect("an open end"), far, bytes),
            Step::Finish(_) => {
                let near = own.as_mut().expect("an open end");
                finish(&near.stream);
                far.told = true;
                end_of(near.sent, far)
            }
            Step::Reset(_) => {
                let near = own.take().expect("an open end");
                socket::reset(near.stream);
                if far.told { await_abort(&far.stream, SILENCE) } else { end_of(near.sent, far) }
            }
            Step::Leave(_) => {
                let near = own.take().expect("an open end");
                socket::write_all(&mut far.stream, b"unread");
                near.stream.peek(&mut [0]).expect("it comes");
                drop(near.stream);
                end_of(near.sent, far)
            }
        };
        saw.push((side.other(), event));
    }
    saw
}

fn say(near: &mut End, far: &mut End, bytes: u64) -> Event {
    let (seed, from, to) = (near.side.seed(), near.sent, near.sent + bytes);
    near.sent = to;
    let (read, end) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut data = vec![0; usize::try_from(bytes).expect("64-bit")];
            stream::fill(seed, from, &mut data);
            socket::write_all(&mut near.stream, &data);
        });
        read_on(&mut far.stream, seed, from, to)
    });
    end.unwrap_or(Event::Bytes(read))
}

/// The end that comes behind what was read.
fn end_of(sent: u64, far: &mut End) -> Event {
    let (read, end) = read_on(&mut far.stream, far.side.other().seed(), sent, u64::MAX);
    assert_eq!(read, sent, "more came than was sent");
    end.unwrap_or(Event::Silence)
}

/// Traces of many scripts.
pub(crate) fn traces(plane: &dyn Plane) -> Vec<Vec<(Side, Event)>> {
    let stage = Stage::start(plane);
    (0..if full() { 1_000 } else { 100 }).map(|seed| play(&stage, &script(seed))).collect()
}

pub(crate) fn scripted_sessions_look_as_they_do_directly(plane: &dyn Plane) {
    let direct = traces(&Direct);
    for kind in [Event::Fin, Event::Reset, Event::Broken] {
        assert!(direct.iter().flatten().any(|(_, event)| *event == kind), "no script shows {kind:?}");
    }
    for (seed, (direct, seen)) in direct.iter().zip(traces(plane)).enumerate() {
        assert_eq!(seen, *direct, "session {seed}, {:?}, on {}", script(seed as u64), plane.name());
    }
}
