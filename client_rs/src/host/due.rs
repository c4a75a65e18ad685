//! When the engine has something to do with a workflow.

use chrono::{DateTime, TimeDelta, Utc};
use wfe_core::models::{ExecutionPointer, PointerStatus, WorkflowInstance, WorkflowStatus};

/// When a workflow is looked at again whose containers wait for children that wait for something
/// themselves. What they wait for enqueues the workflow, so this is only for what nobody thought
/// of.
const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(10);

/// When a workflow is to be run next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Due {
    Now,
    At(DateTime<Utc>),
    /// Not until something happens to it.
    Never,
}

/// The engine runs a workflow again at once as long as one of its pointers is active, also if that
/// only sleeps, or is a container that waits for its children. Here it is run when one of its
/// pointers can be. `is_unchanged`: this pointer is as it was before the step.
pub(super) fn due(
    workflow: &WorkflowInstance,
    now: DateTime<Utc>,
    is_unchanged: impl Fn(&ExecutionPointer) -> bool,
) -> Due {
    if workflow.status != WorkflowStatus::Runnable {
        return Due::Never;
    }
    let mut due = Due::Never;
    for pointer in workflow.execution_pointers.iter().filter(|p| p.active) {
        let at = match pointer.status {
            PointerStatus::Pending | PointerStatus::Running | PointerStatus::Sleeping => {
                match pointer.sleep_until.filter(|until| *until > now) {
                    Some(until) => Due::At(until),
                    None if waits_for_children(workflow, pointer) && is_unchanged(pointer) => {
                        Due::At(now + LOOK_AGAIN)
                    }
                    None => Due::Now,
                }
            }
            PointerStatus::WaitingForEvent if pointer.event_published => Due::Now,
            _ => Due::Never,
        };
        due = due.earlier(at);
    }
    due
}

impl Due {
    fn earlier(self, other: Self) -> Self {
        match (self, other) {
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
            (Self::At(a), Self::Never) | (Self::Never, Self::At(a)) => Self::At(a),
            (Self::Never, Self::Never) => Self::Never,
        }
    }
}

/// Whether it is a container that has found out that its children are not done yet. The engine's
/// own ones all say so in the same way, and look at nothing but the workflow.
fn waits_for_children(workflow: &WorkflowInstance, pointer: &ExecutionPointer) -> bool {
    let says_so = pointer
        .persistence_data
        .as_ref()
        .and_then(|data| data.get("children_active"))
        .is_some_and(|active| active == true);
    let mut scope = pointer.scope.clone();
    scope.push(pointer.id.clone());
    says_so && pointer.status == PointerStatus::Running && !workflow.is_branch_complete(&scope)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointer(status: PointerStatus) -> ExecutionPointer {
        let mut pointer = ExecutionPointer::new(0);
        pointer.status = status;
        pointer
    }

    fn sleeping(until: DateTime<Utc>) -> ExecutionPointer {
        let mut pointer = pointer(PointerStatus::Sleeping);
        pointer.sleep_until = Some(until);
        pointer
    }

    fn workflow(pointers: Vec<ExecutionPointer>) -> WorkflowInstance {
        let mut workflow = WorkflowInstance::new("d", 1, json!({}));
        workflow.execution_pointers = pointers;
        workflow
    }

    fn of(pointers: Vec<ExecutionPointer>) -> Due {
        due(&workflow(pointers), now(), |_| true)
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn the_earliest_pointer_decides() {
        let (soon, later) = (now() + TimeDelta::seconds(1), now() + TimeDelta::hours(1));
        assert_eq!(of(vec![sleeping(later), sleeping(soon)]), Due::At(soon));
        assert_eq!(
            of(vec![sleeping(soon), pointer(PointerStatus::Pending)]),
            Due::Now
        );
        assert_eq!(of(vec![sleeping(now())]), Due::Now);
        assert_eq!(of(vec![]), Due::Never);
        let mut done = pointer(PointerStatus::Complete);
        done.active = false;
        assert_eq!(of(vec![done, sleeping(soon)]), Due::At(soon));
    }

    #[test]
    fn an_event_that_has_come_is_handled_now() {
        let mut waiting = pointer(PointerStatus::WaitingForEvent);
        waiting.active = false;
        assert_eq!(of(vec![waiting.clone()]), Due::Never);
        waiting.active = true;
        assert_eq!(of(vec![waiting.clone()]), Due::Never);
        waiting.event_published = true;
        assert_eq!(of(vec![waiting]), Due::Now);
    }

    #[test]
    fn only_a_runnable_workflow_is_due() {
        for status in [
            WorkflowStatus::Suspended,
            WorkflowStatus::Complete,
            WorkflowStatus::Terminated,
        ] {
            let mut ended = workflow(vec![pointer(PointerStatus::Pending)]);
            ended.status = status;
            assert_eq!(due(&ended, now(), |_| true), Due::Never);
        }
    }

    #[test]
    fn a_container_waits_for_its_children() {
        let soon = now() + TimeDelta::seconds(1);
        let mut container = pointer(PointerStatus::Running);
        let mut child = sleeping(soon);
        child.scope = vec![container.id.clone()];
        // It has not looked yet.
        assert_eq!(of(vec![container.clone(), child.clone()]), Due::Now);
        container.persistence_data = Some(json!({"children_active": true}));
        assert_eq!(of(vec![container.clone(), child.clone()]), Due::At(soon));
        // It has changed, so it may want to change more.
        let all = workflow(vec![container.clone(), child.clone()]);
        assert_eq!(due(&all, now(), |_| false), Due::Now);
        child.active = false;
        child.status = PointerStatus::WaitingForEvent;
        let waiting = of(vec![container.clone(), child.clone()]);
        assert_eq!(waiting, Due::At(now() + LOOK_AGAIN));
        child.status = PointerStatus::Complete;
        assert_eq!(of(vec![container, child]), Due::Now);
    }
}
