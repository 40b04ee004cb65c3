//! nftables: the kernel's destination NAT, one backend after the other.

use super::Place;

/// Writes rules that replace all earlier ones in one transaction.
pub(super) fn rules(place: &Place, backends: &[u8]) -> String {
    let map: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(slot, id)| {
            let backend = place.stage.backend(*id);
            format!("{slot} : {} . {}", backend.ip(), backend.port())
        })
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
        ip = place.stage.listen().ip(),
        port = place.stage.listen().port(),
        count = backends.len(),
        map = map.join(", "),
    )
}
