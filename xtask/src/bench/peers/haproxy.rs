//! HAProxy: master and worker, TCP mode.

use std::fmt::Write;

use super::Place;

/// Two descriptors per connection, below a hard limit of 20,000.
const MAX_CONNECTIONS: u32 = 9_800;

/// Writes the configuration.
pub(super) fn config(place: &Place, backends: &[u8]) -> String {
    let mut text = format!(
        "global
    nbthread {workers}
    maxconn {MAX_CONNECTIONS}

defaults
    mode tcp
    maxconn {MAX_CONNECTIONS}
    timeout connect 1s
    timeout client 10m
    timeout server 10m
    retries 3
    option redispatch 1

frontend bench
    bind {listen}
    default_backend bench

backend bench
    balance roundrobin
",
        workers = place.workers,
        listen = place.stage.listen(),
    );
    for id in backends {
        let _ = writeln!(text, "    server b{id} {} check inter 500ms fall 2", place.stage.backend(*id));
    }
    text
}
