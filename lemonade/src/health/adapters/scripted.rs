//! A prober that answers as it is told, for tests and simulations.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::BoxFuture;
use crate::health::port::{ProbeError, Prober};
use crate::model::config::HealthKind;

/// What a scripted probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Answers at once.
    Answer(Result<String, ProbeError>),
    /// Answers after a time.
    After(Duration, Result<String, ProbeError>),
    /// Never answers.
    Hang,
    /// Panics.
    Panic,
}

/// A probe that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// When.
    pub at: Instant,
    /// Where.
    pub target: SocketAddr,
    /// From where.
    pub source: Option<IpAddr>,
    /// What.
    pub kind: HealthKind,
}

/// A prober whose outcomes are set by address, also while it is in use; an address without a script succeeds.
#[derive(Debug, Default)]
pub struct Scripted {
    scripts: Mutex<BTreeMap<SocketAddr, Script>>,
    asked: Mutex<Vec<Asked>>,
}

impl Scripted {
    /// Sets what probes of `target` do from now on.
    pub fn set(&self, target: SocketAddr, script: Script) {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner).insert(target, script);
    }

    /// Lets probes of `target` succeed from now on.
    pub fn succeed(&self, target: SocketAddr) {
        self.set(target, Script::Answer(Ok("connected".to_owned())));
    }

    /// Lets probes of `target` fail from now on.
    pub fn fail(&self, target: SocketAddr, why: &str) {
        self.set(target, Script::Answer(Err(ProbeError::Backend(why.to_owned()))));
    }

    /// Probes asked for so far, oldest first.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Prober for Arc<Scripted> {
    fn probe(
        &self,
        target: SocketAddr,
        source: Option<IpAddr>,
        kind: &HealthKind,
        _timeout: Duration,
    ) -> BoxFuture<Result<String, ProbeError>> {
        let asked = Asked { at: Instant::now(), target, source, kind: kind.clone() };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        let script = self.scripts.lock().unwrap_or_else(PoisonError::into_inner).get(&target).cloned();
        Box::pin(async move {
            match script {
                None => Ok("connected".to_owned()),
                Some(Script::Answer(answer)) => answer,
                Some(Script::After(delay, answer)) => {
                    tokio::time::sleep(delay).await;
                    answer
                }
                Some(Script::Hang) => std::future::pending().await,
                Some(Script::Panic) => panic!("scripted"),
            }
        })
    }
}
