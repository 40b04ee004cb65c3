//! nginx: the stream module; its health is passive.

use std::fmt::Write;

use super::Place;

/// Where Debian puts the stream module.
pub(super) const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Writes the configuration.
pub(super) fn config(place: &Place, backends: &[u8]) -> String {
    let mut servers = String::new();
    for id in backends {
        let _ = writeln!(servers, "        server {} max_fails=1 fail_timeout=5s;", place.stage.backend(*id));
    }
    format!(
        "load_module {MODULE};
user root;
daemon off;
worker_processes {workers};
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log error.log crit;
events {{
    worker_connections 19900;
}}
stream {{
    access_log off;
    upstream bench {{
{servers}    }}
    server {{
        listen {listen} backlog=16384;
        proxy_pass bench;
        proxy_connect_timeout 1s;
        proxy_timeout 10m;
        proxy_next_upstream_tries 3;
    }}
}}
",
        workers = place.workers,
        listen = place.stage.listen(),
    )
}
