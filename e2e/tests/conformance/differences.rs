//! Every difference between the two servers that is meant, with its reason.

use crate::compare::Difference;

/// See the module.
pub(crate) const DIFFERENCES: &[Difference] = &[];
