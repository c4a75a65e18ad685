//! The same tests as in `client_rs/tests/all`, of what depends on the engine's version.

#[path = "../../tests/all/common.rs"]
mod common;
#[path = "../../tests/all/hosts/mod.rs"]
mod hosts;
#[path = "../../tests/all/suites.rs"]
mod suites;

use std::sync::Arc;

use wfe::models::{LifecycleEvent, LifecycleEventType};
use wfe::traits::LifecyclePublisher;
use wfe_persistence_client::GrpcHost;

/// The trait's method is there, and is the host's.
#[tokio::test]
async fn subscribers_of_the_trait_receive_events() {
    let host = GrpcHost::new(common::target()).await.unwrap();
    let publisher: Arc<dyn LifecyclePublisher> = Arc::new(host);
    let mut events = publisher.subscribe().unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    let event = LifecycleEvent::new(&id, "definition", 7, LifecycleEventType::Resumed);
    publisher.publish(event).await.unwrap();
    loop {
        let event = events.recv().await.unwrap();
        if event.workflow_instance_id == id {
            assert_eq!(event.version, 7);
            assert_eq!(event.event_type, LifecycleEventType::Resumed);
            break;
        }
    }
}
