//! Serves the admin sockets within bounds of time, size and number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::serve::Listener;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::routes::{self, Door};
use super::{AdminSockets, AdminWiring};

/// Connections served at a time through each door; others wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// Time a client may take to send a request's head, and may leave a connection unused.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Time a connection may be used for; the request under way then is answered.
const LIFE: Duration = Duration::from_secs(60);

/// Time that requests under way get after `stop` or the end of a connection's life.
const GOODBYE: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// User id, as the kernel tells it of a unix socket (SO_PEERCRED); `None` over TCP.
    pub(super) uid: Option<u32>,
}

/// Whether a connection carries a stream, which may outlive [`LIFE`].
#[derive(Clone, Debug, Default)]
pub(super) struct Streaming(Arc<AtomicBool>);

impl Streaming {
    /// Says that it does.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves `sockets` until `stop`, then removes the unix socket.
pub async fn serve(sockets: AdminSockets, wiring: AdminWiring, stop: CancellationToken) {
    let address = sockets.address();
    let AdminSockets { unix, tcp, file, .. } = sockets;
    let shared = Shared { tasks: TaskTracker::new(), stop };
    let wiring = Arc::new(wiring);
    let local = {
        let router = routes::router(Arc::clone(&wiring), Door::Unix);
        let shared = shared.clone();
        async move {
            match tokio::net::UnixListener::from_std(unix) {
                Ok(listener) => shared.accept(router, listener, unix_peer).await,
                Err(error) => tracing::error!(%error, "cannot serve the admin socket"),
            }
        }
    };
    let remote = {
        let shared = shared.clone();
        async move {
            let (Some(tcp), Some(address)) = (tcp, address) else { return };
            let router = routes::router(wiring, Door::Tcp(address));
            match tokio::net::TcpListener::from_std(tcp) {
                Ok(listener) => shared.accept(router, listener, |_| Peer::default()).await,
                Err(error) => tracing::error!(%error, "cannot serve the admin address"),
            }
        }
    };
    tokio::join!(local, remote);
    // Removed before the last answers: whoever comes now has to find nobody, not a closing door.
    drop(file);
    shared.tasks.close();
    let _ = tokio::time::timeout(GOODBYE, shared.tasks.wait()).await;
}

#[derive(Clone)]
struct Shared {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Shared {
    async fn accept<L: Listener>(&self, router: Router, mut listener: L, peer: fn(&L::Io) -> Peer) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned();
            let Some(Ok(slot)) = self.stop.run_until_cancelled(slot).await else { return };
            // It waits by itself when descriptors run out.
            let Some((io, _)) = self.stop.run_until_cancelled(listener.accept()).await else { return };
            let streaming = Streaming::default();
            let router = router.clone().layer(Extension(peer(&io))).layer(Extension(streaming.clone()));
            let connection = connection(io, router, self.stop.clone(), streaming);
            self.tasks.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
    }
}

fn unix_peer(io: &tokio::net::UnixStream) -> Peer {
    Peer { uid: io.peer_cred().ok().map(|credentials| credentials.uid()) }
}

async fn connection<I>(io: I, router: Router, stop: CancellationToken, streaming: Streaming)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(io), service);
    let mut served = std::pin::pin!(served);
    let over = async {
        let stopped = tokio::time::timeout(LIFE, stop.cancelled()).await;
        if stopped.is_err() && streaming.is_on() {
            stop.cancelled().await;
        }
    };
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = over => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(GOODBYE, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an admin connection ended early");
    }
}
