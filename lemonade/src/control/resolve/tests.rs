use std::sync::Mutex;

use tokio::task::JoinHandle;

use super::*;
use crate::model::config::{
    AccessLog, Admin, Health, HealthKind, Log, LogFormat, Runtime, Status, WhenAllDown,
};
use crate::model::{Backend, Name, Pool, StrategyKind};

type Answer = Result<Vec<IpAddr>, String>;

/// Answers by name, counted; a name without an answer hangs.
#[derive(Clone, Default)]
struct Names {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    fn set(&self, host: &str, answer: Result<&[&str], &str>) {
        let answer = answer.map(|ips| ips.iter().map(|ip| ip.parse().expect("an address")).collect());
        self.answers.lock().expect("not poisoned").insert(host.to_owned(), answer.map_err(str::to_owned));
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }

    fn lookup(&self) -> impl Fn(Arc<str>) -> crate::BoxFuture<io::Result<Vec<IpAddr>>> + use<> {
        let names = self.clone();
        move |host| {
            names.asked.lock().expect("not poisoned").push(host.to_string());
            let answer = names.answers.lock().expect("not poisoned").get(&*host).cloned();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer.map_err(io::Error::other),
                    None => std::future::pending().await,
                }
            })
        }
    }
}

fn config(hosts: &[&str]) -> Arc<Config> {
    let backends = hosts.iter().map(|&host| Backend {
        name: Name::new(host),
        target: match host.parse() {
            Ok(ip) => Target::Address(ip, Some(80)),
            Err(_) => Target::Host(host.into(), Some(80)),
        },
        weight: 1,
        max_connections: 0,
        enabled: true,
    });
    let pool = Pool {
        name: Name::new("web"),
        strategy: StrategyKind::RoundRobin,
        retries: 0,
        retry_budget: 0.2,
        when_all_down: WhenAllDown::Refuse,
        queue: 0,
        queue_timeout: Duration::ZERO,
        source: None,
        health: Health {
            kind: HealthKind::Off,
            interval: REFRESH,
            fast_interval: REFRESH,
            timeout: REFRESH,
            rise: 1,
            fall: 1,
            initial: Status::Up,
            port: None,
        },
        backends: backends.collect(),
    };
    Arc::new(Config {
        runtime: Runtime {
            workers: None,
            drain_timeout: Duration::ZERO,
            lame_duck: Duration::ZERO,
            max_connections: None,
            state_dir: None,
            hash_seed: None,
            relay_buffer: 65_536,
            probes_per_second: 1,
        },
        admin: Admin { socket: None, listen: None },
        telemetry: crate::model::config::Telemetry::default(),
        log: Log { level: "info".to_owned(), format: LogFormat::Auto, access: AccessLog::Off },
        frontends: BTreeMap::new(),
        pools: [(Name::new("web"), Arc::new(pool))].into(),
    })
}

fn table(hosts: &[&str]) -> Arc<DispatchTable> {
    Arc::new(DispatchTable { config: Some(config(hosts)), ..DispatchTable::default() })
}

struct Bench {
    config: watch::Sender<Arc<DispatchTable>>,
    out: watch::Receiver<Arc<Resolution>>,
    task: JoinHandle<()>,
}

impl Bench {
    fn start(names: &Names, hosts: &[&str], known: Resolution) -> Self {
        let (config, config_out) = watch::channel(table(hosts));
        let (out_in, mut out) = watch::channel(Arc::new(known));
        out.mark_unchanged();
        let task = tokio::spawn(resolve(names.lookup(), config_out, out_in));
        Self { config, out, task }
    }

    /// Addresses of `host` at the next change.
    async fn next(&mut self, host: &str) -> Option<Vec<String>> {
        timeout(Duration::from_secs(60), self.out.changed())
            .await
            .expect("a change within a minute")
            .expect("the resolver runs");
        self.known(host)
    }

    fn known(&mut self, host: &str) -> Option<Vec<String>> {
        let resolution = self.out.borrow_and_update();
        resolution.hosts.get(host).map(|ips| ips.iter().map(IpAddr::to_string).collect())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn addresses_are_sorted_without_duplicates_and_bounded() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.3", "::1", "127.0.0.1", "127.0.0.3"]));
    let many: Vec<_> = (0..100).map(|n| format!("127.0.1.{n}")).collect();
    names.set("many", Ok(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut bench = Bench::start(&names, &["a", "many", "127.0.0.9"], Resolution::default());
    pass(1).await;
    assert_eq!(bench.known("a"), Some(["127.0.0.1", "127.0.0.3", "::1"].map(str::to_owned).to_vec()));
    assert_eq!(bench.known("many").map(|ips| ips.len()), Some(ADDRESSES));
    assert_eq!(names.asked(), 2, "literal addresses are not looked up");
}

#[tokio::test(start_paused = true)]
async fn tells_only_changes() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.1", "127.0.0.2"]));
    let mut bench = Bench::start(&names, &["a"], Resolution::default());
    assert_eq!(bench.next("a").await.map(|ips| ips.len()), Some(2));
    names.set("a", Ok(&["127.0.0.2", "127.0.0.1"]));
    pass(35).await;
    assert_eq!(names.asked(), 4);
    assert!(!bench.out.has_changed().expect("the resolver runs"));
    names.set("a", Ok(&["127.0.0.7"]));
    assert_eq!(bench.next("a").await, Some(vec!["127.0.0.7".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn keeps_what_is_known_when_lookups_fail() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.1"]));
    let mut bench = Bench::start(&names, &["a"], Resolution::default());
    bench.next("a").await;
    for bad in [Err("server failure"), Ok(&[][..])] {
        names.set("a", bad);
        pass(60).await;
        assert_eq!(bench.known("a"), Some(vec!["127.0.0.1".to_owned()]));
    }
    names.set("a", Ok(&["127.0.0.2"]));
    assert_eq!(bench.next("a").await, Some(vec!["127.0.0.2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn name_that_never_resolved_is_asked_more_often() {
    let names = Names::default();
    names.set("a", Err("no such name"));
    let mut bench = Bench::start(&names, &["a"], Resolution::default());
    pass(21).await;
    assert_eq!(names.asked(), 11);
    names.set("a", Ok(&["127.0.0.1"]));
    assert!(bench.next("a").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn names_that_hang_hold_up_no_other_until_slots_run_out() {
    let names = Names::default();
    names.set("z", Ok(&["127.0.0.1"]));
    let mut bench = Bench::start(&names, &["hang1", "hang2", "z"], Resolution::default());
    assert!(bench.next("z").await.is_some());
    pass(20).await;
    assert!(names.asked() > 5, "hanging names are asked again after the timeout");
    names.set("hang1", Ok(&["127.0.0.5"]));
    assert!(bench.next("hang1").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn follows_the_table() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.1"]));
    names.set("b", Ok(&["127.0.0.2"]));
    let known = Resolution { hosts: [(Arc::from("a"), vec![IpAddr::from([127, 0, 0, 1])])].into() };
    let mut bench = Bench::start(&names, &["a"], known);
    pass(1).await;
    assert_eq!(names.asked(), 0, "known from the start");
    assert!(!bench.out.has_changed().expect("the resolver runs"));
    bench.config.send_replace(table(&["a", "b"]));
    assert_eq!(bench.next("b").await, Some(vec!["127.0.0.2".to_owned()]));
    bench.config.send_replace(table(&["b"]));
    assert_eq!(bench.next("a").await, None);
    pass(11).await;
    assert!(names.asked.lock().expect("not poisoned").iter().all(|name| name == "b"));
}

#[tokio::test(start_paused = true)]
async fn the_empty_table_before_the_first_commit_forgets_nothing() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.1"]));
    let known = Resolution { hosts: [(Arc::from("a"), vec![IpAddr::from([127, 0, 0, 1])])].into() };
    let mut bench = Bench::start(&names, &["a"], known);
    bench.config.send_replace(Arc::default());
    pass(1).await;
    assert!(!bench.out.has_changed().expect("the resolver runs"));
    assert!(bench.known("a").is_some());
}

#[tokio::test(start_paused = true)]
async fn first_answers_are_bounded_in_time() {
    let names = Names::default();
    names.set("a", Ok(&["127.0.0.1"]));
    names.set("bad", Err("no such name"));
    let began = Instant::now();
    let known = first_with(names.lookup(), &config(&["a", "bad", "hang"]), Duration::from_secs(2)).await;
    assert_eq!(known.hosts.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn localhost_resolves_by_the_system() {
    let known = first(&config(&["localhost"]), Duration::from_secs(10)).await;
    assert!(known.hosts["localhost"].iter().all(IpAddr::is_loopback));
}

#[tokio::test(start_paused = true)]
async fn run_ends_when_told() {
    let (_config, config) = watch::channel(table(&[]));
    let (out, _out) = watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let task = tokio::spawn(run(config, out, stop.clone()));
    stop.cancel();
    task.await.expect("ends in order");
}
