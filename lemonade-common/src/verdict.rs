//! Why a connection was refused; each reason is a counter index.

/// Reason for which a connection got no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Every backend of the pool is down, disabled, draining or of weight 0.
    NoBackendUp,
    /// Every backend is at its `max_connections` and the pool has no queue.
    BackendsFull,
    /// The pool's queue is full.
    QueueFull,
    /// No backend became free within `queue_timeout`.
    QueueTimeout,
    /// The frontend is at its `max_connections`.
    FrontendLimit,
    /// The process is at `[runtime] max_connections`.
    TotalLimit,
    /// Each backend tried refused, reset or was unreachable.
    ConnectFailed,
    /// No backend tried answered within `connect_timeout`.
    ConnectTimeout,
    /// The process has no file descriptor left.
    NoDescriptors,
    /// No local port is left towards the backend.
    NoPorts,
    /// The client went away before a backend was connected.
    ClientGone,
    /// Lemonade is shutting down.
    Draining,
}

impl Reason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 12] = [
        Self::NoBackendUp,
        Self::BackendsFull,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::FrontendLimit,
        Self::TotalLimit,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::NoDescriptors,
        Self::NoPorts,
        Self::ClientGone,
        Self::Draining,
    ];

    /// Number of reasons, the size of a counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// Counter index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Stable name, used in metrics, logs and access records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoBackendUp => "no_backend_up",
            Self::BackendsFull => "backends_full",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::FrontendLimit => "frontend_limit",
            Self::TotalLimit => "total_limit",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoDescriptors => "no_descriptors",
            Self::NoPorts => "no_ports",
            Self::ClientGone => "client_gone",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_sits_at_its_index_with_a_name_of_its_own() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert_eq!(Reason::ALL.iter().filter(|other| other.as_str() == reason.as_str()).count(), 1);
        }
    }
}
