//! `lemonade doctor`: what this host and this build can do, and what a configuration would get.
//!
//! It needs no privileges, says what it could not see without them, and changes nothing: what it loads to try the kernel
//! is never attached and gone when it ends.

mod forward;
pub mod host;
pub mod report;

use std::path::Path;

use crate::limits;
use crate::model::Config;
use crate::model::config::{Frontend, Protocol, RelayChoice};
use crate::model::relay::{KernelRelay, SelfTest};
use crate::proxy::adapters::bpf::Unavailable;
use crate::proxy::adapters::bpf::probe;
#[cfg(target_os = "linux")]
use crate::proxy::relay::{sk_msg, splice, trial};
use forward::{forward_route, plane_line, planes, with_offer};
use host::Host;
use report::{Configuration, Line, Report, Route, Section, Verdict};

/// How the self-tests of a relay went, or why there were none.
pub type Tried = Result<Vec<SelfTest>, Unavailable>;

/// The same of every relay in the kernel, by index.
pub type AllTried = [Tried; KernelRelay::COUNT];

/// Looks at the host, the build, the kernel, and at what `config` would get; `tried` are the relays' self-tests.
pub fn examine(config: Option<(&Path, &Config)>, tried: AllTried) -> Report {
    let host = Host::read();
    let section = |name: &str, lines| Section { name: name.to_owned(), lines };
    let relays = relay_sections(tried);
    let configuration = config.map(|(file, config)| configuration(file, config, &host, &relays));
    let mut sections = vec![
        section("host", host.lines()),
        section("build", vec![build_line()]),
        section("program types", probe::program_types().into_iter().map(type_line).collect()),
        section("map types", probe::map_types().into_iter().map(type_line).collect()),
        section("programs", program_lines(probe::programs(), host.may_load())),
    ];
    sections.extend(relays);
    Report { version: env!("CARGO_PKG_VERSION").to_owned(), sections, configuration }
}

fn build_line() -> Line {
    match probe::built() {
        Ok(()) => Line::pass("feature ebpf", "kernel programs are embedded"),
        Err(Unavailable { why, cure }) => Line::fail("feature ebpf", why, cure),
    }
}

fn type_line((name, support): (&'static str, Result<bool, Unavailable>)) -> Line {
    match support {
        Ok(true) => Line::pass(name, "the kernel has it"),
        Ok(false) => {
            Line::fail(name, "the kernel does not have it", "run a newer kernel, or one built with it")
        }
        Err(Unavailable { why, cure }) => Line::not_possible(name, why, cure),
    }
}

/// What the verifier said of each program; without privileges it was not asked.
fn program_lines(verified: Result<probe::Verdicts, Unavailable>, may_load: bool) -> Vec<Line> {
    let refused = |name: &str, Unavailable { why, cure }: &Unavailable| {
        if probe::built().is_ok() && may_load {
            let cure = "see what fails above; if nothing does, this is a bug: report it with `lemonade doctor --json`";
            Line::fail(name, why.clone(), cure)
        } else {
            Line::not_possible(name, why.clone(), cure.clone())
        }
    };
    match verified {
        Ok(programs) => programs
            .iter()
            .map(|(name, verdict)| match verdict {
                Ok(0) => Line::pass(name, "passes the verifier; this kernel does not count instructions"),
                Ok(count) => Line::pass(name, format!("passes the verifier, {count} instructions")),
                Err(error) => refused(name, error),
            })
            .collect(),
        Err(error) => vec![refused("embedded programs", &error)],
    }
}

/// The sections of the relays' self-tests, by index.
pub fn relay_sections(tried: AllTried) -> Vec<Section> {
    let relays = KernelRelay::ALL.into_iter().zip(tried);
    let mut sections: Vec<_> = relays
        .map(|(relay, tried)| Section {
            name: format!("self-tests of relay {}", relay.as_str()),
            lines: trial_lines(relay, tried),
        })
        .collect();
    #[cfg(target_os = "linux")]
    if !trial::proven() {
        let cure = "nothing in this version: frontends that ask for it stay with copy";
        let line = Line::fail("order under load", trial::UNPROVEN, cure);
        sections[KernelRelay::Sockmap.index()].lines.push(line);
    }
    sections
}

/// Tries the relays on canaries. Only for a process that does nothing else: it enters a cgroup for that time.
pub fn try_relays() -> AllTried {
    #[cfg(target_os = "linux")]
    return [trial::once(), sk_msg::once(), splice::trial::once()];
    #[cfg(not(target_os = "linux"))]
    KernelRelay::ALL.map(|_| probe::built().map(|()| Vec::new()))
}

fn trial_lines(relay: KernelRelay, tried: Tried) -> Vec<Line> {
    let line = |test: &SelfTest| {
        if test.passed {
            return Line::pass(&test.name, format!("passed in {:.0} ms", test.took_ms));
        }
        let cure = "nothing on this kernel: frontends that ask for it stay with copy; report it with `lemonade doctor --json`";
        Line::fail(&test.name, test.detail.clone(), cure)
    };
    match tried {
        Ok(tests) => tests.iter().map(line).collect(),
        Err(Unavailable { why, cure }) => {
            vec![Line::not_possible(&format!("relay {}", relay.as_str()), why, cure)]
        }
    }
}

/// The first self-test of the relay that did not pass.
fn bad(relay: KernelRelay, relays: &[Section]) -> Option<&Line> {
    relays.get(relay.index())?.lines.iter().find(|line| line.verdict != Verdict::Pass)
}

/// What a frontend that asks for a relay in the kernel needs of the host.
fn relay_line(frontend: &Frontend, relays: &[Section]) -> Option<Line> {
    let relay = frontend.relay.kernel()?;
    let (name, asked) = (format!("relay of {}", frontend.name), relay.as_str());
    let Some(bad) = bad(relay, relays) else {
        return Some(Line::pass(&name, format!("{asked}, as asked for")));
    };
    let detail = format!("{asked} is asked for, copy is used: {}: {}", bad.name, bad.detail);
    Some(Line::fail(&name, detail, bad.cure.clone()))
}

/// Says what `config`, read from `file`, would get on `host`; `relays` are [`relay_sections`].
pub fn configuration(file: &Path, config: &Config, host: &Host, relays: &[Section]) -> Configuration {
    let (planes, offers) = planes(config);
    let mut lines = vec![connections_line(config, host.descriptors)];
    lines.extend(config.frontends.values().filter_map(|frontend| ports_line(frontend, host)));
    lines.extend(config.frontends.values().filter_map(|frontend| relay_line(frontend, relays)));
    lines.extend(planes.iter().map(|(name, carried)| plane_line(name, carried)));
    Configuration {
        file: file.display().to_string(),
        runs_as_asked: lines.iter().all(|line| line.verdict != Verdict::Fail),
        lines,
        frontends: config
            .frontends
            .values()
            .map(|frontend| match planes.get(&frontend.name) {
                Some(carried) => forward_route(frontend, carried),
                None => with_offer(route(frontend, relays), offers.get(&frontend.name)),
            })
            .collect(),
    }
}

/// Whether the descriptors carry the connections that the configuration asks for.
fn connections_line(config: &Config, descriptors: Option<u64>) -> Line {
    const NAME: &str = "max_connections";
    let listeners = config.frontends.values().map(|frontend| frontend.listen.len()).sum();
    let carried = descriptors.map(|most| limits::connections(most, listeners));
    match (config.runtime.max_connections, carried) {
        (Some(asked), Some(carried)) if asked > carried => {
            let cure = format!(
                "raise the hard limit to at least {} (`LimitNOFILE=` of systemd, `ulimit -Hn`), \
                 or set `max_connections = {carried}` in [runtime]",
                2 * u64::from(asked) + 256 + listeners as u64
            );
            Line::fail(NAME, format!("{asked} asked for, the descriptors carry {carried}"), cure)
        }
        (Some(asked), _) => Line::pass(NAME, format!("{asked}, as asked for")),
        (None, Some(carried)) => Line::pass(NAME, format!("\"auto\": {carried}")),
        (None, None) => Line::pass(NAME, "\"auto\": descriptors have no limit"),
    }
}

/// Whether the process may listen on low ports of the frontend; `None` if it has none.
fn ports_line(frontend: &Frontend, host: &Host) -> Option<Line> {
    let name = format!("ports of {}", frontend.name);
    let low: Vec<_> = frontend
        .listen
        .iter()
        .map(|address| address.port())
        .filter(|port| (1..1024).contains(port))
        .collect();
    let first = low.first()?;
    let Some(refused) = low.iter().find(|port| !host.may_listen(**port)) else {
        return Some(Line::pass(&name, format!("{first} may be listened on")));
    };
    let cure =
        "run as root, `setcap cap_net_bind_service+ep` on the lemonade binary, or choose a port from 1024 on";
    Some(Line::fail(&name, format!("{refused} needs CAP_NET_BIND_SERVICE"), cure))
}

/// Which relay a frontend of the proxy plane gets, and why not a better one.
fn route(frontend: &Frontend, relays: &[Section]) -> Route {
    let own = KernelRelay::ALL.into_iter().find(|relay| frontend.relay.takes(*relay));
    let passed = own.is_some_and(|relay| bad(relay, relays).is_none());
    let here = frontend.relay == RelayChoice::Auto && frontend.on_loopback();
    let carried = frontend.protocol == Protocol::Tcp && passed && !here;
    let relay = own.filter(|_| carried).map_or("copy", KernelRelay::as_str);
    let (asked, why, change) = match (frontend.protocol, frontend.relay) {
        (Protocol::Udp, _) => (
            "auto",
            "datagrams are always copied",
            "nothing: no command and no setting gives a better one in this version",
        ),
        (Protocol::Tcp, RelayChoice::Auto) if here => (
            "auto",
            "packets of loopback meet no program, so connections stay with copy",
            "an address of an interface, or `relay = \"sk_msg\"` for processes of this host",
        ),
        (Protocol::Tcp, RelayChoice::Auto) if !passed => (
            "auto",
            "splice would be taken, but its self-tests do not pass here: see above",
            "what stands beside the first self-test of relay splice that did not pass",
        ),
        (Protocol::Tcp, RelayChoice::Auto) => (
            "auto",
            "connections begin with copy; those that last become flows of packets where their path allows",
            "nothing: no command and no setting gives a better one in this version",
        ),
        (Protocol::Tcp, asked @ (RelayChoice::Sockmap | RelayChoice::SkMsg | RelayChoice::Splice))
            if !passed =>
        {
            (
                asked.as_str(),
                "its self-tests do not pass here: see above",
                "what stands beside the first self-test above that did not pass",
            )
        }
        (Protocol::Tcp, RelayChoice::Sockmap) => (
            "sockmap",
            "connections begin with copy; those that last pass to the kernel",
            "nothing: no command and no setting gives a better one in this version",
        ),
        (Protocol::Tcp, RelayChoice::SkMsg) => (
            "sk_msg",
            "hops within this host skip TCP for processes of the named cgroup",
            "nothing: no command and no setting gives a better one in this version",
        ),
        (Protocol::Tcp, RelayChoice::Splice) => (
            "splice",
            "connections begin with copy; those that last become flows of packets",
            "nothing: no command and no setting gives a better one in this version",
        ),
        (Protocol::Tcp, RelayChoice::Copy) => (
            "copy",
            "the configuration asks for this one",
            "`relay = \"splice\"` for connections between hosts that last, `relay = \"sk_msg\"` for processes of this host",
        ),
    };
    Route {
        frontend: frontend.name.to_string(),
        asked: asked.to_owned(),
        data_plane: "proxy".to_owned(),
        relay: relay.to_owned(),
        why: why.to_owned(),
        change: change.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config(runtime: &str, listen: &str) -> Config {
        let text = format!(
            "[runtime]\n{runtime}\n[frontend.web]\nlisten = \"{listen}\"\npool = \"web\"\n\
             [[pool.web.backend]]\naddress = \"127.0.0.1:9001\"\n"
        );
        crate::config::parse_text(Path::new("a.toml"), &text, &[]).unwrap()
    }

    #[test]
    fn more_connections_than_descriptors_carry_are_impossible() {
        let asked = config("max_connections = 5000", "127.0.0.1:8080");
        let own = configuration(
            Path::new("a.toml"),
            &asked,
            &Host { descriptors: Some(1024), ..Host::default() },
            &[],
        );
        assert!(!own.runs_as_asked);
        assert_eq!(own.lines[0].verdict, Verdict::Fail);
        // The limit that the cure names is enough.
        assert!(own.lines[0].cure.contains("at least 10257"), "{}", own.lines[0].cure);
        assert_eq!(connections_line(&asked, Some(10_257)).verdict, Verdict::Pass);
        assert_eq!(connections_line(&asked, None).verdict, Verdict::Pass);
    }

    #[test]
    fn a_low_port_without_privileges_is_impossible() {
        let own = configuration(Path::new("a.toml"), &config("", "127.0.0.1:80"), &Host::default(), &[]);
        assert!(!own.runs_as_asked, "{own:?}");
        let own = configuration(Path::new("a.toml"), &config("", "127.0.0.1:8080"), &Host::default(), &[]);
        assert!(own.runs_as_asked, "{own:?}");
        assert_eq!((&*own.frontends[0].data_plane, &*own.frontends[0].relay), ("proxy", "copy"));
    }

    #[test]
    fn what_the_verifier_says_fails_only_where_it_was_asked() {
        let no = || Unavailable { why: "no".to_owned(), cure: "yes".to_owned() };
        assert_eq!(program_lines(Err(no()), false)[0].verdict, Verdict::NotPossible);
        let asked = if probe::built().is_ok() { Verdict::Fail } else { Verdict::NotPossible };
        assert_eq!(program_lines(Err(no()), true)[0].verdict, asked);
        let each = [("one".to_owned(), Err(no())), ("sock_ops".to_owned(), Ok(7))];
        let lines = program_lines(Ok(each.into()), true);
        assert_eq!((&*lines[0].name, lines[0].verdict), ("one", asked));
        assert!(lines[1].detail.contains("7 instructions"), "one refusal hides the rest: {lines:?}");
    }

    #[test]
    fn a_self_test_that_failed_keeps_a_frontend_with_copy_and_says_why() {
        let test = |passed| SelfTest {
            name: "slow reader".to_owned(),
            passed,
            detail: "a wrong byte came".to_owned(),
            took_ms: 1.0,
        };
        let frontend = |relay| {
            let config = config("", "127.0.0.1:8080");
            let frontend = config.frontends.values().next().unwrap();
            Frontend { relay, ..(**frontend).clone() }
        };
        let section = |relay, tests| Section { name: String::new(), lines: trial_lines(relay, Ok(tests)) };
        let relays = |sockmap, sk_msg, splice| {
            [
                section(KernelRelay::Sockmap, sockmap),
                section(KernelRelay::SkMsg, sk_msg),
                section(KernelRelay::Splice, splice),
            ]
        };
        let (good, bad) = (vec![test(true)], vec![test(true), test(false)]);
        for (choice, asked, fails) in [
            (RelayChoice::Sockmap, "sockmap", relays(bad.clone(), good.clone(), good.clone())),
            (RelayChoice::SkMsg, "sk_msg", relays(good.clone(), bad.clone(), good.clone())),
            (RelayChoice::Splice, "splice", relays(good.clone(), good.clone(), bad.clone())),
        ] {
            let asks = frontend(choice);
            let passes = relays(good.clone(), good.clone(), good.clone());
            assert_eq!(relay_line(&asks, &passes).unwrap().verdict, Verdict::Pass);
            assert_eq!(route(&asks, &passes).relay, asked);
            let line = relay_line(&asks, &fails).unwrap();
            assert!(
                line.verdict == Verdict::Fail && line.detail.contains("slow reader: a wrong byte came"),
                "{line:?}"
            );
            assert_eq!((&*route(&asks, &fails).relay, &*route(&asks, &fails).asked), ("copy", asked));
            assert_eq!(relay_line(&frontend(RelayChoice::Auto), &fails), None, "nothing was asked for");
            assert_eq!(route(&frontend(RelayChoice::Auto), &passes).relay, "copy");
        }
        let other = relays(bad, good.clone(), good);
        assert_eq!(route(&frontend(RelayChoice::SkMsg), &other).relay, "sk_msg", "each has tests of its own");
    }
}
