//! Lifecycle events.

use super::*;

#[tokio::test]
async fn lifecycle_events_of_all_hosts_are_received_in_order() {
    let fleet = unique("events");
    let name = unique("events");
    let (watching, working) = (connect(&fleet).await, connect(&fleet).await);
    let mut events = watching.subscribe().unwrap();
    // The stream is open once an event of this host has come.
    let mark = wfe::models::LifecycleEvent::new(&name, "mark", 1, LifecycleEventType::Suspended);
    watching.publish(mark).await.unwrap();
    while events.recv().await.unwrap().workflow_instance_id != name {}
    let lag = watching.lag().unwrap();
    assert_eq!(lag.gaps, 0);
    assert!(lag.last_event < Duration::from_secs(60));
    assert_eq!(working.lag(), None);

    let definition = linear(&name, 2);
    let host = start(&working, &[&definition]).await;
    let id = host.start_workflow(&name, 1, json!({})).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&LifecycleEventType::Completed) {
        let event = events.recv().await.unwrap();
        if event.workflow_instance_id == id {
            assert_eq!(event.workflow_definition_id, name);
            seen.push(event.event_type);
        }
    }
    let step = |step_id| {
        let step_name = None;
        [
            LifecycleEventType::StepStarted {
                step_id,
                step_name: step_name.clone(),
            },
            LifecycleEventType::StepCompleted { step_id, step_name },
        ]
    };
    // The first step may begin before its workflow is said to have started.
    seen.retain(|event| *event != LifecycleEventType::Started);
    let mut expected: Vec<_> = [step(0), step(1)].concat();
    expected.push(LifecycleEventType::Completed);
    assert_eq!(seen, expected);
    host.stop().await;
}
