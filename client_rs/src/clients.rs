//! The generated clients of one connection, and the RPCs that are called through them.

use std::future::Future;

use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::rpc::Rpc;
use crate::v1;
use crate::v1::event_service_client::EventServiceClient;
use crate::v1::lifecycle_service_client::LifecycleServiceClient;
use crate::v1::lock_service_client::LockServiceClient;
use crate::v1::queue_service_client::QueueServiceClient;
use crate::v1::scheduled_command_service_client::ScheduledCommandServiceClient;
use crate::v1::store_service_client::StoreServiceClient;
use crate::v1::subscription_service_client::SubscriptionServiceClient;
use crate::v1::workflow_service_client::WorkflowServiceClient;

/// One client per service, on one connection that they and their clones share.
#[derive(Clone)]
pub(crate) struct Clients {
    workflows: WorkflowServiceClient<Channel>,
    events: EventServiceClient<Channel>,
    subscriptions: SubscriptionServiceClient<Channel>,
    commands: ScheduledCommandServiceClient<Channel>,
    store: StoreServiceClient<Channel>,
    queues: QueueServiceClient<Channel>,
    locks: LockServiceClient<Channel>,
    lifecycle: LifecycleServiceClient<Channel>,
}

impl Clients {
    /// `max_bytes`: the largest response that is accepted.
    pub(crate) fn new(channel: Channel, max_bytes: usize) -> Self {
        Self {
            workflows: WorkflowServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            events: EventServiceClient::new(channel.clone()).max_decoding_message_size(max_bytes),
            subscriptions: SubscriptionServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            commands: ScheduledCommandServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            store: StoreServiceClient::new(channel.clone()).max_decoding_message_size(max_bytes),
            queues: QueueServiceClient::new(channel.clone()).max_decoding_message_size(max_bytes),
            locks: LockServiceClient::new(channel.clone()).max_decoding_message_size(max_bytes),
            lifecycle: LifecycleServiceClient::new(channel).max_decoding_message_size(max_bytes),
        }
    }

    /// Opens a stream of lifecycle events.
    pub(crate) async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Streaming<v1::WatchResponse>, Status> {
        let mut client = self.lifecycle.clone();
        client.watch(request).await.map(Response::into_inner)
    }
}

/// A request: its type determines the RPC that it is sent to and the response.
pub(crate) trait Call: Clone + Send + Sync {
    const RPC: Rpc;
    type Response: Default + Send;

    /// Makes one attempt. The metadata of the response has the trailing one too.
    fn send(
        clients: &Clients,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send;
}

/// Implements [`Call`] for the requests of unary RPCs.
macro_rules! unary {
    ($($rpc:ident: $client:ident.$method:ident($request:ident) -> $response:ident;)*) => {$(
        impl Call for v1::$request {
            const RPC: Rpc = Rpc::$rpc;
            type Response = v1::$response;

            async fn send(
                clients: &Clients,
                request: Request<Self>,
            ) -> Result<Response<Self::Response>, Status> {
                let mut client = clients.$client.clone();
                client.$method(request).await
            }
        }
    )*};
}

#[rustfmt::skip]
unary! {
    CreateNewWorkflow: workflows.create_new_workflow(CreateNewWorkflowRequest) -> CreateNewWorkflowResponse;
    PersistWorkflow: workflows.persist_workflow(PersistWorkflowRequest) -> PersistWorkflowResponse;
    PersistWorkflowWithSubscriptions: workflows.persist_workflow_with_subscriptions(PersistWorkflowWithSubscriptionsRequest) -> PersistWorkflowWithSubscriptionsResponse;
    CommitWorkflow: workflows.commit_workflow(CommitWorkflowRequest) -> CommitWorkflowResponse;
    GetWorkflowInstance: workflows.get_workflow_instance(GetWorkflowInstanceRequest) -> GetWorkflowInstanceResponse;
    GetWorkflowInstanceByName: workflows.get_workflow_instance_by_name(GetWorkflowInstanceByNameRequest) -> GetWorkflowInstanceByNameResponse;
    ListWorkflows: workflows.list_workflows(ListWorkflowsRequest) -> ListWorkflowsResponse;
    CountWorkflows: workflows.count_workflows(CountWorkflowsRequest) -> CountWorkflowsResponse;
    GetRunnableInstances: workflows.get_runnable_instances(GetRunnableInstancesRequest) -> GetRunnableInstancesResponse;
    SetNameHolder: workflows.set_name_holder(SetNameHolderRequest) -> SetNameHolderResponse;
    GetNameHolder: workflows.get_name_holder(GetNameHolderRequest) -> GetNameHolderResponse;
    NextDefinitionSequence: workflows.next_definition_sequence(NextDefinitionSequenceRequest) -> NextDefinitionSequenceResponse;

    CreateEvent: events.create_event(CreateEventRequest) -> CreateEventResponse;
    GetEvent: events.get_event(GetEventRequest) -> GetEventResponse;
    GetRunnableEvents: events.get_runnable_events(GetRunnableEventsRequest) -> GetRunnableEventsResponse;
    GetEvents: events.get_events(GetEventsRequest) -> GetEventsResponse;
    MarkEventProcessed: events.mark_event_processed(MarkEventProcessedRequest) -> MarkEventProcessedResponse;
    MarkEventUnprocessed: events.mark_event_unprocessed(MarkEventUnprocessedRequest) -> MarkEventUnprocessedResponse;

    CreateEventSubscription: subscriptions.create_event_subscription(CreateEventSubscriptionRequest) -> CreateEventSubscriptionResponse;
    GetSubscription: subscriptions.get_subscription(GetSubscriptionRequest) -> GetSubscriptionResponse;
    GetSubscriptions: subscriptions.get_subscriptions(GetSubscriptionsRequest) -> GetSubscriptionsResponse;
    GetFirstOpenSubscription: subscriptions.get_first_open_subscription(GetFirstOpenSubscriptionRequest) -> GetFirstOpenSubscriptionResponse;
    TerminateSubscription: subscriptions.terminate_subscription(TerminateSubscriptionRequest) -> TerminateSubscriptionResponse;
    SetSubscriptionToken: subscriptions.set_subscription_token(SetSubscriptionTokenRequest) -> SetSubscriptionTokenResponse;
    ClearSubscriptionToken: subscriptions.clear_subscription_token(ClearSubscriptionTokenRequest) -> ClearSubscriptionTokenResponse;

    ScheduleCommand: commands.schedule_command(ScheduleCommandRequest) -> ScheduleCommandResponse;
    ClaimCommands: commands.claim_commands(ClaimCommandsRequest) -> ClaimCommandsResponse;
    CompleteCommands: commands.complete_commands(CompleteCommandsRequest) -> CompleteCommandsResponse;
    ReleaseCommands: commands.release_commands(ReleaseCommandsRequest) -> ReleaseCommandsResponse;

    EnsureStoreExists: store.ensure_store_exists(EnsureStoreExistsRequest) -> EnsureStoreExistsResponse;
    PersistErrors: store.persist_errors(PersistErrorsRequest) -> PersistErrorsResponse;
    ListErrors: store.list_errors(ListErrorsRequest) -> ListErrorsResponse;
    GetStoreInfo: store.get_store_info(GetStoreInfoRequest) -> GetStoreInfoResponse;
    TruncateAll: store.truncate_all(TruncateAllRequest) -> TruncateAllResponse;
    CreateNamespace: store.create_namespace(CreateNamespaceRequest) -> CreateNamespaceResponse;
    ListNamespaces: store.list_namespaces(ListNamespacesRequest) -> ListNamespacesResponse;
    ListDatabases: store.list_databases(ListDatabasesRequest) -> ListDatabasesResponse;
    DeleteNamespace: store.delete_namespace(DeleteNamespaceRequest) -> DeleteNamespaceResponse;

    CreateNamespaceSet: store.create_namespace_set(CreateNamespaceSetRequest) -> CreateNamespaceSetResponse;
    GetNamespaceSet: store.get_namespace_set(GetNamespaceSetRequest) -> GetNamespaceSetResponse;
    DeleteNamespaceSet: store.delete_namespace_set(DeleteNamespaceSetRequest) -> DeleteNamespaceSetResponse;

    Enqueue: queues.enqueue(EnqueueRequest) -> EnqueueResponse;
    Dequeue: queues.dequeue(DequeueRequest) -> DequeueResponse;
    Acknowledge: queues.acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
    ReturnItems: queues.return_items(ReturnItemsRequest) -> ReturnItemsResponse;
    RenewItems: queues.renew_items(RenewItemsRequest) -> RenewItemsResponse;
    GetQueueStats: queues.get_queue_stats(GetQueueStatsRequest) -> GetQueueStatsResponse;
    ConfigureQueue: queues.configure_queue(ConfigureQueueRequest) -> ConfigureQueueResponse;

    AcquireLock: locks.acquire_lock(AcquireLockRequest) -> AcquireLockResponse;
    RenewLocks: locks.renew_locks(RenewLocksRequest) -> RenewLocksResponse;
    ListLocks: locks.list_locks(ListLocksRequest) -> ListLocksResponse;
    ReleaseLock: locks.release_lock(ReleaseLockRequest) -> ReleaseLockResponse;

    Publish: lifecycle.publish(PublishRequest) -> PublishResponse;
}

/// Server streaming: the response is what all messages of the stream hold.
impl Call for v1::GetWorkflowInstancesRequest {
    const RPC: Rpc = Rpc::GetWorkflowInstances;
    type Response = Vec<v1::WorkflowInstance>;

    async fn send(
        clients: &Clients,
        request: Request<Self>,
    ) -> Result<Response<Self::Response>, Status> {
        let mut client = clients.workflows.clone();
        let mut stream = client.get_workflow_instances(request).await?.into_inner();
        let mut instances = Vec::new();
        while let Some(response) = stream.message().await? {
            instances.extend(response.instance);
        }
        Ok(Response::new(instances))
    }
}
