//! Tree ensembles: TreeEnsembleRegressor, TreeEnsembleClassifier and TreeEnsemble.
//!
//! `attributes` reads the three operators' attributes into one checked form, `ensemble` holds
//! that form, `forest` lays it out for speed, `tally` adds a row's leaves up, `operators` makes outputs of that.

mod attributes;
mod ensemble;
mod forest;
mod operators;
mod tally;

pub(super) use operators::register;
