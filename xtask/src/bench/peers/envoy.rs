//! Envoy: TCP proxy, endpoints from a watched file.

use anyhow::Result;
use serde_json::{Value, json};

use super::Place;

/// The file that is read once.
pub(super) const BOOTSTRAP: &str = "envoy.json";
/// The file that is watched.
pub(super) const ENDPOINTS: &str = "endpoints.json";

const CLUSTER: &str = "bench";

/// Writes the bootstrap file.
pub(super) fn bootstrap(place: &Place) -> Result<String> {
    let listen = place.stage.listen();
    let tcp_proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": CLUSTER,
        "cluster": CLUSTER,
        "max_connect_attempts": 3,
        "idle_timeout": "600s",
    });
    let no_limit = json!({
        "max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000,
        "max_retries": 1_000_000,
    });
    let config = json!({
        "node": { "id": CLUSTER, "cluster": CLUSTER },
        "static_resources": {
            "listeners": [{
                "name": CLUSTER,
                "address": socket_address(&listen.ip().to_string(), listen.port()),
                "tcp_backlog_size": 16384,
                "filter_chains": [{
                    "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": tcp_proxy }],
                }],
            }],
            "clusters": [{
                "name": CLUSTER,
                "type": "EDS",
                "lb_policy": "ROUND_ROBIN",
                "connect_timeout": "1s",
                "eds_cluster_config": { "eds_config": {
                    "path_config_source": { "path": place.dir.join(ENDPOINTS) },
                    "resource_api_version": "V3",
                }},
                "health_checks": [{
                    "timeout": "1s", "interval": "0.5s", "no_traffic_interval": "0.5s",
                    "unhealthy_threshold": 2, "healthy_threshold": 2, "tcp_health_check": {},
                }],
                // A removed endpoint leaves at once, not after its checks have failed.
                "ignore_health_on_host_removal": true,
                "circuit_breakers": { "thresholds": [no_limit] },
            }],
        },
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

/// Writes the endpoints file.
pub(super) fn endpoints(place: &Place, backends: &[u8]) -> Result<String> {
    let endpoints: Vec<Value> = backends
        .iter()
        .map(|id| {
            let address = place.stage.backend(*id);
            json!({ "endpoint": { "address": socket_address(&address.ip().to_string(), address.port()) } })
        })
        .collect();
    let assignment = json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": CLUSTER,
            "endpoints": [{ "lb_endpoints": endpoints }],
        }],
    });
    Ok(serde_json::to_string_pretty(&assignment)?)
}

fn socket_address(ip: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}
