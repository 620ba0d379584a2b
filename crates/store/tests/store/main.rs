//! Tests of the store through what it offers to others.

mod faults;
mod index;
mod kit;
mod model;
mod recovery;
mod rules;
mod scrub;
