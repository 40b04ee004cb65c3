//! Where no program in the kernel tells of backends, the kernel is asked now and then, of a connection that has just
//! brought bytes.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use super::socket::tcp_info;
use crate::model::tcp::latency;
use crate::model::{BackendCell, Moment};

/// Time between two samples of the process, whatever the number of backends: at most 100 calls a second.
const SPACING: Duration = Duration::from_millis(10);

/// Samples of all workers.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    off: bool,
    due_at: AtomicU64,
}

impl Sampler {
    /// A sampler that does nothing when `told`: a program in the kernel tells of every connection.
    pub(super) fn new(told: bool) -> Self {
        Self { off: told, due_at: AtomicU64::new(0) }
    }

    /// Samples the connection `stream` to the backend of `cell`, if it is time. `seen` holds what it had sent again.
    pub(super) fn sample(&self, cell: &BackendCell, stream: &TcpStream, seen: &AtomicU16, now: Moment) {
        if self.off || !self.due(cell, now) {
            return;
        }
        let Some((srtt_us, total)) = tcp_info(stream) else { return };
        let total = u16::try_from(total).unwrap_or(u16::MAX);
        let again = total.saturating_sub(seen.swap(total, Ordering::Relaxed)).into();
        cell.tcp.sampled(srtt_us, again);
        if srtt_us != 0 {
            cell.told(latency(Duration::from_micros(srtt_us.into()), again, 1), now);
        }
    }

    fn due(&self, cell: &BackendCell, now: Moment) -> bool {
        let due = self.due_at.load(Ordering::Relaxed);
        due <= now.0
            && cell.tcp.due(now)
            && self
                .due_at
                .compare_exchange(due, now.plus(SPACING).0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tcp::TcpSource;

    #[test]
    fn the_process_takes_a_hundred_samples_a_second_at_most() {
        let sampler = Sampler::default();
        let cells: Vec<BackendCell> = (0..1000).map(|_| BackendCell::default()).collect();
        let moments = (0..1000).map(|milli| Moment(1 + milli * 1000));
        let due = |now| cells.iter().filter(|cell| sampler.due(cell, now)).count();
        assert_eq!(moments.map(due).sum::<usize>(), 100);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_sample_tells_the_round_trip_of_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (cell, seen, now) = (BackendCell::default(), AtomicU16::new(0), Moment(1));
        Sampler::new(true).sample(&cell, &stream, &seen, now);
        assert_eq!(cell.tcp.read(), None, "a program tells");
        Sampler::new(false).sample(&cell, &stream, &seen, now);
        let told = cell.tcp.read().unwrap();
        assert_eq!((told.source, told.retransmits, told.counts), (TcpSource::TcpInfo, 0, None));
        assert!((1..1_000_000).contains(&told.srtt_us), "{told:?}");
        assert!(cell.connect.read().is_some());
    }
}
