//! What a receiver of OpenTelemetry gets from a running Lemonade, and that one that gets nothing costs nothing.

mod delivered;
mod receiver;
mod undelivered;
