//! A text that differs from an accepted one in a few pools only: those are read, the rest is taken over.
//!
//! Reading 10,000 backends takes many times as long as finding the one that changed. The file is cut at its headers,
//! and only where that is beyond doubt: whatever looks unusual, or is wrong, is left to the reader of whole files.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::model::{Config, Name};

use super::document::Document;
use super::report::Report;
use super::{section, validate};

/// Pools that are read on their own at most; with more, the whole file is.
const POOLS: usize = 16;

/// A text, and the configuration that it was accepted as.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The text, without what variables have changed.
    pub text: String,
    /// What it says.
    pub config: Arc<Config>,
}

/// A header with the lines up to the next one.
struct Block<'t> {
    header: &'t str,
    lines: Range<usize>,
}

impl Block<'_> {
    /// `web` of `pool.web.health`.
    fn pool(&self) -> Option<&str> {
        let name = self.header.strip_prefix("pool.")?;
        Some(name.split_once('.').map_or(name, |(name, _)| name))
    }

    fn meets(&self, change: &Range<usize>) -> bool {
        self.lines.start <= change.end && change.start <= self.lines.end
    }
}

/// Reads what `text` says, if it differs from `before` in the blocks of a few pools and is right.
pub(super) fn read(before: &Accepted, text: &str) -> Option<Config> {
    let (old, new) = changed(before.text.as_bytes(), text.as_bytes());
    let (old_blocks, new_blocks) = (blocks(&before.text)?, blocks(text)?);
    // What stands above the first header belongs to no block.
    if new_blocks.first().is_none_or(|first| new.start < first.lines.start) {
        return None;
    }
    let touched = old_blocks.iter().filter(|block| block.meets(&old));
    let touched = touched.chain(new_blocks.iter().filter(|block| block.meets(&new)));
    let names: BTreeSet<&str> = touched.map(Block::pool).collect::<Option<_>>()?;
    // What a pool may say depends on what uses it.
    let special = |name: &Name| before.config.is_of_datagrams(name) || before.config.is_forwarded(name);
    if names.iter().any(|name| special(&Name::new(*name))) {
        return None;
    }
    if names.len() > POOLS || !names.iter().all(|name| before.config.pools.contains_key(*name)) {
        return None;
    }
    let mut part = String::new();
    for block in new_blocks.iter().filter(|block| block.pool().is_some_and(|pool| names.contains(pool))) {
        part.push_str(text.get(block.lines.clone())?);
    }
    let (document, problems) = Document::parse(&part);
    if !problems.is_empty() {
        return None;
    }
    let mut report = Report::new(&document, problems);
    let raw = section::config(&mut report);
    let pools = validate::pools(raw.pool, &validate::Uses::default(), &mut report);
    if !report.is_empty() || !pools.keys().map(|name| name.as_str()).eq(names) {
        return None;
    }
    let mut config = (*before.config).clone();
    config.pools.extend(pools);
    Some(config)
}

/// The bytes in which two texts differ: what is between their common beginning and their common end.
fn changed(old: &[u8], new: &[u8]) -> (Range<usize>, Range<usize>) {
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    (start..old.len() - end, start..new.len() - end)
}

/// The blocks of a text, or `None` where it is not plain what a header is or what it covers.
fn blocks(text: &str) -> Option<Vec<Block<'_>>> {
    // A string over several lines may hold what looks like a header.
    if text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let line = line.trim_ascii();
        if line.starts_with('[') {
            blocks.push(Block { header: header(line)?, lines: start..at });
        } else if let Some(block) = blocks.last_mut() {
            block.lines.end = at;
        } else if !line.is_empty() && !line.starts_with('#') {
            // A key before the first header may belong to any table.
            return None;
        }
    }
    Some(blocks)
}

/// The name in a header of bare keys; below the top level, so that none covers several pools.
fn header(line: &str) -> Option<&str> {
    let line = line.split_once('#').map_or(line, |(line, _)| line.trim_ascii_end());
    let name = match line.strip_prefix("[[") {
        Some(rest) => rest.strip_suffix("]]")?,
        None => line.strip_prefix('[')?.strip_suffix(']')?,
    };
    let bare = |key: &str| {
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    (name.split('.').all(bare) && !["pool", "frontend"].contains(&name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{parse_after, parse_text};

    const FILE: &str = "# two pools\n\
        [runtime]\nworkers = 2\n\n\
        [frontend.web]\nlisten = [\n  \"127.0.0.1:8080\",\n]\npool = \"web\"\n\n\
        [frontend.db]\nlisten = \"127.0.0.1:5432\"\npool = \"db\"\n\n\
        [pool.web] # the first\nstrategy = \"adaptive\"\n\
        [[pool.web.backend]]\nname = \"a\"\naddress = \"127.0.0.1:9001\"\n\
        [[pool.web.backend]]\nname = \"b\"\naddress = \"127.0.0.1:9002\"\n\n\
        [[pool.db.backend]]\naddress = \"127.0.0.1:9003\"\n\
        [pool.db]\nqueue = 7\n\
        [pool.web.health]\nkind = \"off\"\n";

    fn accepted(text: &str) -> Accepted {
        let config = parse_text(Path::new("f.toml"), text, &[]).unwrap();
        Accepted { text: text.to_owned(), config: Arc::new(config) }
    }

    /// What a replacement says when read as a change; `None` when it is left to the reader of whole files.
    fn changed(from: &str, to: &str) -> Option<Config> {
        assert!(FILE.contains(from), "{from}");
        let text = FILE.replacen(from, to, 1);
        let config = read(&accepted(FILE), &text);
        if let Some(config) = &config {
            assert_eq!(*config, parse_text(Path::new("f.toml"), &text, &[]).unwrap());
        }
        config
    }

    #[test]
    fn a_change_of_a_pool_is_read_alone_and_the_rest_is_shared() {
        let before = accepted(FILE);
        let text = FILE.replacen("9002", "9009", 1);
        let after = read(&before, &text).unwrap();
        assert_eq!(after, parse_text(Path::new("f.toml"), &text, &[]).unwrap());
        assert!(Arc::ptr_eq(&after.pools["db"], &before.config.pools["db"]));
        assert!(Arc::ptr_eq(&after.frontends["web"], &before.config.frontends["web"]));
        assert!(!Arc::ptr_eq(&after.pools["web"], &before.config.pools["web"]));
    }

    #[test]
    fn what_may_be_read_as_a_change_and_what_may_not() {
        for (from, to) in [
            ("adaptive", "round_robin"),
            ("queue = 7\n", "queue = 8\nretries = 1\n"),
            ("[[pool.web.backend]]\nname = \"b\"\naddress = \"127.0.0.1:9002\"\n", ""),
            ("kind = \"off\"", "kind = \"tcp\""),
            ("# the first", "# was the first"),
        ] {
            assert!(changed(from, to).is_some(), "{from} -> {to}");
        }
        for (from, to) in [
            ("# two", "# three"),
            ("# two", "pool.web.queue = 3\n#"),
            ("workers = 2", "workers = 3"),
            ("5432", "5433"),
            ("[pool.web]", "[pool.\"web\"]"),
            ("[pool.web]", "[pool.other]"),
            ("adaptive", "fastest"),
            ("queue = 7", "queue = \"\"\"7\"\"\""),
            ("queue = 7", "queue = ["),
            ("9003", "9003\"\nx = \"1"),
            ("[pool.db]\nqueue = 7\n", "[pool.db]\nqueue = 7\n[pool]\nweb.retries = 1\n"),
        ] {
            assert!(changed(from, to).is_none(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_variable_is_laid_over_the_whole_file() {
        let env = [("LEMONADE__POOL__WEB__QUEUE".to_owned(), "9".to_owned())];
        let text = FILE.replacen("9002", "9009", 1);
        let after = parse_after(Some(&accepted(FILE)), Path::new("f.toml"), &text, &env).unwrap();
        assert_eq!(after.pools["web"].queue, 9);
    }

    proptest! {
        /// However lines are moved, doubled, dropped or exchanged, the short way says what the long way says.
        #[test]
        fn a_change_says_what_the_whole_file_says(
            edits in prop::collection::vec((0_usize..40, 0_usize..40, 0_u8..4), 1..6)
        ) {
            let mut before = accepted(FILE);
            for (at, other, kind) in edits {
                let mut lines: Vec<&str> = before.text.split_inclusive('\n').collect();
                let (at, other) = (at % lines.len(), other % lines.len());
                match kind {
                    0 => lines.swap(at, other),
                    1 => drop(lines.remove(at)),
                    2 => lines.insert(at, lines[other]),
                    _ => lines[at] = lines[other],
                }
                let text = lines.concat();
                let whole = parse_text(Path::new("f.toml"), &text, &[]);
                let change = read(&before, &text);
                if let Some(change) = change {
                    prop_assert_eq!(Some(&change), whole.as_ref().ok());
                }
                if let Ok(config) = whole {
                    before = Accepted { text, config: Arc::new(config) };
                }
            }
        }
    }
}
