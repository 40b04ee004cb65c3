//! The base cases of Katran's tests, read from the folder that `LEMONADE_PACKET_CASES` names, through the program at XDP in
//! mode `dsr-ipip`. The folder's README has the rules by which they are judged; nothing of it is kept here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use lemonade::proxy::adapters::bpf::Forward;
use lemonade::strategy::maglev::{Share, ring};
use lemonade_common::flow::mapped;
use lemonade_common::forward::{ANSWER_ECHO, BY_PORT, DSR_IPIP, Service, ServiceKey, Target};
use lemonade_tests::netns::Network;
use lemonade_tests::packets::{unwrapped, wrapped};
use lemonade_tests::skip::skip;
use serde_json::Value;

use crate::forwarding::interface_index;

const VARIABLE: &str = "LEMONADE_PACKET_CASES";

/// Cases of a policy that is not ours: frames that are too big go on to tc, which tells their sender.
const OTHER_POLICY: [&str; 1] = ["base-33"];

/// Outer sources, which the rules leave to the balancer.
const OUTER: [&str; 2] = ["172.16.0.1", "fc00:ffff::1"];

fn words<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().map(|digit| (digit as char).to_digit(16).expect("hexadecimal") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn ethernet(text: &str) -> Vec<u8> {
    bytes(&text.replace(':', ""))
}

/// The services of a group; also which reals each of them has.
fn serve(forward: &mut Forward, group: &Value, interface: u32) -> HashMap<(SocketAddr, String), Vec<IpAddr>> {
    let mut indices: HashMap<IpAddr, u32> = HashMap::new();
    let mut served = HashMap::new();
    for (number, vip) in list(group, "vips").iter().enumerate() {
        let port = vip["port"].as_u64().expect("a port") as u16;
        let (address, protocol) = (SocketAddr::new(ip(words(vip, "address")), port), words(vip, "protocol"));
        let mut shares = Vec::new();
        let mut reals = Vec::new();
        for real in list(vip, "reals") {
            let place = ip(words(real, "address"));
            let next = indices.len() as u32;
            let index = *indices.entry(place).or_insert(next);
            let target = Target {
                address: mapped(place),
                snat: mapped(ip(OUTER[usize::from(place.is_ipv6())])),
                interface,
                ..Target::default()
            };
            forward.put_target(index, target).expect("there is room");
            let weight = real["weight"].as_u64().expect("a weight") as u32;
            shares.push(Share { value: index, identity: place.to_string(), weight });
            reals.push(place);
        }
        forward.fill_ring(number as u32, &ring(&shares));
        let by_port = list(vip, "flags").iter().any(|flag| flag == "hash_dst_port_only");
        let service = Service {
            frontend: number as u32,
            ring: number as u32,
            mode: DSR_IPIP,
            flags: if by_port { BY_PORT } else { 0 },
            ..Service::default()
        };
        let key = ServiceKey {
            address: mapped(address.ip()),
            port: port.to_be_bytes(),
            protocol: [0, if protocol == "tcp" { 6 } else { 17 }],
        };
        forward.put_service(key, service).expect("there is room");
        let whole = Service { flags: ANSWER_ECHO, ..Service::default() };
        forward.put_service(ServiceKey::whole(key.address), whole).expect("there is room");
        served.insert((address, protocol.to_owned()), reals);
    }
    served
}

/// Judges a packet that left encapsulated; the real that it went to.
fn encapsulated(input: &[u8], output: &[u8], gateway: &[u8]) -> Result<IpAddr, String> {
    if output.len() < 34 || output[..6] != *gateway || output[6..12] != input[..6] {
        return Err("other Ethernet addresses".to_owned());
    }
    let (_, from, to, label) = unwrapped(output)?;
    if from.is_unspecified() {
        return Err("no outer source".to_owned());
    }
    let mut model = wrapped(input, from, to, label);
    model[..12].copy_from_slice(&output[..12]);
    if model == output { Ok(to) } else { Err(format!("not the model's bytes, which are {model:02x?}")) }
}

#[test]
fn the_base_cases_of_katran_are_answered_as_their_rules_say() {
    let test = "the_base_cases_of_katran_are_answered_as_their_rules_say";
    let Some(folder) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return skip(test, &format!("{VARIABLE} names no folder of packet cases"));
    };
    let Some(network) = Network::start(test) else { return };
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder.join(name));
        let text = text.unwrap_or_else(|error| panic!("{VARIABLE}: {name}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (setup, cases) = (read("setup.json"), read("cases.json"));
    let (gateway, own) =
        (words(&setup["common"], "gateway_mac"), words(&setup["common"], "own_mac_in_inputs"));
    let balancer = &network.balancer;
    balancer.ip(&format!("link set to_backends address {own}"));
    for (hop, kind) in [("10.77.2.1", "-4"), ("fd77:2::1", "-6")] {
        balancer.ip(&format!("neigh replace {hop} lladdr {gateway} dev to_backends nud permanent"));
        balancer.ip(&format!("{kind} route replace default via {hop} dev to_backends"));
    }
    let interface = balancer.enter(|| {
        for family in ["ipv4", "ipv6"] {
            let switch = format!("/proc/sys/net/{family}/conf/all/forwarding");
            std::fs::write(&switch, "1").unwrap_or_else(|error| panic!("{switch}: {error}"));
        }
        interface_index("to_backends")
    });
    let mut forward = Forward::load(1 << 14, 16, 7).expect("the programs pass the verifier");
    balancer.enter(|| forward.attach_xdp("to_backends", true)).expect("veth takes programs");
    let served = serve(&mut forward, &setup["groups"]["base"], interface);
    let base = list(&cases, "cases").iter().filter(|case| case["group"] == "base");
    let mut base: Vec<&Value> = base.collect();
    base.sort_by_key(|case| case["order"].as_u64());
    assert_eq!(base.len(), 36, "the folder has other cases than this test knows");
    let gateway = ethernet(gateway);
    let (mut reals, mut right, mut wrong, mut left_out) =
        (HashMap::new(), HashMap::new(), Vec::new(), Vec::new());
    for case in base {
        let (name, input) = (words(case, "name"), bytes(words(case, "input")));
        if OTHER_POLICY.contains(&name) {
            left_out.push(name);
            continue;
        }
        let trial = balancer.enter(|| forward.trial_xdp(&input, interface, 1)).expect("a trial");
        let action = ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"][trial.action as usize];
        let judged = if action != words(case, "expected_action") {
            Err(format!("{action} instead of {}", words(case, "expected_action")))
        } else {
            match words(case, "judge") {
                "action" => Ok(()),
                "exact" if trial.packet == bytes(words(case, "expected_output")) => Ok(()),
                "exact" => Err(format!("other bytes: {:02x?}", trial.packet)),
                "encap" => encapsulated(&input, &trial.packet, &gateway).and_then(|real| {
                    let vip = &case["vip"];
                    let port = vip["port"].as_u64().expect("a port") as u16;
                    let vip =
                        (SocketAddr::new(ip(words(vip, "address")), port), words(vip, "protocol").to_owned());
                    // Connection ids of QUIC route nothing here: such cases count as ones of the ring.
                    let by_id = matches!(words(case, "depends"), "config" | "state");
                    let allowed = if by_id {
                        served[&vip].clone()
                    } else {
                        list(case, "allowed_reals")
                            .iter()
                            .map(|real| ip(real.as_str().expect("text")))
                            .collect()
                    };
                    let before = case["same_real_as"].as_str().filter(|_| !by_id);
                    let same = before.is_none_or(|before| reals[before] == real);
                    reals.insert(name, real);
                    if allowed.contains(&real) && same { Ok(()) } else { Err(format!("real {real}")) }
                }),
                other => Err(format!("a judge that this test does not know: {other}")),
            }
        };
        match judged {
            Ok(()) => *right.entry(words(case, "depends")).or_insert(0) += 1,
            Err(why) => wrong.push(format!("{name} ({}): {why}", words(case, "description"))),
        }
    }
    println!("right: {right:?}; left out: {left_out:?}");
    assert_eq!(wrong, [""; 0]);
    assert_eq!(
        right,
        HashMap::from([("public", 6), ("policy", 5), ("ring", 16), ("config", 4), ("state", 4)])
    );
}
