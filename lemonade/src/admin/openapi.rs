//! The OpenAPI document of the admin interface, made from the routes and the types of their answers.

use utoipa::OpenApi;

use super::{dashboard, foresee, reads, routes, steer};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lemonade admin API",
        description = "Reads are served on the unix socket and on `[admin] listen`; changes on the unix socket only.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "reads", description = "On the unix socket and over TCP"),
        (name = "changes", description = "On the unix socket; over TCP they are answered 403"),
    ),
    paths(
        routes::healthz,
        routes::readyz,
        routes::metrics,
        routes::openapi,
        routes::status,
        routes::dump_all,
        dashboard::config_in_force,
        dashboard::schema,
        dashboard::doctor_report,
        reads::connections,
        reads::why,
        reads::journal,
        reads::series,
        reads::events,
        foresee::explain,
        foresee::plan,
        steer::backend,
        steer::reload,
        steer::log_filter,
    ),
)]
struct Document;

/// The document as JSON, pretty-printed, with a newline at the end.
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("a document is plain JSON");
    text.push('\n');
    text
}
