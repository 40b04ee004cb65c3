//! Flows that were forgotten, each with both of its directions, for whom somebody reads. Pure.

use std::collections::BTreeMap;

use lemonade_common::FlowKey;
use lemonade_common::forward::{DOWN, Flow};

/// A flow that was forgotten.
#[derive(Debug)]
pub(super) struct Parted {
    /// Of its direction from the client.
    pub(super) key: FlowKey,
    /// That direction.
    pub(super) flow: Flow,
    /// The other one.
    pub(super) other: Option<Flow>,
}

/// Finds the directions of flows together: the table has one after the other, and a round over it forgets either first.
#[derive(Debug, Default)]
pub(super) struct Parting {
    parted: Vec<Parted>,
    /// Directions to the client whose other direction is still in the table, by the key of that, of this round and the last.
    waiting: [BTreeMap<FlowKey, Flow>; 2],
}

impl Parting {
    /// Takes in directions that were forgotten; `there` reads one that may be in the table still.
    pub(super) fn note(&mut self, gone: Vec<(FlowKey, Flow)>, there: impl Fn(&FlowKey) -> Option<Flow>) {
        let (down, up): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|(_, flow)| flow.state.get() as u32 & DOWN != 0);
        self.waiting[0].extend(down.into_iter().map(|(_, flow)| (flow.leaves().reversed(), flow)));
        for (key, flow) in up {
            let other = self.waiting.iter_mut().find_map(|round| round.remove(&key));
            let other = other.or_else(|| there(&flow.leaves().reversed()));
            self.parted.push(Parted { key, flow, other });
        }
    }

    /// A round over the table has ended: what has waited since the round before is of a flow that was told.
    pub(super) fn turn(&mut self) {
        let [now, before] = &mut self.waiting;
        *before = std::mem::take(now);
    }

    /// What was forgotten since the last call.
    pub(super) fn take(&mut self) -> Vec<Parted> {
        std::mem::take(&mut self.parted)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const ARRIVES: [&str; 2] = ["192.0.2.7:5000", "192.0.2.1:80"];
    const ANSWERS: [&str; 2] = ["192.0.2.9:8080", "192.0.2.1:40000"];

    fn way(arrives: [&str; 2], leaves: [&str; 2], state: u32, bytes: u64) -> (FlowKey, Flow) {
        let key = |[from, to]: [&str; 2]| FlowKey::tcp(from.parse().unwrap(), to.parse().unwrap());
        let out = key(leaves).reversed();
        let flow = Flow {
            src: out.src,
            dst: out.dst,
            sport: out.sport,
            dport: out.dport,
            protocol: out.protocol,
            state: Cell::new(state.into()),
            bytes: Cell::new(bytes),
            ..Flow::default()
        };
        (key(arrives), flow)
    }

    fn up() -> (FlowKey, Flow) {
        way(ARRIVES, ANSWERS, 0, 10)
    }

    fn down() -> (FlowKey, Flow) {
        way(ANSWERS, ARRIVES, DOWN, 2_000)
    }

    fn told(parting: &mut Parting) -> Vec<(u64, Option<u64>)> {
        let bytes = |own: Parted| (own.flow.bytes.get(), own.other.map(|flow| flow.bytes.get()));
        parting.take().into_iter().map(bytes).collect()
    }

    #[test]
    fn a_flow_is_told_once_with_both_directions_whichever_goes_first() {
        let both = [(10, Some(2_000))];
        let mut parting = Parting::default();
        parting.note(vec![up(), down()], |_| None);
        assert_eq!(told(&mut parting), both, "together");
        parting.note(vec![down()], |_| None);
        assert_eq!(told(&mut parting), []);
        parting.turn();
        parting.note(vec![up()], |_| None);
        assert_eq!(told(&mut parting), both, "the answers first, in the round before");
        parting.note(vec![up()], |key| (*key == down().0).then(|| down().1));
        parting.note(vec![down()], |_| None);
        assert_eq!(told(&mut parting), both, "the answers later");
        assert_eq!(parting.waiting[0].len(), 1);
        parting.turn();
        parting.turn();
        assert!(parting.waiting.iter().all(BTreeMap::is_empty), "nothing waits for ever");
        parting.note(vec![up()], |_| None);
        assert_eq!(told(&mut parting), [(10, None)], "no answer came");
    }
}
