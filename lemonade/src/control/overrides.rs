//! What the operator changed at run time: laid over the file's configuration, and gone with the process.
//!
//! A new file keeps a change as long as it says the same of that backend as the file before. Where it says something new
//! (`enabled` for drain, enable and disable; `weight` for weight), or no longer lists the backend, the file wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Backend, Config, Name, Pool};

/// Names that an error lists at most.
const LISTED: usize = 20;

/// Heaviest weight, as in the file.
pub const MAX_WEIGHT: u32 = 65_535;

/// What to do with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// No new connection; those that exist go on, and probes too.
    Drain,
    /// As [`Change::Drain`], and no probe.
    Disable,
    /// New connections again, even if the file disables it.
    Enable,
    /// This share of connections.
    Weight(u32),
}

/// A state that was set by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Drained,
    Disabled,
    Enabled,
}

/// What was changed of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Override {
    state: Option<State>,
    weight: Option<u32>,
}

/// Everything that was changed at run time, by pool and backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    changed: BTreeMap<(Name, Name), Override>,
}

/// Finds the backend that `target` names: `pool/backend`, or a name that only one pool has.
///
/// # Errors
/// What there is instead, in words.
pub fn find(config: &Config, target: &str) -> Result<(Name, Name), String> {
    if let Some((pool, backend)) = target.split_once('/')
        && let Some(entry) = config.pools.get(pool)
    {
        let found = entry.backends.iter().find(|own| own.name.as_str() == backend);
        return found.map(|own| (entry.name.clone(), own.name.clone())).ok_or_else(|| {
            let names = listed(entry.backends.iter().map(|own| &own.name));
            format!("no backend `{backend}` in pool `{pool}`; it has: {names}")
        });
    }
    let named = |pool: &&Arc<Pool>| pool.backends.iter().any(|own| own.name.as_str() == target);
    let pools: Vec<&Arc<Pool>> = config.pools.values().filter(named).collect();
    match pools[..] {
        [pool] => Ok((pool.name.clone(), Name::new(target))),
        [] => {
            let pools = listed(config.pools.keys());
            Err(format!("no backend `{target}`; write POOL/BACKEND, the pools are: {pools}"))
        }
        _ => {
            let pools = listed(pools.iter().map(|pool| &pool.name));
            Err(format!("several pools have a backend `{target}`; write POOL/{target} with one of: {pools}"))
        }
    }
}

/// Names for an error, not too many.
pub fn listed<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let mut names = names.map(Name::as_str);
    let mut text = names.by_ref().take(LISTED).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

impl Overrides {
    /// With one more change, of a backend that is in `file`.
    #[must_use]
    pub fn with(&self, file: &Config, (pool, backend): &(Name, Name), change: Change) -> Self {
        let mut next = self.clone();
        let Some(own) = in_file(file, pool, backend) else { return next };
        let key = (pool.clone(), backend.clone());
        let entry = next.changed.entry(key.clone()).or_default();
        match change {
            Change::Drain => entry.state = Some(State::Drained),
            Change::Disable => entry.state = own.enabled.then_some(State::Disabled),
            Change::Enable => entry.state = (!own.enabled).then_some(State::Enabled),
            Change::Weight(weight) => entry.weight = (weight != own.weight).then_some(weight),
        }
        if *entry == Override::default() {
            next.changed.remove(&key);
        }
        next
    }

    /// `file` with the changes laid over it; pools without a change are shared with it.
    pub fn lay_over(&self, file: &Arc<Config>) -> Arc<Config> {
        if self.changed.is_empty() {
            return Arc::clone(file);
        }
        let mut config = Config::clone(file);
        for ((pool, backend), own) in &self.changed {
            let Some(pool) = config.pools.get_mut(pool.as_str()) else { continue };
            let found = Arc::make_mut(pool).backends.iter_mut().find(|entry| entry.name == *backend);
            if let Some(entry) = found {
                own.apply(entry);
            }
        }
        Arc::new(config)
    }

    /// What is left when `after` follows `before` as the file, and what is not, in words.
    pub fn follow(&self, before: &Config, after: &Config) -> (Self, Vec<String>) {
        let mut kept = Self::default();
        let mut dropped = Vec::new();
        for ((pool, backend), own) in &self.changed {
            let label = format!("{pool}/{backend}");
            let (Some(was), Some(is)) = (in_file(before, pool, backend), in_file(after, pool, backend))
            else {
                dropped.push(format!("backend {label}: change at run time ended: it left the file"));
                continue;
            };
            let mut left = *own;
            let edited = || format!("the file says weight {} -> {}", was.weight, is.weight);
            if was.enabled != is.enabled && left.state.take().is_some() {
                dropped
                    .push(format!("backend {label}: change at run time ended: the file changes `enabled`"));
            }
            if was.weight != is.weight {
                let ended = left.weight.take().map(|weight| {
                    format!("backend {label}: weight {weight} at run time ended: {}", edited())
                });
                // The drain hides what the file says.
                let hidden = matches!(left.state, Some(State::Drained | State::Disabled));
                let waits = || format!("backend {label}: {}", edited());
                let line = ended.or_else(|| hidden.then(waits));
                let until = if hidden { "; it counts once the backend is enabled at run time" } else { "" };
                dropped.extend(line.map(|line| line + until));
            }
            if left != Override::default() {
                kept.changed.insert((pool.clone(), backend.clone()), left);
            }
        }
        (kept, dropped)
    }

    /// What was changed of a backend, in words; `None` when it is as in the file.
    pub fn words(&self, pool: &str, backend: &str) -> Option<String> {
        let own = self.changed.get(&(Name::new(pool), Name::new(backend)))?;
        Some(format!("{} at run time, until the next start", own.words()))
    }

    /// Each backend that differs from the file, and how.
    pub fn list(&self) -> Vec<String> {
        let each = |((pool, backend), own): (&(Name, Name), &Override)| {
            format!("backend {pool}/{backend}: {}", own.words())
        };
        self.changed.iter().map(each).collect()
    }

    /// Number of backends that differ from the file.
    pub fn len(&self) -> usize {
        self.changed.len()
    }

    /// Whether everything is as in the file.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }
}

impl Override {
    fn words(self) -> String {
        let state = self.state.map(|state| match state {
            State::Drained => "drained".to_owned(),
            State::Disabled => "disabled".to_owned(),
            State::Enabled => "enabled".to_owned(),
        });
        let weight = self.weight.map(|weight| format!("weight {weight}"));
        state.into_iter().chain(weight).collect::<Vec<_>>().join(", ")
    }

    fn apply(self, backend: &mut Backend) {
        if let Some(weight) = self.weight {
            backend.weight = weight;
        }
        match self.state {
            Some(State::Drained) => backend.weight = 0,
            Some(State::Disabled) => backend.enabled = false,
            Some(State::Enabled) => backend.enabled = true,
            None => {}
        }
    }
}

fn in_file<'a>(config: &'a Config, pool: &Name, backend: &Name) -> Option<&'a Backend> {
    config.pools.get(pool)?.backends.iter().find(|own| own.name == *backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, pool};

    fn file(change: impl Fn(&mut Backend)) -> Arc<Config> {
        let mut a = backend("a", 1);
        change(&mut a);
        config([pool("web", [a, backend("b", 2)]), pool("db", [backend("b", 3)])], [])
    }

    fn a() -> (Name, Name) {
        (Name::new("web"), Name::new("a"))
    }

    fn laid(overrides: &Overrides, file: &Arc<Config>) -> (bool, u32) {
        let config = overrides.lay_over(file);
        let own = &config.pools["web"].backends[0];
        (own.enabled, own.weight)
    }

    #[test]
    fn a_change_is_laid_over_the_file_and_the_opposite_takes_it_back() {
        let file = file(|_| {});
        let none = Overrides::default();
        assert!(Arc::ptr_eq(&none.lay_over(&file), &file));
        let drained = none.with(&file, &a(), Change::Drain);
        assert_eq!(laid(&drained, &file), (true, 0));
        assert_eq!(laid(&none.with(&file, &a(), Change::Disable), &file), (false, 1));
        let heavy = drained.with(&file, &a(), Change::Weight(7));
        assert_eq!(laid(&heavy, &file), (true, 0), "a weight does not end a drain");
        assert_eq!(laid(&heavy.with(&file, &a(), Change::Enable), &file), (true, 7));
        let back = heavy.with(&file, &a(), Change::Enable).with(&file, &a(), Change::Weight(1));
        assert!(back.is_empty(), "as in the file again: {back:?}");
        assert!(Arc::ptr_eq(&heavy.lay_over(&file).pools["db"], &file.pools["db"]), "others are shared");
    }

    #[test]
    fn a_backend_that_the_file_disables_can_be_enabled() {
        let off = file(|own| own.enabled = false);
        let enabled = Overrides::default().with(&off, &a(), Change::Enable);
        assert_eq!(laid(&enabled, &off), (true, 1));
        assert!(enabled.with(&off, &a(), Change::Disable).is_empty());
    }

    #[test]
    fn a_new_file_wins_only_where_it_says_something_new() {
        let before = file(|_| {});
        let changed =
            Overrides::default().with(&before, &a(), Change::Drain).with(&before, &a(), Change::Weight(9));
        let (kept, dropped) = changed.follow(&before, &file(|own| own.max_connections = 5));
        assert_eq!((kept, dropped.len()), (changed.clone(), 0), "an edit elsewhere ends no drain");

        let (kept, dropped) = changed.follow(&before, &file(|own| own.weight = 3));
        assert_eq!(kept.words("web", "a").as_deref(), Some("drained at run time, until the next start"));
        let words = "backend web/a: weight 9 at run time ended: the file says weight 1 -> 3; \
                     it counts once the backend is enabled at run time";
        assert_eq!(dropped, [words]);
        assert_eq!(kept.list(), ["backend web/a: drained"]);

        let drained = Overrides::default().with(&before, &a(), Change::Drain);
        let (_, dropped) = drained.follow(&before, &file(|own| own.weight = 3));
        assert!(dropped[0].contains("the file says weight 1 -> 3"), "a drain hides no edit: {dropped:?}");

        let (kept, dropped) = changed.follow(&before, &file(|own| own.enabled = false));
        assert_eq!(kept.words("web", "a").as_deref(), Some("weight 9 at run time, until the next start"));
        assert_eq!(dropped.len(), 1);

        let gone = config([pool("web", [backend("b", 2)])], []);
        let (kept, dropped) = changed.follow(&before, &gone);
        assert!(kept.is_empty() && dropped[0].contains("left the file"), "{dropped:?}");
    }

    #[test]
    fn an_unknown_backend_is_answered_with_those_that_exist() {
        let file = file(|_| {});
        assert_eq!(find(&file, "web/a"), Ok(a()));
        assert_eq!(find(&file, "a"), Ok(a()));
        assert_eq!(find(&file, "web/x").unwrap_err(), "no backend `x` in pool `web`; it has: a, b");
        assert!(find(&file, "x").unwrap_err().contains("the pools are: db, web"));
        assert!(find(&file, "b").unwrap_err().contains("one of: db, web"));
        assert!(find(&file, "nowhere/a").is_err());
    }
}
