//! A headless Chromium, driven through WebDriver.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fantoccini::Client;
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::wd::WebDriverCompatibleCommand;
use hyper_util::client::legacy::connect::HttpConnector;
use lemonade_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// One browser at a time: a machine of two cores has enough to do with one.
static TURN: Mutex<()> = Mutex::new(());

/// Tabulator, as WebDriver names keys.
pub(crate) const TAB: char = '\u{e004}';

/// Return, as WebDriver names keys.
pub(crate) const RETURN: char = '\u{e006}';

/// A browser with a profile of its own, gone when dropped.
pub(crate) struct Browser {
    runtime: Runtime,
    client: Option<Client>,
    driver: Child,
    _profile: TempDir,
    // Held open: a driver that cannot write ends.
    _output: Lines<BufReader<ChildStdout>>,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts one with a window of `width` by `height`.
    pub(crate) fn start(width: u32, height: u32) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let stdout = BufReader::new(driver.stdout.take().expect("its output is a pipe"));
        let mut lines = stdout.lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                line.rsplit_once("successfully on port ")
                    .map(|(_, port)| port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver says its port");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let capabilities = capabilities.as_object().expect("an object").clone();
        let driver_url = format!("http://127.0.0.1:{port}");
        let client =
            Client::with_capabilities_and_connector(&driver_url, &capabilities, HttpConnector::new());
        let client = runtime.block_on(client).expect("a session");
        Self { runtime, client: Some(client), driver, _profile: profile, _turn: turn, _output: lines }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("there until it is dropped")
    }

    /// Opens an address.
    pub(crate) fn open(&self, url: &str) {
        self.runtime.block_on(self.client().goto(url)).expect("the page is loaded");
    }

    /// Runs the body of a function and returns what it returns.
    pub(crate) fn run(&self, script: &str, arguments: &[Value]) -> Value {
        let run = self.client().execute(script, arguments.to_vec());
        self.runtime.block_on(run).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Runs the body of a function that calls its last argument when it is done.
    pub(crate) fn run_async(&self, script: &str) -> Value {
        let run = self.client().execute_async(script, Vec::new());
        self.runtime.block_on(run).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Text of the first element that `selector` finds; empty without one.
    pub(crate) fn text(&self, selector: &str) -> String {
        let text =
            self.run("return document.querySelector(arguments[0])?.innerText ?? ''", &[selector.into()]);
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until `selector` finds an element that shows `text`.
    pub(crate) fn shows(&self, selector: &str, text: &str) {
        let mut seen = String::new();
        let end = std::time::Instant::now() + wait::SOON;
        while std::time::Instant::now() < end {
            seen = self.text(selector);
            if seen.contains(text) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{selector} does not show {text:?} but {seen:?}");
    }

    /// Presses and releases a key.
    pub(crate) fn press(&self, key: char) {
        let keys = KeyActions::new("keyboard".to_owned())
            .then(KeyAction::Down { value: key })
            .then(KeyAction::Up { value: key });
        self.runtime.block_on(self.client().perform_actions(keys)).expect("a key is pressed");
    }

    /// Types a text.
    pub(crate) fn write(&self, text: &str) {
        text.chars().for_each(|key| self.press(key));
    }

    /// Gives the page a width in pixels, smaller than a window can be.
    pub(crate) fn narrow(&self, width: u32) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.runtime
            .block_on(self.client().issue_cmd(Own("goog/cdp/execute", command)))
            .expect("a new width");
    }

    /// What the window shows, as PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        self.runtime.block_on(self.client().screenshot()).expect("a screenshot")
    }

    /// What stands in the console since it was last read, as errors: scripts that failed, policies that were broken,
    /// answers that were refused.
    pub(crate) fn errors(&self) -> Vec<String> {
        let entries = self
            .runtime
            .block_on(self.client().issue_cmd(Own("se/log", json!({ "type": "browser" }))))
            .expect("the log of the browser");
        let entries = entries.as_array().cloned().unwrap_or_default();
        let bad = |entry: &&Value| entry["level"] == "SEVERE" || entry["level"] == "WARNING";
        entries.iter().filter(bad).map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            let _ = self.runtime.block_on(client.close());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A command of Chromium's own: what follows the session in its address, and its body.
#[derive(Debug)]
struct Own(&'static str, Value);

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.1.to_string()))
    }
}
