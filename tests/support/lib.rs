//! Shared support of the process-level tests: the process under test, backends, clients and what they saw.

pub mod admin;
pub mod backend;
pub mod cgroup;
pub mod datagrams;
pub mod http;
pub mod kernel_log;
pub mod lemonade;
pub mod load;
pub mod netns;
pub mod packets;
pub mod plane;
pub mod segments;
pub mod sequence;
pub mod setup;
pub mod skip;
pub mod socket;
pub mod stream;
pub mod tables;
pub mod terminal;
pub mod tools;
pub mod trace;
pub mod transfer;
pub mod view;
pub mod wait;
pub mod world;
