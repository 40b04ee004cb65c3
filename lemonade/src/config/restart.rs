//! What a running process cannot change.

use crate::model::Config;

/// Names the keys that differ and only take effect after a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let process = [
        ("runtime.workers", old.runtime.workers == new.runtime.workers),
        ("runtime.state_dir", old.runtime.state_dir == new.runtime.state_dir),
        ("runtime.relay_buffer", old.runtime.relay_buffer == new.runtime.relay_buffer),
        ("admin.socket", old.admin.socket == new.admin.socket),
        ("admin.listen", old.admin.listen == new.admin.listen),
        ("log.format", old.log.format == new.log.format),
    ];
    let process = process.into_iter().filter(|(_, same)| !same).map(|(key, _)| key.to_owned());
    let room = |config: &Config, name: &str| {
        config.frontends.get(name).and_then(|own| own.forward.as_ref()).map(|own| own.connection_table)
    };
    // Without a forward frontend at the start the table is made when the first comes.
    let tables = new.frontends.keys().filter(|name| {
        room(old, name.as_str()).is_some_and(|was| room(new, name.as_str()).is_some_and(|is| was != is))
    });
    process.chain(tables.map(|name| format!("frontend.{name}.forward.connection_table"))).collect()
}
