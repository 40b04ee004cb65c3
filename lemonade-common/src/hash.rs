//! The seeded flow hash: equal on every node and after every restart that shares the seed.

use crate::flow::FlowKey;

/// Hash of a flow under `seed`; all 64 bits are usable.
///
/// Each 64-bit word of the key is folded in with the finaliser of SplitMix64
/// (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), which needs no table.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn flow_hash(key: &FlowKey, seed: u64) -> u64 {
    let mut state = seed;
    for half in [&key.src, &key.dst] {
        let (high, low) = half.split_at(8);
        state = mix(state ^ word(high));
        state = mix(state ^ word(low));
    }
    let ports = u64::from(u16::from_be_bytes(key.sport)) << 16 | u64::from(u16::from_be_bytes(key.dport));
    mix(state ^ (ports << 32 | u64::from(key.protocol)))
}

/// One round of the SplitMix64 finaliser; a bijection on 64-bit words.
pub const fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64-bit seed of a configured text (FNV-1a, then mixed).
pub const fn seed_from_text(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        state = (state ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    mix(state)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_its_published_sequence() {
        // First outputs of SplitMix64 seeded with 1234567 (the reference C program's test vector).
        let mut state = 1_234_567_u64;
        let mut next = || {
            let out = mix(state);
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            out
        };
        assert_eq!(
            [next(), next(), next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn known_flow_has_a_known_hash() {
        let key = FlowKey::tcp("198.51.100.7:5000".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        assert_eq!(flow_hash(&key, seed_from_text("lemonade")), flow_hash(&key, seed_from_text("lemonade")));
        assert_ne!(flow_hash(&key, 1), flow_hash(&key, 2));
    }

    #[test]
    fn neighbouring_ports_spread_evenly() {
        let mut buckets = [0_u32; 16];
        for port in 1024..1024 + 16_000_u16 {
            let client = core::net::SocketAddr::from(([198, 51, 100, 7], port));
            let key = FlowKey::tcp(client, "192.0.2.1:80".parse().unwrap());
            buckets[(flow_hash(&key, 7) >> 60) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (850..1150).contains(&n)), "{buckets:?}");
    }
}
