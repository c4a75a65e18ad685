//! Real hosts of the engine that have nothing but the server: queue, locks, lifecycle events and
//! persistence are one `GrpcHost`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{json, Value};
use tonic::transport::{Channel, Endpoint};
use wfe::builder::WorkflowBuilder;
use wfe::models::{
    ExecutionResult, LifecycleEventType, PointerStatus, QueueType, WorkflowDefinition,
    WorkflowInstance, WorkflowStatus,
};
use wfe::primitives::sub_workflow::SubWorkflowStep;
use wfe::traits::search::{SearchFilter, SearchIndex};
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::traits::{
    DistributedLockProvider, LifecyclePublisher, PersistenceProvider, QueueProvider,
};
use wfe::{WorkflowHost, WorkflowHostBuilder};
use wfe_persistence_client::v1::queue_service_client::QueueServiceClient;
use wfe_persistence_client::{v1, Builder, GrpcHost};

use crate::common;

type Steps = WorkflowBuilder<Value>;

/// How often the steps of a workflow were run, by the workflow's data `key`.
static RUNS: LazyLock<Mutex<HashMap<String, usize>>> = LazyLock::new(Mutex::default);

fn runs(key: &str) -> usize {
    RUNS.lock().unwrap().get(key).copied().unwrap_or_default()
}

/// Counts, and takes as long as the workflow's data say, in milliseconds.
#[derive(Default)]
struct Work;

#[async_trait]
impl StepBody for Work {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let data = &context.workflow.data;
        let key = data["key"].as_str().unwrap_or_default().to_string();
        *RUNS.lock().unwrap().entry(key).or_default() += 1;
        let takes = data["takes"].as_u64().unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(takes)).await;
        Ok(ExecutionResult::next())
    }
}

/// Sleeps once, as long as the step's configuration says, in milliseconds.
#[derive(Default)]
struct Nap;

#[async_trait]
impl StepBody for Nap {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let config = context.step.step_config.as_ref();
        let millis = config.and_then(Value::as_u64).unwrap_or(200);
        Ok(match context.persistence_data {
            Some(_) => ExecutionResult::next(),
            None => ExecutionResult::sleep(Duration::from_millis(millis), Some(json!("slept"))),
        })
    }
}

/// Waits for the event `go` with the workflow's `key`.
#[derive(Default)]
struct Gate;

#[async_trait]
impl StepBody for Gate {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.execution_pointer.event_published {
            return Ok(ExecutionResult::next());
        }
        let key = context.workflow.data["key"].as_str().unwrap_or_default();
        Ok(ExecutionResult::wait_for_event(
            "go",
            key,
            chrono::Utc::now(),
        ))
    }
}

/// Only one of the hosts has it.
#[derive(Default)]
struct Rare;

#[async_trait]
impl StepBody for Rare {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        Ok(ExecutionResult::next())
    }
}

fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::new_v4().simple())
}

/// Queues of its own for a test.
fn builder(target: &str, fleet: &str) -> Builder {
    GrpcHost::builder(target)
        .queue_prefix(format!("{fleet}."))
        .timeout(Duration::from_secs(60))
}

async fn connect(fleet: &str) -> GrpcHost {
    let host = builder(&common::target(), fleet).connect_host().await;
    host.unwrap()
}

/// A running host of the engine.
async fn start(server: &GrpcHost, definitions: &[&WorkflowDefinition]) -> WorkflowHost {
    let host = prepare(server, definitions).await;
    host.start().await.unwrap();
    host
}

async fn prepare(server: &GrpcHost, definitions: &[&WorkflowDefinition]) -> WorkflowHost {
    let server = Arc::new(server.clone());
    let host = WorkflowHostBuilder::new()
        .use_persistence(server.clone())
        .use_queue_provider(server.clone())
        .use_lock_provider(server.clone())
        .use_lifecycle(server.clone())
        .use_search(server)
        .build()
        .unwrap();
    host.register_step::<Work>().await;
    host.register_step::<Nap>().await;
    host.register_step::<Gate>().await;
    for definition in definitions {
        host.register_workflow_definition((*definition).clone())
            .await;
    }
    host
}

fn linear(name: &str, steps: usize) -> WorkflowDefinition {
    let mut all = Steps::new().start_with::<Work>();
    for _ in 1..steps {
        all = all.then::<Work>();
    }
    all.build(name, 1)
}

/// Waits until a workflow meets a condition.
async fn wait_for(
    host: &WorkflowHost,
    id: &str,
    wanted: impl Fn(&WorkflowInstance) -> bool,
) -> WorkflowInstance {
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let instance = host.get_workflow(id).await.unwrap();
        if wanted(&instance) {
            return instance;
        }
        assert!(tokio::time::Instant::now() < end, "{instance:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_complete(workflow: &WorkflowInstance) -> bool {
    workflow.status == WorkflowStatus::Complete
}

fn has_pointer(status: PointerStatus) -> impl Fn(&WorkflowInstance) -> bool {
    move |workflow| {
        workflow
            .execution_pointers
            .iter()
            .any(|p| p.status == status)
    }
}

/// For the generated clients: what the host does not call.
async fn channel() -> Channel {
    let address = format!("http://{}", common::target());
    let endpoint = Endpoint::from_shared(address).unwrap();
    endpoint.connect().await.unwrap()
}

async fn queues() -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel().await)
}

/// Waits until the queues of a fleet are empty.
async fn wait_for_empty_queues(fleet: &str) {
    let mut client = queues().await;
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let request = v1::GetQueueStatsRequest {
            queues: ["workflows", "events"]
                .map(|name| format!("{fleet}.{name}"))
                .into(),
            ..Default::default()
        };
        let stats = client.get_queue_stats(request).await.unwrap().into_inner();
        let left = |q: &v1::QueueStats| q.waiting + q.delayed + q.leased + q.dead;
        if stats.queues.iter().all(|q| left(q) == 0) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{stats:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn two_hosts_share_the_work_and_leave_nothing() {
    let fleet = unique("two");
    let (line, event, child) = (unique("line"), unique("event"), unique("child"));
    let key = unique("order");
    let nap = Steps::new()
        .start_with::<Work>()
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Nap>("slow", Some(json!(300)));
            })
            .branch(|b| {
                b.add_step_typed::<Work>("quick", None);
            })
        })
        .then::<Nap>()
        .then::<SubWorkflowStep>()
        .config(json!({"workflow_id": child, "version": 1, "inputs": {"key": line}}))
        .then::<Work>()
        .build(&line, 1);
    let waits = Steps::new()
        .start_with::<Work>()
        .wait_for("approved", &key)
        .then::<Work>()
        .build(&event, 1);
    let child = linear(&child, 2);
    let mut hosts = Vec::new();
    for _ in 0..2 {
        let server = connect(&fleet).await;
        hosts.push(start(&server, &[&nap, &waits, &child]).await);
    }
    let mut ids = Vec::new();
    for n in 0..8 {
        let data = json!({"key": line});
        let host = &hosts[n % 2];
        ids.push(host.start_workflow(&line, 1, data).await.unwrap());
        let data = json!({"key": event});
        let id = host.start_workflow(&event, 1, data).await.unwrap();
        wait_for(host, &id, has_pointer(PointerStatus::WaitingForEvent)).await;
        ids.push(id);
    }
    let data = json!({"by": "me"});
    hosts[0]
        .publish_event("approved", &key, data)
        .await
        .unwrap();
    for id in &ids {
        wait_for(&hosts[0], id, is_complete).await;
    }
    // Each step ran once: 2 in the line, 1 in a branch, 2 in the child; 2 around the event.
    assert_eq!((runs(&line), runs(&event)), (8 * 5, 8 * 2));
    wait_for_empty_queues(&fleet).await;
    for host in hosts {
        host.stop().await;
    }
    let mut locks = v1::lock_service_client::LockServiceClient::new(channel().await);
    for id in &ids {
        let request = v1::ListLocksRequest {
            resource_prefix: id.clone(),
            ..Default::default()
        };
        let held = locks.list_locks(request).await.unwrap().into_inner().locks;
        assert_eq!(held, []);
    }
}

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

#[tokio::test]
async fn what_a_host_drops_comes_back() {
    let fleet = unique("drop");
    let name = unique("known-to-one");
    let definition = linear(&name, 3);
    let server = connect(&fleet).await;
    let starter = prepare(&server, &[&definition]).await;
    let id = starter
        .start_workflow(&name, 1, json!({"key": name}))
        .await
        .unwrap();
    // It takes the workflow, and drops it, because it does not know the definition.
    let ignorant_server = connect(&fleet).await;
    let ignorant = start(&ignorant_server, &[]).await;
    let mut client = queues().await;
    loop {
        let request = v1::ListQueueItemsRequest {
            queue: format!("{fleet}.workflows"),
            ..Default::default()
        };
        let items = client.list_queue_items(request).await.unwrap().into_inner();
        if items.items[0].attempt > 0 && items.items[0].lease.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    starter.start().await.unwrap();
    wait_for(&starter, &id, is_complete).await;
    assert_eq!(runs(&name), 3);
    wait_for_empty_queues(&fleet).await;
    ignorant.stop().await;
    starter.stop().await;
}

#[tokio::test]
async fn what_a_host_cannot_do_another_one_does() {
    let fleet = unique("able");
    let name = unique("rare");
    let definition = Steps::new().start_with::<Rare>().build(&name, 1);
    let (unable_server, able_server) = (connect(&fleet).await, connect(&fleet).await);
    let unable = start(&unable_server, &[&definition]).await;
    let able = prepare(&able_server, &[&definition]).await;
    able.register_step::<Rare>().await;
    able.start().await.unwrap();
    for _ in 0..5 {
        let id = unable.start_workflow(&name, 1, json!({})).await.unwrap();
        wait_for(&able, &id, is_complete).await;
    }
    wait_for_empty_queues(&fleet).await;
    unable.stop().await;
    able.stop().await;
}

#[tokio::test]
async fn a_step_that_takes_longer_than_the_lease_runs_once_also_after_stop() {
    let fleet = unique("long");
    let name = unique("long");
    let definition = linear(&name, 2);
    let lease = Duration::from_secs(1);
    let connect = || async {
        let host = builder(&common::target(), &fleet).lease(lease);
        host.connect_host().await.unwrap()
    };
    let (first_server, second_server) = (connect().await, connect().await);
    let first = start(&first_server, &[&definition]).await;
    let data = json!({"key": name, "takes": 3000});
    let id = first.start_workflow(&name, 1, data).await.unwrap();
    while runs(&name) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.stop().await;
    let second = start(&second_server, &[&definition]).await;
    wait_for(&second, &id, is_complete).await;
    assert_eq!(runs(&name), 2);
    wait_for_empty_queues(&fleet).await;
    second.stop().await;
}

#[tokio::test]
async fn the_work_of_a_host_that_dies_is_done_by_another() {
    let fleet = unique("dies");
    let name = unique("dies");
    let definition = linear(&name, 2);
    let build = || builder(&common::target(), &fleet).lease(Duration::from_secs(1));
    let dying = tokio::runtime::Runtime::new().unwrap();
    let (builder, known, key) = (build(), definition.clone(), name.clone());
    let started = dying.spawn(async move {
        let server = builder.connect_host().await.unwrap();
        let host = start(&server, &[&known]).await;
        let name = known.id.clone();
        let data = json!({"key": key, "takes": 600_000});
        let id = host.start_workflow(&name, 1, data).await.unwrap();
        std::mem::forget(host);
        id
    });
    let id = started.await.unwrap();
    while runs(&name) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // In the middle of the step: no more renewals, and the connection is gone.
    dying.shutdown_background();
    let server = build().connect_host().await.unwrap();
    let store: &dyn PersistenceProvider = &server;
    // The second host does not take that long.
    let mut workflow = store.get_workflow_instance(&id).await.unwrap();
    workflow.data["takes"] = json!(0);
    store.persist_workflow(&workflow).await.unwrap();
    let host = start(&server, &[&definition]).await;
    wait_for(&host, &id, is_complete).await;
    assert_eq!(runs(&name), 3);
    wait_for_empty_queues(&fleet).await;
    host.stop().await;
}

#[tokio::test]
async fn a_host_that_has_lost_its_lease_stores_nothing() {
    let fleet = unique("fence");
    let slow = builder(&common::target(), &fleet)
        .lease(Duration::from_secs(1))
        .longest_step(Duration::ZERO);
    let slow = slow.connect_host().await.unwrap();
    let quick = connect(&fleet).await;
    let mut workflow = WorkflowInstance::new("fenced", 1, json!({"by": "nobody"}));
    workflow
        .execution_pointers
        .push(wfe::models::ExecutionPointer::new(0));
    let store: &dyn PersistenceProvider = &slow;
    let id = store.create_new_workflow(&workflow).await.unwrap();

    let step = async |host: &GrpcHost| {
        let taken = host.dequeue_work(QueueType::Workflow).await.unwrap();
        assert_eq!(taken.as_deref(), Some(id.as_str()));
        let store: &dyn PersistenceProvider = host;
        assert!(host.acquire_lock(&id).await.unwrap());
        // Not re-entrant.
        assert!(!host.acquire_lock(&id).await.unwrap());
        store.get_workflow_instance(&id).await.unwrap()
    };
    let mut by_slow = step(&slow).await;
    // It waits until the lease has expired.
    let mut by_quick = step(&quick).await;
    by_quick.data = json!({"by": "quick"});
    let store: &dyn PersistenceProvider = &quick;
    store.persist_workflow(&by_quick).await.unwrap();
    quick.release_lock(&id).await.unwrap();

    by_slow.data = json!({"by": "slow"});
    let store: &dyn PersistenceProvider = &slow;
    let error = store.persist_workflow(&by_slow).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("LEASE_LOST") || text.contains("REVISION_MISMATCH"),
        "{text}"
    );
    let stored = common::provider().await;
    let stored: &dyn PersistenceProvider = &stored;
    let stored = stored.get_workflow_instance(&id).await.unwrap();
    assert_eq!(stored.data, json!({"by": "quick"}));
}

#[tokio::test]
async fn a_dequeue_that_is_cancelled_loses_nothing() {
    let fleet = unique("cancel");
    let host = connect(&fleet).await;
    let cancelled = tokio::time::timeout(
        Duration::from_millis(300),
        host.dequeue_work(QueueType::Workflow),
    );
    assert!(cancelled.await.is_err());
    host.queue_work("w", QueueType::Workflow).await.unwrap();
    // It may have gone to the call that nobody waits for, which gives it back.
    let taken = host.dequeue_work(QueueType::Workflow).await.unwrap();
    assert_eq!(taken.as_deref(), Some("w"));
}

static BUSY: AtomicUsize = AtomicUsize::new(0);

/// Sleeps, so that the other branch has subscribed; then it runs as long as the test says.
#[derive(Default)]
struct Hold;

#[async_trait]
impl StepBody for Hold {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.persistence_data.is_none() {
            let moment = Duration::from_millis(50);
            return Ok(ExecutionResult::sleep(moment, Some(json!("slept"))));
        }
        BUSY.store(1, Ordering::SeqCst);
        while BUSY.load(Ordering::SeqCst) != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(ExecutionResult::next())
    }
}

/// An event comes for a branch of a workflow while a step of another branch runs.
#[tokio::test]
async fn an_event_waits_for_a_step_and_the_step_is_stored() {
    let fleet = unique("event");
    let name = unique("event");
    let definition = Steps::new()
        .start_with::<Work>()
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Gate>("gate", None);
            })
            .branch(|b| {
                b.add_step_typed::<Hold>("hold", None);
            })
        })
        .then::<Work>()
        .build(&name, 1);
    let (first_server, second_server) = (connect(&fleet).await, connect(&fleet).await);
    let first = prepare(&first_server, &[&definition]).await;
    let second = prepare(&second_server, &[&definition]).await;
    first.register_step::<Hold>().await;
    second.register_step::<Hold>().await;
    first.start().await.unwrap();
    second.start().await.unwrap();
    let id = first
        .start_workflow(&name, 1, json!({"key": name}))
        .await
        .unwrap();
    while BUSY.load(Ordering::SeqCst) != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.publish_event("go", &name, json!(1)).await.unwrap();
    // It is taken, and waits for the lock.
    let mut client = queues().await;
    loop {
        let request = v1::ListQueueItemsRequest {
            queue: format!("{fleet}.events"),
            ..Default::default()
        };
        let items = client.list_queue_items(request).await.unwrap().into_inner();
        let item = items.items[0].clone();
        if item.lease.is_none() && item.item.unwrap().blocked_by == [id.as_str()] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    BUSY.store(2, Ordering::SeqCst);
    let done = wait_for(&second, &id, is_complete).await;
    assert!(done.execution_pointers.iter().any(|p| p.event_published));
    assert_eq!(runs(&name), 2);
    wait_for_empty_queues(&fleet).await;
    first.stop().await;
    second.stop().await;
}

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

#[tokio::test]
async fn search_by_filters() {
    let host = connect(&unique("search")).await;
    let store: &dyn PersistenceProvider = &host;
    let reference = unique("reference");
    let mut ids = Vec::new();
    for n in 0..3 {
        let mut workflow = WorkflowInstance::new("searched", 1, json!({}));
        workflow.reference = Some(reference.clone());
        workflow.description = Some(format!("number {n}"));
        workflow.create_time += chrono::TimeDelta::seconds(n);
        if n == 2 {
            workflow.status = WorkflowStatus::Suspended;
        }
        ids.push(store.create_new_workflow(&workflow).await.unwrap());
        host.index_workflow(&workflow).await.unwrap();
    }
    let of_reference = SearchFilter::Reference(reference.clone());
    let page = host
        .search("", 1, 1, &[of_reference.clone()])
        .await
        .unwrap();
    assert_eq!((page.total, page.data.len()), (3, 1));
    assert_eq!(page.data[0].id, ids[1]);
    assert_eq!(page.data[0].description.as_deref(), Some("number 1"));
    assert_eq!(page.data[0].reference, Some(reference));
    let suspended = SearchFilter::Status(WorkflowStatus::Suspended);
    let both = [of_reference.clone(), suspended.clone()];
    let page = host.search(" ", 0, 10, &both).await.unwrap();
    assert_eq!((page.total, page.data[0].id.as_str()), (1, ids[2].as_str()));
    let never = [suspended, SearchFilter::Status(WorkflowStatus::Complete)];
    assert_eq!(host.search("", 0, 10, &never).await.unwrap().total, 0);
    let range = |field: &str| SearchFilter::DateRange {
        field: field.into(),
        before: None,
        after: Some(chrono::Utc::now() + chrono::TimeDelta::hours(1)),
    };
    let later = [of_reference, range("create_time")];
    assert_eq!(host.search("", 0, 10, &later).await.unwrap().total, 0);
    assert!(host.search("", 0, 10, &[range("colour")]).await.is_err());
    assert!(host.search("words", 0, 10, &[]).await.is_err());
}
