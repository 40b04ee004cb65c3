//! What the screen shows and what a key does. No input or output here.

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use crate::admin::connections::Page;
use crate::admin::reads::AllSeries;
use crate::admin::status::{BackendStatus, PoolStatus, Status};
use crate::admin::steer::BackendChange;
use crate::control::overrides::Change;

/// Columns that connections are sorted by, in the order of the key.
const SORTS: [&str; 5] = ["-bytes", "-age", "-idle", "-connect", "-id"];

/// Rows that PageUp and PageDown go.
const PAGE: usize = 10;

/// Longest text that is typed in.
const LONGEST: usize = 40;

/// Looks, one a second, for which a message stays.
const STAYS: u8 = 10;

/// One look at the running Lemonade.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) status: Status,
    pub(super) series: AllSeries,
    pub(super) page: Page,
}

/// What the middle of the screen shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    /// Frontends, pools and backends.
    #[default]
    Backends,
    /// Live connections.
    Connections,
    /// Refusals by frontend and reason.
    Refusals,
    /// Every frontend.
    Frontends,
}

/// What is being asked of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Whether to make this change.
    Confirm(BackendChange),
    /// The new weight of this backend.
    Weight(String, String),
    /// Text to filter connections by.
    Filter(String),
}

/// What a key leads to.
#[derive(Debug)]
pub(super) enum Act {
    Nothing,
    Leave,
    LookAgain,
    Change(BackendChange),
}

/// Everything on the screen.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) seen: Option<Seen>,
    pub(super) view: View,
    pub(super) selected: usize,
    pub(super) prompt: Option<Prompt>,
    message: String,
    stays: u8,
    sort: usize,
    filter: String,
}

impl State {
    /// Shows `seen`.
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen: Some(seen), ..Self::default() }
    }

    /// Takes in another look.
    pub(super) fn see(&mut self, seen: Seen) {
        self.seen = Some(seen);
        self.stays = self.stays.saturating_sub(1);
        if self.stays == 0 {
            self.message.clear();
        }
        self.selected = self.selected.min(self.rows().saturating_sub(1));
    }

    /// Tells what came of a key, until the next key or for some seconds.
    pub(super) fn tell(&mut self, message: String) {
        (self.message, self.stays) = (message, STAYS);
    }

    /// Tells why a look failed, until one does not.
    pub(super) fn fail(&mut self, why: String) {
        (self.message, self.stays) = (why, 0);
    }

    /// What is to be told now.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Column that connections are sorted by.
    pub(super) fn sort(&self) -> &'static str {
        SORTS[self.sort]
    }

    /// Text that connections are filtered by.
    pub(super) fn filter(&self) -> Option<&str> {
        (!self.filter.is_empty()).then_some(self.filter.as_str())
    }

    /// Backends in the order of the screen.
    pub(super) fn backends(&self) -> Vec<(&PoolStatus, &BackendStatus)> {
        let pools = self.seen.iter().flat_map(|seen| &seen.status.pools);
        pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend))).collect()
    }

    /// Refusals as frontend, reason and number, and packets that the forward plane dropped.
    pub(super) fn refusals(&self) -> Vec<(&str, &str, u64)> {
        let frontends = self.seen.iter().flat_map(|seen| &seen.status.frontends);
        let refused = frontends.flat_map(|own| {
            own.refused.iter().map(|(reason, count)| (own.name.as_str(), reason.as_str(), *count))
        });
        let planes = self.seen.iter().flat_map(|seen| &seen.status.forward);
        let packets = planes
            .flat_map(|own| own.dropped.iter().map(|(reason, count)| ("(packets)", reason.as_str(), *count)));
        let mut all: Vec<_> = refused.chain(packets).collect();
        all.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
        all
    }

    fn rows(&self) -> usize {
        match self.view {
            View::Backends => self.backends().len(),
            View::Connections => self.seen.as_ref().map_or(0, |seen| seen.page.connections.len()),
            View::Refusals => self.refusals().len(),
            View::Frontends => self.seen.as_ref().map_or(0, |seen| seen.status.frontends.len()),
        }
    }

    /// Takes in a key.
    pub(super) fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Act {
        if modifiers.contains(KeyModifiers::CONTROL) && code == KeyCode::Char('c') {
            return Act::Leave;
        }
        self.message.clear();
        match self.prompt.take() {
            Some(prompt) => self.answer(prompt, code),
            None => self.command(code),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most keys mean nothing here")]
    fn command(&mut self, code: KeyCode) -> Act {
        match code {
            KeyCode::Char('q') => return Act::Leave,
            KeyCode::Tab => self.turn_to(match self.view {
                View::Backends => View::Connections,
                View::Connections => View::Refusals,
                View::Refusals => View::Frontends,
                View::Frontends => View::Backends,
            }),
            KeyCode::Char('1') => self.turn_to(View::Backends),
            KeyCode::Char('2') => self.turn_to(View::Connections),
            KeyCode::Char('3') => self.turn_to(View::Refusals),
            KeyCode::Char('4') => self.turn_to(View::Frontends),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(PAGE)),
            KeyCode::PageDown => self.select(self.selected + PAGE),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Char('s') => {
                self.sort = (self.sort + 1) % SORTS.len();
                return Act::LookAgain;
            }
            KeyCode::Char('/') => self.prompt = Some(Prompt::Filter(self.filter.clone())),
            KeyCode::Esc => {
                self.filter.clear();
                return Act::LookAgain;
            }
            KeyCode::Char('d') => self.ask(Change::Drain),
            KeyCode::Char('x') => self.ask(Change::Disable),
            KeyCode::Char('e') => self.ask(Change::Enable),
            KeyCode::Char('w') => {
                self.prompt = self.chosen().map(|backend| Prompt::Weight(backend, String::new()));
            }
            _ => {}
        }
        Act::Nothing
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(self.rows().saturating_sub(1));
    }

    fn turn_to(&mut self, view: View) {
        (self.view, self.selected) = (view, 0);
    }

    fn ask(&mut self, change: Change) {
        let confirm =
            |backend| Prompt::Confirm(BackendChange { backend, change, if_version: self.version() });
        self.prompt = self.chosen().map(confirm);
    }

    /// The version on the screen: what is confirmed is what was seen.
    fn version(&self) -> Option<u64> {
        self.seen.as_ref().map(|seen| seen.status.config.version)
    }

    /// The backend under the cursor.
    fn chosen(&self) -> Option<String> {
        if self.view != View::Backends {
            return None;
        }
        let backends = self.backends();
        backends.get(self.selected).map(|(pool, backend)| format!("{}/{}", pool.name, backend.name))
    }

    fn answer(&mut self, prompt: Prompt, code: KeyCode) -> Act {
        match (prompt, code) {
            (_, KeyCode::Esc) => Act::Nothing,
            (Prompt::Confirm(change), KeyCode::Char('y')) => Act::Change(change),
            (Prompt::Confirm(_), _) => Act::Nothing,
            (Prompt::Filter(text), KeyCode::Enter) => {
                (self.filter, self.view, self.selected) = (text, View::Connections, 0);
                Act::LookAgain
            }
            (Prompt::Filter(text), code) => {
                self.prompt = Some(Prompt::Filter(typed(text, code)));
                Act::Nothing
            }
            (Prompt::Weight(backend, text), KeyCode::Enter) => match text.parse() {
                Ok(weight) => Act::Change(BackendChange {
                    backend,
                    change: Change::Weight(weight),
                    if_version: self.version(),
                }),
                Err(_) => {
                    self.tell(format!("`{text}` is no weight; write a whole number"));
                    Act::Nothing
                }
            },
            (Prompt::Weight(backend, text), code) => {
                self.prompt = Some(Prompt::Weight(backend, typed(text, code)));
                Act::Nothing
            }
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "other keys type nothing")]
fn typed(mut text: String, code: KeyCode) -> String {
    match code {
        KeyCode::Char(letter) if text.len() < LONGEST => text.push(letter),
        KeyCode::Backspace => {
            text.pop();
        }
        _ => {}
    }
    text
}
