//! Pages and a scraper: streams of events that are read, the status of each page once a second, the metrics once a second.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

const PERIOD: Duration = Duration::from_secs(1);

/// Who watches what.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Address of the admin interface.
    #[arg(long)]
    admin: SocketAddrV4,
    /// Pages that are open.
    #[arg(long)]
    pages: usize,
    /// Events per second that a page asks for.
    #[arg(long)]
    rate: u32,
}

/// Watches; a line on standard output says when everything is open.
pub(super) fn run(plan: &Plan) -> Result<()> {
    let streams: Vec<TcpStream> = (0..plan.pages)
        .map(|_| {
            let mut stream = TcpStream::connect(plan.admin)?;
            let (admin, rate) = (plan.admin, plan.rate);
            write!(stream, "GET /api/v1/events?rate={rate} HTTP/1.1\r\nHost: {admin}\r\n\r\n")?;
            let mut head = [0; 12];
            stream.read_exact(&mut head)?;
            ensure!(head.ends_with(b"200"), "events: {}", String::from_utf8_lossy(&head));
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    for mut stream in streams {
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
    }
    println!("{{\"held\":{},\"failed\":0}}", plan.pages);
    let mut pages = (0..plan.pages).map(|_| Kept::open(plan.admin)).collect::<Result<Vec<_>>>()?;
    let mut scraper = Kept::open(plan.admin)?;
    loop {
        let began = Instant::now();
        scraper.read("/metrics")?;
        for page in &mut pages {
            page.read("/api/v1/status")?;
        }
        std::thread::sleep(PERIOD.saturating_sub(began.elapsed()));
    }
}

/// A connection that is kept for the next request.
struct Kept {
    admin: SocketAddrV4,
    stream: BufReader<TcpStream>,
}

impl Kept {
    fn open(admin: SocketAddrV4) -> Result<Self> {
        Ok(Self { admin, stream: BufReader::new(TcpStream::connect(admin)?) })
    }

    fn read(&mut self, path: &str) -> Result<()> {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.admin)?;
        let mut length = None;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "{path}: the connection ended");
            if line == "\r\n" {
                break;
            }
            let value = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            length = value.and_then(|(_, value)| value.trim().parse().ok()).or(length);
        }
        let mut body = vec![0; length.with_context(|| format!("{path}: no length"))?];
        Ok(self.stream.read_exact(&mut body)?)
    }
}
