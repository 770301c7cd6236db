//! Black-box tests: a real server on a free port, real guests, real (small) models.

mod archives;
mod attacks;
mod bad_bundles;
mod bad_input;
mod batching;
mod chaos;
mod cli;
mod confinement;
mod datatypes;
mod deployments;
mod engines;
mod errors;
mod exactness;
mod extensions;
mod hostile;
mod layers;
mod limits;
mod load;
mod openapi;
mod photos;
mod protocol;
mod registry;
mod residency;
mod restarts;
mod support;
mod usage;
