//! What a packet is put back to before each run of a program that is timed on it; for tests only.

/// Bytes from a packet's begin that are put back, which it has at least.
pub const RESTORED: usize = 96;

/// A packet as it was: the only value of the map `ORIGINAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Original {
    /// Its first bytes.
    pub bytes: [u8; RESTORED],
    /// Its length.
    pub length: u32,
    /// Bytes that the program puts in front of it.
    pub grown: u32,
    /// Place of the source address's low half and of the source port, which differ from run to run.
    pub varied_at: [u32; 2],
    /// How many flows that makes, less one; a power of two less one, 0 for the packet as it is.
    pub mask: u32,
    /// Runs so far.
    pub runs: u32,
}

const _: () = assert!(size_of::<Original>() == RESTORED + 24);

impl Original {
    /// The bytes as they stand in the map.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let (front, words) = bytes.split_at_mut(RESTORED);
        front.copy_from_slice(&self.bytes);
        let [address, port] = self.varied_at;
        let all = [self.length, self.grown, address, port, self.mask, self.runs];
        for (to, from) in words.chunks_exact_mut(4).zip(all) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }

    /// What stands for the address's half and the port in a run.
    #[inline(always)]
    pub const fn varied(&self, run: u32) -> [[u8; 2]; 2] {
        let [a, b, c, d] = (run & self.mask).wrapping_mul(0x9e37_79b1).to_ne_bytes();
        [[a, b], [c, d]]
    }
}
