//! How many calls it takes, by the server's metrics.

use super::*;

/// How often each method was called, and how many items were handed out, by a server's metrics.
fn metrics(admin: &str) -> (HashMap<String, u64>, u64) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    let request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
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
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let admin = format!("127.0.0.1:{port}");
    let database = common::new_database().await;
    let listen = admin.clone();
    let target = tokio::task::spawn_blocking(move || {
        common::start_server(&["--db-url", &database, "--admin-listen", &listen])
    });
    (target.await.unwrap(), admin)
}

#[tokio::test]
async fn a_step_is_two_calls_and_a_sleeping_workflow_none() {
    const STEPS: u64 = 12;
    let (target, admin) = counting_server().await;
    let server = builder(&target, "calls").connect_host().await.unwrap();
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
    let (after, taken_after) = metrics(&admin);
    let calls = |method: &str| {
        after.get(method).copied().unwrap_or_default()
            - before.get(method).copied().unwrap_or_default()
    };
    // Of the sleepers, none was taken meanwhile. The end of a workflow is an event.
    let taken = taken_after - taken_before;
    assert!((STEPS..=STEPS + 1).contains(&taken), "{taken}");
    assert_eq!(calls("CommitWorkflow") + calls("PersistWorkflow"), STEPS);
    assert!(
        (STEPS..=STEPS + 4).contains(&calls("Dequeue")),
        "{}",
        calls("Dequeue")
    );
    for method in [
        "CreateEvent",
        "GetWorkflowInstance",
        "AcquireLock",
        "ReleaseLock",
        "Enqueue",
        "Acknowledge",
        "ReturnItems",
    ] {
        assert_eq!(calls(method), 0, "{method}");
    }
    host.stop().await;
}
