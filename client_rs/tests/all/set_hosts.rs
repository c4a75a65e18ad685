//! Hosts over a namespace set: the engine's own suites, and real hosts whose workflows, their
//! children and the events they wait for are in different members.

use std::collections::HashSet;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Mutex, OnceCell, OwnedMutexGuard};
use wfe::models::{LifecycleEvent, LifecycleEventType, PointerStatus, QueueType, WorkflowStatus};
use wfe::primitives::sub_workflow::SubWorkflowStep;
use wfe::traits::search::{SearchFilter, SearchIndex};
use wfe_core::models::{Event, WorkflowInstance};
use wfe_core::traits::{
    DistributedLockProvider, EventRepository, LifecyclePublisher, PersistenceProvider,
    QueueProvider, WorkflowRepository,
};
use wfe_persistence_client::{v1, GrpcHost, GrpcPersistenceProvider};

use crate::common;
use crate::hosts::{
    builder, channel, has_pointer, is_complete, linear, queues, runs, start, unique, wait_for, Nap,
    Steps, Work,
};

const MEMBERS: u32 = 3;

/// The set of the suites, which empty it, or of the other tests.
async fn create(name: &str, members: u32) {
    let provider: GrpcPersistenceProvider = common::provider().await;
    provider.create_namespace_set(name, members).await.unwrap();
}

struct Alone {
    host: GrpcHost,
    _turn: OwnedMutexGuard<()>,
}

impl Deref for Alone {
    type Target = GrpcHost;

    fn deref(&self) -> &Self::Target {
        &self.host
    }
}

async fn alone(name: &str, members: u32) -> Alone {
    static TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);
    let turn = TURN.clone().lock_owned().await;
    create(name, members).await;
    let host = GrpcHost::builder(common::target())
        .timeout(Duration::from_secs(60))
        // The suites ask empty queues.
        .dequeue_wait(Duration::from_millis(50))
        .connect_host_set(name)
        .await
        .unwrap();
    for member in host.namespace_set().unwrap().members() {
        member.truncate_all().await.unwrap();
    }
    Alone { host, _turn: turn }
}

/// Without the traits, some of whose methods have the same names.
mod suites {
    use super::{alone, MEMBERS};

    // In a set with one member: between several, items have no order.
    wfe_core::queue_suite!(|| async { alone("rust_set_queues", 1).await });
    wfe_core::lock_suite!(|| async { alone("rust_set_suites", MEMBERS).await });
    wfe_core::persistence_suite!(|| async { alone("rust_set_suites", MEMBERS).await });
}

const SET: &str = "rust_set_hosts";

/// A host over the set of the other tests, with queues of its own for each of them.
async fn connect(fleet: &str) -> GrpcHost {
    static CREATED: OnceCell<()> = OnceCell::const_new();
    CREATED.get_or_init(|| create(SET, MEMBERS)).await;
    let host = builder(&common::target(), fleet).connect_host_set(SET);
    host.await.unwrap()
}

fn within<T>(message: T, member: u32) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let namespace = format!("{SET}_{member}").parse().unwrap();
    request.metadata_mut().insert("wfe-namespace", namespace);
    request
}

/// The items of a queue, with their members.
async fn items(fleet: &str, queue: &str) -> Vec<(u32, v1::ListedQueueItem)> {
    let mut client = queues().await;
    let mut found = Vec::new();
    for member in 0..MEMBERS {
        let request = v1::ListQueueItemsRequest {
            queue: format!("{fleet}.{queue}"),
            ..Default::default()
        };
        let listed = client.list_queue_items(within(request, member)).await;
        let listed = listed.unwrap().into_inner().items;
        found.extend(listed.into_iter().map(|item| (member, item)));
    }
    found
}

async fn wait_for_empty_queues(fleet: &str) {
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let mut left = items(fleet, "workflows").await;
        left.extend(items(fleet, "events").await);
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn locks() -> Vec<String> {
    let channel = channel().await;
    let mut client = v1::lock_service_client::LockServiceClient::new(channel);
    let mut found = Vec::new();
    for member in 0..MEMBERS {
        let request = within(v1::ListLocksRequest::default(), member);
        let listed = client.list_locks(request).await.unwrap().into_inner().locks;
        found.extend(listed.into_iter().map(|lock| lock.resource));
    }
    found
}

/// How many of the members have one of these workflows.
fn spread(host: &GrpcHost, ids: &[String]) -> usize {
    let set = host.namespace_set().unwrap();
    let members: HashSet<_> = ids
        .iter()
        .map(|id| std::ptr::from_ref(set.member_of(id)))
        .collect();
    members.len()
}

#[tokio::test]
async fn two_hosts_share_the_work_of_a_set_and_leave_nothing() {
    let fleet = unique("two");
    let (line, event, child) = (unique("line"), unique("event"), unique("child"));
    let key = unique("order");
    let sub = Steps::new()
        .start_with::<Work>()
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
    let server = connect(&fleet).await;
    for server in [server.clone(), connect(&fleet).await] {
        hosts.push(start(&server, &[&sub, &waits, &child]).await);
    }
    let mut ids = Vec::new();
    for n in 0..8 {
        let host = &hosts[n % 2];
        let data = json!({"key": line});
        ids.push(host.start_workflow(&line, 1, data).await.unwrap());
        let data = json!({"key": event});
        let id = host.start_workflow(&event, 1, data).await.unwrap();
        wait_for(host, &id, has_pointer(PointerStatus::WaitingForEvent)).await;
        ids.push(id);
    }
    assert_eq!(spread(&server, &ids), MEMBERS as usize);
    let data = json!({"by": "me"});
    hosts[0]
        .publish_event("approved", &key, data)
        .await
        .unwrap();
    for id in &ids {
        wait_for(&hosts[0], id, is_complete).await;
    }
    // Each step ran once: 2 in the line, 2 in the child; 2 around the event.
    assert_eq!((runs(&line), runs(&event)), (8 * 4, 8 * 2));
    wait_for_empty_queues(&fleet).await;
    for host in hosts {
        host.stop().await;
    }
    let held = locks().await;
    assert!(!held
        .iter()
        .any(|lock| ids.iter().any(|id| lock.contains(id))));
    // Found over all members, newest first.
    let filter = [SearchFilter::Status(WorkflowStatus::Complete)];
    let page = server.search("", 0, 1000, &filter).await.unwrap();
    let found: Vec<_> = page.data.iter().map(|one| one.id.clone()).collect();
    assert!(ids.iter().all(|id| found.contains(id)));
    assert_eq!(page.total, found.len() as u64);
    let second = server.search("", 1, 3, &filter).await.unwrap();
    let second: Vec<_> = second.data.iter().map(|one| one.id.clone()).collect();
    assert_eq!(second, found[1..4]);
}

#[tokio::test]
async fn a_name_is_had_by_one_workflow_of_a_host() {
    let server = connect(&unique("named")).await;
    let mut first = WorkflowInstance::new("d", 1, json!({}));
    first.name = unique("invoice");
    server.create_new_workflow(&first).await.unwrap();
    for _ in 0..4 {
        let mut second = WorkflowInstance::new("d", 1, json!({}));
        second.name = first.name.clone();
        let error = server.create_new_workflow(&second).await.unwrap_err();
        assert!(error.to_string().contains("NAME_TAKEN"), "{error}");
    }
    let found = server.get_workflow_instance_by_name(&first.name).await;
    let mut found = found.unwrap();
    assert_eq!(found.id, first.id);
    found.data = json!({"a": 1});
    server.persist_workflow(&found).await.unwrap();
    let stored = server.get_workflow_instance(&first.id).await.unwrap();
    assert_eq!((stored.name, stored.data), (first.name, json!({"a": 1})));
}

/// An event that somebody else's lock holds up is put off: there is one item of it, in the member
/// that has the event, and it comes back.
#[tokio::test]
async fn an_event_is_put_off_by_a_lock_in_another_member() {
    let fleet = unique("behind");
    let (server, other) = (connect(&fleet).await, connect(&fleet).await);
    let set = server.namespace_set().unwrap();
    let event = Event::new("paid", "k", json!(1));
    let home = std::ptr::from_ref(set.member_of(&event.id));
    let workflow = (0..)
        .map(|n| format!("workflow-{n}"))
        .find(|id| !std::ptr::eq(set.member_of(id), home))
        .unwrap();
    assert!(other.acquire_lock(&workflow).await.unwrap());
    server.create_event(&event).await.unwrap();
    server
        .queue_work(&event.id, QueueType::Event)
        .await
        .unwrap();
    for attempt in 1..=3 {
        let taken = server.dequeue_work(QueueType::Event).await.unwrap();
        assert_eq!(taken.as_ref(), Some(&event.id));
        let [(_, item)] = &items(&fleet, "events").await[..] else {
            panic!("not one item");
        };
        assert_eq!(item.attempt, attempt);
        // As the engine does.
        assert!(!server.acquire_lock(&workflow).await.unwrap());
        server
            .queue_work(&event.id, QueueType::Event)
            .await
            .unwrap();
    }
    other.release_lock(&workflow).await.unwrap();
    let taken = server.dequeue_work(QueueType::Event).await.unwrap();
    assert_eq!(taken.as_ref(), Some(&event.id));
    assert!(server.acquire_lock(&workflow).await.unwrap());
    server.release_lock(&workflow).await.unwrap();
    server.mark_event_processed(&event.id).await.unwrap();
    QueueProvider::stop(&server).await.unwrap();
    wait_for_empty_queues(&fleet).await;
}

/// What comes to all members at the same time, while one waits in all of them, is not lost: not
/// until leases expire either.
#[tokio::test]
async fn items_of_all_members_at_once_are_all_handed_out() {
    let fleet = unique("burst");
    let server = connect(&fleet).await;
    let set = server.namespace_set().unwrap();
    for round in 0..5 {
        let waiting = tokio::spawn({
            let server = server.clone();
            async move { server.dequeue_work(QueueType::Index).await }
        });
        let ids: Vec<String> = set
            .members()
            .iter()
            .map(|member| {
                (0..)
                    .map(|n| format!("{fleet}-{round}-{n}"))
                    .find(|id| std::ptr::eq(set.member_of(id), member))
                    .unwrap()
            })
            .collect();
        let mut enqueued = tokio::task::JoinSet::new();
        for id in ids.clone() {
            let server = server.clone();
            enqueued.spawn(async move { server.queue_work(&id, QueueType::Index).await });
        }
        while let Some(outcome) = enqueued.join_next().await {
            outcome.unwrap().unwrap();
        }
        let mut taken: Vec<String> = waiting.await.unwrap().unwrap().into_iter().collect();
        while taken.len() < ids.len() {
            // A lease that nobody has would be over later than this wait.
            let next = server.dequeue_work(QueueType::Index).await.unwrap();
            taken.push(next.expect("it was taken by a call that nobody waited for"));
        }
        taken.sort();
        let mut ids = ids;
        ids.sort();
        assert_eq!(taken, ids);
    }
    QueueProvider::stop(&server).await.unwrap();
}

/// The item of a workflow that somebody has enqueued in another member is moved to it.
#[tokio::test]
async fn an_item_in_a_wrong_member_is_put_right() {
    let fleet = unique("wrong");
    let server = connect(&fleet).await;
    let name = unique("wrong");
    let workflow = WorkflowInstance::new(&name, 1, json!({}));
    let set = server.namespace_set().unwrap();
    set.create_new_workflow(&workflow).await.unwrap();
    let mut client = queues().await;
    for member in 0..MEMBERS {
        let item = v1::QueueItem {
            queue: format!("{fleet}.workflows"),
            id: workflow.id.clone(),
            ..Default::default()
        };
        let request = v1::EnqueueRequest { items: vec![item] };
        client.enqueue(within(request, member)).await.unwrap();
    }
    let taken = server.dequeue_work(QueueType::Workflow).await.unwrap();
    assert_eq!(taken, Some(workflow.id.clone()));
    let home = items(&fleet, "workflows").await;
    let home: Vec<_> = home
        .iter()
        .filter(|(_, item)| item.lease.is_some())
        .collect();
    assert_eq!(home.len(), 1);
    assert!(std::ptr::eq(
        set.member_of(&workflow.id),
        &set.members()[home[0].0 as usize]
    ));
    QueueProvider::stop(&server).await.unwrap();
}

#[tokio::test]
async fn lifecycle_events_of_all_members_are_received() {
    let fleet = unique("watched");
    let server = connect(&fleet).await;
    let other = connect(&fleet).await;
    let mut events = server.subscribe().unwrap();
    let definition = unique("definition");
    let ids: Vec<String> = (0..12).map(|n| format!("{fleet}-{n}")).collect();
    assert_eq!(spread(&server, &ids), MEMBERS as usize);
    let publish = |host: GrpcHost, ids: Vec<String>| {
        let definition = definition.clone();
        async move {
            for id in ids {
                for kind in [LifecycleEventType::Started, LifecycleEventType::Completed] {
                    let event = LifecycleEvent::new(&id, &definition, 1, kind);
                    host.publish(event).await.unwrap();
                }
            }
        }
    };
    // What this host publishes is received from the call of `subscribe` on; what others do, once the
    // streams are open, which the first ones tell.
    publish(server.clone(), ids.clone()).await;
    for host in [None, Some(other)] {
        if let Some(host) = host {
            publish(host.clone(), ids.clone()).await;
            // It waits until all have been published.
            QueueProvider::stop(&host).await.unwrap();
        }
        let mut seen = std::collections::HashMap::<String, Vec<LifecycleEventType>>::new();
        while seen.values().map(Vec::len).sum::<usize>() < 2 * ids.len() {
            let event = events.recv().await.unwrap();
            if event.workflow_definition_id == definition {
                let of = seen.entry(event.workflow_instance_id).or_default();
                of.push(event.event_type);
            }
        }
        let in_order = [LifecycleEventType::Started, LifecycleEventType::Completed];
        assert!(seen.values().all(|kinds| kinds == &in_order), "{seen:?}");
    }
    assert_eq!(server.lag().unwrap().gaps, 0);
    QueueProvider::stop(&server).await.unwrap();
}

#[tokio::test]
async fn a_host_of_a_set_that_does_not_exist() {
    let outcome = builder(&common::target(), "none").connect_host_set("rust_absent");
    let error = outcome.await.err().unwrap();
    assert!(
        error.to_string().contains("NAMESPACE_SET_NOT_FOUND"),
        "{error}"
    );
    let store: Arc<dyn PersistenceProvider> = Arc::new(connect(&unique("debug")).await);
    store.ensure_store_exists().await.unwrap();
}
