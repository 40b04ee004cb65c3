use tokio::sync::{mpsc, watch};

use super::*;
use crate::control::table::{DispatchTable, PoolEntry};
use crate::health::adapters::scripted::{Script, Scripted};
use crate::health::port::{SignalKind, Transition};
use crate::health::testing::{address, health, pool, table};
use crate::model::config::{Health, HealthKind};

/// Health under test, on paused time.
struct Bench {
    service: Arc<BackendHealth>,
    prober: Arc<Scripted>,
    process: Arc<ProcessCell>,
    targets: watch::Sender<Arc<DispatchTable>>,
    signals: mpsc::Sender<Signal>,
    view: watch::Receiver<Arc<HealthView>>,
    transitions: mpsc::Receiver<Transition>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn start(entries: impl IntoIterator<Item = PoolEntry>) -> Self {
        let prober = Arc::new(Scripted::default());
        let process = Arc::new(ProcessCell::default());
        let service = Arc::new(BackendHealth::new(Arc::clone(&prober), Arc::clone(&process)));
        let (targets, targets_out) = watch::channel(table(entries.into_iter().map(Arc::new)));
        let (signals, signals_out) = mpsc::channel(64);
        let (view_in, view) = watch::channel(Arc::default());
        let (told, transitions) = mpsc::channel(8);
        let wiring =
            HealthWiring { targets: targets_out, signals: signals_out, view: view_in, transitions: told };
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&service).run(wiring, stop.clone()));
        Self { service, prober, process, targets, signals, view, transitions, stop, task }
    }

    fn publish(&self, entries: impl IntoIterator<Item = PoolEntry>) {
        self.targets.send_replace(table(entries.into_iter().map(Arc::new)));
    }

    async fn status(&mut self, ix: u32, wanted: Status) {
        let reached = self.view.wait_for(|view| view.statuses.get(&BackendIx(ix)) == Some(&wanted));
        let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
        reached.expect("status within a minute").expect("health runs");
    }

    fn asked(&self, ix: u32) -> Vec<Instant> {
        let asked = self.prober.asked();
        asked.into_iter().filter(|asked| asked.target == address(ix)).map(|asked| asked.at).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn takes_a_backend_down_and_up_and_tells_why() {
    let mut bench = Bench::start([pool("web", health(), [1, 2])]);
    bench.prober.fail(address(1), "connection refused");
    bench.status(1, Status::Down).await;
    assert_eq!(bench.view.borrow().statuses[&BackendIx(2)], Status::Up);
    let down = bench.transitions.recv().await.expect("told");
    assert_eq!(down.backend, "web/b1");
    assert_eq!(down.address, "127.1.0.1:9000");
    assert_eq!(down.cause, "3 failed probes in a row: connection refused");
    bench.prober.succeed(address(1));
    bench.status(1, Status::Up).await;
    let up = bench.transitions.recv().await.expect("told");
    assert_eq!(up.cause, "2 good probes in a row: connected");
    assert_eq!(bench.process.health_transitions.load(Ordering::Relaxed), 2);
    let history = &bench.service.histories()[&BackendIx(1)];
    assert_eq!((history.status, history.streak), (Status::Up, 2));
    assert_eq!(
        history.outcomes.last().map(|last| (last.ok, last.detail.as_str())),
        Some((true, "probe: connected"))
    );
}

#[tokio::test(start_paused = true)]
async fn one_failed_probe_changes_nothing() {
    let bench = Bench::start([pool("web", health(), [1])]);
    let mut view = bench.view.clone();
    for _ in 0..5 {
        let before = bench.asked(1).len();
        bench.prober.fail(address(1), "connection refused");
        while bench.asked(1).len() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.prober.succeed(address(1));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(!view.has_changed().expect("health runs"), "published without a change of status");
    assert_eq!(view.borrow_and_update().statuses[&BackendIx(1)], Status::Up);
}

#[tokio::test(start_paused = true)]
async fn goes_on_for_ever_though_nobody_reads_transitions() {
    let mut bench = Bench::start([pool("web", Health { rise: 1, fall: 1, ..health() }, [1])]);
    for _ in 0..200 {
        bench.prober.fail(address(1), "connection refused");
        bench.status(1, Status::Down).await;
        bench.prober.succeed(address(1));
        bench.status(1, Status::Up).await;
    }
    assert_eq!(bench.process.events_dropped.load(Ordering::Relaxed), 400 - 8);
    drop(bench.transitions);
    let (view, prober) = (&mut bench.view, &bench.prober);
    prober.fail(address(1), "connection refused");
    view.wait_for(|view| view.statuses[&BackendIx(1)] == Status::Down).await.expect("health runs");
    bench.stop.cancel();
    bench.task.await.expect("ends in order");
}

#[tokio::test(start_paused = true)]
async fn probes_that_hang_delay_nobody() {
    let slow = Health { timeout: Duration::from_secs(20), ..health() };
    let mut bench = Bench::start([pool("web", slow, 1..=100)]);
    for ix in 1..=99 {
        bench.prober.set(address(ix), Script::Hang);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let asked = bench.asked(100);
    assert!(asked.len() >= 8, "{} probes in 20 s", asked.len());
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] < Duration::from_millis(2300)));
    bench.status(1, Status::Down).await;
    assert_eq!(
        bench.transitions.recv().await.expect("told").cause,
        "3 failed probes in a row: no answer in time"
    );
}

#[tokio::test(start_paused = true)]
async fn prober_that_panics_is_asked_again() {
    let bench = Bench::start([pool("web", health(), [1])]);
    bench.prober.set(address(1), Script::Panic);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(bench.asked(1).len() >= 8);
    assert_eq!(bench.view.borrow().statuses[&BackendIx(1)], Status::Up);
}

#[tokio::test(start_paused = true)]
async fn new_settings_reach_the_prober_after_a_reload() {
    let bench = Bench::start([pool("web", Health { interval: Duration::from_secs(3600), ..health() }, [1])]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.publish([pool("web", Health { port: Some(81), ..health() }, [1, 2])]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = bench.prober.asked();
    let own_port =
        asked.iter().filter(|asked| asked.target.port() == 81 && asked.target.ip() == address(1).ip());
    assert!(own_port.count() >= 4);
    bench.publish([pool("web", Health { port: Some(82), ..health() }, [2])]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = bench.prober.asked().len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let later = &bench.prober.asked()[before..];
    assert!(!later.is_empty());
    assert!(later.iter().all(|asked| asked.target == std::net::SocketAddr::new(address(2).ip(), 82)));
}

#[tokio::test(start_paused = true)]
async fn busy_backends_are_probed_too() {
    let entry = pool("web", health(), [1]);
    entry.backends[0].cell.live.store(100_000, Ordering::Relaxed);
    let bench = Bench::start([entry]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(bench.asked(1).len() >= 8);
}

#[tokio::test(start_paused = true)]
async fn passive_failures_take_a_backend_down_at_once() {
    let mut bench = Bench::start([pool("web", health(), [1])]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = Instant::now();
    for _ in 0..3 {
        let signal = Signal { backend: BackendIx(1), kind: SignalKind::ConnectFailed };
        bench.signals.send(signal).await.expect("health listens");
    }
    bench.status(1, Status::Down).await;
    assert!(before.elapsed() < Duration::from_millis(20));
    // Its probes are good, so they bring it back.
    bench.status(1, Status::Up).await;
}

#[tokio::test(start_paused = true)]
async fn unprobed_backend_is_never_probed_and_comes_back() {
    let mut bench = Bench::start([pool("web", Health { kind: HealthKind::Off, ..health() }, [1])]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    for _ in 0..3 {
        let signal = Signal { backend: BackendIx(1), kind: SignalKind::ConnectTimedOut };
        bench.signals.send(signal).await.expect("health listens");
    }
    bench.status(1, Status::Down).await;
    let down = Instant::now();
    bench.status(1, Status::Up).await;
    assert_eq!(down.elapsed().as_millis() / 100, 10);
    assert!(bench.prober.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn lives_on_when_every_other_end_is_gone() {
    let Bench { prober, signals, targets, stop, task, transitions, view, .. } =
        Bench::start([pool("web", health(), [1])]);
    drop((signals, targets, transitions, view));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(prober.asked().len() >= 8);
    stop.cancel();
    task.await.expect("ends in order");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_backends_do_not_burst() {
    let bench = Bench::start([pool("web", health(), 1..=5000)]);
    tokio::time::sleep(Duration::from_secs(12)).await;
    let asked: Vec<_> = bench.prober.asked().into_iter().map(|asked| asked.at).collect();
    assert!(asked.len() > 11_000, "{}", asked.len());
    let budget = 1000;
    for pair in asked.windows(budget + 2) {
        assert!(pair[budget + 1] - pair[0] >= Duration::from_millis(999), "a burst");
    }
}
