//! Stores a workflow, reads it, and asks for one that there is not.

use wfe_core::models::{WorkflowInstance, WorkflowStatus};
use wfe_core::traits::{PersistenceProvider, WorkflowRepository};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = std::env::args().nth(1).expect("an address");
    let store = wfe_persistence_client::GrpcPersistenceProvider::new(format!("http://{target}")).await?;
    store.ensure_store_exists().await?;
    let mut workflow = WorkflowInstance::new("consumer", 1, serde_json::json!({"serial": 9007199254740993_i64}));
    workflow.status = WorkflowStatus::Runnable;
    workflow.next_execution = Some(-9007199254740993);
    let id = store.create_new_workflow(&workflow).await?;
    let read = store.get_workflow_instance(&id).await?;
    println!("{} {}", read.data, read.next_execution.unwrap());
    println!("{}", store.get_workflow_instance("no such").await.unwrap_err());
    Ok(())
}
