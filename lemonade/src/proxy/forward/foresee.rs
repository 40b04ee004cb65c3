//! What the forward plane would do on this host, without doing it.

use std::collections::BTreeMap;

use lemonade_common::FrontendIx;

use super::ground::{Site, look};
use super::trial;
use crate::control::image::Image;
use crate::control::lower::lower;
use crate::control::table::DispatchTable;
use crate::model::Moment;
use crate::proxy::adapters::bpf::Forward;

/// Rings enough for any configuration.
const RINGS: u32 = 1 << 16;

/// Whether programs could be at a place, as far as that is seen without attaching them.
fn foreseen(site: Site<'_>) -> Result<(), String> {
    match site {
        Site::Interface(..) => Ok(()),
        Site::Cgroup(path) => Forward::sees(path).map_err(|error| error.to_string()),
    }
}

/// For each frontend that asks for it, what is to be said of it where it would be carried, or why the proxy would serve.
///
/// The program is loaded for its self-test and gone again; nothing is attached.
pub fn foresee(table: &DispatchTable) -> BTreeMap<FrontendIx, Result<String, String>> {
    let all = |why: &str| {
        let asking = table.frontends.values().filter(|entry| entry.frontend.forward.is_some());
        asking.map(|entry| (entry.ix, Err(why.to_owned()))).collect()
    };
    let proven = match trial::run() {
        Ok(proven) => proven,
        Err(why) => return all(&why),
    };
    let ground = match look(table, &proven, Moment(0), &mut foreseen) {
        Ok((ground, _)) => ground,
        Err(error) => return all(&format!("routes and interfaces cannot be read: {error}")),
    };
    let lowered = lower(table, &ground, &Image::with_room(RINGS));
    let carried = lowered.carried.into_iter().map(|(ix, note)| (ix, Ok(note)));
    carried.chain(lowered.kept.into_iter().map(|(ix, why)| (ix, Err(why)))).collect()
}
