//! The page of the admin interface in a real browser.

mod access;
mod browser;
mod views;
