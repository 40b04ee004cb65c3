//! Reload: nothing fails, nothing is forgotten, and any sequence ends on the last valid configuration.

mod files;
mod listeners;
mod sequence;
mod under_load;
