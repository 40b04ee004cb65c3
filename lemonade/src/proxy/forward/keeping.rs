//! What the next process needs to take the forward plane over if this one is killed: a file in the state folder, beside maps
//! and links that outlive the process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lemonade_common::hash::seed_from_text;
use serde::{Deserialize, Serialize};

use crate::control::indices::Indices;
use crate::control::table::DispatchTable;
use crate::proxy::adapters::bpf::{Forward, Pins, remove_all};

/// What the file says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    /// Which of the owner's sets of maps the indices are of.
    token: u64,
    indices: Indices,
}

/// The file, and the set of maps that it is about.
#[derive(Debug)]
pub struct Keeping {
    file: PathBuf,
    owner: u64,
    note: Note,
}

impl Keeping {
    /// Reads what a process before this one has left in the state folder; the folder's lock says that it is gone.
    pub fn open(state_dir: &Path) -> Self {
        let place = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let file = place.join("forward.json");
        // Without the file nothing is taken over: indices would mean others.
        let note =
            fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file, owner: seed_from_text(&place.to_string_lossy()), note }
    }

    /// Indices that frontends and backends had.
    pub fn indices(&self) -> Indices {
        self.note.indices.clone()
    }

    /// Where maps and links are to be, and whether there are some to take over, with this room for entries.
    ///
    /// # Errors
    /// Nothing outlives the process here, in words.
    pub(super) fn pins(&mut self, room: u32, seed: u64) -> Result<(Pins, bool), String> {
        if self.note.token != 0 {
            let pins = Pins::open(self.owner, self.note.token)?;
            match Forward::fits(&pins, room, seed) {
                Some(true) => return Ok((pins, true)),
                Some(false) => tracing::warn!(
                    "what a killed process left of the forward plane is of another version, connection_table or hash_seed: its flows end when this one serves"
                ),
                None => return Ok((pins, false)),
            }
        }
        self.note = Note { token: fastrand::u64(1..), indices: Indices::default() };
        Ok((Pins::open(self.owner, self.note.token)?, false))
    }

    /// Writes down who has which index in a table, before the kernel learns of it.
    ///
    /// # Errors
    /// As write(2) and rename(2).
    pub(super) fn write(&mut self, table: &DispatchTable) -> io::Result<()> {
        let indices = Indices::of(table);
        if indices == self.note.indices {
            return Ok(());
        }
        self.note.indices = indices;
        let text = serde_json::to_vec(&self.note)?;
        // Renamed into place, so that a crash leaves one or the other.
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.file))
    }

    /// Takes away what was left, since nobody asks for the plane any more, or it cannot be had.
    pub(super) fn discard(&mut self) {
        if std::mem::take(&mut self.note.token) != 0 && remove_all(self.owner) > 0 {
            tracing::info!("took away what a killed process left of the forward plane");
        }
    }
}
