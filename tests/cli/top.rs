//! `lemonade top` on a terminal of 80 columns and 24 lines.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary, run};
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program on a terminal, and everything that it has drawn.
struct Screen {
    child: Child,
    keys: File,
    drawn: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn start(command: &mut Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&terminal).expect("its other end");
        unlockpt(&terminal).expect("its other end");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("a size");
        let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("UTF-8");
        let other = || File::options().read(true).write(true).open(&name).expect("its other end opens");
        let child = command
            .stdin(Stdio::from(other()))
            .stdout(Stdio::from(other()))
            .stderr(Stdio::from(other()))
            .env("TERM", "xterm")
            .spawn()
            .expect("it starts");
        let keys = File::from(terminal);
        let mut reader = keys.try_clone().expect("a second descriptor");
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&drawn);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error when the other end is closed.
            while let Ok(read) = reader.read(&mut bytes) {
                all.lock().expect("no panic under the lock").extend_from_slice(&bytes[..read]);
            }
        });
        Self { child, keys, drawn }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Everything drawn so far. Only words stay whole: a blank that was blank before is passed over.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.drawn.lock().expect("no panic under the lock")).into_owned()
    }

    fn shows(&self, words: &str) {
        wait::until(&format!("the screen shows {words}"), wait::SOON, || self.text().contains(words));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_shows_backends_drains_one_and_leaves_the_terminal_as_it_was() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    calls(lemonade.address("web"), 4);
    let mut screen = Screen::start(Command::new(binary()).arg("top").arg("--admin").arg(lemonade.socket()));
    screen.shows("web/a");
    screen.shows("web/b");
    screen.press("d");
    screen.shows("web/a,");
    screen.press("y");
    wait::until("web/a is drained", wait::SOON, || lemonade.status().backend("web", "a")["weight"] == 0);
    screen.shows("web/a:");
    screen.press("2");
    screen.shows("-bytes");
    screen.press("q");
    let mut ended = None;
    wait::until("top has ended", Duration::from_secs(10), || {
        ended = screen.child.try_wait().expect("the child is ours");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    screen.shows("\u{1b}[?1049l");
}

#[test]
fn top_without_a_terminal_says_what_to_use() {
    let output = run(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("status --watch"), "{text}");
}
