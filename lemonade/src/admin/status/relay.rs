//! Which relay a frontend gets, in words.

use crate::metrics::snapshot::RelaySnapshot;
use crate::model::config::RelayChoice;
use crate::model::relay::KernelRelay;

/// The relay that new connections get, and why in words; `splices`: whether their packets may meet the programs of relay `splice`.
pub(super) fn relay_of(
    asked: RelayChoice,
    splices: bool,
    relays: &[RelaySnapshot],
) -> (&'static str, String) {
    if asked == RelayChoice::Auto {
        return auto(splices, relays);
    }
    let Some(relay) = asked.kernel() else {
        return ("copy", "asked for in the configuration".to_owned());
    };
    match relays.iter().find(|own| own.relay == relay) {
        Some(own) if own.usable => {
            let which = match relay {
                KernelRelay::Sockmap => "connections that last go there",
                KernelRelay::SkMsg => "connections of the named cgroup take the short way",
                KernelRelay::Splice => "connections that last become flows of packets",
            };
            (relay.as_str(), format!("asked for; {which}"))
        }
        Some(own) if own.findings.why.is_empty() => {
            ("copy", format!("{} is asked for; its self-tests have not run yet", relay.as_str()))
        }
        Some(own) => ("copy", format!("{} is asked for but off: {}", relay.as_str(), own.findings.why)),
        None => ("copy", format!("{} is asked for but not known here", relay.as_str())),
    }
}

/// As [`relay_of`], for a frontend that leaves it to Lemonade.
fn auto(splices: bool, relays: &[RelaySnapshot]) -> (&'static str, String) {
    if !splices {
        return (
            "copy",
            "auto: clients or backends are on loopback only, where no program meets packets".to_owned(),
        );
    }
    match relays.iter().find(|own| own.relay == KernelRelay::Splice) {
        Some(own) if own.usable => (
            "splice",
            "auto: connections that last become flows of packets where their path allows".to_owned(),
        ),
        Some(own) if !own.findings.why.is_empty() => {
            ("copy", format!("auto: splice is off: {}", own.findings.why))
        }
        _ => ("copy", "auto: the self-tests of splice have not run yet".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::relay::Findings;

    #[test]
    fn auto_says_what_it_takes_and_why() {
        let splice = |usable, why: &str| {
            let findings = Findings { why: why.to_owned(), tests: Vec::new() };
            [RelaySnapshot { relay: KernelRelay::Splice, usable, findings, failed: 0 }]
        };
        let told = |splices, relays: &[RelaySnapshot]| relay_of(RelayChoice::Auto, splices, relays);
        assert_eq!(told(true, &splice(true, "passed")).0, "splice");
        for (splices, relays, why) in [
            (false, splice(true, "passed"), "loopback"),
            (true, splice(false, "no BTF"), "splice is off: no BTF"),
            (true, splice(false, ""), "have not run yet"),
        ] {
            let (relay, words) = told(splices, &relays);
            assert!(relay == "copy" && words.contains(why), "{words}");
        }
        assert_eq!(relay_of(RelayChoice::Copy, true, &splice(true, "passed")).0, "copy");
    }
}
