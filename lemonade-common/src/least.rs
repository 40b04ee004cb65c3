//! Fewest connections per weight, where packets are forwarded: what counts at each backend, and the choice by it.

use core::cmp::Ordering::{Equal, Greater, Less};

use crate::decide::TableView;
use crate::hash::mix;
use crate::maglev::{EMPTY, slot};

/// Backends of a ring that are all looked at for a new flow; of more, two are drawn.
pub const SCANNED: usize = 16;

/// What counts at a backend: value of the map `LOADS`, whose key is its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Flows that have not ended.
    pub live: u64,
    /// Flows of TCP that it has answered for the first time.
    pub answers: u64,
    /// Nanoseconds from the first packet of each to that answer, added up.
    pub waited: u64,
    /// Flows of TCP that it has refused: a reset was all that it answered.
    pub refused: u64,
}

/// One of the backends of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Choice {
    /// Its index.
    pub backend: u32,
    /// Its share relative to the others.
    pub weight: u32,
    /// Connections that are counted elsewhere: by the proxy.
    pub elsewhere: u32,
    /// Connections at most, those elsewhere included; 0: no limit.
    pub most: u32,
}

/// The backends of a ring: value of the map `CHOICES`, whose key is the number of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Choices {
    /// Which of equals is next; moved by each choice.
    pub turn: u64,
    /// How many there are; 0: none, or more than [`SCANNED`].
    pub count: u64,
    /// They, in the first places.
    pub own: [Choice; SCANNED],
}

const _: () = assert!(size_of::<Load>() == 32 && size_of::<Choices>() == 16 + 16 * SCANNED);

/// Connections per weight, compared without division.
///
/// A backend without connections counts as 0 whatever its weight ("never queue" of Linux' IPVS), one with some as if the new
/// one were there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Burden {
    connections: u64,
    weight: u64,
}

impl Burden {
    /// That of a backend with so many connections.
    #[inline(always)]
    pub const fn of(live: u32, weight: u32) -> Self {
        Self { connections: if live == 0 { 0 } else { live as u64 + 1 }, weight: weight as u64 }
    }

    /// As a number, 0 without connections.
    // Programs in the kernel have no such numbers.
    #[inline(always)]
    pub const fn per_weight(self) -> f64 {
        self.connections as f64 / self.weight as f64
    }

    /// Which of two is lighter.
    #[inline(always)]
    pub fn compare(self, other: Self) -> core::cmp::Ordering {
        (self.connections * other.weight).cmp(&(other.connections * self.weight))
    }
}

/// Those that share the lowest burden, as found by one pass.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Lowest {
    /// What they share.
    pub burden: Burden,
    /// How many they are.
    pub count: u32,
    first: u32,
    weight: u32,
    /// 1 while all weigh the same.
    alike: u32,
}

impl Lowest {
    /// Takes one in; says whether it is lighter than all before.
    #[inline(always)]
    pub fn see(&mut self, burden: Burden, weight: u32) -> bool {
        let order = if self.count == 0 { Less } else { burden.compare(self.burden) };
        match order {
            Less => *self = Self { burden, count: 1, first: weight, weight, alike: 1 },
            Equal => {
                self.count += 1;
                self.weight = self.weight.saturating_add(weight);
                self.alike &= u32::from(weight == self.first);
            }
            Greater => {}
        }
        order == Less
    }

    /// Where turn `turn` falls among equals: strict turns if they weigh the same, else points of a Weyl sequence
    /// (multiples of the golden ratio), which spread evenly over the weights without a schedule.
    #[inline(always)]
    pub const fn offset(&self, turn: u64) -> u32 {
        if self.alike != 0 {
            // Not 0; but what merely divides would have to say what happens then.
            return match turn.checked_rem(self.count as u64) {
                Some(place) => place as u32,
                None => 0,
            };
        }
        let point = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((point * self.weight as u64) >> 32) as u32
    }

    /// How far one of the equals reaches on the way to an offset.
    #[inline(always)]
    pub const fn width(&self, weight: u32) -> u32 {
        if self.alike != 0 { 1 } else { weight }
    }
}

/// A choice on its way: a first pass over the backends finds the lowest burden, a second one who of those that have it is next.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scan {
    lowest: Lowest,
    /// What is left of the offset, in the second pass.
    skip: u32,
    /// Who was found so far.
    found: u32,
    /// 1 in the second pass, 2 when it is done.
    pass: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Scan>() == 48);

impl Scan {
    /// Takes in the backend at a place of `choices`.
    #[inline(always)]
    pub fn step<T: TableView>(&mut self, table: &T, choices: &Choices, at: u32) {
        let Some(choice) = choices.own.get(at as usize) else { return };
        let live = table.live(choice.backend).saturating_add(choice.elsewhere);
        if choice.most != 0 && live >= choice.most {
            return;
        }
        let burden = Burden::of(live, choice.weight);
        if self.pass == 0 {
            if self.lowest.see(burden, choice.weight) {
                self.found = choice.backend;
            }
        } else if self.pass == 1 && burden.compare(self.lowest.burden) == Equal {
            // Counts may change between the passes; who was found last is still a good one.
            self.found = choice.backend;
            let width = self.lowest.width(choice.weight);
            if self.skip < width {
                self.pass = 2;
            }
            self.skip = self.skip.saturating_sub(width);
        }
    }
}

/// Backend for a new flow by a ring's [`Choices`]; [`EMPTY`]: there is none, or none has room.
#[inline(always)]
pub fn least<T: TableView>(table: &T, ring: u32, hash: u64) -> u32 {
    let Some(choices) = table.choices(ring) else { return EMPTY };
    let count = choices.count as u32;
    if count == 0 {
        return lighter(table, ring, hash);
    }
    let mut scan = Scan { lowest: Lowest::default(), skip: 0, found: EMPTY, pass: 0, reserved: 0 };
    each(table, ring, count, &mut scan);
    if scan.lowest.count == 0 {
        return EMPTY;
    }
    let turn = table.turn(ring);
    if scan.lowest.count > 1 {
        (scan.pass, scan.skip) = (1, scan.lowest.offset(turn));
        each(table, ring, count, &mut scan);
    }
    scan.found
}

#[inline(always)]
fn each<T: TableView>(table: &T, ring: u32, count: u32, scan: &mut Scan) {
    for at in 0..SCANNED as u32 {
        if at >= count {
            break;
        }
        table.step(ring, at, scan);
    }
}

/// The lighter of two that the ring draws, each by its weight: nearly as good as the lightest of all, and it does not herd
/// (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996).
#[inline(always)]
fn lighter<T: TableView>(table: &T, ring: u32, hash: u64) -> u32 {
    let drawn = |hash: u64| table.slot(ring, slot(hash)).unwrap_or(EMPTY);
    let (first, second) = (drawn(hash), drawn(mix(hash)));
    let burden = |backend: u32| {
        let weight = table.target(backend).map_or(1, |target| target.weight.max(1));
        Burden::of(table.live(backend), weight)
    };
    if burden(second).compare(burden(first)) == Less { second } else { first }
}

impl Choices {
    /// The backends of a ring with their weights, without limits; none of them if they are too many.
    pub fn of(own: impl IntoIterator<Item = (u32, u32)>) -> Self {
        Self::among(own.into_iter().map(|(backend, weight)| Choice { backend, weight, ..Choice::default() }))
    }

    /// As [`Self::of`], with all that is said of each.
    pub fn among(own: impl IntoIterator<Item = Choice>) -> Self {
        let mut choices = Self::default();
        for (at, choice) in own.into_iter().enumerate() {
            let Some(place) = choices.own.get_mut(at) else { return Self::default() };
            *place = choice;
            choices.count += 1;
        }
        choices
    }

    /// The bytes as they stand in the map.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..8].copy_from_slice(&self.turn.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.count.to_ne_bytes());
        for (place, own) in bytes[16..].chunks_exact_mut(16).zip(&self.own) {
            for (word, value) in
                place.chunks_exact_mut(4).zip([own.backend, own.weight, own.elsewhere, own.most])
            {
                word.copy_from_slice(&value.to_ne_bytes());
            }
        }
        bytes
    }
}

impl Load {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        Self { live: word(0), answers: word(8), waited: word(16), refused: word(24) }
    }
}
