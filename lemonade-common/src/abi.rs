//! What programs in the kernel and the control plane exchange through maps.
//!
//! Values are plain words without padding, so that both sides see the same bytes; addresses and ports are big-endian
//! byte arrays.

/// Version of the layout of every map; a process adopts the maps of another only if it is equal.
pub const ABI_VERSION: u32 = 1;

/// Index of [`ABI_VERSION`] in the map `ABI`.
pub const ABI_VERSION_AT: u32 = 0;
