//! nftables: the kernel's destination NAT, one backend after the other.

use super::{backend_address, listen_address};

/// Writes rules that replace all earlier ones in one transaction.
pub(super) fn rules(backends: &[u8]) -> String {
    let map: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(slot, id)| format!("{slot} : {} . {}", backend_address(*id).ip(), backend_address(*id).port()))
        .collect();
    format!(
        "flush ruleset
table ip bench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {ip} tcp dport {port} dnat ip to numgen inc mod {count} map {{ {map} }}
    }}
}}
",
        ip = listen_address().ip(),
        port = listen_address().port(),
        count = backends.len(),
        map = map.join(", "),
    )
}
