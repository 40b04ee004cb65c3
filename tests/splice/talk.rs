//! Conversations that begin with questions and answers, go on with streams both ways, and end in every way: each byte is
//! compared with the one that belongs at its place.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lemonade_tests::stream;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Bytes of a question and of an answer.
const TURN: u64 = 64;

/// Bytes that the side which closes last sends behind the other's FIN.
const BEHIND: u64 = 5_000;

/// Time without progress after which a conversation has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("a live socket");
}

/// Who ends it, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    ClientCloses,
    BackendCloses,
    ClientResets,
    BackendResets,
}

impl Ending {
    pub const ALL: [Self; 4] =
        [Self::ClientCloses, Self::BackendCloses, Self::ClientResets, Self::BackendResets];
}

/// A conversation.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub seed: u64,
    /// Questions with their answers.
    pub turns: u32,
    /// Milliseconds between two of them.
    pub pause: u32,
    /// Whether the client asks on while answers are outstanding.
    pub pipelined: bool,
    /// Bytes of the streams behind them.
    pub up: u64,
    pub down: u64,
    pub ending: Ending,
}

impl Talk {
    /// Bytes that the client and the backend send, if it ends in order.
    pub const fn bytes(&self) -> (u64, u64) {
        let turns = self.turns as u64 * TURN;
        let (up, down) = (HEADER as u64 + turns + self.up, turns + self.down);
        match self.ending {
            Ending::ClientCloses => (up, down + BEHIND),
            Ending::BackendCloses => (up + BEHIND, down),
            Ending::ClientResets | Ending::BackendResets => (up, down),
        }
    }

    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (to, word) in bytes.chunks_exact_mut(8).zip([
            self.seed,
            self.turns.into(),
            self.up,
            self.down,
            self.ending as u64,
        ]) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Self {
        let mut words =
            bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("8 bytes")));
        let mut next = || words.next().expect("five words");
        let (seed, turns, up, down, ending) = (next(), next() as u32, next(), next(), next());
        Self { seed, turns, pause: 0, pipelined: false, up, down, ending: Ending::ALL[ending as usize] }
    }
}

const HEADER: usize = 40;

/// `n` conversations of every kind, most of them long enough to be spliced, at any of their turns.
pub fn plan(seed: u64, n: usize, largest: u64) -> Vec<Talk> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n)
        .map(|index| Talk {
            seed: random.u64(..),
            turns: random.u32(8..80),
            pause: random.u32(1..8),
            pipelined: false,
            up: random.u64(..largest),
            down: random.u64(..largest),
            ending: Ending::ALL[[0, 1, 0, 1, 2, 3][index % 6]],
        })
        .collect()
}

/// Answers conversations for as long as the process lives; what went wrong is told to `failures`.
pub struct Answerer {
    pub address: SocketAddr,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Answerer {
    /// Listens on `address`, in the namespace of this thread.
    pub fn start(address: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a live socket");
        let address = listener.local_addr().expect("a bound socket");
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&failures);
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a runtime");
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let told = Arc::clone(&told);
                    tokio::spawn(async move {
                        if let Err(why) = answer(stream).await {
                            told.lock().unwrap_or_else(PoisonError::into_inner).push(why);
                        }
                    });
                }
            });
        });
        Self { address, failures }
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One direction of a conversation as one side reads or writes it.
struct Track {
    seed: u64,
    at: u64,
}

impl Track {
    async fn send(&mut self, to: &mut (impl AsyncWriteExt + Unpin), mut left: u64) -> Result<(), String> {
        let mut buffer = vec![0; 32 << 10];
        while left > 0 {
            let count = left.min(buffer.len() as u64);
            let part = &mut buffer[..count as usize];
            stream::fill(self.seed, self.at, part);
            within(to.write_all(part)).await.map_err(|error| format!("a write at {}: {error}", self.at))?;
            self.at += count;
            left -= count;
        }
        Ok(())
    }

    async fn receive(&mut self, from: &mut (impl AsyncReadExt + Unpin), mut left: u64) -> Result<(), String> {
        let mut buffer = vec![0; 32 << 10];
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let count = within(from.read(&mut buffer[..most])).await;
            let count = count.map_err(|error| format!("a read at {}: {error}", self.at))?;
            if count == 0 {
                return Err(format!("the stream ended at {}, {left} before its end", self.at));
            }
            stream::check(self.seed, self.at, &buffer[..count]).map_err(|wrong| format!("{wrong:?}"))?;
            self.at += count as u64;
            left -= count as u64;
        }
        Ok(())
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn at_end(from: &mut (impl AsyncReadExt + Unpin)) -> Result<(), String> {
    match within(from.read(&mut [0; 64])).await {
        Ok(0) => Ok(()),
        Ok(count) => Err(format!("{count} bytes came behind the end")),
        Err(error) => Err(format!("instead of the end came {error}")),
    }
}

async fn at_reset(from: &mut (impl AsyncReadExt + Unpin)) -> Result<(), String> {
    match within(from.read(&mut [0; 64])).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("instead of a reset came {other:?}")),
    }
}

/// Both streams at once, then the end; `first` says whether this side closes first.
async fn streams(
    stream: &mut TcpStream,
    (out, length_out): (&mut Track, u64),
    (back, length_back): (&mut Track, u64),
    first: Option<bool>,
) -> Result<(), String> {
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        out.send(&mut writer, length_out).await?;
        if first == Some(true) {
            within(writer.shutdown()).await.map_err(|error| format!("FIN: {error}"))?;
        }
        Ok(())
    };
    let receiving = async {
        back.receive(&mut reader, length_back).await?;
        match first {
            Some(true) => {
                back.receive(&mut reader, BEHIND).await?;
                at_end(&mut reader).await
            }
            Some(false) => at_end(&mut reader).await,
            None => Ok(()),
        }
    };
    tokio::try_join!(sending, receiving)?;
    if first == Some(false) {
        out.send(&mut writer, BEHIND).await?;
        within(writer.shutdown()).await.map_err(|error| format!("FIN: {error}"))?;
    }
    Ok(())
}

async fn answer(mut stream: TcpStream) -> Result<(), String> {
    let mut header = [0; HEADER];
    if stream.read_exact(&mut header).await.is_err() {
        return Ok(());
    }
    let talk = Talk::decode(&header);
    let outcome = async {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (mut up, mut down) = (Track { seed: talk.seed, at: 0 }, Track { seed: !talk.seed, at: 0 });
        for _ in 0..talk.turns {
            up.receive(&mut stream, TURN).await?;
            down.send(&mut stream, TURN).await?;
        }
        let first = match talk.ending {
            Ending::ClientCloses => Some(false),
            Ending::BackendCloses => Some(true),
            Ending::ClientResets | Ending::BackendResets => None,
        };
        streams(&mut stream, (&mut down, talk.down), (&mut up, talk.up), first).await?;
        match talk.ending {
            Ending::ClientResets => at_reset(&mut stream).await?,
            Ending::BackendResets => {
                // The client says that it has everything: RST takes away what is under way.
                up.receive(&mut stream, 1).await?;
                reset_on_close(&stream);
            }
            Ending::ClientCloses | Ending::BackendCloses => {}
        }
        Ok::<_, String>(())
    };
    outcome.await.map_err(|why| format!("backend, {talk:?}: {why}"))
}

/// The client's side.
pub async fn client(address: SocketAddr, talk: Talk) -> Result<(), String> {
    let stream =
        within(TcpStream::connect(address)).await.map_err(|error| format!("no connection: {error}"))?;
    through(stream, talk).await
}

/// The client's side on a connection that exists.
pub async fn through(mut stream: TcpStream, talk: Talk) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    within(stream.write_all(&talk.encode())).await.map_err(|error| error.to_string())?;
    let (mut up, mut down) = (Track { seed: talk.seed, at: 0 }, Track { seed: !talk.seed, at: 0 });
    let pause = Duration::from_millis(talk.pause.into());
    if talk.pipelined {
        let (mut reader, mut writer) = stream.split();
        let asking = async {
            for _ in 0..talk.turns {
                up.send(&mut writer, TURN).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        };
        tokio::try_join!(asking, down.receive(&mut reader, u64::from(talk.turns) * TURN))?;
    } else {
        for _ in 0..talk.turns {
            up.send(&mut stream, TURN).await?;
            down.receive(&mut stream, TURN).await?;
            tokio::time::sleep(pause).await;
        }
    }
    let first = match talk.ending {
        Ending::ClientCloses => Some(true),
        Ending::BackendCloses => Some(false),
        Ending::ClientResets | Ending::BackendResets => None,
    };
    streams(&mut stream, (&mut up, talk.up), (&mut down, talk.down), first).await?;
    match talk.ending {
        Ending::ClientResets => {
            // Until it has arrived: RST takes away what is under way.
            tokio::time::sleep(Duration::from_millis(300)).await;
            reset_on_close(&stream);
        }
        Ending::BackendResets => {
            up.send(&mut stream, 1).await?;
            at_reset(&mut stream).await?;
        }
        Ending::ClientCloses | Ending::BackendCloses => {}
    }
    Ok(())
}

/// Holds `talks` with at most `concurrency` at a time from this thread's namespace; returns what went wrong.
pub fn hold(address: SocketAddr, talks: &[Talk], concurrency: usize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let permits = Arc::new(Semaphore::new(concurrency));
        let mut under_way = tokio::task::JoinSet::new();
        for &talk in talks {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
            under_way.spawn(async move {
                let outcome = client(address, talk).await;
                drop(permit);
                outcome.map_err(|why| format!("client, {talk:?}: {why}"))
            });
        }
        under_way.join_all().await.into_iter().filter_map(Result::err).collect()
    })
}
