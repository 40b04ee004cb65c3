//! `[telemetry]`.

use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};

use crate::config::raw::RawTelemetry;
use crate::config::report::Spot;
use crate::model::config::Telemetry;

const INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

pub(super) fn telemetry(raw: RawTelemetry, spot: &mut Spot<'_, '_>) -> Telemetry {
    if !INTERVAL.contains(&raw.interval.0) {
        spot.wrong("interval", "is not from 1s to 1h", "write such as \"10s\"");
    }
    if !(0.0..=1.0).contains(&raw.sample) {
        spot.wrong(
            "sample",
            format!("{} is not from 0 to 1", raw.sample),
            "write such as 0.01 for one in a hundred",
        );
    }
    if raw.service_name.trim().is_empty() {
        spot.wrong("service_name", "is empty", "write the name of this service, such as \"lemonade\"");
    }
    for (name, value) in &raw.headers {
        if name.parse::<HeaderName>().is_err() || value.parse::<HeaderValue>().is_err() {
            let message = format!("{name:?} with its value is no header of HTTP");
            spot.wrong(
                "headers",
                message,
                "write names of letters, digits and -, and values without line breaks",
            );
        }
    }
    Telemetry {
        endpoint: raw.endpoint.0.and_then(|text| endpoint(&text, spot)),
        interval: raw.interval.0,
        sample: raw.sample,
        service_name: raw.service_name,
        headers: raw.headers,
    }
}

fn endpoint(text: &str, spot: &mut Spot<'_, '_>) -> Option<String> {
    const HINT: &str = "write such as \"http://127.0.0.1:4318\", or \"off\"";
    let url = match text.parse::<Uri>() {
        Ok(url) if url.host().is_some_and(|host| !host.is_empty()) => url,
        _ => {
            spot.wrong("endpoint", format!("{text:?} is no URL of a receiver"), HINT);
            return None;
        }
    };
    match url.scheme_str() {
        Some("http") => {}
        Some("https") => {
            let hint = "write http:// and the address of a collector on this host, which speaks TLS onward";
            spot.wrong("endpoint", "https is not spoken by this build", hint);
            return None;
        }
        _ => {
            spot.wrong("endpoint", format!("{text:?} does not begin with http://"), HINT);
            return None;
        }
    }
    if url.query().is_some() || url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        // Not repeated: what is too much may be a password.
        spot.wrong("endpoint", "has more than host, port and path", "write a secret into headers instead");
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}
