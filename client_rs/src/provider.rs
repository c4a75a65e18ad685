//! The engine's persistence trait, method by method one call of the API.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response};
use uuid::Uuid;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance,
};
use wfe_core::traits::{
    EventRepository, PersistenceProvider, ScheduledCommandRepository, SubscriptionRepository,
    WorkflowRepository,
};

use crate::call::{Caller, Rpc};
use crate::connect::Builder;
use crate::convert::{
    from_command, from_event, from_execution_error, from_subscription, from_workflow, to_command,
    to_event, to_execution_error, to_subscription, to_time, to_workflow,
};
use crate::error::Error;
use crate::saving::{Committed, Memory, Step};
use crate::v1;
use crate::v1::event_service_client::EventServiceClient;
use crate::v1::scheduled_command_service_client::ScheduledCommandServiceClient;
use crate::v1::store_service_client::StoreServiceClient;
use crate::v1::subscription_service_client::SubscriptionServiceClient;
use crate::v1::workflow_service_client::WorkflowServiceClient;
use crate::v1::ErrorReason;

/// The largest page that the server gives.
const PAGE_SIZE: i32 = 1000;
/// How many bytes of ids to ask for in one `GetWorkflowInstances`, well below the
/// server's limit for a message.
const IDS_BYTES: usize = 1024 * 1024;

/// The engine's persistence, kept in a WFE persistence server.
///
/// Clones share one HTTP/2 connection, which is made anew when it breaks; calls at the
/// same time travel over it side by side.
///
/// Where it differs from `wfe-postgres`: persisting a workflow that does not exist is
/// `WorkflowNotFound`, not a silent success; a token's hold on a subscription ends at
/// its expiry; clearing a subscription with a wrong token is a `Persistence` error
/// (`TOKEN_MISMATCH`); lists come in order; a failing command handler does not hold up
/// the other commands.
#[derive(Clone)]
pub struct GrpcPersistenceProvider {
    workflows: WorkflowServiceClient<Channel>,
    events: EventServiceClient<Channel>,
    subscriptions: SubscriptionServiceClient<Channel>,
    commands: ScheduledCommandServiceClient<Channel>,
    store: StoreServiceClient<Channel>,
    caller: Caller,
    claims: Claims,
    saving: Saving,
    scheduled_commands: bool,
}

/// How workflows are stored.
#[derive(Clone)]
pub(crate) struct Saving {
    pub(crate) memory: Memory,
    /// Whether somebody else's write in between is an error.
    pub(crate) strict: bool,
}

/// How `process_commands` claims.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) lease: Duration,
    pub(crate) batch: u32,
    pub(crate) worker_id: String,
}

impl GrpcPersistenceProvider {
    /// Connects with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// The address is not valid, or no server answers there.
    pub async fn new(endpoint: impl Into<String>) -> Result<Self, Error> {
        Self::builder(endpoint).connect().await
    }

    /// Sets up a provider for the server at this address; see [`Builder::new`].
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder::new(endpoint)
    }

    pub(crate) fn from_parts(
        channel: Channel,
        caller: Caller,
        claims: Claims,
        max_bytes: usize,
        saving: Saving,
    ) -> Self {
        Self {
            workflows: WorkflowServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            events: EventServiceClient::new(channel.clone()).max_decoding_message_size(max_bytes),
            subscriptions: SubscriptionServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            commands: ScheduledCommandServiceClient::new(channel.clone())
                .max_decoding_message_size(max_bytes),
            store: StoreServiceClient::new(channel).max_decoding_message_size(max_bytes),
            caller,
            claims,
            saving,
            scheduled_commands: true,
        }
    }

    pub(crate) fn with_capabilities(mut self, capabilities: v1::Capabilities) -> Self {
        self.scheduled_commands = capabilities.scheduled_commands;
        self
    }

    /// What the server and its store are and can do.
    ///
    /// # Errors
    ///
    /// The server cannot be reached; the namespace does not exist.
    pub async fn store_info(&self) -> Result<v1::GetStoreInfoResponse, Error> {
        self.caller
            .call(
                Rpc::GetStoreInfo,
                || Ok(v1::GetStoreInfoRequest {}),
                |request| {
                    let mut client = self.store.clone();
                    async move {
                        client
                            .get_store_info(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
    }

    /// All logged errors, those of one workflow or (`None`) of all, the last logged
    /// first.
    ///
    /// # Errors
    ///
    /// The server cannot be reached; the id is longer than 512 bytes.
    pub async fn list_errors(
        &self,
        workflow_id: Option<&str>,
    ) -> Result<Vec<ExecutionError>, Error> {
        all_pages(|page_token| async move {
            let build = || {
                Ok(v1::ListErrorsRequest {
                    workflow_id: workflow_id.unwrap_or_default().into(),
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                    ..Default::default()
                })
            };
            let answer = self
                .caller
                .call(Rpc::ListErrors, build, |request| {
                    let mut client = self.store.clone();
                    async move { client.list_errors(request).await.map(Response::into_inner) }
                })
                .await?;
            Ok((answer.errors, answer.next_page_token))
        })
        .await?
        .into_iter()
        .map(from_execution_error)
        .collect()
    }

    /// Empties the store, definition sequences too; for tests.
    ///
    /// # Errors
    ///
    /// `TRUNCATE_NOT_ALLOWED` unless the server was started with `--allow-truncate`.
    pub async fn truncate_all(&self) -> Result<(), Error> {
        self.caller
            .call(
                Rpc::TruncateAll,
                || Ok(v1::TruncateAllRequest {}),
                |request| {
                    let mut client = self.store.clone();
                    async move { client.truncate_all(request).await.map(Response::into_inner) }
                },
            )
            .await
            .map(|_| ())
    }

    /// Creates a namespace, a store of its own for [`Builder::namespace`], or brings it
    /// up to date; the namespace of this provider plays no part.
    ///
    /// # Errors
    ///
    /// `INVALID_FIELD` if the name does not match `[a-z][a-z0-9_]{0,39}`;
    /// `SCHEMA_TOO_NEW`; `DATABASE_PERMISSION_DENIED`.
    pub async fn create_namespace(&self, name: &str) -> Result<(), Error> {
        self.caller
            .call(
                Rpc::CreateNamespace,
                || Ok(v1::CreateNamespaceRequest { name: name.into() }),
                |request| {
                    let mut client = self.store.clone();
                    async move {
                        client
                            .create_namespace(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
            .map(|_| ())
    }

    /// All namespaces of the server, `default` first.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub async fn list_namespaces(&self) -> Result<Vec<v1::Namespace>, Error> {
        all_pages(|page_token| async move {
            let build = || {
                Ok(v1::ListNamespacesRequest {
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                })
            };
            let answer = self
                .caller
                .call(Rpc::ListNamespaces, build, |request| {
                    let mut client = self.store.clone();
                    async move {
                        client
                            .list_namespaces(request)
                            .await
                            .map(Response::into_inner)
                    }
                })
                .await?;
            Ok((answer.namespaces, answer.next_page_token))
        })
        .await
    }

    /// Deletes a namespace; `force`: with all that is stored in it.
    ///
    /// # Errors
    ///
    /// `DELETE_NAMESPACE_NOT_ALLOWED` unless the server was started with
    /// `--allow-delete-namespace`; `NAMESPACE_NOT_EMPTY`; `NAMESPACE_NOT_FOUND`.
    pub async fn delete_namespace(&self, name: &str, force: bool) -> Result<(), Error> {
        let build = || {
            Ok(v1::DeleteNamespaceRequest {
                name: name.into(),
                force,
            })
        };
        self.caller
            .call(Rpc::DeleteNamespace, build, |request| {
                let mut client = self.store.clone();
                async move {
                    client
                        .delete_namespace(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map(|_| ())
    }

    async fn workflows_of(&self, ids: &[String]) -> Result<Vec<WorkflowInstance>, Error> {
        let build = || {
            Ok(v1::GetWorkflowInstancesRequest {
                ids: ids.to_vec(),
                ..Default::default()
            })
        };
        self.caller
            .call(Rpc::GetWorkflowInstances, build, |request| {
                let mut client = self.workflows.clone();
                async move {
                    let mut stream = client.get_workflow_instances(request).await?.into_inner();
                    let mut messages = Vec::new();
                    while let Some(answer) = stream.message().await? {
                        messages.extend(answer.instance);
                    }
                    Ok(messages)
                }
            })
            .await?
            .into_iter()
            .map(|message| self.loaded(message))
            .collect()
    }

    /// A workflow that was answered, remembered.
    fn loaded(&self, message: v1::WorkflowInstance) -> Result<WorkflowInstance, Error> {
        let revision = message.revision;
        let instance = from_workflow(message)?;
        // As it would be sent, so that the same again is no change.
        self.saving.memory.put(&to_workflow(&instance)?, revision);
        Ok(instance)
    }

    /// Stores one step of an engine in one transaction: the workflow's new state, sent as a
    /// patch where it is remembered, and all that the [`Step`] says. Made once, however often
    /// it must be sent.
    ///
    /// # Errors
    ///
    /// Nothing is stored with `WORKFLOW_NOT_FOUND`, `SUBSCRIPTION_NOT_FOUND`,
    /// `EVENT_NOT_FOUND`; `REVISION_MISMATCH`; `TOKEN_MISMATCH`, `LEASE_LOST`: a claim is no
    /// longer held; `NAME_TAKEN`, `SUBSCRIPTION_ALREADY_EXISTS`, `EVENT_ALREADY_EXISTS`;
    /// `INVALID_FIELD`.
    pub async fn commit(&self, step: Step) -> Result<Committed, Error> {
        let Step { workflow, effects } = step;
        let expected = effects.expected_revision;
        let stored = self.saving.memory.get(&workflow.id);
        let base = stored.filter(|s| expected.is_none_or(|revision| revision == s.revision));
        if let Some(patch) = base.as_ref().and_then(|stored| stored.patch(&workflow)) {
            let revision = base.as_ref().map(|stored| stored.revision);
            let request = v1::CommitWorkflowRequest {
                state: Some(v1::commit_workflow_request::State::Patch(patch)),
                expected_revision: revision,
                ..effects.clone()
            };
            match self.commit_once(&workflow, request).await {
                Err(error) if self.falls_back(&error, expected.is_some()) => {}
                ended => return ended,
            }
        }
        let strict = self.saving.strict.then_some(base).flatten();
        let request = v1::CommitWorkflowRequest {
            state: Some(v1::commit_workflow_request::State::Instance(
                workflow.clone(),
            )),
            expected_revision: expected.or(strict.map(|stored| stored.revision)),
            // Another request than the patch that was refused.
            request_id: Uuid::new_v4().to_string(),
            ..effects
        };
        self.commit_once(&workflow, request).await
    }

    async fn commit_once(
        &self,
        workflow: &v1::WorkflowInstance,
        request: v1::CommitWorkflowRequest,
    ) -> Result<Committed, Error> {
        let answer = self
            .caller
            .call(
                Rpc::CommitWorkflow,
                || Ok(request.clone()),
                |request| {
                    let mut client = self.workflows.clone();
                    async move {
                        client
                            .commit_workflow(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await;
        match answer {
            Ok(answer) => {
                self.saving.memory.put(workflow, answer.revision);
                Ok(Committed {
                    revision: answer.revision,
                    subscription_ids: answer.subscription_ids,
                    event_ids: answer.event_ids,
                })
            }
            Err(error) => {
                self.saving.memory.forget(&workflow.id);
                Err(error.about(&workflow.id))
            }
        }
    }

    /// Whether the whole state is to be sent after a patch was refused.
    fn falls_back(&self, error: &Error, revision_given: bool) -> bool {
        if error.code() == Code::Unimplemented {
            self.saving.memory.disable();
            return true;
        }
        let raced = matches!(
            error.reason(),
            Some(ErrorReason::RevisionMismatch | ErrorReason::PointerNotFound)
        );
        raced && !self.saving.strict && !revision_given
    }

    /// A persist: as a patch where that can be, else as a whole.
    async fn save(
        &self,
        instance: &WorkflowInstance,
        subscriptions: Vec<v1::EventSubscription>,
    ) -> Result<(), Error> {
        let workflow = to_workflow(instance)?;
        let stored = self.saving.memory.get(&workflow.id);
        if let Some((stored, patch)) = stored
            .as_ref()
            .and_then(|stored| Some((stored, stored.patch(&workflow)?)))
        {
            let request = v1::CommitWorkflowRequest {
                state: Some(v1::commit_workflow_request::State::Patch(patch)),
                expected_revision: Some(stored.revision),
                create_subscriptions: subscriptions.clone(),
                request_id: Uuid::new_v4().to_string(),
                ..Default::default()
            };
            match self.commit_once(&workflow, request).await {
                Ok(_) => return Ok(()),
                Err(error) if self.falls_back(&error, false) => {}
                Err(error) => return Err(error),
            }
        }
        let strict = self.saving.strict.then_some(stored).flatten();
        let request = v1::PersistWorkflowWithSubscriptionsRequest {
            instance: Some(workflow),
            subscriptions,
            expected_revision: strict.map(|stored| stored.revision),
            request_id: Uuid::new_v4().to_string(),
        };
        let answer = if request.subscriptions.is_empty() {
            self.persist_alone(&request).await
        } else {
            self.persist_with_subscriptions(&request).await
        };
        let workflow = request.instance.unwrap_or_default();
        match answer {
            Ok(revision) => {
                self.saving.memory.put(&workflow, revision);
                Ok(())
            }
            Err(error) => {
                self.saving.memory.forget(&workflow.id);
                Err(error.about(&workflow.id))
            }
        }
    }

    async fn persist_alone(
        &self,
        request: &v1::PersistWorkflowWithSubscriptionsRequest,
    ) -> Result<i64, Error> {
        let build = || {
            Ok(v1::PersistWorkflowRequest {
                instance: request.instance.clone(),
                expected_revision: request.expected_revision,
                request_id: request.request_id.clone(),
            })
        };
        let answer = self
            .caller
            .call(Rpc::PersistWorkflow, build, |request| {
                let mut client = self.workflows.clone();
                async move {
                    client
                        .persist_workflow(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(answer.revision)
    }

    async fn persist_with_subscriptions(
        &self,
        request: &v1::PersistWorkflowWithSubscriptionsRequest,
    ) -> Result<i64, Error> {
        let build = || Ok(request.clone());
        let answer = self
            .caller
            .call(Rpc::PersistWorkflowWithSubscriptions, build, |request| {
                let mut client = self.workflows.clone();
                async move {
                    client
                        .persist_workflow_with_subscriptions(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(answer.revision)
    }

    async fn claim_commands(
        &self,
        as_of: DateTime<Utc>,
    ) -> Result<Vec<(ScheduledCommand, String)>, Error> {
        let build = || {
            Ok(v1::ClaimCommandsRequest {
                as_of: Some(to_time(as_of)),
                limit: self.claims.batch as i32,
                lease_duration: Some(self.claims.lease.try_into().map_err(|_| {
                    Error::local(Code::InvalidArgument, "the command lease is too long")
                })?),
                worker_id: self.claims.worker_id.clone(),
            })
        };
        self.caller
            .call(Rpc::ClaimCommands, build, |request| {
                let mut client = self.commands.clone();
                async move {
                    client
                        .claim_commands(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?
            .commands
            .into_iter()
            .map(|claimed| {
                let command = from_command(claimed.command.unwrap_or_default())?;
                Ok((command, claimed.lease_token))
            })
            .collect()
    }

    async fn complete_command(&self, lease_token: &str) -> Result<(), Error> {
        let build = || {
            Ok(v1::CompleteCommandsRequest {
                lease_tokens: vec![lease_token.into()],
            })
        };
        self.caller
            .call(Rpc::CompleteCommands, build, |request| {
                let mut client = self.commands.clone();
                async move {
                    client
                        .complete_commands(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map(|_| ())
    }

    async fn release_command(&self, lease_token: &str) -> Result<(), Error> {
        let build = || {
            Ok(v1::ReleaseCommandsRequest {
                lease_tokens: vec![lease_token.into()],
            })
        };
        self.caller
            .call(Rpc::ReleaseCommands, build, |request| {
                let mut client = self.commands.clone();
                async move {
                    client
                        .release_commands(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map(|_| ())
    }
}

impl fmt::Debug for GrpcPersistenceProvider {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcPersistenceProvider")
            .field("namespace", &self.caller.namespace)
            .finish_non_exhaustive()
    }
}

/// Reads all pages: `page` answers the items of one and the token of the next.
async fn all_pages<T, F>(mut page: impl FnMut(String) -> F) -> Result<Vec<T>, Error>
where
    F: Future<Output = Result<(Vec<T>, String), Error>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// The id, or a new one: the same for each attempt, so that the create can be repeated.
fn id_or_new(id: &str) -> String {
    if id.is_empty() {
        Uuid::new_v4().to_string()
    } else {
        id.to_string()
    }
}

/// Splits ids into runs that are small enough for one request.
fn runs_of_ids(ids: &[String]) -> Vec<&[String]> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (i, id) in ids.iter().enumerate() {
        bytes += id.len() + 4;
        if bytes > IDS_BYTES && i > start {
            runs.push(&ids[start..i]);
            start = i;
            bytes = id.len() + 4;
        }
    }
    if start < ids.len() {
        runs.push(&ids[start..]);
    }
    runs
}

#[async_trait]
impl WorkflowRepository for GrpcPersistenceProvider {
    /// Stores a new workflow; answers its id, a new UUID if it had none.
    ///
    /// # Errors
    ///
    /// `Persistence` with `WORKFLOW_ALREADY_EXISTS`, `NAME_TAKEN`, `INVALID_FIELD`, …
    async fn create_new_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<String> {
        let id = id_or_new(&instance.id);
        let build = || {
            let mut message = to_workflow(instance)?;
            message.id.clone_from(&id);
            Ok(v1::CreateNewWorkflowRequest {
                instance: Some(message),
            })
        };
        let answer = self
            .caller
            .call(Rpc::CreateNewWorkflow, build, |request| {
                let mut client = self.workflows.clone();
                async move {
                    client
                        .create_new_workflow(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        let mut message = to_workflow(instance)?;
        message.id.clone_from(&answer.id);
        message.name.clone_from(&answer.name);
        self.saving.memory.put(&message, answer.revision);
        Ok(answer.id)
    }

    /// Replaces the stored state; the last writer wins.
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`; `Persistence` with `NAME_TAKEN`, `INVALID_FIELD`, …
    async fn persist_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<()> {
        Ok(self.save(instance, Vec::new()).await?)
    }

    /// Replaces the stored state and stores the subscriptions, all or nothing.
    ///
    /// # Errors
    ///
    /// Those of `persist_workflow`; `Persistence` with `SUBSCRIPTION_ALREADY_EXISTS`.
    async fn persist_workflow_with_subscriptions(
        &self,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> wfe_core::Result<()> {
        let subscriptions = subscriptions
            .iter()
            .map(|subscription| {
                let mut message = to_subscription(subscription)?;
                message.id = id_or_new(&subscription.id);
                Ok(message)
            })
            .collect::<Result<_, Error>>()?;
        Ok(self.save(instance, subscriptions).await?)
    }

    /// All workflows that are to be run by then, soonest first.
    async fn get_runnable_instances(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let build = || {
                Ok(v1::GetRunnableInstancesRequest {
                    as_at: Some(to_time(as_at)),
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                })
            };
            let answer = self
                .caller
                .call(Rpc::GetRunnableInstances, build, |request| {
                    let mut client = self.workflows.clone();
                    async move {
                        client
                            .get_runnable_instances(request)
                            .await
                            .map(Response::into_inner)
                    }
                })
                .await?;
            Ok((answer.instance_ids, answer.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// One workflow, in one consistent state.
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`.
    async fn get_workflow_instance(&self, id: &str) -> wfe_core::Result<WorkflowInstance> {
        let answer = self
            .caller
            .call(
                Rpc::GetWorkflowInstance,
                || {
                    Ok(v1::GetWorkflowInstanceRequest {
                        id: id.into(),
                        ..Default::default()
                    })
                },
                |request| {
                    let mut client = self.workflows.clone();
                    async move {
                        client
                            .get_workflow_instance(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
            .map_err(|error| error.about(id))?;
        Ok(self.loaded(answer.instance.unwrap_or_default())?)
    }

    /// One workflow, found by its name.
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`, with the name.
    async fn get_workflow_instance_by_name(
        &self,
        name: &str,
    ) -> wfe_core::Result<WorkflowInstance> {
        let answer = self
            .caller
            .call(
                Rpc::GetWorkflowInstanceByName,
                || {
                    Ok(v1::GetWorkflowInstanceByNameRequest {
                        name: name.into(),
                        ..Default::default()
                    })
                },
                |request| {
                    let mut client = self.workflows.clone();
                    async move {
                        client
                            .get_workflow_instance_by_name(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
            .map_err(|error| error.about(name))?;
        Ok(self.loaded(answer.instance.unwrap_or_default())?)
    }

    /// The workflows of these ids that exist, in the order asked.
    async fn get_workflow_instances(
        &self,
        ids: &[String],
    ) -> wfe_core::Result<Vec<WorkflowInstance>> {
        let mut all = Vec::with_capacity(ids.len());
        for run in runs_of_ids(ids) {
            all.extend(self.workflows_of(run).await?);
        }
        Ok(all)
    }

    /// The next number of a definition, from 1 on. After a lost answer a number may be
    /// skipped, but none is ever given twice.
    async fn next_definition_sequence(&self, definition_id: &str) -> wfe_core::Result<u64> {
        let build = || {
            Ok(v1::NextDefinitionSequenceRequest {
                definition_id: definition_id.into(),
            })
        };
        let answer = self
            .caller
            .call(Rpc::NextDefinitionSequence, build, |request| {
                let mut client = self.workflows.clone();
                async move {
                    client
                        .next_definition_sequence(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        u64::try_from(answer.number).map_err(|_| {
            let text = format!("the server answered the number {}", answer.number);
            Error::local(Code::Internal, text).into()
        })
    }
}

#[async_trait]
impl EventRepository for GrpcPersistenceProvider {
    /// Stores a new event; answers its id, a new UUID if it had none.
    ///
    /// # Errors
    ///
    /// `Persistence` with `EVENT_ALREADY_EXISTS`, `INVALID_FIELD`, …
    async fn create_event(&self, event: &Event) -> wfe_core::Result<String> {
        let id = id_or_new(&event.id);
        let build = || {
            let mut message = to_event(event);
            message.id.clone_from(&id);
            Ok(v1::CreateEventRequest {
                event: Some(message),
            })
        };
        let answer = self
            .caller
            .call(Rpc::CreateEvent, build, |request| {
                let mut client = self.events.clone();
                async move { client.create_event(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(answer.id)
    }

    /// One event.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn get_event(&self, id: &str) -> wfe_core::Result<Event> {
        let answer = self
            .caller
            .call(
                Rpc::GetEvent,
                || Ok(v1::GetEventRequest { id: id.into() }),
                |request| {
                    let mut client = self.events.clone();
                    async move { client.get_event(request).await.map(Response::into_inner) }
                },
            )
            .await
            .map_err(|error| error.about(id))?;
        Ok(from_event(answer.event.unwrap_or_default())?)
    }

    /// All unprocessed events up to that time, oldest first.
    async fn get_runnable_events(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let build = || {
                Ok(v1::GetRunnableEventsRequest {
                    as_at: Some(to_time(as_at)),
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                })
            };
            let answer = self
                .caller
                .call(Rpc::GetRunnableEvents, build, |request| {
                    let mut client = self.events.clone();
                    async move {
                        client
                            .get_runnable_events(request)
                            .await
                            .map(Response::into_inner)
                    }
                })
                .await?;
            Ok((answer.event_ids, answer.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// All events of a name and key up to that time, processed or not, oldest first.
    async fn get_events(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let build = || {
                Ok(v1::GetEventsRequest {
                    event_name: event_name.into(),
                    event_key: event_key.into(),
                    as_of: Some(to_time(as_of)),
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                })
            };
            let answer = self
                .caller
                .call(Rpc::GetEvents, build, |request| {
                    let mut client = self.events.clone();
                    async move { client.get_events(request).await.map(Response::into_inner) }
                })
                .await?;
            Ok((answer.event_ids, answer.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// Marks an event as processed.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn mark_event_processed(&self, id: &str) -> wfe_core::Result<()> {
        self.caller
            .call(
                Rpc::MarkEventProcessed,
                || Ok(v1::MarkEventProcessedRequest { id: id.into() }),
                |request| {
                    let mut client = self.events.clone();
                    async move {
                        client
                            .mark_event_processed(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
            .map_err(|error| error.about(id))?;
        Ok(())
    }

    /// Marks an event as not processed, so that it is handed out again.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn mark_event_unprocessed(&self, id: &str) -> wfe_core::Result<()> {
        self.caller
            .call(
                Rpc::MarkEventUnprocessed,
                || Ok(v1::MarkEventUnprocessedRequest { id: id.into() }),
                |request| {
                    let mut client = self.events.clone();
                    async move {
                        client
                            .mark_event_unprocessed(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await
            .map_err(|error| error.about(id))?;
        Ok(())
    }
}

#[async_trait]
impl SubscriptionRepository for GrpcPersistenceProvider {
    /// Stores a new subscription; answers its id, a new UUID if it had none.
    ///
    /// # Errors
    ///
    /// `Persistence` with `SUBSCRIPTION_ALREADY_EXISTS`, `INVALID_FIELD`, …
    async fn create_event_subscription(
        &self,
        subscription: &EventSubscription,
    ) -> wfe_core::Result<String> {
        let id = id_or_new(&subscription.id);
        let build = || {
            let mut message = to_subscription(subscription)?;
            message.id.clone_from(&id);
            Ok(v1::CreateEventSubscriptionRequest {
                subscription: Some(message),
            })
        };
        let answer = self
            .caller
            .call(Rpc::CreateEventSubscription, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .create_event_subscription(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(answer.id)
    }

    /// All open subscriptions of a name and key that count events from that time or
    /// earlier on, oldest first.
    async fn get_subscriptions(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<EventSubscription>> {
        let messages = all_pages(|page_token| async move {
            let build = || {
                Ok(v1::GetSubscriptionsRequest {
                    event_name: event_name.into(),
                    event_key: event_key.into(),
                    as_of: Some(to_time(as_of)),
                    page_size: PAGE_SIZE,
                    page_token: page_token.clone(),
                })
            };
            let answer = self
                .caller
                .call(Rpc::GetSubscriptions, build, |request| {
                    let mut client = self.subscriptions.clone();
                    async move {
                        client
                            .get_subscriptions(request)
                            .await
                            .map(Response::into_inner)
                    }
                })
                .await?;
            Ok((answer.subscriptions, answer.next_page_token))
        })
        .await?;
        messages
            .into_iter()
            .map(|message| Ok(from_subscription(message)?))
            .collect()
    }

    /// Removes a subscription.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`.
    async fn terminate_subscription(&self, subscription_id: &str) -> wfe_core::Result<()> {
        let build = || {
            Ok(v1::TerminateSubscriptionRequest {
                id: subscription_id.into(),
                ..Default::default()
            })
        };
        self.caller
            .call(Rpc::TerminateSubscription, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .terminate_subscription(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(())
    }

    /// One subscription, open or held.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`.
    async fn get_subscription(&self, subscription_id: &str) -> wfe_core::Result<EventSubscription> {
        let build = || {
            Ok(v1::GetSubscriptionRequest {
                id: subscription_id.into(),
            })
        };
        let answer = self
            .caller
            .call(Rpc::GetSubscription, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .get_subscription(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(from_subscription(answer.subscription.unwrap_or_default())?)
    }

    /// The oldest open subscription of a name and key, if there is one.
    async fn get_first_open_subscription(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Option<EventSubscription>> {
        let build = || {
            Ok(v1::GetFirstOpenSubscriptionRequest {
                event_name: event_name.into(),
                event_key: event_key.into(),
                as_of: Some(to_time(as_of)),
            })
        };
        let answer = self
            .caller
            .call(Rpc::GetFirstOpenSubscription, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .get_first_open_subscription(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(answer.subscription.map(from_subscription).transpose()?)
    }

    /// Takes hold of a subscription until `expiry`, by the database's clock; true if it
    /// was open, or held with the same token and worker already.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`; `Persistence` with `INVALID_FIELD` if the expiry has
    /// passed.
    async fn set_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
        worker_id: &str,
        expiry: DateTime<Utc>,
    ) -> wfe_core::Result<bool> {
        let build = || {
            Ok(v1::SetSubscriptionTokenRequest {
                id: subscription_id.into(),
                token: token.into(),
                worker_id: worker_id.into(),
                expiry: Some(to_time(expiry)),
                ..Default::default()
            })
        };
        let answer = self
            .caller
            .call(Rpc::SetSubscriptionToken, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .set_subscription_token(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(answer.acquired)
    }

    /// Lets go of a subscription.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`; `Persistence` with `TOKEN_MISMATCH` if it is not held
    /// with this token.
    async fn clear_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
    ) -> wfe_core::Result<()> {
        let build = || {
            Ok(v1::ClearSubscriptionTokenRequest {
                id: subscription_id.into(),
                token: token.into(),
                ..Default::default()
            })
        };
        self.caller
            .call(Rpc::ClearSubscriptionToken, build, |request| {
                let mut client = self.subscriptions.clone();
                async move {
                    client
                        .clear_subscription_token(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(())
    }
}

#[async_trait]
impl ScheduledCommandRepository for GrpcPersistenceProvider {
    /// What the server said when connecting; true after `connect_lazy`.
    fn supports_scheduled_commands(&self) -> bool {
        self.scheduled_commands
    }

    /// Schedules a command, or gives it a new time if it is scheduled already.
    async fn schedule_command(&self, command: &ScheduledCommand) -> wfe_core::Result<()> {
        let build = || {
            Ok(v1::ScheduleCommandRequest {
                command: Some(to_command(command)),
            })
        };
        self.caller
            .call(Rpc::ScheduleCommand, build, |request| {
                let mut client = self.commands.clone();
                async move {
                    client
                        .schedule_command(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(())
    }

    /// Handles every command that is due by then, soonest first, one after the other;
    /// each is held by this host alone while it is handled, and removed right after.
    ///
    /// A command whose handler fails does not hold up the rest: it is given back at the
    /// end, for the next round. So is one that was scheduled again while it was handled.
    /// A command may be handled twice: if this host dies, or handling it takes longer
    /// than [`Builder::command_lease`].
    ///
    /// # Errors
    ///
    /// The first error of a handler, or of the store.
    async fn process_commands(
        &self,
        as_of: DateTime<Utc>,
        handler: &(dyn Fn(ScheduledCommand) -> Pin<Box<dyn Future<Output = wfe_core::Result<()>> + Send>>
              + Send
              + Sync),
    ) -> wfe_core::Result<()> {
        let mut first_error = None;
        // No command is handled twice in a round: those that failed or were scheduled
        // again are held until its end, so that they are not handed out in between.
        let mut handled: HashSet<(i32, String)> = HashSet::new();
        let mut held: HashSet<(i32, String)> = HashSet::new();
        let mut to_release: Vec<String> = Vec::new();
        loop {
            let lease_end = Instant::now() + self.claims.lease;
            let claimed = match self.claim_commands(as_of).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    first_error.get_or_insert(error.into());
                    break;
                }
            };
            let more_may_be_due = claimed.len() >= self.claims.batch as usize;
            let mut new = 0;
            let mut lost_hold = false;
            for (command, lease_token) in claimed {
                let key = (to_command(&command).command_name, command.data.clone());
                if handled.contains(&key) {
                    lost_hold |= !held.insert(key);
                    to_release.push(lease_token);
                    continue;
                }
                // Past its lease a command may be somebody else's by now.
                if new > 0 && Instant::now() >= lease_end {
                    continue;
                }
                new += 1;
                handled.insert(key.clone());
                let result = match handler(command).await {
                    Ok(()) => self
                        .complete_command(&lease_token)
                        .await
                        .map_err(wfe_core::WfeError::from),
                    Err(error) => {
                        held.insert(key);
                        to_release.push(lease_token);
                        Err(error)
                    }
                };
                if let Err(error) = result {
                    first_error.get_or_insert(error);
                }
            }
            // A lost hold comes again and again, if leases are shorter than the round.
            if new == 0 && (!more_may_be_due || lost_hold) {
                break;
            }
        }
        for lease_token in to_release {
            // If that fails, the lease ends by itself.
            let _ = self.release_command(&lease_token).await;
        }
        first_error.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl PersistenceProvider for GrpcPersistenceProvider {
    /// Adds errors to the log, all or none.
    async fn persist_errors(&self, errors: &[ExecutionError]) -> wfe_core::Result<()> {
        if errors.is_empty() {
            return Ok(());
        }
        let build = || {
            Ok(v1::PersistErrorsRequest {
                errors: errors.iter().map(to_execution_error).collect(),
            })
        };
        self.caller
            .call(Rpc::PersistErrors, build, |request| {
                let mut client = self.store.clone();
                async move {
                    client
                        .persist_errors(request)
                        .await
                        .map(Response::into_inner)
                }
            })
            .await?;
        Ok(())
    }

    /// Creates the store, or brings it up to date.
    ///
    /// # Errors
    ///
    /// `Persistence` with `SCHEMA_TOO_NEW`, `DATABASE_PERMISSION_DENIED`,
    /// `NAMESPACE_NOT_FOUND`, …
    async fn ensure_store_exists(&self) -> wfe_core::Result<()> {
        self.caller
            .call(
                Rpc::EnsureStoreExists,
                || Ok(v1::EnsureStoreExistsRequest {}),
                |request| {
                    let mut client = self.store.clone();
                    async move {
                        client
                            .ensure_store_exists(request)
                            .await
                            .map(Response::into_inner)
                    }
                },
            )
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_split_into_runs_without_loss() {
        assert!(runs_of_ids(&[]).is_empty());
        let ids: Vec<String> = (0..5000).map(|i| format!("{i:0500}")).collect();
        let runs = runs_of_ids(&ids);
        assert!(runs.len() > 1);
        for run in &runs {
            assert!(run.iter().map(String::len).sum::<usize>() <= IDS_BYTES);
        }
        assert_eq!(runs.concat(), ids);
        let long = vec!["x".repeat(2 * IDS_BYTES); 2];
        assert_eq!(runs_of_ids(&long).len(), 2);
    }
}
