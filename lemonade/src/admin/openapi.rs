//! The OpenAPI document of the admin interface, made from the routes and the types of their answers.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi as Contents, ResponseBuilder};
use utoipa::{Modify, OpenApi, PartialSchema as _};

use super::{dashboard, foresee, reads, routes, steer};

#[derive(OpenApi)]
#[openapi(
    modifiers(&Late),
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

/// What any request may be answered, whatever it asks for.
struct Late;

impl Modify for Late {
    fn modify(&self, document: &mut Contents) {
        let text = ContentBuilder::new().schema(Some(String::schema())).build();
        let late = ResponseBuilder::new()
            .description("It took longer than 5 s (`doctor` 30 s, `reload` 35 s)")
            .content("text/plain", text)
            .build();
        for item in document.paths.paths.values_mut() {
            let operations: [&mut Option<Operation>; 3] = [&mut item.get, &mut item.put, &mut item.post];
            for operation in operations.into_iter().flatten() {
                operation.responses.responses.insert("408".to_owned(), late.clone().into());
            }
        }
    }
}

/// The document as JSON, pretty-printed, with a newline at the end.
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("a document is plain JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_may_be_answered_late() {
        let document = Document::openapi();
        let operations = document.paths.paths.values().flat_map(|item| {
            [&item.get, &item.put, &item.post, &item.delete, &item.patch].into_iter().flatten()
        });
        let silent: Vec<_> = operations
            .filter(|operation| !operation.responses.responses.contains_key("408"))
            .map(|operation| &operation.operation_id)
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
