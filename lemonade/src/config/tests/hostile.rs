//! Files that are none: an error in words each time, never a panic.

use std::fs;

use proptest::prelude::*;

use super::*;

#[test]
fn an_empty_file_is_shown_the_least_that_works() {
    for text in ["", "# only a comment\n"] {
        let error = errors(text);
        assert!(error.starts_with("test.toml: the file is empty; the least is:"), "{error}");
        let example: String = error.lines().skip(1).map(|line| format!("{}\n", line.trim())).collect();
        check(&example).unwrap_or_else(|error| panic!("the example is wrong: {error}"));
    }
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("x.toml");
    let says = |path: &Path| read(path, &[]).expect_err("refused").to_string();
    assert!(says(&path).contains("cannot be read: No such file"), "{}", says(&path));
    assert!(says(folder.path()).contains("is a directory"), "{}", says(folder.path()));
    fs::write(&path, b"[log]\nlevel = \"\xe4\"").expect("written");
    assert!(says(&path).contains("x.toml:2:10: byte 15 is not valid UTF-8"), "{}", says(&path));
    let large = fs::File::create(&path).expect("created");
    large.set_len(100 << 20).expect("sparse");
    assert!(says(&path).contains("is larger than 16 MiB"), "{}", says(&path));
    assert!(
        says(Path::new("/dev/zero")).contains("is larger than 16 MiB"),
        "{}",
        says(Path::new("/dev/zero"))
    );
}

#[test]
fn a_byte_order_mark_does_no_harm() {
    check(&format!("\u{feff}{}", file("", "", ""))).expect("valid");
}

#[test]
fn names_of_any_length_and_kind_are_quoted_and_cut() {
    let text =
        format!("[frontend.\"a\\nb\"]\n{} = 1\nrelay = '{}'\n", "k".repeat(1 << 20), "v".repeat(1 << 20));
    let error = errors(&text);
    assert!(error.len() < 5_000, "{}", error.len());
    assert!(error.contains("frontend.\"a\\nb\".relay"), "{error}");
}

#[test]
fn deep_and_wide_files_end() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        format!("a{} = 1", ".a".repeat(100_000)),
        "= ".repeat(200_000),
        format!("[log]\n{}", (0..3_000).map(|i| format!("k{i} = 1\n")).collect::<String>()),
    ] {
        let error = check(&text).expect_err("refused");
        assert!(error.diagnostics.len() <= 51);
    }
}

#[test]
fn a_thousand_frontends_with_ten_backends_each_are_read() {
    let mut text = String::new();
    for i in 0..1_000 {
        text.push_str(&format!(
            "[frontend.f{i}]\nlisten = \"127.0.{}.{}:80\"\npool = \"p{i}\"\n[pool.p{i}]\n",
            i / 250,
            i % 250 + 1
        ));
        for j in 0..10 {
            let name = format!("name = \"b{j}\"\nweight = {}\n", j + 1);
            text.push_str(&format!(
                "[[pool.p{i}.backend]]\naddress = \"10.{}.{}.{j}:80\"\n{name}",
                i / 250,
                i % 250
            ));
        }
    }
    let started = std::time::Instant::now();
    let config = check(&text).expect("valid");
    println!("{} bytes in {:?}", text.len(), started.elapsed());
    assert_eq!((config.frontends.len(), config.pools.len()), (1_000, 1_000));
    let started = std::time::Instant::now();
    let broken = text.replace("weight = 3", "weigth = 3");
    assert_eq!(check(&broken).expect_err("refused").diagnostics.len(), 51);
    println!("a thousand errors in {:?}", started.elapsed());
    // Optimised builds take a twentieth of this; what grows with the square would not end.
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn the_fuzz_corpus_is_harmless() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/config");
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("corpus") {
        let bytes = fs::read(entry.expect("entry").path()).expect("readable");
        let _either = check(&String::from_utf8_lossy(&bytes));
        count += 1;
    }
    assert!(count > 0);
}

/// Lines that are nearly right, in any order.
fn lines() -> impl Strategy<Value = String> {
    let header = prop::sample::select(vec![
        "[frontend.web]",
        "[frontend.\"ä\"]",
        "[[frontend.web]]",
        "[pool.web]",
        "[[pool.web.backend]]",
        "[pool.web.backend]",
        "[pool.web.health]",
        "[runtime]",
        "[admin]",
        "[log]",
        "[pool]",
        "[[pool]]",
        "[",
    ])
    .prop_map(str::to_owned);
    let key = prop::sample::select(vec![
        "listen",
        "pool",
        "address",
        "weight",
        "relay",
        "protocol",
        "idle_timeout",
        "hedge_after",
        "strategy",
        "health",
        "backend",
        "kind",
        "expect",
        "level",
        "workers",
        "relay_buffer",
        "source",
        "name",
        "x.y",
        "\"\"",
    ]);
    let value = prop::sample::select(vec![
        "\"127.0.0.1:80\"",
        "\"[::]:0-65535\"",
        "\"web\"",
        "\"auto\"",
        "\"off\"",
        "\"1s\"",
        "\"64KiB\"",
        "0",
        "-1",
        "99999999999999999999",
        "1e999",
        "nan",
        "true",
        "1979-05-27",
        "[]",
        "{}",
        "[1, \"a\", {b = [{}]}]",
        "{ a = 1, b = { c = 2 } }",
        "\"\"\"x",
        "",
        "\"\\u0000\"",
        "[\"200-399\", 5]",
        "\"a:1\"",
        "\"http\"",
    ]);
    let setting = (key, value).prop_map(|(key, value)| format!("{key} = {value}"));
    prop::collection::vec(prop_oneof![1 => header, 3 => setting], 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _either = check(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_toml_makes_it_panic_and_every_error_has_a_place(text in lines(), value in ".{0,12}") {
        let env = [("LEMONADE__POOL__WEB__STRATEGY".to_owned(), value)];
        if let Err(error) = parse_text(Path::new("test.toml"), &text, &env) {
            prop_assert!(!error.diagnostics.is_empty());
            let lines = text.lines().count() + 1;
            for diagnostic in error.diagnostics {
                prop_assert!(!diagnostic.message.is_empty());
                prop_assert!(diagnostic.position.is_none_or(|(line, column)| line <= lines && column >= 1));
            }
        }
    }

    #[test]
    fn every_cut_of_a_good_file_is_refused_or_read(at in 0_usize..2_000) {
        let text = include_str!("../../../../config/examples/database.toml");
        let end = (0..=at.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let _either = check(&text[..end]);
    }
}
