//! Environment variables over the file.

use std::time::Duration;

use super::*;
use crate::model::StrategyKind;

fn with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    parse_text(Path::new("test.toml"), text, &env)
}

#[test]
fn variables_win_over_the_file() {
    let text = "[frontend.my-web]\nlisten = \"127.0.0.1:8080\"\npool = \"web\"\nmax_connections = 5\n\
                [pool.web]\n[[pool.web.backend]]\nname = \"a-1\"\naddress = \"127.0.0.1:9001\"\n";
    let config = with(
        text,
        &[
            ("LEMONADE__POOL__WEB__STRATEGY", "adaptive"),
            ("LEMONADE__frontend__MY_WEB__max_connections", "7"),
            ("LEMONADE__FRONTEND__MY_WEB__LISTEN", "[\"127.0.0.1:1\", \"127.0.0.1:2\"]"),
            ("LEMONADE__LOG__LEVEL", "debug"),
            ("LEMONADE__RUNTIME__HASH_SEED", "42"),
            ("LEMONADE__POOL__WEB__HEALTH__INTERVAL", "\"3s\""),
            ("LEMONADE__POOL__WEB__BACKEND__A_1__WEIGHT", "9"),
            ("LEMONADE__POOL__WEB__BACKEND__0__MAX_CONNECTIONS", "8"),
            ("LEMONADE_CONFIG", "not an override"),
            ("PATH", "/bin"),
        ],
    )
    .expect("valid");
    let frontend = &config.frontends["my-web"];
    assert_eq!((frontend.max_connections, frontend.listen.len()), (7, 2));
    let pool = &config.pools["web"];
    assert_eq!(pool.strategy, StrategyKind::Adaptive);
    assert_eq!(pool.health.interval, Duration::from_secs(3));
    assert_eq!((pool.backends[0].weight, pool.backends[0].max_connections), (9, 8));
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.runtime.hash_seed.as_deref(), Some("42"));
}

#[test]
fn errors_name_the_variable_in_place_of_line_and_column() {
    let text = file("", "", "");
    for (variable, value, expected) in [
        ("LEMONADE__POOL__WEB__STRATEGY", "adaptiv", "unknown word \"adaptiv\"; did you mean \"adaptive\"?"),
        ("LEMONADE__POOL__WEB__STRATGY", "adaptive", "unknown key \"stratgy\"; did you mean \"strategy\"?"),
        ("LEMONADE__POOL__WBE__STRATEGY", "adaptive", "the file has no \"wbe\" here; did you mean \"web\"?"),
        (
            "LEMONADE__POOLS__WEB__STRATEGY",
            "adaptive",
            "unknown table or key \"pools\"; did you mean \"pool\"?",
        ),
        ("LEMONADE__POOL__WEB__RETRY_BUDGET", "7", "7 is not from 0 to 1"),
        ("LEMONADE__POOL__WEB__RETRIES", "x", "string \"x\" does not fit here"),
        ("LEMONADE__POOL__WEB__HEALTH__RISE", "0", "0 would change the state"),
        ("LEMONADE__POOL__WEB__BACKEND__B__WEIGHT", "1", "the list has no item \"B\""),
        ("LEMONADE__FRONTEND__WEB__POOL", "other", "there is no pool \"other\""),
        ("LEMONADE__FRONTEND__WEB__POOL__X", "other", "pool is a single value"),
        ("LEMONADE__FRONTEND__WEB__LISTEN", "['127.0.0.1:1', 'x']", "\"x\" has no port"),
        ("LEMONADE__POOL", "x", "names no key"),
        ("LEMONADE__POOL__NEW", "{ backend = [{ address = 'a:1' }] }", "names no key"),
        (
            "LEMONADE__POOL__WEB__HEALTH",
            "{ rise = 1, kin = 'http' }",
            "unknown key \"kin\"; did you mean \"kind\"?",
        ),
        (
            "LEMONADE__POOL__WEB__BACKEND",
            "[{ address = 'b:1' }, { address = 5 }]",
            "integer 5 does not fit here",
        ),
        ("LEMONADE__", "x", "names no key"),
        ("LEMONADE__POOL____X", "x", "names no key"),
    ] {
        let error = with(&text, &[(variable, value)]).expect_err("refused");
        let diagnostic = &error.diagnostics[0];
        assert_eq!((diagnostic.position, diagnostic.field.as_str()), (None, variable), "{error}");
        assert!(error.to_string().contains(expected), "{error}\nbut not\n{expected}");
        assert_eq!(error.diagnostics.len(), 1, "{error}");
    }
}
