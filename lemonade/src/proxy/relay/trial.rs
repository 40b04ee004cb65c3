//! Behavioural self-tests of a relay in the kernel: what a direct connection shows, a canary on loopback must show too.
//!
//! Kernels carry both the defects and their fixes under the same version, so what counts is what they do.

#![cfg(target_os = "linux")]

mod cases;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::is_abort;
use super::sockmap::{Carried, Relay};
use crate::metrics::port::End;
use crate::model::relay::{RelayCell, SelfTest};
use crate::proxy::adapters::bpf::{Kernel, Sockmap, Unavailable};
use crate::proxy::flow::Direction;
use crate::proxy::socket::reset_on_close;
pub use cases::Case;

/// Time that one test may take; all of them run at once and together take much less on a host with time to spare.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a relay buffer of canaries that have none of a configuration.
const BUFFER: usize = 64 * 1024;

/// Idle timeout of a canary, longer than any test.
const IDLE: Duration = Duration::from_secs(60);

/// Why no frontend gets the relay, whatever its self-tests say: seen on Linux 6.18.
pub const UNPROVEN: &str = "beside threads that keep every core busy, connections that it carries stood still for 20 \
    seconds, because the worker of the kernel that sends for it got no turn; and the kernel loses count of the memory of \
    sockets whose readers are slow both ways (docs/adr/0012); connections stay with copy";

/// Variable that puts the relay in use all the same, for those who look for the cause; its value is `sockmap`.
const DESPITE: &str = "LEMONADE_UNPROVEN_RELAYS";

/// Whether a frontend that asks for the relay may get it.
pub fn proven() -> bool {
    std::env::var_os(DESPITE).is_some_and(|relays| relays == "sockmap")
}

/// Puts the relay into the kernel, runs its self-tests and takes it out again.
///
/// # Errors
/// Why it cannot be put there, and what would change that.
pub fn once() -> Result<Vec<SelfTest>, Unavailable> {
    let failed = |error: io::Error| Unavailable { why: error.to_string(), cure: "try again".to_owned() };
    let mut kernel = Kernel::load()?;
    kernel.attach()?;
    let relay = Arc::new(Relay::new(Sockmap::attach(&mut kernel)?, BUFFER).map_err(failed)?);
    relay.want(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let lookout = Arc::clone(&relay);
        tokio::spawn(async move { lookout.run().await });
        Ok(run(&relay).await)
    })
}

/// Runs all self-tests at the same time; one result for each, in order.
pub async fn run(relay: &Arc<Relay>) -> Vec<SelfTest> {
    let tests: Vec<_> =
        Case::ALL.into_iter().map(|case| tokio::spawn(one(Arc::clone(relay), case))).collect();
    let mut results = Vec::new();
    for (test, case) in tests.into_iter().zip(Case::ALL) {
        let failed = |error: tokio::task::JoinError| result(case, Duration::ZERO, Err(error.to_string()));
        results.push(test.await.unwrap_or_else(failed));
    }
    results
}

/// Runs one self-test.
pub async fn one(relay: Arc<Relay>, case: Case) -> SelfTest {
    let began = Instant::now();
    let outcome = timeout(PATIENCE, case.run(&relay)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(format!("nothing more came within {PATIENCE:?}")));
    result(case, began.elapsed(), outcome)
}

fn result(case: Case, took: Duration, outcome: Result<(), String>) -> SelfTest {
    SelfTest {
        name: case.as_str().to_owned(),
        passed: outcome.is_ok(),
        detail: outcome.err().unwrap_or_default(),
        took_ms: took.as_micros() as f64 / 1e3,
    }
}

/// Both outer ends of a connection that the relay carries.
struct Stage {
    client: TcpStream,
    backend: TcpStream,
    carried: JoinHandle<Carried>,
}

/// The four sockets of a connection before the relay has it.
struct Ends {
    client: TcpStream,
    near_client: TcpStream,
    near_backend: TcpStream,
    backend: TcpStream,
}

impl Ends {
    async fn connect() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (client, near_client) = (client?, accepted?.0);
        let (near_backend, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let ends = Self { client, near_client, near_backend: near_backend?, backend: accepted?.0 };
        for socket in [&ends.client, &ends.near_client, &ends.near_backend, &ends.backend] {
            socket.set_nodelay(true)?;
        }
        Ok(ends)
    }

    /// Gives all sockets small buffers, so that what is held can only be in the relay.
    fn shrink(&self) -> io::Result<()> {
        for socket in [&self.client, &self.near_client, &self.near_backend, &self.backend] {
            let socket = SockRef::from(socket);
            socket.set_recv_buffer_size(64 * 1024)?;
            socket.set_send_buffer_size(64 * 1024)?;
        }
        Ok(())
    }

    /// Hands the connection to the relay.
    fn carry(self, relay: &Arc<Relay>) -> io::Result<Stage> {
        let Self { client, near_client, near_backend, backend } = self;
        let (near_client, near_backend) = (near_client.into_std()?, near_backend.into_std()?);
        let relay = Arc::clone(relay);
        let carried = tokio::spawn(async move {
            let cell = RelayCell::default();
            let meter = |_: Direction, _: u64| {};
            let never = std::future::pending();
            let carried = relay.carry(&near_client, &near_backend, &meter, &cell, IDLE, never).await;
            if let Carried::End(end) = carried
                && is_abort(end)
            {
                reset_on_close(&near_client);
                reset_on_close(&near_backend);
            }
            carried
        });
        Ok(Stage { client, backend, carried })
    }
}

impl Stage {
    async fn start(relay: &Arc<Relay>) -> Result<Self, String> {
        let ends = Ends::connect().await.map_err(|error| format!("no canary: {error}"))?;
        ends.carry(relay).map_err(|error| format!("no canary: {error}"))
    }

    /// Closes both outer ends and compares how the connection ended.
    async fn ends(self, expected: End) -> Result<(), String> {
        drop((self.client, self.backend));
        match self.carried.await {
            Ok(Carried::End(end)) if end == expected => Ok(()),
            Ok(Carried::End(end)) => {
                Err(format!("it ended as {}, not as {}", end.as_str(), expected.as_str()))
            }
            Ok(Carried::Refused) => Err("the kernel did not take the connection".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
