//! How many calls it takes, by the server's metrics.

use super::*;

/// How often each method was called, and how many items were handed out, by a server's metrics.
fn metrics(admin: &str) -> (HashMap<String, u64>, u64) {
    let text = common::metrics(admin);
    let mut calls: HashMap<String, u64> = HashMap::new();
    let mut taken = 0;
    for line in text.lines() {
        let Some((name, value)) = line.rsplit_once(' ') else {
            continue;
        };
        if let Some(labels) = name.strip_prefix("grpc_server_handled_total{") {
            let method = labels.split("grpc_method=\"").nth(1).unwrap();
            let method = method.split('"').next().unwrap();
            *calls.entry(method.into()).or_default() += value.parse::<f64>().unwrap() as u64;
        }
        if name.contains("claims_taken_total{kind=\"queue_item\"") {
            taken = value.parse::<f64>().unwrap() as u64;
        }
    }
    assert!(!calls.is_empty(), "{text}");
    (calls, taken)
}

/// A server of its own, so that its metrics are those of one test; returns its address and that
/// of its admin port.
async fn counting_server() -> (String, String) {
    let admin = common::free_address();
    let database = common::new_database().await;
    let listen = admin.clone();
    let target = tokio::task::spawn_blocking(move || {
        common::start_server(&["--db-url", &database, "--admin-listen", &listen])
    });
    (target.await.unwrap(), admin)
}

const STEPS: u64 = 12;

#[tokio::test]
async fn a_step_is_one_call_and_a_sleeping_workflow_none() {
    let (calls, taken) = calls_of_a_line(Duration::from_secs(3600)).await;
    // Of the sleepers, none was taken meanwhile.
    assert_eq!(taken, 1);
    assert!((1..=5).contains(&calls["Dequeue"]), "{calls:?}");
}

#[tokio::test]
async fn a_step_is_two_calls_if_others_have_their_turns() {
    let (calls, taken) = calls_of_a_line(Duration::ZERO).await;
    assert_eq!(taken, STEPS);
    let dequeued = calls["Dequeue"];
    assert!((STEPS..=STEPS + 4).contains(&dequeued), "{calls:?}");
}

/// How often each method was called for a workflow of so many steps, beside some that sleep, and
/// how many items were handed out.
async fn calls_of_a_line(turn: Duration) -> (HashMap<String, u64>, u64) {
    let (target, admin) = counting_server().await;
    let server = builder(&target, "calls").turn(turn).connect_host();
    let server = server.await.unwrap();
    let (line, sleeper) = (unique("line"), unique("sleeper"));
    let line_definition = linear(&line, STEPS as usize);
    // A container that waits for a branch that sleeps is no different.
    let sleeper_definition = Steps::new()
        .start_with::<Work>()
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Nap>("long", Some(json!(3_600_000)));
            })
        })
        .build(&sleeper, 1);
    let mut events = server.subscribe().unwrap();
    let host = start(&server, &[&line_definition, &sleeper_definition]).await;
    for _ in 0..3 {
        let id = host.start_workflow(&sleeper, 1, json!({})).await.unwrap();
        wait_for(&host, &id, has_pointer(PointerStatus::Sleeping)).await;
    }
    // What follows in the queue is taken after everything that the sleepers still do.
    let id = host.start_workflow(&line, 1, json!({})).await.unwrap();
    wait_for(&host, &id, is_complete).await;

    let (before, taken_before) = metrics(&admin);
    let id = host.start_workflow(&line, 1, json!({})).await.unwrap();
    loop {
        let event = events.recv().await.unwrap();
        let is_end = event.event_type == LifecycleEventType::Completed;
        if is_end && event.workflow_instance_id == id {
            break;
        }
    }
    // The event of the end may come before the call is counted whose write it was.
    let written = |of: &HashMap<String, u64>| -> u64 {
        let count = |method: &str| of.get(method).copied().unwrap_or_default();
        count("CommitWorkflow") + count("PersistWorkflow")
    };
    let (mut after, mut taken_after) = metrics(&admin);
    for _ in 0..100 {
        if written(&after) >= written(&before) + STEPS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        (after, taken_after) = metrics(&admin);
    }
    let calls: HashMap<_, _> = after
        .into_iter()
        .map(|(method, count)| {
            let count = count - before.get(&method).copied().unwrap_or_default();
            (method, count)
        })
        .collect();
    let made = |method: &str| calls.get(method).copied().unwrap_or_default();
    assert_eq!(made("CommitWorkflow") + made("PersistWorkflow"), STEPS);
    for method in [
        // The end of a workflow is an event, but nobody waits for it.
        "CreateEvent",
        "GetEvent",
        "GetSubscriptions",
        "MarkEventProcessed",
        "GetWorkflowInstance",
        "AcquireLock",
        "ReleaseLock",
        "Enqueue",
        "Acknowledge",
        "ReturnItems",
    ] {
        assert_eq!(made(method), 0, "{method}");
    }
    host.stop().await;
    (calls, taken_after - taken_before)
}
