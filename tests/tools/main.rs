//! The tools that people already run read what Lemonade writes.

mod prometheus;
