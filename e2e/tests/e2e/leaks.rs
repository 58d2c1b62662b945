//! Nothing grows with use.

use crate::machine_with_guest;
use crate::stories::crashes;

#[test]
fn twenty_rounds_of_create_and_delete_leave_the_same_counts() -> anyhow::Result<()> {
    match machine_with_guest("twenty rounds")? {
        Some(machine) => crashes::rounds_leave_the_same_counts(&machine, 20),
        None => Ok(()),
    }
}
