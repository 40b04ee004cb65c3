//! A backend on a thread of its own: it answers calls, echoes flows, takes part in transfers, speaks enough HTTP for
//! a probe, and keeps the ground truth that counters are compared with.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::load::{self, HEADER, Header, Kind};
use crate::skip::full;
use crate::{socket, stream, transfer};

/// Greeting of a backend that speaks first.
pub const GREETING: &[u8; 16] = b"server speaks 1\n";

/// What a backend counted.
#[derive(Debug, Default)]
pub struct Truth {
    /// Connections that sent at least one byte.
    pub served: AtomicU64,
    /// Connections that are being served.
    pub live: AtomicU64,
    /// Bytes received on them.
    pub received: AtomicU64,
    /// Bytes sent on them.
    pub sent: AtomicU64,
    /// HTTP requests answered.
    pub probes: AtomicU64,
    /// What went wrong.
    pub failures: Mutex<Vec<String>>,
}

impl Truth {
    /// Connections that sent at least one byte.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic under the lock").clone()
    }

    fn count_received(&self, n: usize) {
        self.received.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn count_sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
    }
}

struct Shared {
    name: String,
    speaks_first: bool,
    truth: Truth,
    status: AtomicU16,
    hold: AtomicBool,
    /// Milliseconds before a call is answered.
    thinks: AtomicU16,
}

/// A running backend.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: watch::Sender<Listening>,
    thread: Option<JoinHandle<()>>,
    states: std::sync::mpsc::Receiver<Listening>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    Yes,
    No,
    Gone,
}

impl Backend {
    /// Starts a backend that answers calls with `name`.
    pub fn start(name: &str) -> Self {
        Self::launch(name, false, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// As [`Self::start`], but it greets before it reads.
    pub fn start_speaking(name: &str) -> Self {
        Self::launch(name, true, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// As [`Self::start_speaking`], on a given address.
    pub fn start_speaking_on(name: &str, address: SocketAddr) -> Self {
        Self::launch(name, true, address)
    }

    /// As [`Self::start`], on a given address.
    pub fn start_on(name: &str, address: SocketAddr) -> Self {
        Self::launch(name, false, address)
    }

    /// Starts backends `a`, `b`, `c`...
    pub fn several(n: usize) -> Vec<Self> {
        (0..n).map(|n| Self::start(&crate::setup::letter(n))).collect()
    }

    fn launch(name: &str, speaks_first: bool, address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            speaks_first,
            truth: Truth::default(),
            status: AtomicU16::new(200),
            hold: AtomicBool::new(false),
            thinks: AtomicU16::new(0),
        });
        let (listening, orders) = watch::channel(Listening::Yes);
        let (told, states) = std::sync::mpsc::channel();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = listen(&runtime, address);
        let address = listener.local_addr().expect("a bound socket");
        let serving = Arc::clone(&shared);
        let thread =
            std::thread::spawn(move || runtime.block_on(serve(serving, listener, address, orders, told)));
        Self { address, shared, listening, thread: Some(thread), states }
    }

    /// What it counted.
    pub fn truth(&self) -> &Truth {
        &self.shared.truth
    }

    /// Answers HTTP requests with `status` from now on.
    pub fn answer_http(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// Leaves HTTP requests without an answer from now on.
    pub fn hold_http(&self, hold: bool) {
        self.shared.hold.store(hold, Ordering::Relaxed);
    }

    /// Answers calls after so many milliseconds from now on.
    pub fn think(&self, milliseconds: u16) {
        self.shared.thinks.store(milliseconds, Ordering::Relaxed);
    }

    /// Refuses connections from now on; what was accepted is served to its end.
    ///
    /// # Panics
    /// When its thread is gone.
    pub fn refuse(&self) {
        self.order(Listening::No);
    }

    /// Accepts connections again.
    ///
    /// # Panics
    /// When its thread is gone.
    pub fn accept(&self) {
        self.order(Listening::Yes);
    }

    fn order(&self, order: Listening) {
        self.listening.send_replace(order);
        let bound = std::time::Duration::from_secs(20);
        while self.states.recv_timeout(bound).expect("the backend follows") != order {}
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.listening.send_replace(Listening::Gone);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "a backend panicked");
        }
    }
}

fn listen(runtime: &Runtime, address: SocketAddr) -> TcpListener {
    let _guard = runtime.enter();
    bind(address).expect("the address of a backend is free")
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    mut orders: watch::Receiver<Listening>,
    told: std::sync::mpsc::Sender<Listening>,
) {
    let mut listener = Some(listener);
    loop {
        let order = match &listener {
            Some(open) => tokio::select! {
                biased;
                changed = orders.changed() => changed.map_or(Listening::Gone, |()| *orders.borrow()),
                accepted = open.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(connection(Arc::clone(&shared), stream));
                    }
                    continue;
                }
            },
            None => orders.changed().await.map_or(Listening::Gone, |()| *orders.borrow()),
        };
        match order {
            Listening::Gone => return,
            Listening::No => {
                if let Some(open) = listener.take() {
                    close_without_loss(&shared, &open, address).await;
                }
            }
            Listening::Yes if listener.is_none() => listener = Some(bind(address).expect("its own address")),
            Listening::Yes => {}
        }
        let _ = told.send(order);
    }
}

/// Serves what is in the accept queue and what is on its way there; a filter keeps further handshakes out of it.
///
/// A client that lets its first bytes end the handshake thinks itself connected for as long as the handshake is half open.
async fn close_without_loss(shared: &Arc<Shared>, listener: &TcpListener, address: SocketAddr) {
    refuse_new(listener);
    while half_open(address) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    while let Ok((stream, _)) = SockRef::from(listener).accept() {
        stream.set_nonblocking(true).expect("mode of a live socket");
        let stream = TcpStream::from_std(stream.into()).expect("a live socket");
        tokio::spawn(connection(Arc::clone(shared), stream));
    }
}

/// Drops segments with SYN, the first of a handshake.
fn refuse_new(listener: &TcpListener) {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    let filter = [
        SockFilter::new(0x30, 0, 0, FLAGS),
        SockFilter::new(0x45, 0, 1, SYN),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&filter).expect("a socket filter");
}

/// Whether the kernel holds a handshake with `address` that its client has not ended: state 03, SYN_RECV, in its tables.
fn half_open(address: SocketAddr) -> bool {
    let port = format!(":{:04X}", address.port());
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("03")
        })
    })
}

async fn connection(shared: Arc<Shared>, mut stream: TcpStream) {
    let truth = &shared.truth;
    stream.set_nodelay(true).expect("option of a live socket");
    if full() {
        socket::small_buffers(&stream);
    }
    if shared.speaks_first && stream.write_all(GREETING).await.is_ok() {
        truth.count_sent(GREETING.len());
    }
    let mut header = [0; HEADER];
    match stream.read(&mut header[..1]).await {
        Ok(1) => truth.count_received(1),
        // A probe that only connects.
        _ => return,
    }
    truth.served.fetch_add(1, Ordering::Relaxed);
    truth.live.fetch_add(1, Ordering::Relaxed);
    let outcome = match Kind::of(header[0]) {
        None => http(&shared, stream).await,
        Some(_) => match stream.read_exact(&mut header[1..]).await {
            Ok(n) => {
                truth.count_received(n);
                request(&shared, stream, Header::decode(&header)).await
            }
            Err(error) => Err(format!("header: {error}")),
        },
    };
    truth.live.fetch_sub(1, Ordering::Relaxed);
    if let Err(why) = outcome {
        truth.failures.lock().expect("no panic under the lock").push(format!("{}: {why}", shared.name));
    }
}

async fn request(shared: &Shared, mut stream: TcpStream, header: Header) -> Result<(), String> {
    let truth = &shared.truth;
    match header.kind {
        Kind::Call => {
            let mut body = [0; load::BODY];
            let n = stream.read_exact(&mut body).await.map_err(|error| format!("call: {error}"))?;
            truth.count_received(n);
            stream::check(header.seed, 0, &body).map_err(|mismatch| mismatch.to_string())?;
            let thinks = shared.thinks.load(Ordering::Relaxed);
            if thinks > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(thinks.into())).await;
            }
            let answer = load::answer(&shared.name, header.seed);
            stream.write_all(&answer).await.map_err(|error| format!("answer: {error}"))?;
            truth.count_sent(answer.len());
            Ok(())
        }
        Kind::Flow => {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                // The end of a flow is judged by its client.
                let Ok(n @ 1..) = stream.read(&mut buffer).await else { return Ok(()) };
                truth.count_received(n);
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return Ok(());
                }
                truth.count_sent(n);
            }
        }
        Kind::Named => {
            let mut answer = [b' '; load::NAME + 8];
            answer[..shared.name.len()].copy_from_slice(shared.name.as_bytes());
            loop {
                let asked = &mut answer[load::NAME..];
                let Ok(n) = stream.read_exact(asked).await else { return Ok(()) };
                truth.count_received(n);
                if stream.write_all(&answer).await.is_err() {
                    return Ok(());
                }
                truth.count_sent(answer.len());
            }
        }
        Kind::Transfer => {
            let (sent, received) =
                transfer::exchange(&mut stream, !header.seed, header.down, header.seed, header.up).await?;
            truth.count_sent(usize::try_from(sent).expect("64-bit"));
            truth.count_received(usize::try_from(received).expect("64-bit"));
            Ok(())
        }
    }
}

async fn http(shared: &Shared, mut stream: TcpStream) -> Result<(), String> {
    let mut head = vec![0; 4096];
    let _ = stream.read(&mut head).await.map_err(|error| format!("http: {error}"))?;
    shared.truth.probes.fetch_add(1, Ordering::Relaxed);
    if shared.hold.load(Ordering::Relaxed) {
        let _ = stream.read(&mut head).await;
        return Ok(());
    }
    let Shared { name, status, .. } = shared;
    let status = status.load(Ordering::Relaxed);
    let length = name.len();
    let answer =
        format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}");
    let _ = stream.write_all(answer.as_bytes()).await;
    Ok(())
}
