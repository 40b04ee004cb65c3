//! What `doctor` says of frontends whose packets the kernel would send on, and what that would change for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::report::{Line, Route};
#[cfg(target_os = "linux")]
use crate::control::{compile::compile, table::DispatchTable};
#[cfg(target_os = "linux")]
use crate::health::port::HealthView;
use crate::model::config::Frontend;
use crate::model::forward::Forwarding;
use crate::model::{Config, Name};
#[cfg(target_os = "linux")]
use crate::model::{Resolution, Target};

/// Whether each frontend would be forwarded, with what is to be said of it, or why not.
type Planes = BTreeMap<Name, Result<String, String>>;

/// Asks the host what would become of frontends that want their packets forwarded, and of those that the proxy serves if
/// they wanted it.
pub(super) fn planes(config: &Config) -> (Planes, Planes) {
    let mut config = config.clone();
    let (mut named, mut refused) = (Planes::new(), Planes::new());
    let asks: BTreeSet<Name> = asking(&config).map(|frontend| frontend.name.clone()).collect();
    let asked = asking(&config).filter_map(|own| Some((own.pool.clone(), own.forward.clone()?)));
    let asked: BTreeMap<Name, Forwarding> = asked.collect();
    for frontend in config.frontends.values_mut().filter(|frontend| frontend.forward.is_none()) {
        if let Some(why) = unmatched(frontend) {
            refused.insert(frontend.name.clone(), Err(why));
            continue;
        }
        // Frontends of one pool share how its backends are reached.
        let forward = asked.get(&frontend.pool).cloned().unwrap_or_default();
        *frontend = Arc::new(Frontend { forward: Some(forward), ..(**frontend).clone() });
    }
    if asking(&config).next().is_some() {
        named = foreseen(config);
    }
    let offers = named.extract_if(.., |name, _| !asks.contains(name)).chain(refused).collect();
    (named, offers)
}

fn asking(config: &Config) -> impl Iterator<Item = &Arc<Frontend>> {
    config.frontends.values().filter(|frontend| frontend.forward.is_some())
}

/// Why the addresses of a frontend match no packets; `None`: they do.
fn unmatched(frontend: &Frontend) -> Option<String> {
    frontend.listen.iter().find_map(|address| match address.ip().to_canonical() {
        ip if ip.is_unspecified() => {
            Some(format!("{address} is every address, and packets are matched by one"))
        }
        ip if ip.is_loopback() => {
            Some(format!("{address} is reached from this host only; `hook = \"connect\"` is for that"))
        }
        _ => (address.port() == 0).then(|| format!("{address} has no port, and packets are matched by one")),
    })
}

#[cfg(target_os = "linux")]
fn foreseen(config: Config) -> Planes {
    // Host names are not resolved here: their backends are left out.
    let (health, names, none) = (HealthView::default(), Resolution::default(), DispatchTable::default());
    let table = compile(&Arc::new(config), 1, &health, &names, &none);
    let mut found = crate::proxy::forward::foresee(&table);
    let named = table.frontends.values().filter_map(|entry| {
        let hosts = entry.pool.pool.backends.iter().any(|own| matches!(own.target, Target::Host(..)));
        let carried = found.remove(&entry.ix)?;
        let carried = match carried {
            Ok(note) if hosts => Ok(format!("{note}; backends by host name were not looked at")),
            Err(why) if hosts => Err(format!("{why}; backends by host name were not looked at")),
            other => other,
        };
        Some((entry.frontend.name.clone(), carried))
    });
    named.collect()
}

#[cfg(not(target_os = "linux"))]
fn foreseen(config: Config) -> Planes {
    asking(&config).map(|frontend| (frontend.name.clone(), Err("it needs Linux".to_owned()))).collect()
}

/// Adds to what would change the lot of a proxied frontend what forward would.
pub(super) fn with_offer(route: Route, offer: Option<&Result<String, String>>) -> Route {
    let forward = match offer {
        None => return route,
        Some(Ok(note)) if note.is_empty() => "would send its packets on in the kernel".to_owned(),
        Some(Ok(note)) => format!("would send its packets on in the kernel; {note}"),
        Some(Err(why)) => format!("would not do here: {why}"),
    };
    Route { change: format!("{}; `data_plane = \"forward\"` {forward}", route.change), ..route }
}

pub(super) fn plane_line(name: &Name, carried: &Result<String, String>) -> Line {
    let title = format!("packets of {name}");
    match carried {
        Ok(note) if note.is_empty() => Line::pass(&title, "would be forwarded in the kernel"),
        Ok(note) => Line::pass(&title, format!("would be forwarded in the kernel; {note}")),
        Err(why) => {
            Line::fail(&title, why.clone(), "change what it names, or write `data_plane = \"proxy\"`")
        }
    }
}

pub(super) fn forward_route(frontend: &Frontend, carried: &Result<String, String>) -> Route {
    let (word, words) = frontend.forward.clone().unwrap_or_default().carrier();
    let (plane, relay, why) = match carried {
        Ok(_) => ("forward", word, words.to_owned()),
        Err(why) => ("proxy", "copy", format!("packets would not be forwarded: {why}")),
    };
    let change = match carried {
        Ok(_) => "nothing: no command and no setting gives a better one in this version",
        Err(_) => "what the reason names",
    };
    Route {
        frontend: frontend.name.to_string(),
        asked: "forward".to_owned(),
        data_plane: plane.to_owned(),
        relay: relay.to_owned(),
        why,
        change: change.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::super::tests::config;
    use super::*;

    #[test]
    fn a_frontend_that_asks_for_it_is_told_whether_its_packets_would_be_forwarded() {
        let config = config("", "127.0.0.1:8080");
        let frontend = config.frontends.values().next().unwrap();
        let yes = Ok("backend web/b gets nothing: no route".to_owned());
        assert_eq!(plane_line(&frontend.name, &yes).verdict, Verdict::Pass);
        assert!(plane_line(&frontend.name, &yes).detail.contains("no route"));
        let route = forward_route(frontend, &yes);
        assert_eq!((&*route.data_plane, &*route.relay, &*route.asked), ("forward", "nat", "forward"));
        let no = Err("bpf(2) is not permitted; run as root".to_owned());
        assert_eq!(plane_line(&frontend.name, &no).verdict, Verdict::Fail);
        let route = forward_route(frontend, &no);
        assert_eq!((&*route.data_plane, &*route.relay), ("proxy", "copy"));
        assert!(route.why.contains("bpf(2) is not permitted"), "{}", route.why);
        let (asked, offers) = planes(&config);
        assert!(asked.is_empty(), "nobody asks");
        let offer = with_offer(route, offers.get(&frontend.name));
        assert!(
            offer.change.ends_with("would not do here: 127.0.0.1:8080 is reached from this host only; `hook = \"connect\"` is for that"),
            "{offer:?}"
        );
    }
}
