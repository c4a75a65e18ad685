//! Reads from a replica, which the crate's tests do not make: `tests/hosts/test_rust.py` runs these
//! with a server whose database has one, at `WFE_TEST_REPLICATED`, and the connection string of the
//! replica's superuser in `WFE_TEST_REPLICA`.

use std::time::Duration;

use chrono::Utc;
use sqlx::postgres::PgPool;
use uuid::Uuid;
use wfe_core::models::Event;
use wfe_core::traits::EventRepository;
use wfe_core::WfeError;
use wfe_persistence_client::{GrpcPersistenceProvider, Reads};

/// The server and the replica; `None`: there are none.
fn replicated() -> Option<(String, String)> {
    let found = std::env::var("WFE_TEST_REPLICATED").ok();
    found.map(|server| (server, std::env::var("WFE_TEST_REPLICA").unwrap()))
}

async fn provider(server: &str, reads: Option<Reads>) -> GrpcPersistenceProvider {
    let builder = GrpcPersistenceProvider::builder(server).timeout(Duration::from_secs(60));
    builder.reads(reads).connect().await.unwrap()
}

fn event() -> Event {
    Event::new("paid", Uuid::new_v4().to_string(), serde_json::json!({}))
}

/// A replica that receives, but does not replay, as long as this is not dropped by `resume`.
struct Paused(PgPool);

impl Paused {
    async fn replica(url: &str) -> Self {
        let pool = PgPool::connect(url).await.unwrap();
        sqlx::query("SELECT pg_wal_replay_pause()")
            .execute(&pool)
            .await
            .unwrap();
        let state = "SELECT pg_get_wal_replay_pause_state()";
        while sqlx::query_scalar::<_, String>(state)
            .fetch_one(&pool)
            .await
            .unwrap()
            != "paused"
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self(pool)
    }

    async fn resume(self) {
        sqlx::query("SELECT pg_wal_replay_resume()")
            .execute(&self.0)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_provider_reads_what_it_has_written_whatever_the_replica_has() {
    let Some((server, replica)) = replicated() else {
        eprintln!("WFE_TEST_REPLICATED is not set");
        return;
    };
    let writer = provider(&server, Some(Reads::Replica)).await;
    let other = provider(&server, Some(Reads::Replica)).await;
    // As long as the replica replays, it answers.
    let before = writer.create_event(&event()).await.unwrap();
    writer.get_event(&before).await.unwrap();

    let paused = Paused::replica(&replica).await;
    let given = event();
    let id = writer.create_event(&given).await.unwrap();
    assert_eq!(
        writer.get_event(&id).await.unwrap().event_key,
        given.event_key
    );
    let found = writer
        .get_events(&given.event_name, &given.event_key, Utc::now())
        .await
        .unwrap();
    assert_eq!(found, std::slice::from_ref(&id));
    // It is the position that does it, which others do not have.
    let missed = other.get_event(&id).await.unwrap_err();
    assert!(matches!(missed, WfeError::EventNotFound(_)), "{missed}");
    let current = other.with_reads(Reads::Primary);
    assert_eq!(current.get_event(&id).await.unwrap().id, id);
    // By itself, what a host loads is current.
    other.with_reads(None).get_event(&id).await.unwrap();
    paused.resume().await;
}
