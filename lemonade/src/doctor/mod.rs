//! `lemonade doctor`: what this host and this build can do, and what a configuration would get.
//!
//! It needs no privileges, says what it could not see without them, and changes nothing: what it loads to try the kernel
//! is never attached and gone when it ends.

pub mod host;
pub mod report;

use std::path::Path;

use crate::limits;
use crate::model::Config;
use crate::model::config::{Frontend, RelayChoice};
use crate::proxy::adapters::bpf::Unavailable;
use crate::proxy::adapters::bpf::probe;
use host::Host;
use report::{Configuration, Line, Report, Route, Section, Verdict};

/// Looks at the host, the build, the kernel, and at what `config` would get.
pub fn examine(config: Option<(&Path, &Config)>) -> Report {
    let host = Host::read();
    let section = |name: &str, lines| Section { name: name.to_owned(), lines };
    let sections = vec![
        section("host", host.lines()),
        section("build", vec![build_line()]),
        section("program types", probe::program_types().into_iter().map(type_line).collect()),
        section("map types", probe::map_types().into_iter().map(type_line).collect()),
        section("programs", program_lines(probe::programs(), host.may_load())),
    ];
    let configuration = config.map(|(file, config)| configuration(file, config, &host));
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
fn program_lines(
    verified: Result<Vec<(String, Result<u32, Unavailable>)>, Unavailable>,
    may_load: bool,
) -> Vec<Line> {
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

/// Says what `config`, read from `file`, would get on `host`.
pub fn configuration(file: &Path, config: &Config, host: &Host) -> Configuration {
    let mut lines = vec![connections_line(config, host.descriptors)];
    lines.extend(config.frontends.values().filter_map(|frontend| ports_line(frontend, host)));
    Configuration {
        file: file.display().to_string(),
        runs_as_asked: lines.iter().all(|line| line.verdict != Verdict::Fail),
        lines,
        frontends: config.frontends.values().map(|frontend| route(frontend)).collect(),
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

/// The proxy plane with its copy relay carries everything in this version.
fn route(frontend: &Frontend) -> Route {
    let (asked, why, change) = match frontend.relay {
        RelayChoice::Auto => (
            "auto",
            "relays in the kernel are not in this version",
            "nothing: no command and no setting gives a better one in this version",
        ),
        RelayChoice::Sockmap => (
            "sockmap",
            "connections begin with copy; those that last pass to the kernel while its self-tests pass, as `lemonade status` says",
            "nothing: no command and no setting gives a better one in this version",
        ),
        RelayChoice::Copy => (
            "copy",
            "the configuration asks for this one",
            "nothing in this version; `relay = \"auto\"` will take a relay in the kernel once there is one",
        ),
    };
    Route {
        frontend: frontend.name.to_string(),
        asked: asked.to_owned(),
        data_plane: "proxy".to_owned(),
        relay: "copy".to_owned(),
        why: why.to_owned(),
        change: change.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(runtime: &str, listen: &str) -> Config {
        let text = format!(
            "[runtime]\n{runtime}\n[frontend.web]\nlisten = \"{listen}\"\npool = \"web\"\n\
             [[pool.web.backend]]\naddress = \"127.0.0.1:9001\"\n"
        );
        crate::config::parse_text(Path::new("a.toml"), &text, &[]).unwrap()
    }

    #[test]
    fn more_connections_than_descriptors_carry_are_impossible() {
        let asked = config("max_connections = 5000", "127.0.0.1:8080");
        let own =
            configuration(Path::new("a.toml"), &asked, &Host { descriptors: Some(1024), ..Host::default() });
        assert!(!own.runs_as_asked);
        assert_eq!(own.lines[0].verdict, Verdict::Fail);
        // The limit that the cure names is enough.
        assert!(own.lines[0].cure.contains("at least 10257"), "{}", own.lines[0].cure);
        assert_eq!(connections_line(&asked, Some(10_257)).verdict, Verdict::Pass);
        assert_eq!(connections_line(&asked, None).verdict, Verdict::Pass);
    }

    #[test]
    fn a_low_port_without_privileges_is_impossible() {
        let own = configuration(Path::new("a.toml"), &config("", "127.0.0.1:80"), &Host::default());
        assert!(!own.runs_as_asked, "{own:?}");
        let own = configuration(Path::new("a.toml"), &config("", "127.0.0.1:8080"), &Host::default());
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
}
