//! Indices of frontends and backends, as they outlive the process where maps in the kernel do.

use std::collections::BTreeMap;

use lemonade_common::{BackendIx, FrontendIx};
use serde::{Deserialize, Serialize};

use super::table::{BackendId, DispatchTable};
use crate::model::Name;

/// Who had which index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indices {
    /// The next to give out.
    pub next: u32,
    /// Of frontends, by name.
    frontends: BTreeMap<String, u32>,
    /// Of backends, by what their places in rings are made from.
    backends: BTreeMap<String, u32>,
}

impl Indices {
    /// Those of a table.
    pub fn of(table: &DispatchTable) -> Self {
        let frontends = table.frontends.iter().map(|(ix, own)| (own.frontend.name.to_string(), ix.0));
        let backends = table.pools.values().flat_map(|pool| &pool.backends);
        Self {
            next: table.next_ix,
            frontends: frontends.collect(),
            backends: backends.map(|own| (own.id.ring_identity().to_string(), own.ix.0)).collect(),
        }
    }

    /// Index of a frontend.
    pub fn frontend(&self, name: &Name) -> Option<FrontendIx> {
        self.frontends.get(name.as_str()).copied().map(FrontendIx)
    }

    /// Index of a backend.
    pub fn backend(&self, id: &BackendId) -> Option<BackendIx> {
        if self.backends.is_empty() {
            return None;
        }
        self.backends.get(&*id.ring_identity()).copied().map(BackendIx)
    }

    /// The empty table whose successor gives out these indices.
    pub fn into_table(self) -> DispatchTable {
        DispatchTable { next_ix: self.next, remembered: self, ..DispatchTable::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    #[test]
    fn whoever_is_there_again_has_its_index_and_nobody_else() {
        let pools = |hosts: [u8; 2]| pool("web", hosts.map(|host| backend(&format!("b{host}"), host)));
        let first = config([pools([1, 2])], [frontend("f", 80, "web"), frontend("g", 81, "web")]);
        let before = next(&first, &HealthView::default(), &DispatchTable::default());
        let kept = Indices::of(&before);
        let text = serde_json::to_string(&kept).unwrap();
        let read: Indices = serde_json::from_str(&text).unwrap();
        assert_eq!(read, kept);
        let second = config([pools([2, 3])], [frontend("g", 81, "web"), frontend("h", 82, "web")]);
        let after = next(&second, &HealthView::default(), &read.into_table());
        let now = Indices::of(&after);
        assert_eq!(now.frontends["g"], kept.frontends["g"]);
        assert_eq!(now.backends["web/b2 10.0.0.2:80"], kept.backends["web/b2 10.0.0.2:80"]);
        assert!(now.frontends["h"] >= kept.next && now.backends["web/b3 10.0.0.3:80"] >= kept.next);
        assert_eq!(after.remembered, Indices::default(), "asked once");
    }
}
