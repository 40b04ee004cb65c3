//! Frontends whose local clients get a backend when they connect.

use super::*;

fn file(listen: &str, lines: &str) -> String {
    format!(
        "[frontend.web]\nlisten = '{listen}'\npool = 'web'\ndata_plane = 'forward'\n{lines}\n\
         [[pool.web.backend]]\naddress = '127.0.0.1:9001'\n"
    )
}

#[test]
fn connect_needs_a_cgroup_and_says_nothing_of_packets() {
    for (listen, lines, expected) in [
        (
            "127.0.0.1:80",
            "[frontend.web.forward]\nhook = 'connect'",
            "only in a cgroup that you name; write accelerate_cgroup =",
        ),
        (
            "127.0.0.1:80",
            "accelerate_cgroup = '/c'\n[frontend.web.forward]\nhook = 'connect'\nsnat_ports = '2000-3000'",
            "snat_ports means nothing with hook = \"connect\"",
        ),
        (
            "127.0.0.1:80",
            "accelerate_cgroup = 'c'\n[frontend.web.forward]\nhook = 'connect'",
            "is no absolute path",
        ),
        ("127.0.0.1:80", "accelerate_cgroup = '/c'", "is reached from this host only"),
        (
            "192.0.2.1:9001",
            "accelerate_cgroup = '/c'\n[frontend.web.forward]\nmode = 'dsr-l2'",
            "accelerate_cgroup: means nothing with mode = \"dsr-l2\"",
        ),
    ] {
        let text = file(listen, lines);
        let error = errors(&text);
        assert!(error.contains(expected), "{text}\nsays\n{error}\nbut not\n{expected}");
        assert_eq!(error.lines().count(), 1, "one error each: {text}\nsays\n{error}");
    }
}

#[test]
fn local_clients_may_be_all_or_some_of_a_frontend() {
    for (listen, lines) in [
        ("127.0.0.1:80", "accelerate_cgroup = '/c'\n[frontend.web.forward]\nhook = 'connect'"),
        ("192.0.2.1:80", "accelerate_cgroup = '/c'"),
        ("192.0.2.1:80", "protocol = 'udp'\naccelerate_cgroup = '/c'"),
    ] {
        let text = file(listen, lines);
        let config =
            parse_text(Path::new("a.toml"), &text, &[]).unwrap_or_else(|error| panic!("{text}{error:?}"));
        let frontend = config.frontends.values().next().unwrap();
        assert_eq!(frontend.accelerate_cgroup.as_deref(), Some(Path::new("/c")));
    }
}
