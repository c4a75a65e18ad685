//! Search.

use super::*;

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
        .search("", 1, 1, std::slice::from_ref(&of_reference))
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
