//! Ten defects of the public predecessor of the same name, each as a test that would show it.

mod balancing;
mod control;
mod data;
