//! A pseudo-terminal, and what a program draws on it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::wait;

/// Lines of the terminal.
pub const LINES: u16 = 24;

/// Its columns.
pub const COLUMNS: u16 = 80;

/// A program on a terminal of 80 columns and 24 lines, and everything that it has drawn.
pub struct Screen {
    child: Child,
    keys: File,
    drawn: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    /// Starts `command` there.
    ///
    /// # Panics
    /// When there is no terminal to be had, or the program does not start.
    pub fn start(command: &mut Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&terminal).expect("its other end");
        unlockpt(&terminal).expect("its other end");
        let size = Winsize { ws_row: LINES, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
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

    /// Presses keys.
    ///
    /// # Panics
    /// When the terminal is closed.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Everything drawn so far. Only words stay whole: a blank that was blank before is passed over.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.drawn.lock().expect("no panic under the lock")).into_owned()
    }

    /// Waits until `words` were drawn.
    ///
    /// # Panics
    /// When they are not.
    pub fn shows(&self, words: &str) {
        wait::until(&format!("the screen shows {words}"), wait::SOON, || self.text().contains(words));
    }

    /// What is on the screen now.
    ///
    /// # Panics
    /// When the reader of the terminal has panicked.
    pub fn now(&self) -> vt100::Parser {
        let mut parser = vt100::Parser::new(LINES, COLUMNS, 0);
        parser.process(&self.drawn.lock().expect("no panic under the lock"));
        parser
    }

    /// How the program has ended, if it has.
    ///
    /// # Panics
    /// Never: the child is ours.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
