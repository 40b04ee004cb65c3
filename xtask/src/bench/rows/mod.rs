//! How each row is measured.

mod cost;
mod failure;
mod memory;
mod reload;
mod scale;
mod splice;
mod syscalls;
mod traffic;

use std::time::Duration;

use anyhow::Result;

pub use scale::scale;

use super::figures::Measure;
use super::load::Direction;
use super::world::{Instance, World};

/// Keys of figures with their values.
pub type Readings = Vec<(&'static str, f64)>;

/// One peer in its place, ready to be measured.
#[derive(Debug)]
pub struct Trial<'a> {
    /// What is around it.
    pub world: &'a mut World,
    /// The peer.
    pub instance: &'a mut Instance,
    /// Length of a steady sample.
    pub sample: Duration,
    /// Short waits: the run only shows that everything works.
    pub quick: bool,
}

impl Trial<'_> {
    /// Runs one measure; the start is measured where instances are started, the scale on its own.
    pub fn run(&mut self, measure: Measure) -> Result<Readings> {
        match measure {
            Measure::Memory => memory::memory(self),
            Measure::Pingpong => splice::proven(self, 1.0, traffic::pingpong),
            Measure::Small => splice::proven(self, 32.0, traffic::small),
            Measure::Medium => splice::proven(self, 32.0, traffic::medium),
            Measure::Large => splice::proven(self, 32.0, traffic::large),
            Measure::Connections => traffic::connections(self),
            Measure::Down => traffic::bulk(self, Direction::Down),
            Measure::Up => traffic::bulk(self, Direction::Up),
            Measure::Lasting => splice::proven(self, 1.0, traffic::lasting),
            Measure::HandOver => splice::hand_over(self),
            Measure::Reload => reload::reload(self),
            Measure::Kill => failure::kill(self),
            Measure::Silent => failure::silent(self),
            Measure::Killed => failure::killed(self),
            Measure::Cost => cost::cost(self),
            Measure::SameHost => traffic::same_host(self),
            Measure::Syscalls => syscalls::per_round_trip(self),
            Measure::Start | Measure::Scale => Ok(Vec::new()),
        }
    }

    fn watch(&self) -> String {
        self.instance.pids().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}
