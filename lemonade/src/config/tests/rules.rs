//! Each rule of the file, by an example that breaks it.

use super::examples::KERNEL;
use super::*;

/// Lines added to frontend, pool and backend; what the error says.
type Case = (&'static str, &'static str, &'static str, &'static str);

#[test]
fn each_rule_is_enforced_in_words() {
    let cases: &[Case] = &[
        // What says nothing of packets.
        (
            "data_plane = 'forward'",
            "",
            "",
            "2:10: frontend.web.listen: 127.0.0.1:8080 is reached from this host only",
        ),
        ("fallback = 'nothing'", "", "", "unknown word \"nothing\"; there are: proxy, refuse"),
        (
            "[frontend.web.forward]\nsnat_ports = '1-9'",
            "",
            "",
            "\"1-9\" has fewer than 64 ports; write a larger",
        ),
        (
            "[frontend.web.forward]\nsnat_ports = '0-99'",
            "",
            "",
            "\"0-99\" is no range of ports from 1 to 65535",
        ),
        (
            "[frontend.web.forward]\nsnat_addresses = ['192.0.2.1', '::']",
            "",
            "",
            "5:32: frontend.web.forward.snat_addresses[1]: \"::\" is no address that a backend could answer to",
        ),
        (
            "[frontend.web.forward]\nmode = 'dsr'",
            "",
            "",
            "unknown word \"dsr\"; did you mean \"dsr-l2\"? there are: nat, nat-gateway, dsr-l2, dsr-ipip",
        ),
        (
            "[frontend.web.forward]\nmode = 'dsr-ipip'\nsnat_ports = '2000-2999'",
            "",
            "",
            "snat_ports means nothing with mode = \"dsr-ipip\": packets keep the client's; remove it",
        ),
        (
            "[frontend.web.forward]\nmode = 'nat-gateway'\nsnat_addresses = '192.0.2.1'",
            "",
            "",
            "snat_addresses means nothing with mode = \"nat-gateway\"",
        ),
        (
            "[frontend.web.forward]\ninterfaces = []",
            "",
            "",
            "names no interface; write such as [\"eth0\", \"eth1\"]",
        ),
        ("[frontend.web.forward]\nconnection_table = 9", "", "", "is not from 256 to 8388608"),
        ("[frontend.web.forward]\nfragments = 'keep'", "", "", "there are: drop, pass"),
        ("[frontend.web.forward]\ntable = 1", "", "", "unknown key \"table\""),
        ("relay = 'sk_msg'", "", "", "only in a cgroup that you name; write accelerate_cgroup"),
        (
            "accelerate_cgroup = '/x'",
            "",
            "",
            "4:21: frontend.web.accelerate_cgroup: is used by relay = \"sk_msg\"",
        ),
        ("relay = 'sk_msg'\naccelerate_cgroup = 'x'", "", "", "accelerate_cgroup: is no absolute path"),
        // What says nothing of datagrams.
        (
            "protocol = 'udp'\nhedge_after = '1s'",
            "",
            "",
            "5:15: frontend.web.hedge_after: hedge_after means nothing with protocol = \"udp\": datagrams need no connect",
        ),
        (
            "protocol = 'udp'\nconnect_timeout = '1s'",
            "",
            "",
            "connect_timeout means nothing with protocol = \"udp\"",
        ),
        (
            "protocol = 'udp'\nrelay = 'auto'",
            "",
            "",
            "relay means nothing with protocol = \"udp\": datagrams are always",
        ),
        (
            "protocol = 'udp'\nkeepalive = 'off'",
            "",
            "",
            "keepalive means nothing with protocol = \"udp\": there is no",
        ),
        (
            "protocol = 'udp'\nuser_timeout = '2m'",
            "",
            "",
            "user_timeout means nothing with protocol = \"udp\"",
        ),
        (
            "protocol = 'udp'",
            "retries = 2",
            "",
            "6:11: pool.web.retries: retries is about connects, and only",
        ),
        ("protocol = 'udp'", "retry_budget = 0.1", "", "retry_budget is about connects"),
        ("protocol = 'udp'", "queue = 0", "", "queue is about connects"),
        ("protocol = 'udp'", "queue_timeout = '1s'", "", "queue_timeout is about connects"),
        // Suggestions.
        (
            "",
            "strategy = 'rund_robin'",
            "",
            "did you mean \"round_robin\"? there are: round_robin, weighted_",
        ),
        ("idle_timeuot = '1s'", "", "", "unknown key \"idle_timeuot\"; did you mean \"idle_timeout\"?"),
        ("[frontends.x]\n", "", "", "unknown table or key \"frontends\"; did you mean \"frontend\"?"),
        // Durations.
        ("connect_timeout = '0s'", "", "", "is shorter than a millisecond; write such as \"1s\""),
        ("hedge_after = '0s'", "", "", "is shorter than a millisecond; write such as \"200ms\", or \"off\""),
        ("idle_timeout = 'off'", "", "", "\"off\" is not a duration"),
        (
            "hedge_after = 'of'",
            "",
            "",
            "\"of\" is not a duration; write a number and a unit: \"250ms\", \"2s\" or \"5m\", or",
        ),
        ("keepalive = '10ms'", "", "", "is not from 1 to 32767 seconds"),
        ("user_timeout = '2000000h'", "", "", "is too long; write at most \"365days\""),
        // Pools.
        ("", "retry_budget = 1.5", "", "1.5 is not from 0 to 1"),
        ("", "retry_budget = nan", "", "NaN is not from 0 to 1"),
        ("", "source = '127.0.0.1:1'", "", "\"127.0.0.1:1\" is no address of this host"),
        ("", "source = '::1'", "", "\"127.0.0.1:9001\" cannot be reached from source ::1"),
        ("", "queue = -1", "", "write a whole number from 0 to 4294967295"),
        ("", "health = { fall = 0 }", "", "pool.web.health.fall: 0 would change the state without a probe"),
        ("", "health = { interval = '0s' }", "", "interval: is shorter than a millisecond"),
        (
            "",
            "health = { interval = '1s', fast_interval = '2s' }",
            "",
            "fast_interval: is longer than interval",
        ),
        ("", "health = { path = '/x' }", "", "path needs an HTTP probe; write kind = \"http\""),
        ("", "health = { kind = 'http', path = 'x' }", "", "\"x\" is no path"),
        ("", "health = { kind = 'http', path = \"/a\\r\\nb\" }", "", "is no path"),
        ("", "health = { kind = 'http', host = \"a\\r\\nb\" }", "", "is no host name"),
        ("", "health = { kind = 'http', method = 'get' }", "", "\"get\" is no HTTP method"),
        ("", "health = { kind = 'http', expect = ['20'] }", "", "\"20\" is no range of status codes"),
        ("", "health = { kind = 'http', expect = [] }", "", "no status code would be a success"),
        ("", "health = { kind = 'http', method = 'HEAD', body = 'x' }", "", "the answer to HEAD has no body"),
        ("", "health = { port = 70000 }", "", "integer 70000 does not fit here"),
        // Backends.
        ("", "", "weight = 0", "every backend has weight 0"),
        ("", "", "weight = 65536", "write a whole number from 0 to 65535"),
        ("", "", "name = 'A b'", "\"A b\" is no valid name; write 1 to 64 of a-z, 0-9, _ and -"),
        ("", "", "enabled = 'yes'", "string \"yes\" does not fit here; write true or false"),
        ("", "", "[[pool.web.backend]]\naddress = '127.0.0.1:9001'", "127.0.0.1:9001 is also backend[0]"),
        (
            "",
            "",
            "name = 'x'\n[[pool.web.backend]]\naddress = 'b:1'\nname = 'x'",
            "12:8: pool.web.backend[1].name: the name x is taken by backend[0]",
        ),
        (
            "",
            "",
            "[[pool.web.backend]]\naddress = '10.0.0.1'",
            "\"10.0.0.1\" has no port that a health probe could use",
        ),
        (
            "",
            "",
            "[[pool.web.backend]]\naddress = 'http://x:1'",
            "\"http://x:1\" is a URL; write host:port only",
        ),
        (
            "",
            "",
            "[[pool.web.backend]]\naddress = '10.0.0.300:1'",
            "\"10.0.0.300\" is neither an IP address nor a host name",
        ),
        (
            "",
            "",
            "[[pool.web.backend]]\naddress = 'a b:1'",
            "\"a b\" is neither an IP address nor a host name",
        ),
        ("", "", "[[pool.web.backend]]\naddress = '10.0.0.1:0'", "a backend cannot have port 0"),
        ("", "", "[[pool.web.backend]]\naddress = 'a:99999'", "\"99999\" is no port from 1 to 65535"),
        ("", "", "[[pool.web.backend]]\naddress = '0.0.0.0:1'", "0.0.0.0 is no address of a backend"),
        // The process.
        ("", "", "[runtime]\nworkers = 0", "is not from 1 to 1024"),
        ("", "", "[runtime]\nworkers = 'atuo'", "write a whole number from 0 to 65535, or \"auto\""),
        ("", "", "[runtime]\nrelay_buffer = '1KiB'", "is not from 4KiB to 4MiB"),
        ("", "", "[runtime]\nrelay_buffer = '64 potatoes'", "\"64 potatoes\" is not a size"),
        ("", "", "[runtime]\nmax_connections = 0", "0 would refuse every connection"),
        ("", "", "[runtime]\nprobes_per_second = 0", "is not from 1 to 1000000"),
        (
            "",
            "",
            "[admin]\nlisten = '0.0.0.0:9900'",
            "10:10: admin.listen: 0.0.0.0:9900 can be reached from other hosts",
        ),
        ("", "", "[admin]\nlisten = 'of'", "write such as \"127.0.0.1:9900\", or \"off\""),
        ("", "", "[admin]\nsocket = 'off'", "is no path"),
        ("", "", "[log]\nlevel = 'inof'", "\"inof\" is no level; did you mean \"info\"?"),
        ("", "", "[log]\nlevel = 'info,lemonade'", "\"lemonade\" is no level"),
        ("", "", "[log]\naccess = 'of'", "\"of\" is neither \"on\", \"off\" nor a path"),
        ("", "", "[log]\nformat = 'jsn'", "did you mean \"json\"?"),
        (
            "",
            "",
            "[telemetry]\nendpoint = 'https://x:4318'",
            "https is not spoken by this build; write http://",
        ),
        (
            "",
            "",
            "[telemetry]\nendpoint = 'collector:4318'",
            "write such as \"http://127.0.0.1:4318\", or \"off\"",
        ),
        (
            "",
            "",
            "[telemetry]\nendpoint = 'http://u:p@x:4318'",
            "endpoint: has more than host, port and path; write a secret into headers",
        ),
        ("", "", "[telemetry]\nendpoint = 'a b'", "is no URL of a receiver; write such as"),
        ("", "", "[telemetry]\ninterval = '10ms'", "is not from 1s to 1h"),
        ("", "", "[telemetry]\nsample = 2.0", "2 is not from 0 to 1"),
        ("", "", "[telemetry]\nservice_name = ''", "service_name: is empty"),
        ("", "", "[telemetry]\nheaders = { 'a b' = 'x' }", "\"a b\" with its value is no header"),
    ];
    for (frontend, pool, backend, expected) in cases {
        let text = file(frontend, pool, backend);
        let error = errors(&text);
        assert!(error.contains(expected), "{text}\nsays\n{error}\nbut not\n{expected}");
        // A build without kernel programs has one more of such a relay.
        let more = usize::from(frontend.contains("relay = 'sk_msg'") && !KERNEL);
        assert_eq!(error.lines().count(), 1 + more, "one error each: {text}\nsays\n{error}");
    }
}

#[test]
fn what_is_meant_to_work_works() {
    for (frontend, pool, backend) in [
        (
            "protocol = 'tcp'\ndata_plane = 'proxy'\nfallback = 'proxy'\naccelerate_cgroup = ''\nrelay = 'copy'",
            "",
            "",
        ),
        ("hedge_after = 'off'\nkeepalive = 'off'\nuser_timeout = 'off'", "", ""),
        // Kept for the day on which the plane is forward; then hedge_after is refused.
        (
            "hedge_after = '1s'\nfallback = 'refuse'\n[frontend.web.forward]\nhook = 'tc'",
            "strategy = 'source_hash'",
            "",
        ),
        ("[frontend.web.forward]\nhook = 'xdp'", "", ""),
        ("[frontend.web.forward]\nhook = 'xdp-generic'", "", ""),
        ("", "retry_budget = 1\nsource = '127.0.0.2'", "weight = 65535"),
        ("", "health = { kind = 'off' }", "[[pool.web.backend]]\naddress = '10.0.0.1'"),
        (
            "",
            "health = { port = 80 }",
            "[[pool.web.backend]]\naddress = '[fd00::1]'\n[[pool.web.backend]]\naddress = 'fd00::2'",
        ),
        (
            "",
            "health = { interval = '100ms' }",
            "weight = 0\n[[pool.web.backend]]\naddress = 'App.Internal.:80'",
        ),
        ("", "", "[pool.unused]\n[[pool.unused.backend]]\naddress = 'a:1'"),
        ("", "", "[admin]\nlisten = '[::]:9900'\nallow_public = true\nsocket = './admin.sock'"),
        ("", "", "[log]\nlevel = 'WARN,lemonade::health=debug'\naccess = './access.log'"),
        ("", "", "[telemetry]\nendpoint = 'http://[::1]:4318/otlp/'\nsample = 1\nheaders = { x-key = 'a' }"),
        (
            "",
            "",
            "[runtime]\nworkers = 4\nrelay_buffer = 131072\nhash_seed = 'x'\nmax_connections = 10\nlame_duck = '0s'",
        ),
    ] {
        let text = file(frontend, pool, backend);
        check(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}

/// Two frontends with these listen addresses.
fn two(first: &str, second: &str) -> Result<Config, ConfigError> {
    check(&format!(
        "[frontend.a]\nlisten = {first}\npool = \"web\"\n[frontend.b]\nlisten = {second}\npool = \"web\"\n{BACKEND}"
    ))
}

#[test]
fn listeners_that_take_each_others_connections_are_refused() {
    for (first, second, expected) in [
        (
            "'127.0.0.1:80'",
            "'127.0.0.1:80'",
            "5:10: frontend.b.listen[0]: 127.0.0.1:80 is already taken by frontend \"a\"",
        ),
        (
            "'0.0.0.0:80'",
            "'127.0.0.1:80'",
            "127.0.0.1:80 takes the same connections as 0.0.0.0:80 of frontend \"a\"",
        ),
        ("'127.0.0.1:80'", "'0.0.0.0:80'", "0.0.0.0:80 takes the same connections as 127.0.0.1:80"),
        ("'[::]:80'", "'127.0.0.1:80'", "takes the same connections as [::]:80"),
        ("'127.0.0.1:80'", "'[::]:80'", "[::]:80 takes the same connections as 127.0.0.1:80"),
        ("'[::1]:80'", "'[::]:80'", "[::]:80 takes the same connections as [::1]:80"),
        ("'[::ffff:127.0.0.1]:80'", "'127.0.0.1:80'", "takes the same connections as"),
        (
            "'127.0.0.1:1-9'",
            "['[::1]:9', '127.0.0.1:9']",
            "5:22: frontend.b.listen[1]: 127.0.0.1:9 is already taken",
        ),
        ("'127.0.0.1:9900'", "'127.0.0.1:1'", "127.0.0.1:9900 is already taken by admin"),
        (
            "['127.0.0.1:1', '127.0.0.1:1']",
            "'127.0.0.1:2'",
            "2:26: frontend.a.listen[1]: 127.0.0.1:1 is already taken by this frontend",
        ),
        ("['127.0.0.1:0', '127.0.0.1:0']", "'127.0.0.1:2'", "127.0.0.1:0 is listed twice"),
        ("'127.0.0.1'", "'127.0.0.1:2'", "\"127.0.0.1\" has no port"),
        ("'localhost:1'", "'127.0.0.1:2'", "\"localhost\" is not an IP address; write \"127.0.0.1:1\""),
        ("':1'", "'127.0.0.1:2'", "write \"0.0.0.0:1\" for every IPv4 address"),
        ("'::1:8080'", "'127.0.0.1:2'", "write \"[::1]:8080\""),
        ("'127.0.0.1:9-1'", "'127.0.0.1:2'", "the range 9-1 runs backwards; write 1-9"),
        ("'127.0.0.1:0-5'", "'127.0.0.1:2'", "a range cannot begin at port 0"),
        ("'127.0.0.1:70000'", "'127.0.0.1:2'", "\"70000\" is no port or range of ports from 0 to 65535"),
        ("'127.0.0.1:1-1025'", "'127.0.0.1:2'", "makes more than 1024 listeners in this frontend"),
        ("[]", "'127.0.0.1:2'", "listen is missing"),
    ] {
        let error = two(first, second).expect_err("refused").to_string();
        assert!(error.contains(expected), "{first} {second}\nsays\n{error}\nbut not\n{expected}");
        assert_eq!(error.lines().count(), 1, "one error each: {error}");
    }
}

#[test]
fn listeners_that_do_not_meet_are_accepted() {
    for (first, second) in [
        ("'127.0.0.1:80'", "'127.0.0.2:80'"),
        ("'0.0.0.0:80'", "'[::1]:80'"),
        ("'127.0.0.1:0'", "'127.0.0.1:0'"),
        ("['127.0.0.1:1-1024']", "'127.0.0.1:1025-2048'"),
    ] {
        two(first, second).unwrap_or_else(|error| panic!("{first} {second}: {error}"));
    }
    let config = two("['127.0.0.1:7000-7002', '[::1]:7000']", "'[::1]:7001'").expect("valid");
    let listen: Vec<String> = config.frontends["a"].listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002", "[::1]:7000"]);
}

#[test]
fn a_relay_in_the_kernel_needs_a_build_with_kernel_programs() {
    for (name, lines) in [
        ("sockmap", "relay = 'sockmap'"),
        ("sk_msg", "relay = 'sk_msg'\naccelerate_cgroup = '/sys/fs/cgroup/web'"),
        ("splice", "relay = 'splice'"),
    ] {
        let text = file(lines, "", "");
        if cfg!(all(feature = "ebpf", target_os = "linux")) {
            check(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        } else {
            let error = errors(&text);
            let expected = format!("{name:?} needs kernel programs, which this build does not have");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

/// A frontend that asks for the forward plane, with these lines of it and of its pool.
fn packets(listen: &str, frontend: &str, pool: &str) -> Result<Config, ConfigError> {
    check(&format!(
        "[frontend.web]\nlisten = {listen}\npool = \"web\"\ndata_plane = \"forward\"\n{frontend}\n[pool.web]\n{pool}\n{BACKEND}"
    ))
}

#[test]
fn what_the_forward_plane_cannot_do_is_refused_with_the_reason() {
    let why = "means nothing with data_plane = \"forward\"";
    for (frontend, key) in [
        ("relay = 'auto'", "relay"),
        ("connect_timeout = '1s'", "connect_timeout"),
        ("hedge_after = 'off'", "hedge_after"),
        ("keepalive = 'off'", "keepalive"),
        ("user_timeout = 'off'", "user_timeout"),
    ] {
        let error = packets("'192.0.2.1:80'", frontend, "").expect_err("refused").to_string();
        assert!(error.contains(&format!("5:{}: frontend.web.{key}: {key} {why}", key.len() + 4)), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    for (pool, key) in [
        ("retries = 2", "retries"),
        ("queue = 1", "queue"),
        ("retry_budget = 0.1", "retry_budget"),
        ("queue_timeout = '1s'", "queue_timeout"),
    ] {
        let error = packets("'192.0.2.1:80'", "", pool).expect_err("refused").to_string();
        assert!(
            error.contains(&format!("pool.web.{key}: {key} means nothing where only frontends")),
            "{error}"
        );
        let shared = format!("{pool}\n[frontend.b]\nlisten = '127.0.0.1:81'\npool = 'web'\n");
        packets("'192.0.2.1:80'", "", &shared)
            .unwrap_or_else(|error| panic!("a proxied frontend uses it too: {error}"));
    }
    for (listen, expected) in [
        ("'0.0.0.0:80'", "0.0.0.0:80 is every address, and packets are matched by one; write the addresses"),
        ("'[::]:80'", "[::]:80 is every address"),
        ("'[::1]:80'", "is reached from this host only"),
        ("'192.0.2.1:0'", "192.0.2.1:0 has no port, and packets are matched by one"),
    ] {
        let error = packets(listen, "", "").expect_err("refused").to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn frontends_of_one_pool_reach_its_backends_alike() {
    let second = |forward: &str| {
        let both = format!(
            "[frontend.web.forward]\nsnat_ports = '2000-2999'\n[frontend.x]\nlisten = '192.0.2.1:81'\npool = 'web'\ndata_plane = 'forward'\n[frontend.x.forward]\n{forward}"
        );
        packets("'192.0.2.1:80'", &both, "")
    };
    second("snat_ports = '2000-2999'\nfragments = 'pass'").unwrap_or_else(|error| panic!("{error}"));
    for forward in ["snat_ports = '3000-3999'", ""] {
        let error = second(forward).expect_err("refused").to_string();
        assert!(
            error.contains("snat_ports is another than in frontend \"web\", which uses the same pool"),
            "{error}"
        );
    }
}

#[test]
fn packets_that_keep_their_port_need_backends_that_listen_on_it() {
    let on =
        |listen: &str, mode: &str| packets(listen, &format!("[frontend.web.forward]\nmode = '{mode}'"), "");
    for mode in ["dsr-l2", "dsr-ipip"] {
        on("'192.0.2.1:9001'", mode).unwrap_or_else(|error| panic!("{error}"));
        let error = on("['192.0.2.1:9001', '192.0.2.1:80']", mode).expect_err("refused").to_string();
        let told = format!("frontend.web.forward.mode: with \"{mode}\" packets keep port 80, and backend");
        assert!(error.contains(&told) && error.contains("has 9001; write port 80 there or none"), "{error}");
    }
    on("'192.0.2.1:80'", "nat-gateway").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn keys_of_the_forward_plane_are_read() {
    let config = packets(
        "['192.0.2.1:80', '[2001:db8::1]:80']",
        "fallback = 'refuse'\nprotocol = 'udp'\n[frontend.web.forward]\ninterfaces = ['eth0']\nsnat_addresses = '192.0.2.9'\nsnat_ports = '2000-2999'\nconnection_table = 512\nfragments = 'pass'",
        "strategy = 'source_hash'",
    );
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let own = config.frontends["web"].forward.as_ref().expect("it asks");
    use crate::model::forward::{Fallback, Forwarding, Fragments, Hook, Mode};
    let expected = Forwarding {
        fallback: Fallback::Refuse,
        hook: Hook::Auto,
        mode: Mode::Nat,
        interfaces: Some(vec!["eth0".to_owned()]),
        snat_addresses: Some(vec!["192.0.2.9".parse().expect("an address")]),
        snat_ports: Some(2_000..=2_999),
        connection_table: 512,
        fragments: Fragments::Pass,
    };
    assert_eq!(*own, expected);
}

#[test]
fn a_table_of_another_size_waits_for_the_next_start() {
    let of = |size: u32| {
        packets("'192.0.2.1:80'", &format!("[frontend.web.forward]\nconnection_table = {size}"), "")
            .unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(needs_restart(&of(512), &of(1024)), ["frontend.web.forward.connection_table"]);
    assert_eq!(needs_restart(&of(512), &of(512)), [""; 0]);
    let proxied = check(&file("", "", "")).expect("valid");
    assert_eq!(needs_restart(&proxied, &of(512)), [""; 0], "the table is made when it is first asked for");
}
