//! Limits: the admin interface, connections, descriptors, idle time, backends that come and go, second instances.

mod admin;
mod connections;
mod descriptors;
mod flapping;
mod instances;
