//! `lemonade top`: frontends, backends and connections on one screen, and keys to steer.

mod state;
mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::admin::client::TIMEOUT;
use crate::admin::steer::{BackendChange, Outcome};

use super::ask::{Answer, Instance, Trouble, query, read};

use state::{Act, Seen, State};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Rows of connections that are asked for: more than a screen has.
const ROWS: usize = 200;

pub(super) fn top(instance: &Instance) -> Answer {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let why = "top needs a terminal; `lemonade status --watch` and `lemonade status --json` do not";
        return Err(Trouble::BadInput(why.to_owned()));
    }
    let mut state = State::new(look(instance, &State::default())?);
    let mut terminal = ratatui::try_init()?;
    let ran = follow(&mut terminal, &mut state, instance);
    ratatui::restore();
    ran
}

fn follow(terminal: &mut DefaultTerminal, state: &mut State, instance: &Instance) -> Answer {
    let mut next = Instant::now() + LOOK;
    loop {
        terminal.draw(|frame| view::draw(frame, state))?;
        let mut again = false;
        if event::poll(next.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match state.key(key.code, key.modifiers) {
                Act::Nothing => {}
                Act::Leave => return Ok(()),
                Act::LookAgain => again = true,
                Act::Change(change) => {
                    state.tell(steer(instance, &change));
                    again = true;
                }
            }
        }
        if again || Instant::now() >= next {
            next = Instant::now() + LOOK;
            match look(instance, state) {
                Ok(seen) => state.see(seen),
                Err(trouble) => state.fail(trouble.words()),
            }
        }
    }
}

fn look(instance: &Instance, state: &State) -> Answer<Seen> {
    let pairs = [
        ("limit", Some(ROWS.to_string())),
        ("sort", Some(state.sort().to_owned())),
        ("filter", state.filter().map(str::to_owned)),
    ];
    Ok(Seen {
        status: instance.read("/api/v1/status")?,
        series: instance.read("/api/v1/series?last=60")?,
        page: instance.read(&query("/api/v1/connections", &pairs))?,
    })
}

/// Makes a change; tells what came of it.
fn steer(instance: &Instance, change: &BackendChange) -> String {
    let body = match serde_json::to_vec(change) {
        Ok(body) => body,
        Err(error) => return error.to_string(),
    };
    let answer = instance.send("POST", "/api/v1/backend", body, TIMEOUT);
    match answer.and_then(|answer| read::<Outcome>(&answer)) {
        Ok(outcome) => outcome.lines.join("; "),
        Err(trouble) => trouble.words(),
    }
}
