//! What a process writes down of a spliced flow for the process after it. Nothing here touches a socket.

use lemonade_common::hash::seed_from_text;
use lemonade_common::splice::MEMO;

use crate::model::{Moment, Name};

/// What cannot be seen in the maps of the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memo {
    /// Its frontend, see [`frontend_word`].
    pub frontend: u64,
    /// When its client was accepted.
    pub started: Moment,
    /// Seconds for which it may be idle.
    pub idle: u64,
    /// Where both streams would have begun as the programs count them: from there to their ends are all bytes.
    pub origin: [u64; 2],
}

/// A frontend's name in one word.
pub fn frontend_word(name: &Name) -> u64 {
    seed_from_text(name.as_str())
}

impl Memo {
    /// That of a flow whose streams have carried `bytes` when the programs see them end at `ends`.
    pub(super) fn new(frontend: u64, started: Moment, idle: u64, ends: [u64; 2], bytes: [u64; 2]) -> Self {
        // Programs count from a sequence number on, so what came before may reach below zero.
        let origin = [0, 1].map(|at| ends[at].wrapping_sub(bytes[at]));
        Self { frontend, started, idle, origin }
    }

    /// Bytes of data in all of a stream that ends at `end`, FIN included if it was `finished`.
    pub(super) fn bytes(&self, at: usize, end: u64, finished: bool) -> u64 {
        end.wrapping_sub(self.origin[at & 1]).wrapping_sub(finished.into())
    }

    pub(super) const fn to_words(self) -> [u64; MEMO] {
        [self.frontend, self.started.0, self.idle, self.origin[0], self.origin[1]]
    }

    pub(super) const fn from_words(words: [u64; MEMO]) -> Self {
        let [frontend, started, idle, up, down] = words;
        Self { frontend, started: Moment(started), idle, origin: [up, down] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_before_and_after_the_hand_over_add_up() {
        // More was carried than the sequence number at which counting began.
        let memo = Memo::new(7, Moment(1), 60, [100, 1 << 33], [5_000, 20]);
        assert_eq!(Memo::from_words(memo.to_words()), memo);
        assert_eq!((memo.bytes(0, 100, false), memo.bytes(1, 1 << 33, false)), (5_000, 20));
        assert_eq!(memo.bytes(0, 100 + 31, true), 5_030);
    }
}
