//! The keys of the forward plane as they are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Auto, Or, Texts};
use crate::model;

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum DataPlane {
    /// The proxy in userspace.
    Proxy,
    /// A program in the kernel, packet by packet; the proxy stands behind it.
    Forward,
}

/// What happens when the data plane is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Fallback {
    /// Use the proxy.
    Proxy,
    /// Do not start, or keep the configuration that is in force.
    Refuse,
}

/// How packets pass through the kernel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Forward")]
pub(in crate::config) struct RawForward {
    /// Where the program looks at packets; "auto" suits the devices.
    pub(in crate::config) hook: Hook,
    /// What becomes of addresses.
    pub(in crate::config) mode: Mode,
    /// Names of the interfaces by which clients and backends are reached; "auto" finds them by the routes to the backends and by the listen addresses.
    pub(in crate::config) interfaces: Or<Auto, Texts>,
    /// Own addresses towards backends, dealt to them in turn; "auto" takes the one on the way to each.
    pub(in crate::config) snat_addresses: Or<Auto, Texts>,
    /// Own ports towards backends, "from-to", outside net.ipv4.ip_local_port_range; "auto" takes the largest range outside.
    pub(in crate::config) snat_ports: Or<Auto, String>,
    /// Flows that this frontend may have at once; what frontends ask for adds up. A change needs a restart.
    pub(in crate::config) connection_table: u32,
    /// What becomes of fragments.
    pub(in crate::config) fragments: Fragments,
}

impl Default for RawForward {
    fn default() -> Self {
        Self {
            hook: Hook::Auto,
            mode: Mode::Nat,
            interfaces: Or::WORD,
            snat_addresses: Or::WORD,
            snat_ports: Or::WORD,
            connection_table: 262_144,
            fragments: Fragments::Drop,
        }
    }
}

/// Where the program looks at packets.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum Hook {
    /// xdp where the drivers of all interfaces redirect and transmit natively, else tc.
    Auto,
    /// What arrives, behind the driver (tcx).
    Tc,
    /// What arrives, in the driver, before the kernel has made anything of it; tc has the rest.
    Xdp,
    /// As xdp, behind the driver: slower than tc, for trials where a driver has no native XDP.
    XdpGeneric,
    /// No packets: sockets of clients on this host, in accelerate_cgroup, get a backend when they connect.
    Connect,
}

/// What becomes of addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum Mode {
    /// Source and destination are rewritten; works with any backend.
    Nat,
    /// The destination is rewritten; backends see the client and route their answers by way of the balancer.
    NatGateway,
    /// Packets go as they are to backends on the same link, which have the address too and answer the client themselves.
    DsrL2,
    /// As dsr-l2 beyond routers: in another IP header, which `lemonade decap` or a tunnel takes off.
    DsrIpip,
}

/// What becomes of fragments.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Fragments {
    /// They are dropped and counted.
    Drop,
    /// The host has them.
    Pass,
}

impl From<Fallback> for model::forward::Fallback {
    fn from(fallback: Fallback) -> Self {
        match fallback {
            Fallback::Proxy => Self::Proxy,
            Fallback::Refuse => Self::Refuse,
        }
    }
}

impl From<Hook> for model::forward::Hook {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Auto => Self::Auto,
            Hook::Tc => Self::Tc,
            Hook::Xdp => Self::Xdp,
            Hook::XdpGeneric => Self::XdpGeneric,
            Hook::Connect => Self::Connect,
        }
    }
}

impl From<Mode> for model::forward::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Nat => Self::Nat,
            Mode::NatGateway => Self::NatGateway,
            Mode::DsrL2 => Self::DsrL2,
            Mode::DsrIpip => Self::DsrIpip,
        }
    }
}

impl From<Fragments> for model::forward::Fragments {
    fn from(fragments: Fragments) -> Self {
        match fragments {
            Fragments::Drop => Self::Drop,
            Fragments::Pass => Self::Pass,
        }
    }
}
