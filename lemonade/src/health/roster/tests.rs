use super::*;
use crate::health::port::SignalKind;
use crate::health::testing::{address, health, pool, table};
use crate::model::config::{Health, HealthKind};

const SECOND: u64 = 1_000_000;

fn sync(roster: &mut Roster, pools: &[&Arc<PoolEntry>], now: u64) -> Membership {
    roster.sync(&table(pools.iter().map(|&entry| Arc::clone(entry))), Moment(now), &mut || 0)
}

fn probe(roster: &mut Roster, now: u64) -> Job {
    match roster.next(Moment(now)) {
        Step::Probe(job) => job,
        Step::Wait(at) => panic!("nothing to probe before {at:?}"),
    }
}

fn refused() -> Result<String, ProbeError> {
    Err(ProbeError::Backend("connection refused".to_owned()))
}

fn status(roster: &Roster, ix: u32) -> Option<Status> {
    roster.watched.get(&BackendIx(ix)).map(|watched| watched.machine.status())
}

fn take_down(roster: &mut Roster, ix: u32) {
    for _ in 0..3 {
        let signal = Signal { backend: BackendIx(ix), kind: SignalKind::ConnectFailed };
        roster.signal(signal, Moment(1), 0);
    }
    assert_eq!(status(roster, ix), Some(Status::Down));
}

#[test]
fn keeps_states_of_what_stays_and_forgets_what_left() {
    let mut roster = Roster::new();
    let both = Arc::new(pool("web", health(), [1, 2]));
    assert_eq!(sync(&mut roster, &[&both], 0).joined.len(), 2);
    take_down(&mut roster, 1);
    take_down(&mut roster, 2);
    let more = Arc::new(pool("web", health(), [1, 3]));
    let membership = sync(&mut roster, &[&more], 1);
    assert_eq!(membership.joined, [(BackendIx(3), Status::Up)]);
    assert_eq!(membership.left, [BackendIx(2)]);
    assert_eq!((status(&roster, 1), status(&roster, 2)), (Some(Status::Down), None));
    assert_eq!(sync(&mut roster, &[], 2).left, [BackendIx(1), BackendIx(3)]);
}

#[test]
fn disabled_backends_are_not_probed() {
    let mut roster = Roster::new();
    let mut entry = pool("web", health(), [1, 2]);
    entry.backends[0].backend.enabled = false;
    assert_eq!(sync(&mut roster, &[&Arc::new(entry)], 0).joined, [(BackendIx(2), Status::Up)]);
    assert_eq!(probe(&mut roster, 0).target, address(2));
    assert!(matches!(roster.next(Moment(0)), Step::Wait(None)));
}

#[test]
fn backends_of_weight_zero_are_probed() {
    let mut roster = Roster::new();
    let mut entry = pool("web", health(), [1]);
    entry.backends[0].backend.weight = 0;
    sync(&mut roster, &[&Arc::new(entry)], 0);
    assert_eq!(probe(&mut roster, 0).target, address(1));
}

#[test]
fn own_port_is_probed_and_settings_reach_the_next_probe() {
    let mut roster = Roster::new();
    sync(&mut roster, &[&Arc::new(pool("web", health(), [1]))], 0);
    take_down(&mut roster, 1);
    let changed = Health { port: Some(81), rise: 1, ..health() };
    sync(&mut roster, &[&Arc::new(pool("web", changed, [1]))], 0);
    let job = probe(&mut roster, SECOND);
    assert_eq!(job.target.port(), 81);
    let shift = roster.probed(job.ticket, &Ok("connected".to_owned()), Duration::ZERO, Moment(SECOND), 0);
    assert_eq!(shift.map(|shift| shift.transition.status), Some(Status::Up));
}

#[test]
fn probe_that_could_not_be_made_says_nothing_about_the_backend() {
    let mut roster = Roster::new();
    sync(&mut roster, &[&Arc::new(pool("web", health(), [1]))], 0);
    for second in 0..20 {
        let now = second * 3 * SECOND;
        let job = probe(&mut roster, now);
        let local = Err(ProbeError::Local("too many open files".to_owned()));
        assert!(roster.probed(job.ticket, &local, Duration::ZERO, Moment(now), 0).is_none());
    }
    assert_eq!(status(&roster, 1), Some(Status::Up));
}

#[test]
fn answer_for_a_backend_that_left_is_void() {
    let mut roster = Roster::new();
    let entry = Arc::new(pool("web", Health { fall: 1, ..health() }, [1]));
    sync(&mut roster, &[&entry], 0);
    let old = probe(&mut roster, 0);
    sync(&mut roster, &[], 0);
    sync(&mut roster, &[&entry], 0);
    assert!(roster.probed(old.ticket, &refused(), Duration::ZERO, Moment(1), 0).is_none());
    assert_eq!(status(&roster, 1), Some(Status::Up));
}

#[test]
fn unprobed_backend_comes_back_also_after_a_reload() {
    let mut roster = Roster::new();
    let off = Health { kind: HealthKind::Off, ..health() };
    sync(&mut roster, &[&Arc::new(pool("web", off.clone(), [1]))], 0);
    assert!(matches!(roster.next(Moment(0)), Step::Wait(None)));
    take_down(&mut roster, 1);
    sync(&mut roster, &[&Arc::new(pool("web", off, [1, 2]))], 0);
    let Step::Wait(Some(at)) = roster.next(Moment(2)) else { panic!("nothing planned") };
    assert!(roster.returned(Moment(at.0 - 1)).is_empty());
    let back = roster.returned(at);
    assert_eq!((back.len(), status(&roster, 1)), (1, Some(Status::Up)));
    assert!(matches!(roster.next(at), Step::Wait(None)));
}

#[test]
fn pool_whose_entry_is_the_same_is_not_looked_at() {
    let mut roster = Roster::new();
    let (same, other) = (Arc::new(pool("a", health(), 0..5)), Arc::new(pool("b", health(), 5..6)));
    let mut asked = 0;
    roster.sync(&table([Arc::clone(&same), other]), Moment(0), &mut || {
        asked += 1;
        0
    });
    assert_eq!(asked, 6);
    let changed = Arc::new(pool("b", health(), 5..7));
    roster.sync(&table([same, changed]), Moment(0), &mut || {
        asked += 1;
        0
    });
    assert_eq!(asked, 8, "only the two backends of the changed pool");
}
