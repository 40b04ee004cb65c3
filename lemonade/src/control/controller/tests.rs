use std::collections::BTreeMap;
use std::future::ready;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::BoxFuture;
use crate::control::compile::tests::{backend, config, frontend, pool};
use crate::model::{Backend, Target};
use crate::proxy::error::ApplyError;
use crate::proxy::port::{Capabilities, PlaneCounters};

/// A plane that takes everything and notes what is to be drained.
#[derive(Default)]
struct Drained(Mutex<Vec<(Vec<IpAddr>, Duration)>>);

impl Drained {
    fn take(&self) -> Vec<(Vec<IpAddr>, Duration)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ProxyService for Drained {
    fn offers(&self) -> Capabilities {
        Capabilities { relays: Vec::new() }
    }

    fn apply(&self, _table: Arc<DispatchTable>) -> Result<(), ApplyError> {
        Ok(())
    }

    fn drain(&self, scope: DrainScope, deadline: Duration) -> BoxFuture<u64> {
        let DrainScope::Removed { backends, .. } = scope else { panic!("the process goes on") };
        let addresses = backends.iter().map(|id| id.ip).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((addresses, deadline));
        Box::pin(ready(0))
    }

    fn observe(&self) -> PlaneCounters {
        PlaneCounters { listeners: Vec::new(), live: 0, table_version: 0 }
    }
}

struct NoEffects;

impl Effects for NoEffects {
    fn begin(&mut self) {}

    fn settled(&mut self, _version: u64) {}

    fn adopt(&mut self, _config: &Config) -> Result<(), String> {
        Ok(())
    }
}

fn resolved(addresses: &[u8]) -> Arc<Resolution> {
    let addresses = addresses.iter().map(|&host| IpAddr::from([10, 9, 9, host])).collect();
    Arc::new(Resolution { hosts: BTreeMap::from([("db.example".into(), addresses)]) })
}

#[tokio::test]
async fn an_address_that_leaves_a_names_answer_drains_like_a_removed_backend() {
    let named = Backend { target: Target::Host("db.example".into(), Some(80)), ..backend("a", 0) };
    let config = config([pool("web", [named, backend("b", 2)])], [frontend("f", 8080, "web")]);
    let plane = Arc::new(Drained::default());
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = watch::channel(Arc::new(ControlState {
        table: Arc::default(),
        accepted: Reload { version: 0, at: SystemTime::now(), cause: "start".to_owned() },
        refused: None,
        pending_restart: Vec::new(),
    }));
    let (tables, _) = watch::channel(Arc::default());
    let mut controller = Controller::start(
        Arc::clone(&config),
        resolved(&[1, 2]),
        Arc::clone(&plane) as Arc<dyn ProxyService>,
        Box::new(NoEffects),
        Arc::new(Journal::open(folder.path())),
        Arc::default(),
        Outbox { state, tables },
    )
    .unwrap();

    controller.resolution = resolved(&[2, 3]);
    controller.refresh();
    assert_eq!(plane.take(), [(vec![IpAddr::from([10, 9, 9, 1])], config.runtime.drain_timeout)]);

    let down = controller.tables.borrow().pools["web"].backends[0].ix;
    controller.health =
        Arc::new(HealthView { statuses: [(down, crate::model::config::Status::Down)].into() });
    controller.refresh();
    assert_eq!(plane.take(), [], "a backend that is down stays in the table");
}
