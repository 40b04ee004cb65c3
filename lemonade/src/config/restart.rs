//! What a running process cannot change.

use crate::model::Config;

/// Names the keys that differ and only take effect after a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    [
        ("runtime.workers", old.runtime.workers == new.runtime.workers),
        ("runtime.state_dir", old.runtime.state_dir == new.runtime.state_dir),
        ("runtime.relay_buffer", old.runtime.relay_buffer == new.runtime.relay_buffer),
        ("admin.socket", old.admin.socket == new.admin.socket),
        ("admin.listen", old.admin.listen == new.admin.listen),
        ("log.format", old.log.format == new.log.format),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(key, _)| key.to_owned())
    .collect()
}
