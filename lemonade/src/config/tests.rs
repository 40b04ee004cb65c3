use std::path::Path;

use super::*;

fn check(text: &str) -> Result<Config, ConfigError> {
    parse_text(Path::new("test.toml"), text, &[])
}

const GOOD: &str = r#"
[frontend.web]
listen = "127.0.0.1:8080"
pool = "web"

[[pool.web.backend]]
address = "127.0.0.1:9001"
"#;

#[test]
fn a_minimal_file_is_enough() {
    check(GOOD).expect("valid");
}

#[test]
fn probe() {
    for t in [
        "a = \nb = 5\n[x]\n[x]\nc = foo\n",
        "[frontend.web]\nlisten=foo\nx=\ny=1.2.3.4\nlisten='a'\nz = 127.0.0.1:80\n s = 'abc\nt = [1,\n",
        "a = [1,\nb=3\n[frontend.web\nlisten='a'\n",
        "a b = 3",
        "= 3",
        "a = 3 4",
        "a",
        "a = \"\\q\"",
        "x = 99999999999999999999999999999999999999999999999999",
        "[frontend]\nweb=3\n[pool]\nweb={backend=[{address='a:b'},3], health=2, strategy=4}\n[log]\nlevel='inof'",
    ] {
        match check(t) {
            Ok(_) => println!("ok"),
            Err(e) => println!("{e}\n"),
        }
    }
    std::fs::write("../config/schema.json", schema()).expect("written");
    for f in std::fs::read_dir("../config/examples").expect("d") {
        let f = f.expect("e");
        read(&f.path(), &[]).unwrap_or_else(|e| panic!("{e}"));
    }
    println!("{:#?}", read(Path::new("../config/lemonade.toml"), &[]).unwrap_or_else(|e| panic!("{e}")));
}
