//! Any bytes at all, sent to the admin interface.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use lemonade::app::{self, Settings};
use lemonade::config::adapters::fixed::FixedConfig;
use lemonade::log::Style;
use lemonade::metrics::adapters::otlp;
use lemonade::shutdown::Signals;

/// Time that an answer may stay away: a request that is not whole gets none.
const PATIENCE: Duration = Duration::from_millis(200);

/// Sends `input` as it is and reads the beginning of what comes back.
///
/// # Panics
/// When the answer is none of HTTP, or says that the server failed.
pub fn send(mut stream: impl Read + Write, input: &[u8]) -> Vec<u8> {
    // Whoever is told off early may close before everything is sent.
    let _ = stream.write_all(input);
    let mut answer = vec![0; 64 * 1024];
    let read = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(read);
    let head = String::from_utf8_lossy(&answer[..read.min(16)]).into_owned();
    assert!(
        read == 0 || head.starts_with("HTTP/1."),
        "{head:?} answers {:?}",
        String::from_utf8_lossy(input)
    );
    assert!(!head.contains(" 500"), "{head:?} answers {:?}", String::from_utf8_lossy(input));
    answer
}

/// As [`send`], to the unix socket at `path`.
///
/// # Panics
/// When nobody listens there any more.
pub fn send_to(path: &Path, input: &[u8]) -> Vec<u8> {
    let stream = std::os::unix::net::UnixStream::connect(path).expect("the admin socket is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    send(stream, input)
}

/// The admin socket of a Lemonade inside this process, started once.
///
/// # Panics
/// When it does not start.
pub fn inside() -> &'static Path {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let text = format!(
            "[runtime]\nstate_dir = {:?}\nworkers = 1\n[admin]\nsocket = {:?}\nlisten = \"off\"\n[log]\naccess = \"off\"\n\
             [frontend.web]\nlisten = \"127.0.0.1:0\"\npool = \"web\"\n[[pool.web.backend]]\nname = \"a\"\naddress = \"127.0.0.1:9\"\n",
            folder.join("state"),
            folder.join("admin.sock"),
        );
        let (started, socket) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let config = lemonade::config::parse_text(Path::new("fuzz.toml"), &text, &[]).expect("valid");
                let config = Arc::new(config);
                let process = Arc::default();
                let telemetry = otlp::channel(Arc::clone(&process));
                let (_log, log) = lemonade::log::build("off", Style::Json, false, std::io::sink, &telemetry.0)
                    .expect("a filter");
                let settings = Settings {
                    service: Arc::new(FixedConfig::new(Arc::clone(&config))),
                    config,
                    file: folder.join("fuzz.toml"),
                    environment: Vec::new(),
                    process,
                    telemetry,
                    log,
                    style: Style::Json,
                    stream: Box::new(std::io::sink()),
                };
                let bound = app::build(settings).await.expect("it starts");
                started.send(bound.admin_socket().to_owned()).expect("somebody waits");
                bound.run(Signals::listen().expect("signals")).await.expect("it goes on");
            });
        });
        let socket = socket.recv().expect("it starts");
        crate::wait::until("it answers", crate::wait::SOON, || {
            crate::http::get_unix(&socket, "/readyz").is_ok_and(|answer| answer.status == 200)
        });
        socket
    })
}
