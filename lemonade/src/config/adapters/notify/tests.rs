//! A file changed in every way that people and tools change files.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, Sender};

use super::*;

fn text(port: u16) -> String {
    format!(
        "[frontend.web]\nlisten = \"127.0.0.1:{port}\"\npool = \"web\"\n\
         [[pool.web.backend]]\naddress = \"127.0.0.1:9001\"\n# the end\n"
    )
}

/// A running service over a file of a folder of its own.
struct Bench {
    folder: TempDir,
    path: PathBuf,
    updates: Receiver<ConfigUpdate>,
    reloads: Sender<String>,
    stop: CancellationToken,
}

impl Bench {
    /// Starts with port 1 in a plain file.
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("a.toml"), text(1)).expect("written");
        Self::over(folder, FileConfig::new).await
    }

    async fn over(folder: TempDir, make: fn(PathBuf, Vec<(String, String)>) -> FileConfig) -> Self {
        let path = folder.path().join("a.toml");
        let service = Arc::new(make(path.clone(), Vec::new()));
        service.load().expect("valid");
        let (sender, updates) = mpsc::channel(16);
        let (reloads, asked) = mpsc::channel(16);
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&service).run(sender, asked, stop.clone()));
        let mut bench = Self { folder, path, updates, reloads, stop };
        // The answer to a reload shows that it runs; the first look that follows arms the watch.
        bench.reloads.send("start".to_owned()).await.expect("running");
        assert_eq!(bench.next().await.cause, "start");
        bench
    }

    async fn next(&mut self) -> ConfigUpdate {
        tokio::time::timeout(Duration::from_secs(10), self.updates.recv())
            .await
            .expect("an update in time")
            .expect("running")
    }

    /// Port of the next configuration, which must be good.
    async fn next_port(&mut self) -> u16 {
        let update = self.next().await;
        let config = update.result.unwrap_or_else(|error| panic!("{error}"));
        config.frontends["web"].listen[0].port()
    }

    /// Nothing else is sent: the answer to a reload comes next, and is the port.
    async fn only(&mut self, port: u16) {
        tokio::time::sleep(QUIET * 4).await;
        assert!(self.updates.is_empty(), "{:?}", self.updates.try_recv());
        self.reloads.send("test".to_owned()).await.expect("running");
        assert_eq!(self.next_port().await, port);
    }

    fn replace(&self, text: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, text).expect("written");
        fs::rename(next, &self.path).expect("renamed");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn an_atomic_rename_is_sent_at_once_and_once() {
    let mut bench = Bench::new().await;
    for port in 2..20 {
        bench.replace(&text(port));
        assert_eq!(bench.next_port().await, port);
    }
    bench.only(19).await;
}

#[tokio::test]
async fn a_rename_to_a_shorter_file_is_no_torn_write() {
    let mut bench = Bench::new().await;
    // Every second file is the shorter one; only a busy machine explains all of them being late.
    let mut fastest = Duration::MAX;
    for port in [10_000, 2].repeat(10) {
        let renamed = Instant::now();
        bench.replace(&text(port));
        assert_eq!(bench.next_port().await, port);
        if port == 2 {
            fastest = fastest.min(renamed.elapsed());
        }
    }
    println!("rename to update: {fastest:?}");
    assert!(fastest < QUIET, "{fastest:?}");
}

#[tokio::test]
async fn the_same_text_is_not_sent_again_unless_asked_for() {
    let mut bench = Bench::new().await;
    bench.replace(&text(1));
    fs::write(&bench.path, text(1)).expect("written");
    fs::write(bench.folder.path().join("other"), "x").expect("written");
    bench.only(1).await;
    bench.reloads.send("SIGHUP".to_owned()).await.expect("running");
    assert_eq!(bench.next().await.cause, "SIGHUP");
}

#[tokio::test]
async fn a_write_in_two_halves_is_one_update() {
    let mut bench = Bench::new().await;
    let (new, half) = (text(2), text(2).find("[[pool").expect("middle"));
    let mut file = File::create(&bench.path).expect("truncated");
    file.write_all(&new.as_bytes()[..half]).expect("written");
    tokio::time::sleep(QUIET / 2).await;
    file.write_all(&new.as_bytes()[half..]).expect("written");
    drop(file);
    assert_eq!(bench.next_port().await, 2);
    bench.only(2).await;
}

#[tokio::test]
async fn a_half_that_is_valid_and_closed_is_not_sent() {
    let mut bench = Bench::new().await;
    let more = format!("{}[[pool.web.backend]]\naddress = \"127.0.0.1:9002\"\n", text(1));
    bench.replace(&more);
    bench.next_port().await;
    // Closed after the first half, as two shell commands would do.
    fs::write(&bench.path, text(2)).expect("written");
    tokio::time::sleep(QUIET / 5).await;
    let mut file = OpenOptions::new().append(true).open(&bench.path).expect("opened");
    file.write_all(b"[[pool.web.backend]]\naddress = \"127.0.0.1:9003\"\n# and a longer comment\n")
        .expect("written");
    drop(file);
    let config = bench.next().await.result.expect("valid");
    assert_eq!(config.pools["web"].backends.len(), 2);
    bench.only(2).await;
}

#[tokio::test]
async fn a_swap_of_links_as_in_kubernetes_is_followed() {
    let folder = tempfile::tempdir().expect("folder");
    let volume = |name: &str, port: u16| {
        fs::create_dir(folder.path().join(name)).expect("made");
        fs::write(folder.path().join(name).join("a.toml"), text(port)).expect("written");
    };
    volume("..v1", 1);
    symlink("..v1", folder.path().join("..data")).expect("linked");
    symlink("..data/a.toml", folder.path().join("a.toml")).expect("linked");
    for port in 2..12 {
        volume(&format!("..v{port}"), port);
    }
    let mut bench = Bench::over(folder, FileConfig::new).await;
    for port in 2..12 {
        let root = bench.folder.path();
        symlink(format!("..v{port}"), root.join("..data_tmp")).expect("linked");
        fs::rename(root.join("..data_tmp"), root.join("..data")).expect("renamed");
        fs::remove_dir_all(root.join(format!("..v{}", port - 1))).expect("removed");
        assert_eq!(bench.next_port().await, port);
    }
    // The file that the links now lead to is watched too.
    let target = bench.folder.path().join("..v11/a.toml");
    fs::write(target, text(12)).expect("written");
    assert_eq!(bench.next_port().await, 12);
    bench.only(12).await;
}

#[tokio::test]
async fn a_deleted_file_is_an_error_and_its_return_is_seen() {
    let mut bench = Bench::new().await;
    fs::remove_file(&bench.path).expect("removed");
    let error = bench.next().await.result.expect_err("missing").to_string();
    assert!(error.contains("cannot be read"), "{error}");
    fs::write(&bench.path, text(2)).expect("written");
    assert_eq!(bench.next_port().await, 2);
    // An editor that removes and writes again makes no error.
    fs::remove_file(&bench.path).expect("removed");
    fs::write(&bench.path, text(3)).expect("written");
    assert_eq!(bench.next_port().await, 3);
    bench.only(3).await;
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_followed() {
    let outer = tempfile::tempdir().expect("folder");
    fs::create_dir(outer.path().join("in")).expect("made");
    fs::write(outer.path().join("in/a.toml"), text(1)).expect("written");
    symlink("in/a.toml", outer.path().join("a.toml")).expect("linked");
    let mut bench = Bench::over(outer, FileConfig::new).await;
    for port in 2..5 {
        let inner = bench.folder.path().join("in");
        fs::remove_dir_all(&inner).expect("removed");
        assert!(bench.next().await.result.is_err());
        fs::create_dir(&inner).expect("made");
        fs::write(inner.join("a.toml"), text(port)).expect("written");
        assert_eq!(bench.next_port().await, port);
    }
}

#[tokio::test]
async fn a_bad_file_is_told_once_and_a_good_one_follows() {
    let mut bench = Bench::new().await;
    bench.replace("[frontend.web");
    assert!(bench.next().await.result.is_err());
    bench.replace(&text(2));
    assert_eq!(bench.next_port().await, 2);
    bench.only(2).await;
    bench.replace("nonsense");
    bench.reloads.send("SIGHUP".to_owned()).await.expect("running");
    assert!(bench.next().await.result.is_err());
}

#[tokio::test]
async fn without_notices_the_file_is_read_every_two_seconds() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("a.toml"), text(1)).expect("written");
    let mut bench = Bench::over(folder, FileConfig::polled).await;
    bench.replace(&text(2));
    assert_eq!(bench.next_port().await, 2);
}

#[tokio::test]
async fn it_ends_when_told_even_if_nobody_takes_its_updates() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.toml");
    fs::write(&path, text(1)).expect("written");
    let service = Arc::new(FileConfig::new(path, Vec::new()));
    let (updates, _never_read) = mpsc::channel(1);
    let (reload, reloads) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(updates, reloads, stop.clone()));
    for _ in 0..4 {
        reload.send("again".to_owned()).await.expect("running");
    }
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.expect("in time").expect("ends");
}
