//! Reasons in words: why a connection went where it went, got nowhere, or ended.

use lemonade_common::{PacketReason, Reason};

use crate::metrics::port::{End, Fault};

/// Why a connection got no backend, and where to look.
pub const fn refusal(reason: Reason) -> &'static str {
    match reason {
        Reason::NoBackendUp => {
            "no backend of its pool could be picked: all are down, disabled, drained or of weight 0; see `lemonade status`"
        }
        Reason::BackendsFull => {
            "every backend is at its max_connections and the pool has no queue; raise one of the two"
        }
        Reason::QueueFull => {
            "every backend is full and so is the pool's queue; raise queue or max_connections"
        }
        Reason::QueueTimeout => "it waited for a free backend for queue_timeout in vain",
        Reason::FrontendLimit => "the frontend is at its max_connections",
        Reason::TotalLimit => "the process is at [runtime] max_connections",
        Reason::ConnectFailed => "each backend that was tried failed",
        Reason::ConnectTimeout => "no backend tried answered within connect_timeout",
        Reason::NoDescriptors => "the process has no file descriptor left; raise the limit (LimitNOFILE)",
        Reason::NoPorts => {
            "no local port is left towards the backend; widen ip_local_port_range or add backends"
        }
        Reason::ClientGone => "the client went away before a backend was connected",
        Reason::Draining => "Lemonade was shutting down",
    }
}

/// Why the kernel sent a packet nowhere, or left it to the host.
pub const fn dropped(reason: PacketReason) -> &'static str {
    match reason {
        PacketReason::NoBackend => "no backend of its pool is up: the proxy has it, and refuses",
        PacketReason::Fragment => "a fragment; `fragments` of the frontend says what is done with them",
        PacketReason::Options => "IP options or a routing header",
        PacketReason::BadLength => "its lengths contradict each other",
        PacketReason::HopLimit => "its time to live ended here",
        PacketReason::TooBig => "larger than the way takes; its sender was told",
        PacketReason::PortsExhausted => {
            "no port is left towards the backend; give more snat_ports or snat_addresses, or add backends"
        }
        PacketReason::HalfOpenFull => "as many handshakes are open as may be, and none for long",
        PacketReason::BackendsFull => "every backend is at its max_connections",
        PacketReason::FrontendLimit => "the frontend is at its max_connections",
        PacketReason::TableFull => "the connection table is full; raise connection_table",
        PacketReason::NotSent => "the kernel did not take the change",
        PacketReason::Forwarded | PacketReason::Opened | PacketReason::Adopted | PacketReason::Unrecorded => {
            "it was sent on"
        }
        PacketReason::Echo | PacketReason::IcmpError => "it was answered or translated",
        PacketReason::NotOurs | PacketReason::NotIp | PacketReason::OtherProtocol => "it is not ours",
        PacketReason::LaterFragment | PacketReason::Torn | PacketReason::Tagged => "the host has it",
        PacketReason::UnknownFlow => "it belongs to no flow in the kernel: the host has it",
        PacketReason::NoNeighbour | PacketReason::LeftToTc => "the program at tc has it",
    }
}

/// How a connection ended.
pub const fn end(end: End) -> &'static str {
    match end {
        End::Closed => "both sides closed in order",
        End::ClientReset => "the client reset it",
        End::BackendReset => "the backend reset it",
        End::ClientTimeout => "the client no longer acknowledged",
        End::BackendTimeout => "the backend no longer acknowledged",
        End::IdleTimeout => "no byte for idle_timeout",
        End::DrainDeadline => {
            "its frontend or backend was removed, or Lemonade stopped, and the drain deadline passed"
        }
        End::Refused(reason) => refusal(reason),
        End::Dropped(reason) => dropped(reason),
    }
}

/// Why a backend that was tried did not serve.
pub const fn fault(fault: Fault) -> &'static str {
    match fault {
        Fault::Refused => "it refused the connect",
        Fault::Reset => "it reset the connection before its first byte",
        Fault::Unreachable => "it could not be reached",
        Fault::TimedOut => "it did not answer within connect_timeout",
        Fault::NoDescriptors => "the process had no file descriptor left",
        Fault::NoPorts => "no local port was left towards it",
        Fault::Other => "its connect failed",
    }
}

/// `text` of a stranger without what could steer a terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Every name that `reason` of a filter may have.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    let ends = [
        End::Closed,
        End::ClientReset,
        End::BackendReset,
        End::ClientTimeout,
        End::BackendTimeout,
        End::IdleTimeout,
        End::DrainDeadline,
    ];
    let told = PacketReason::ALL.into_iter().filter(|reason| reason.is_told());
    // What the proxy refuses for too has one name.
    let refused = |reason: &PacketReason| Reason::ALL.iter().any(|own| own.as_str() == reason.as_str());
    let dropped =
        told.filter(move |reason| *reason != PacketReason::Opened && !refused(reason)).map(End::Dropped);
    ends.into_iter().chain(Reason::ALL.into_iter().map(End::Refused)).chain(dropped).map(End::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: Vec<_> = reasons().collect();
        let told = PacketReason::ALL.into_iter().filter(|reason| reason.is_told()).count();
        // The one that opens a flow is no refusal, and full backends and frontends have the proxy's names.
        assert_eq!(names.len(), 7 + Reason::COUNT + told - 3);
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        assert!(names.contains(&"table_full") && !names.contains(&"opened"));
        assert!(names.contains(&"queue_full") && names.contains(&"client_reset"));
    }
}
