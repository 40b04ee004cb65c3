//! A small HTTP server that says its name, so that a balancer has something to balance.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::serve::ListenerExt;
use futures_util::stream;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Most bytes that one `/bytes/N` answer carries.
pub const MAX_BYTES: u64 = 16 << 30;

/// Longest wait that `/slow` accepts, in milliseconds.
pub const MAX_SLOW_MS: u64 = 600_000;

const CHUNK: usize = 64 << 10;
const BACKEND: HeaderName = HeaderName::from_static("x-backend");

/// Settings of a demo backend.
#[derive(clap::Args, Debug, Clone)]
pub struct DemoOptions {
    /// Address to listen on; port 0 takes a free one, printed on standard output
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// Name it answers with
    #[arg(long, default_value = "a")]
    pub name: String,
    /// Time it waits before each answer
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub delay: Duration,
    /// Exit when standard input closes, so that it cannot outlive the process that holds the other end
    #[arg(long)]
    pub until_stdin_closes: bool,
}

/// Serves until SIGTERM or SIGINT, then finishes the requests in flight.
///
/// The address is printed on standard output as soon as connections are accepted. With
/// `until_stdin_closes`, a closed standard input stops it at once instead.
///
/// # Errors
/// The address cannot be bound, or the name cannot stand in a header.
pub async fn serve(options: DemoOptions) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("demo backend {}: cannot listen on {}", options.name, options.listen))?;
    writeln!(io::stdout(), "demo backend {} on {}", options.name, listener.local_addr()?)?;

    let abandoned = async {
        if options.until_stdin_closes {
            stdin_closed().await;
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        served = serve_on(listener, &options, stop_signal()) => served,
        () = abandoned => Ok(()),
    }
}

async fn serve_on(
    listener: TcpListener,
    options: &DemoOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let backend = Arc::new(Backend {
        greeting: format!("hello from {}\n", options.name),
        header: HeaderValue::try_from(&options.name)
            .with_context(|| format!("--name {:?} cannot stand in a header; use letters", options.name))?,
        delay: options.delay,
    });
    let routes = Router::new()
        .route("/bytes/{count}", any(bytes))
        .route("/slow", any(slow))
        .fallback(hello)
        .layer(from_fn_with_state(Arc::clone(&backend), delayed_and_signed))
        .with_state(backend);
    // Small answers on a kept connection would otherwise wait for the peer's delayed ACK.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, routes).with_graceful_shutdown(stop).await?;
    Ok(())
}

struct Backend {
    greeting: String,
    header: HeaderValue,
    delay: Duration,
}

async fn delayed_and_signed(State(backend): State<Arc<Backend>>, request: Request, next: Next) -> Response {
    if !backend.delay.is_zero() {
        tokio::time::sleep(backend.delay).await;
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(BACKEND, backend.header.clone());
    response
}

async fn hello(State(backend): State<Arc<Backend>>) -> String {
    backend.greeting.clone()
}

#[derive(Deserialize)]
struct Paced {
    /// Bytes a second at most; 0 is as fast as they are taken.
    #[serde(default)]
    rate: u64,
}

async fn bytes(Path(count): Path<u64>, Query(Paced { rate }): Query<Paced>) -> Response {
    if count > MAX_BYTES {
        return (StatusCode::BAD_REQUEST, format!("at most {MAX_BYTES} bytes\n")).into_response();
    }
    let block = Bytes::from(vec![b'x'; CHUNK]);
    let began = tokio::time::Instant::now();
    let body = stream::unfold(count, move |left| {
        let length = left.min(CHUNK as u64);
        let chunk = block.slice(..length as usize);
        async move {
            if let Some(ms) = ((count - left) * 1000).checked_div(rate) {
                tokio::time::sleep_until(began + Duration::from_millis(ms)).await;
            }
            (length > 0).then(|| (Ok::<_, io::Error>(chunk), left - length))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(count)),
    ];
    (headers, Body::from_stream(body)).into_response()
}

#[derive(Deserialize)]
struct Slow {
    #[serde(default)]
    ms: u64,
}

async fn slow(State(backend): State<Arc<Backend>>, Query(slow): Query<Slow>) -> String {
    tokio::time::sleep(Duration::from_millis(slow.ms.min(MAX_SLOW_MS))).await;
    backend.greeting.clone()
}

#[cfg(unix)]
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};

    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => (),
        _ = tokio::signal::ctrl_c() => (),
    }
}

#[cfg(not(unix))]
async fn stop_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// Ends when standard input does. The read blocks, so it has a thread that the exit of the process ends.
async fn stdin_closed() {
    let (closed, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    struct Demo {
        address: SocketAddr,
        stop: Option<oneshot::Sender<()>>,
        served: JoinHandle<anyhow::Result<()>>,
    }

    async fn start(name: &str, delay: Duration) -> Demo {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback binds");
        let address = listener.local_addr().expect("a bound address");
        let options =
            DemoOptions { listen: address, name: name.to_owned(), delay, until_stdin_closes: false };
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            serve_on(listener, &options, async {
                let _ = stopped.await;
            })
            .await
        });
        Demo { address, stop: Some(stop), served }
    }

    async fn exchange(address: SocketAddr, target: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("demo accepts");
        let request = format!("GET {target} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("request is sent");
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer))
            .await
            .expect("an answer in time")
            .expect("an answer in UTF-8");
        answer
    }

    #[tokio::test]
    async fn says_its_name_on_every_path_after_its_delay() {
        let delay = Duration::from_millis(20);
        let demo = start("a", delay).await;
        for target in ["/", "/any/path?with=query"] {
            let began = Instant::now();
            let answer = exchange(demo.address, target).await;
            assert!(began.elapsed() >= delay, "{target}: answered early");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains("x-backend: a\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nhello from a\n"), "{answer}");
        }
    }

    #[tokio::test]
    async fn streams_exactly_the_bytes_asked_for_and_refuses_too_many() {
        let demo = start("b", Duration::ZERO).await;
        for count in [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 7] {
            let answer = exchange(demo.address, &format!("/bytes/{count}")).await;
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("content-length: {count}")), "{head}");
            assert_eq!(body.len(), count);
        }
        let answer = exchange(demo.address, &format!("/bytes/{}", MAX_BYTES + 1)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_after_the_stop_and_new_connections_are_not() {
        let mut demo = start("c", Duration::ZERO).await;
        let mut stream = TcpStream::connect(demo.address).await.expect("demo accepts");
        stream
            .write_all(b"GET /bytes/64000000 HTTP/1.1\r\nhost: demo\r\n\r\n")
            .await
            .expect("request is sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("the answer has begun");
        assert_eq!(&first, b"HTTP/1.1 200");

        demo.stop.take().expect("not stopped yet").send(()).expect("demo is running");
        let refused = async {
            while TcpStream::connect(demo.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), refused).await.expect("the listener closes");

        let mut rest = Vec::new();
        timeout(Duration::from_secs(60), stream.read_to_end(&mut rest))
            .await
            .expect("ends in time")
            .expect("is not reset");
        assert!(rest.len() > 64_000_000, "cut short at {}", rest.len());
        timeout(Duration::from_secs(20), demo.served)
            .await
            .expect("ends")
            .expect("no panic")
            .expect("no error");
    }

    #[tokio::test]
    async fn slow_waits_as_long_as_it_is_told() {
        let demo = start("d", Duration::ZERO).await;
        let began = Instant::now();
        let answer = exchange(demo.address, "/slow?ms=50").await;
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert!(answer.ends_with("hello from d\n"), "{answer}");
    }
}
