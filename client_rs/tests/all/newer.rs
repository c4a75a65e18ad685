//! Software of another version, with fields that this crate does not have, or without ones that
//! it has: what is unchanged is not sent back, so nothing of it is erased.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{http, Body, BoxFuture, Service};
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic_prost::ProstCodec;
use wfe_core::models::WorkflowInstance;
use wfe_core::traits::WorkflowRepository;
use wfe_persistence_client::v1;
use wfe_persistence_client::v1::commit_workflow_request::State;
use wfe_persistence_client::GrpcPersistenceProvider;

/// `GetWorkflowInstanceResponse` with the workflow as bytes, which are encoded like a message.
#[derive(Clone, PartialEq, Message)]
struct Loaded {
    #[prost(bytes = "vec", tag = "1")]
    instance: Vec<u8>,
}

/// The field that the newer software has added, to workflows and to pointers.
#[derive(Clone, PartialEq, Message)]
struct Added {
    #[prost(string, tag = "1000")]
    text: String,
}

/// The pointers of a workflow, as bytes.
#[derive(Clone, PartialEq, Message)]
struct Pointers {
    #[prost(bytes = "vec", repeated, tag = "8")]
    execution_pointers: Vec<Vec<u8>>,
}

/// A server that has one workflow, as software of another version stored it, and the writes it
/// receives. Responds with the next revision to each.
#[derive(Clone)]
struct Store {
    workflow: Vec<u8>,
    commits: Arc<Mutex<Vec<v1::CommitWorkflowRequest>>>,
}

impl Store {
    async fn serve(workflow: Vec<u8>) -> (Self, GrpcPersistenceProvider) {
        let store = Self {
            workflow,
            commits: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (service, incoming) = (store.clone(), TcpListenerStream::new(listener));
        tokio::spawn(async move {
            let server = Server::builder();
            server.serve_with_incoming(service, incoming).await.unwrap();
        });
        let provider = GrpcPersistenceProvider::builder(address.to_string());
        (store, provider.connect_lazy().unwrap())
    }

    /// The patch received last.
    fn patch(&self) -> v1::WorkflowPatch {
        match self.commits.lock().unwrap().last().unwrap().state.clone() {
            Some(State::Patch(patch)) => patch,
            other => panic!("{other:?}"),
        }
    }
}

impl<B> Service<http::Request<B>> for Store
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let store = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/GetWorkflowInstance") {
                Ok(Grpc::new(ProstCodec::default()).unary(store, request).await)
            } else {
                assert!(request.uri().path().ends_with("/CommitWorkflow"));
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.unary(Commits(store), request).await)
            }
        })
    }
}

type Answer<T> = std::future::Ready<Result<tonic::Response<T>, tonic::Status>>;

impl UnaryService<v1::GetWorkflowInstanceRequest> for Store {
    type Response = Loaded;
    type Future = Answer<Loaded>;

    fn call(&mut self, _: tonic::Request<v1::GetWorkflowInstanceRequest>) -> Self::Future {
        let instance = self.workflow.clone();
        std::future::ready(Ok(tonic::Response::new(Loaded { instance })))
    }
}

struct Commits(Store);

impl UnaryService<v1::CommitWorkflowRequest> for Commits {
    type Response = v1::CommitWorkflowResponse;
    type Future = Answer<v1::CommitWorkflowResponse>;

    fn call(&mut self, request: tonic::Request<v1::CommitWorkflowRequest>) -> Self::Future {
        let request = request.into_inner();
        let revision = request.expected_revision.unwrap() + 1;
        self.0.commits.lock().unwrap().push(request);
        std::future::ready(Ok(tonic::Response::new(v1::CommitWorkflowResponse {
            revision,
            ..Default::default()
        })))
    }
}

/// A workflow with three pointers.
fn workflow() -> v1::WorkflowInstance {
    let pointer = |id: &str| v1::ExecutionPointer {
        id: id.into(),
        status: v1::PointerStatus::Pending.into(),
        extension_attributes_json: [("a".into(), "1".into()), ("b".into(), "2".into())].into(),
        ..Default::default()
    };
    v1::WorkflowInstance {
        id: "w".into(),
        name: "w".into(),
        workflow_definition_id: "order".into(),
        version: 1,
        status: v1::WorkflowStatus::Runnable.into(),
        data_json: "1".into(),
        execution_pointers: ["a", "b", "c"].map(pointer).into(),
        create_time: Some(prost_types::Timestamp::default()),
        revision: 7,
        ..Default::default()
    }
}

/// The same as newer software encodes it.
fn newer(mut workflow: v1::WorkflowInstance) -> Vec<u8> {
    let added = Added {
        text: "from a newer version".into(),
    }
    .encode_to_vec();
    let pointers = std::mem::take(&mut workflow.execution_pointers);
    let pointers = Pointers {
        execution_pointers: pointers
            .iter()
            .map(|pointer| [pointer.encode_to_vec(), added.clone()].concat())
            .collect(),
    };
    [workflow.encode_to_vec(), pointers.encode_to_vec(), added].concat()
}

fn ids(patch: &v1::WorkflowPatch) -> Vec<&str> {
    let pointers = patch.execution_pointers.iter();
    pointers.map(|pointer| pointer.id.as_str()).collect()
}

/// Whatever this crate does not know of a workflow, it sends only what the host changes.
async fn only_what_is_changed_is_sent(bytes: Vec<u8>) {
    let (store, provider) = Store::serve(bytes).await;
    let mut instance: WorkflowInstance = provider.get_workflow_instance("w").await.unwrap();
    provider.persist_workflow(&instance).await.unwrap();
    let patch = store.patch();
    assert_eq!(ids(&patch), [""; 0], "nothing has changed");
    assert_eq!((patch.header, patch.header_mask), (None, None));
    assert!(patch.removed_pointer_ids.is_empty());

    instance.execution_pointers[1].retry_count += 1;
    provider.persist_workflow(&instance).await.unwrap();
    let patch = store.patch();
    assert_eq!(ids(&patch), ["b"]);
    assert_eq!(patch.header_mask, None);

    instance.data = json!(2);
    provider.persist_workflow(&instance).await.unwrap();
    let patch = store.patch();
    assert_eq!(ids(&patch), [""; 0]);
    assert_eq!(patch.header_mask.unwrap().paths, ["data_json"]);
    let revisions: Vec<_> = {
        let commits = store.commits.lock().unwrap();
        commits.iter().map(|c| c.expected_revision).collect()
    };
    assert_eq!(revisions, [Some(7), Some(8), Some(9)]);
}

#[tokio::test]
async fn fields_of_newer_software_are_no_changes() {
    let bytes = newer(workflow());
    // It is what it is meant to be: the same workflow, and more bytes.
    assert_eq!(
        v1::WorkflowInstance::decode(&bytes[..]).unwrap(),
        workflow()
    );
    assert!(bytes.len() > workflow().encoded_len() + 4 * 20);
    only_what_is_changed_is_sent(bytes).await;
}

#[tokio::test]
async fn fields_that_older_software_lacks_are_no_changes() {
    let mut older = workflow();
    older.name.clear();
    for pointer in &mut older.execution_pointers {
        pointer.extension_attributes_json.clear();
        *pointer = v1::ExecutionPointer {
            id: pointer.id.clone(),
            status: pointer.status,
            ..Default::default()
        };
    }
    only_what_is_changed_is_sent(older.encode_to_vec()).await;
}
