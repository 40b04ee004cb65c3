//! Any sequence of texts ends on the last valid configuration, and no step on the way breaks a promise.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|sequence: &str| {
    lemonade_tests::sequence::replay(sequence);
});
