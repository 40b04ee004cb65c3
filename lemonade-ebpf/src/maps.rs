//! Maps that every object has.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};

/// Version of the layout of all maps, written by the process that made them.
#[map]
pub static ABI: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the maps have the layout that this program was built for.
pub fn fit() -> bool {
    ABI.get(ABI_VERSION_AT) == Some(&ABI_VERSION)
}
