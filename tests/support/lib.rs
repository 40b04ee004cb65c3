//! Shared support of the process-level tests.
