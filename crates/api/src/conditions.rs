//! Condition lists: at most one condition of each type, and `lastTransitionTime` moves only when `status` does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::kubevirt::v1::VirtualMachineInstanceCondition as Condition;

/// The condition of this type.
pub fn find_condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of this type is there with status `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find_condition(conditions, type_).is_some_and(|c| c.status == "True")
}

/// Sets the condition of this type: adds it, or changes the one that is there. Returns whether the list changed,
/// so that a caller can leave an unchanged status unwritten.
///
/// An empty `reason` or `message` means none. `now` becomes `lastTransitionTime` if `status` is new or different.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Time,
) -> bool {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let mut wanted = Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: text(reason),
        message: text(message),
        last_probe_time: None,
        last_transition_time: Some(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        None => conditions.push(wanted),
        Some(current) => {
            if current.status == wanted.status {
                wanted.last_transition_time = current.last_transition_time.clone();
                wanted.last_probe_time = current.last_probe_time.clone();
            }
            if *current == wanted {
                return false;
            }
            *current = wanted;
        }
    }
    true
}

/// Takes the condition of this type out. Returns whether it was there.
pub fn remove_condition(conditions: &mut Vec<Condition>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.type_ != type_);
    conditions.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut list = Vec::new();
        assert!(set_condition(
            &mut list,
            "Ready",
            false,
            "GuestNotRunning",
            "",
            at(1)
        ));
        assert!(!set_condition(
            &mut list,
            "Ready",
            false,
            "GuestNotRunning",
            "",
            at(2)
        ));
        assert!(set_condition(
            &mut list,
            "Ready",
            false,
            "PodTerminating",
            "",
            at(3)
        ));
        assert_eq!(list[0].last_transition_time, Some(at(1)));
        assert!(set_condition(&mut list, "Ready", true, "", "", at(4)));
        assert_eq!(list[0].last_transition_time, Some(at(4)));
        assert_eq!(list[0].reason, None);
        assert_eq!(list.len(), 1);
        assert!(is_true(&list, "Ready"));
        assert!(remove_condition(&mut list, "Ready"));
        assert!(!remove_condition(&mut list, "Ready"));
    }
}
