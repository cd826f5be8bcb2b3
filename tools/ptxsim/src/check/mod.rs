//! What the checker says: findings, each with the place in the `.cu` source.

mod finding;

pub use finding::{Finding, Findings, Kind, Severity, Who};
