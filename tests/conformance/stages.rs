//! One connection through a plane, both ends in hand.

use std::net::{TcpListener, TcpStream};

use lemonade_tests::plane::{Plane, Served};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket;

/// Seed of what the client sends.
pub(crate) const UP: u64 = 11;
/// Seed of what the backend sends.
pub(crate) const DOWN: u64 = 22;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Backend,
}

impl Side {
    /// Seed of what it sends.
    pub(crate) const fn seed(self) -> u64 {
        match self {
            Self::Client => UP,
            Self::Backend => DOWN,
        }
    }

    /// The opposite end.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// A plane in front of one listener.
pub(crate) struct Stage {
    listener: TcpListener,
    pub(crate) served: Box<dyn Served>,
}

impl Stage {
    pub(crate) fn start(plane: &dyn Plane) -> Self {
        let listener = plane.place().listener();
        let address = listener.local_addr().expect("a bound socket");
        Self { served: plane.start(&Setup::single(&[address])), listener }
    }

    /// A new connection: the end at `side`, then the opposite one.
    pub(crate) fn connect(&self, side: Side) -> (TcpStream, TcpStream) {
        let mut client = socket::connect(self.served.address()).expect("the plane accepts");
        let mut backend = socket::accept(&self.listener);
        self.served.settle(&mut client, &mut backend);
        match side {
            Side::Client => (client, backend),
            Side::Backend => (backend, client),
        }
    }
}
