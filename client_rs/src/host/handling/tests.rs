use serde_json::json;
use wfe_core::models::{ExecutionPointer, PointerStatus};

use super::steps::Persist;
use super::*;
use crate::host::HostSettings;
use crate::v1;

const REVISION: i64 = 7;
const LEASE: Duration = Duration::from_secs(30);

fn workflow(status: PointerStatus) -> WorkflowInstance {
    let mut workflow = WorkflowInstance::new("d", 1, json!({}));
    workflow.id = "w".into();
    let mut pointer = ExecutionPointer::new(0);
    pointer.status = status;
    workflow.execution_pointers.push(pointer);
    workflow
}

fn item(id: &str) -> v1::DequeuedItem {
    v1::DequeuedItem {
        item: Some(v1::QueueItem {
            id: id.into(),
            ..Default::default()
        }),
        receipt: format!("receipt of {id}"),
        attempt: 1,
        ..Default::default()
    }
}

/// A host whose task `None` has taken the workflow `w`.
fn taken(status: PointerStatus) -> Handling {
    let mut handling = Handling::default();
    let held = Held::new(&item("w"), Some(workflow(status)), Some(REVISION), soon());
    handling.take(QueueType::Workflow, None, held);
    handling
}

/// The leases of items end then, unless they are renewed.
fn soon() -> Instant {
    Instant::now() + LEASE
}

fn settings(lease: Duration) -> HostSettings {
    HostSettings {
        lease,
        turn: Duration::MAX,
        ..Default::default()
    }
}

/// The task has written `w`.
fn persisted(handling: &mut Handling, persist: &Persist, outcome: Outcome) {
    handling.persisted(None, &workflow(PointerStatus::Pending), persist, outcome);
}

fn is_granted(acquire: Acquire) -> bool {
    matches!(acquire, Acquire::Granted)
}

/// What the server is told when the task takes its next item.
fn settled(handling: &mut Handling) -> (Vec<v1::Acknowledgement>, Vec<v1::ReturnedItem>) {
    let (mut acknowledge, mut return_items) = (Vec::new(), Vec::new());
    let held = handling.finish(QueueType::Workflow, None).unwrap();
    held.settle(&mut acknowledge, &mut return_items);
    (acknowledge, return_items)
}

#[tokio::test]
async fn the_lease_stands_for_both_locks_of_its_own_task() {
    let mut handling = taken(PointerStatus::Pending);
    let other: Task = tokio::spawn(async { this_task() }).await.unwrap();
    assert!(other.is_some());
    for resource in ["w", "workflow-execution.w"] {
        assert!(matches!(
            handling.acquire(other, resource),
            Acquire::Refused
        ));
        assert!(is_granted(handling.acquire(None, resource)));
        assert!(matches!(handling.acquire(None, resource), Acquire::Refused));
        assert_eq!(handling.release(None, resource), None);
        assert!(is_granted(handling.acquire(None, resource)));
    }
    assert!(matches!(handling.acquire(None, "x"), Acquire::AskServer));
}

#[test]
fn a_workflow_for_which_an_event_may_come_is_locked_and_loaded_again() {
    let mut handling = taken(PointerStatus::WaitingForEvent);
    assert!(handling.brought(None, "w").is_some());
    assert!(is_granted(handling.acquire(None, "workflow-execution.w")));
    assert!(matches!(handling.acquire(None, "w"), Acquire::AskServer));
    handling.acquired(None, "w", Some("token".into()));
    assert!(handling.brought(None, "w").is_none());
    handling.loaded(None, &workflow(PointerStatus::WaitingForEvent), 9);
    // A step may look at its own workflow: that is not what the executor works on.
    handling.loaded(None, &workflow(PointerStatus::WaitingForEvent), 11);
    let persist = handling.persist(None, "w");
    assert_eq!(persist.expected_revision, Some(9));
    assert_eq!(persist.held_lock_tokens, ["token"]);
    assert_eq!(persist.receipt.as_deref(), Some("receipt of w"));
    assert_eq!(handling.release(None, "w"), Some("token".into()));
}

#[test]
fn what_was_brought_answers_the_hosts_two_loads() {
    let mut handling = taken(PointerStatus::Pending);
    assert!(handling.brought(None, "x").is_none());
    assert!(handling.brought(None, "w").is_some());
    assert!(is_granted(handling.acquire(None, "w")));
    assert!(handling.brought(None, "w").is_some());
    assert!(handling.brought(None, "w").is_none());
    assert_eq!(
        handling.persist(None, "w").expected_revision,
        Some(REVISION)
    );
}

#[test]
fn a_lost_lease_answers_nothing_and_stands_for_nothing() {
    let mut handling = taken(PointerStatus::Pending);
    assert!(is_granted(handling.acquire(None, "workflow-execution.w")));
    handling.lost_item("receipt of w");
    assert!(handling.brought(None, "w").is_none());
    assert!(matches!(handling.acquire(None, "w"), Acquire::AskServer));
    assert!(handling.leases(Duration::MAX).receipts.is_empty());
    assert_eq!(settled(&mut handling), (vec![], vec![]));
}

#[test]
fn the_result_of_a_step_acknowledges_and_no_other_write_does() {
    let mut handling = taken(PointerStatus::Pending);
    // Before the lock is taken: services are provisioned.
    let early = handling.persist(None, "w");
    assert!(early.is_early && early.receipt.is_none());
    assert_eq!(early.expected_revision, Some(REVISION));
    persisted(&mut handling, &early, Outcome::Stored(8));
    assert!(handling.brought(None, "w").is_none());

    assert!(is_granted(handling.acquire(None, "w")));
    assert_eq!(handling.persist(None, "another"), Persist::default());
    let result = handling.persist(None, "w");
    assert_eq!(result.expected_revision, Some(8));
    assert!(result.receipt.is_some() && !result.is_early);
    persisted(&mut handling, &result, Outcome::Stored(9));
    assert!(handling.leases(Duration::MAX).receipts.is_empty());
    // Somebody else may have the item by now.
    assert_eq!(handling.persist(None, "w"), Persist::default());
    assert_eq!(settled(&mut handling), (vec![], vec![]));
}

/// The task stores the result of a step, and goes on with the workflow; false if it may not.
fn goes_on(handling: &mut Handling, to: PointerStatus) -> bool {
    let next = workflow(to);
    let mut result = handling.persist(None, "w");
    if !handling.goes_on(None, &next, &result, &settings(LEASE)) {
        return false;
    }
    result.goes_on = true;
    result.receipt = None;
    handling.persisted(None, &next, &result, Outcome::Stored(8));
    for resource in ["w", "workflow-execution.w"] {
        handling.release(None, resource);
    }
    true
}

/// A host in a step of `w`, whose lease lasts so long.
fn in_step(leased: Duration) -> Handling {
    let mut handling = Handling::default();
    let brought = Some(workflow(PointerStatus::Pending));
    let until = Instant::now() + leased;
    let held = Held::new(&item("w"), brought, Some(REVISION), until);
    handling.take(QueueType::Workflow, None, held);
    assert!(is_granted(handling.acquire(None, "workflow-execution.w")));
    assert!(is_granted(handling.acquire(None, "w")));
    handling
}

#[test]
fn a_task_goes_on_with_its_workflow_and_keeps_the_item() {
    let mut handling = in_step(LEASE);
    assert!(handling.take_again(None).is_none());
    assert!(goes_on(&mut handling, PointerStatus::Pending));
    assert_eq!(handling.leases(Duration::MAX).receipts, ["receipt of w"]);
    assert_eq!(handling.take_again(None), Some("w".into()));
    // Once for each step, which begins like the one before.
    assert!(handling.take_again(None).is_none());
    assert!(handling.brought(None, "w").is_some());
    assert!(is_granted(handling.acquire(None, "workflow-execution.w")));
    assert!(is_granted(handling.acquire(None, "w")));
    assert!(handling.brought(None, "w").is_some());
    let result = handling.persist(None, "w");
    assert_eq!(result.expected_revision, Some(8));
    assert_eq!(result.receipt, Some("receipt of w".into()));
}

#[test]
fn a_task_goes_on_only_as_long_as_nobody_else_can_have_the_item() {
    // Renewals are late.
    assert!(!goes_on(&mut in_step(LEASE / 4), PointerStatus::Pending));
    let mut handling = in_step(LEASE / 4);
    handling.renewed(&["receipt of w".into()], soon());
    assert!(goes_on(&mut handling, PointerStatus::Pending));
    // An event that comes may change it.
    let mut handling = in_step(LEASE);
    assert!(!goes_on(&mut handling, PointerStatus::WaitingForEvent));
    let mut handling = in_step(LEASE);
    handling.lost_item("receipt of w");
    assert!(!goes_on(&mut handling, PointerStatus::Pending));
    // Lost while the result was being stored.
    let mut handling = in_step(LEASE);
    assert!(goes_on(&mut handling, PointerStatus::Pending));
    handling.lost_item("receipt of w");
    assert!(handling.take_again(None).is_none());
    assert_eq!(settled(&mut handling), (vec![], vec![]));
    // A host that was frozen for longer than its lease.
    let mut handling = in_step(Duration::from_millis(60));
    let result = handling.persist(None, "w");
    let next = workflow(PointerStatus::Pending);
    assert!(handling.goes_on(None, &next, &result, &settings(Duration::from_millis(60))));
    let result = Persist {
        goes_on: true,
        receipt: None,
        ..result
    };
    handling.persisted(None, &next, &result, Outcome::Stored(8));
    std::thread::sleep(Duration::from_millis(60));
    assert!(handling.take_again(None).is_none());
    let (acknowledge, return_items) = settled(&mut handling);
    assert_eq!((acknowledge.len(), return_items.len()), (0, 1));
}

#[test]
fn a_task_that_does_not_go_on_gives_the_item_back() {
    let mut handling = in_step(LEASE);
    assert!(goes_on(&mut handling, PointerStatus::Pending));
    handling.is_stopped = true;
    assert!(handling.take_again(None).is_none());
    let (left, _) = handling.left_over(LEASE);
    assert_eq!(left.len(), 1);
    // Others wait for their turns.
    let mut handling = in_step(LEASE);
    let (result, next) = (
        handling.persist(None, "w"),
        workflow(PointerStatus::Pending),
    );
    let turn = Duration::ZERO;
    let settings = HostSettings {
        turn,
        ..settings(LEASE)
    };
    assert!(!handling.goes_on(None, &next, &result, &settings));
}

#[test]
fn what_is_dropped_is_acknowledged_only_if_that_is_confirmed() {
    let (acknowledge, return_items) = settled(&mut taken(PointerStatus::Pending));
    assert!(acknowledge[0].confirmed);
    assert_eq!(return_items, []);
}

#[test]
fn what_was_changed_meanwhile_comes_back_at_once() {
    let mut handling = taken(PointerStatus::Pending);
    assert!(is_granted(handling.acquire(None, "w")));
    let result = handling.persist(None, "w");
    persisted(&mut handling, &result, Outcome::Raced);
    let (acknowledge, return_items) = settled(&mut handling);
    assert_eq!(acknowledge, []);
    assert_eq!(return_items[0].delay, None);
}

#[test]
fn queue_work_after_a_write_that_enqueued_is_no_call_once() {
    let mut handling = Handling::default();
    handling.enqueued(None, QueueType::Event, "e");
    let mut requeue = |queue, id| handling.requeue(None, queue, id);
    assert!(matches!(
        requeue(QueueType::Workflow, "e"),
        Requeue::Enqueue
    ));
    assert!(matches!(requeue(QueueType::Event, "e"), Requeue::Nothing));
    assert!(matches!(requeue(QueueType::Event, "e"), Requeue::Enqueue));
}

#[test]
fn an_item_that_the_host_cannot_handle_comes_back_after_a_while() {
    let mut handling = taken(PointerStatus::Pending);
    let requeue = handling.requeue(None, QueueType::Workflow, "w");
    assert!(matches!(requeue, Requeue::Nothing));
    let (_, return_items) = settled(&mut handling);
    assert!(return_items[0].delay.is_some());
}

#[test]
fn an_event_for_a_locked_workflow_comes_when_the_lock_is_released() {
    let mut handling = Handling::default();
    let held = Held::new(&item("e"), None, None, soon());
    handling.take(QueueType::Event, None, held);
    assert!(matches!(handling.acquire(None, "w"), Acquire::AskServer));
    handling.acquired(None, "w", None);
    match handling.requeue(None, QueueType::Event, "e") {
        Requeue::EnqueueBehind { resource, .. } => assert_eq!(resource, "w"),
        _ => panic!("it is enqueued behind the lock"),
    }
}

#[tokio::test]
async fn an_event_for_a_workflow_that_is_only_leased_comes_after_a_while() {
    let mut handling = taken(PointerStatus::Pending);
    assert!(is_granted(handling.acquire(None, "w")));
    let other: Task = tokio::spawn(async { this_task() }).await.unwrap();
    let held = Held::new(&item("e"), None, None, soon());
    handling.take(QueueType::Event, other, held);
    // No lock on the server would withhold the event.
    assert!(matches!(handling.acquire(other, "w"), Acquire::Refused));
    let requeue = handling.requeue(other, QueueType::Event, "e");
    assert!(matches!(requeue, Requeue::Nothing));
}

#[test]
fn after_stop_an_item_is_settled_when_its_locks_are_released() {
    let mut handling = taken(PointerStatus::Pending);
    let lease = Duration::from_secs(3600);
    for resource in ["workflow-execution.w", "w"] {
        assert!(is_granted(handling.acquire(None, resource)));
    }
    assert!(handling.left_over(lease).0.is_empty());
    handling.release(None, "w");
    assert!(handling.left_over(lease).0.is_empty());
    handling.release(None, "workflow-execution.w");
    assert_eq!(handling.left_over(lease).0.len(), 1);
    assert!(handling.left_over(lease).0.is_empty());
    // One that was not locked may be about to be, but not for ever.
    let mut handling = taken(PointerStatus::Pending);
    assert!(handling.left_over(lease).0.is_empty());
    assert_eq!(handling.left_over(Duration::ZERO).0.len(), 1);
}

#[test]
fn what_a_step_starts_is_withheld_until_its_result_is_stored() {
    let mut handling = taken(PointerStatus::Pending);
    assert!(handling.start_child(None, "c", |key| key).is_none());
    assert!(is_granted(handling.acquire(None, "w")));
    let (key, is_free) = handling.start_child(None, "c", |key| key).unwrap();
    assert!(is_free);
    handling.acquired(None, &key, Some("token".into()));
    assert!(!handling.start_child(None, "d", |key| key).unwrap().1);
    assert_eq!(handling.leases(Duration::MAX).tokens, ["token"]);
    let result = handling.persist(None, "w");
    assert_eq!(result.children, ["c", "d"]);
    persisted(&mut handling, &result, Outcome::Stored(8));
    assert_eq!(handling.let_children_go(None), ["token"]);
    assert!(handling.let_children_go(None).is_empty());
}

#[test]
fn the_event_that_a_workflow_is_complete_is_stored_with_that_state() {
    let event = |name: &str, key: &str| v1::Event {
        id: "e".into(),
        event_name: name.into(),
        event_key: key.into(),
        ..Default::default()
    };
    let completed = event("wfe.workflow.completed", "w");
    let mut handling = taken(PointerStatus::Pending);
    assert!(!handling.keep_completion(None, &completed));
    assert!(is_granted(handling.acquire(None, "w")));
    for other in [event("approved", "w"), event("wfe.workflow.completed", "x")] {
        assert!(!handling.keep_completion(None, &other));
    }
    assert!(handling.keep_completion(None, &completed));
    let result = handling.persist(None, "w");
    assert_eq!(result.completion, Some(completed));
    persisted(&mut handling, &result, Outcome::Stored(8));
    assert_eq!(handling.persist(None, "w").completion, None);
}

#[test]
fn clocks_that_differ_are_taken_into_account() {
    let mut handling = Handling::default();
    let own = DateTime::<Utc>::from_timestamp(1_800_000_000, 0).unwrap();
    handling.compare_clocks(own + TimeDelta::milliseconds(100), own);
    assert_eq!(handling.clock_offset(), TimeDelta::zero());
    handling.compare_clocks(own + TimeDelta::seconds(5), own);
    assert!(handling.clock_offset() >= TimeDelta::seconds(5));
    handling.compare_clocks(own - TimeDelta::seconds(5), own);
    assert!(handling.clock_offset() < TimeDelta::seconds(-4));
}
