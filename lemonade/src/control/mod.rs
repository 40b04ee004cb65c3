//! The control plane: compiles configuration and health into the dispatch table and hands it to the planes.

pub mod table;
