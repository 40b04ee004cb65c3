//! Which backend a socket of the balancer's own host is given when it connects.

use lemonade_common::connect::{Picked, pick};
use lemonade_common::forward::{BY_SOURCE, ServiceKey};
use lemonade_common::maglev::{EMPTY, SLOTS};
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, VIP6, service_key, world};

/// The world, whose services are for sockets.
fn for_sockets(flags: u32) -> Tables {
    let mut tables = world();
    let services = std::mem::take(&mut tables.services);
    for (key, mut service) in services {
        service.flags = flags;
        tables.services.insert(key.at_connect(), service);
    }
    tables
}

fn picked(tables: &Tables, at: &ServiceKey, cookie: u64) -> u32 {
    pick(tables, at, cookie).expect("it is served").backend
}

#[test]
fn sockets_spread_over_the_ring_and_each_keeps_its_backend() {
    let tables = for_sockets(0);
    for (vip, first) in [(VIP4, 0), (VIP6, 3)] {
        let at = service_key(vip, 6);
        let mut counts = [0_u32; 3];
        // The kernel numbers sockets one after the other.
        for cookie in 1..30_001 {
            let backend = picked(&tables, &at, cookie);
            counts[(backend - first) as usize] += 1;
            assert_eq!(picked(&tables, &at, cookie), backend);
        }
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
        // A socket that uses two services has two draws.
        let other = service_key(vip, 17);
        let same =
            (1..3_001).filter(|cookie| picked(&tables, &at, *cookie) == picked(&tables, &other, *cookie));
        assert!((850..1_150).contains(&same.count()));
    }
}

#[test]
fn by_source_the_host_is_one_client() {
    let tables = for_sockets(BY_SOURCE);
    let at = service_key(VIP4, 6);
    let first = picked(&tables, &at, 1);
    assert!((2..1_000).all(|cookie| picked(&tables, &at, cookie) == first));
}

#[test]
fn a_service_of_packets_is_none_of_sockets_and_nobody_is_no_backend() {
    let at = service_key(VIP4, 6);
    assert_eq!(pick(&world(), &at, 1), None);
    let mut tables = for_sockets(0);
    tables.targets.values_mut().for_each(|target| target.port = [0, 0]);
    let Picked { port, frontend, .. } = pick(&tables, &at, 1).expect("it is served");
    assert_eq!((port, frontend), (at.port, 1), "without a port of its own a backend has the service's");
    tables.rings[0] = vec![EMPTY; SLOTS as usize];
    assert_eq!(pick(&tables, &at, 1), None);
}
