//! Limits: connections, descriptors, idle time, backends that come and go, second instances.

mod connections;
mod descriptors;
mod flapping;
mod instances;
