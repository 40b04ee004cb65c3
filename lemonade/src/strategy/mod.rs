//! How a backend is picked: the port, and the five strategies.

pub mod port;
