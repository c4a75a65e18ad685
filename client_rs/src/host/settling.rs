//! What becomes of items in the end, and of the queues in the beginning.

use std::sync::Arc;

use wfe_core::models::QueueType;

use super::handling::{Held, Task};
use super::queue::Ahead;
use super::Inner;
use crate::error::Result;
use crate::provider::GrpcPersistenceProvider;
use crate::v1::{self, QueueKind};

impl Inner {
    /// The task is done with the item before.
    pub(super) fn finish(self: &Arc<Self>, queue: QueueType, task: Task) -> Option<Held> {
        let mut handling = self.handling();
        if queue == QueueType::Workflow {
            self.release_soon(handling.let_children_go(task));
        }
        handling.finish(queue, task)
    }

    pub(super) fn settle_soon(self: &Arc<Self>, items: Vec<Held>) {
        if items.iter().any(Held::is_open) {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.settle(items).await });
        }
    }

    /// Settles items whose tasks take no more.
    pub(super) async fn settle(&self, items: Vec<Held>) {
        let mut acknowledge = Vec::new();
        let mut return_items = Vec::new();
        for held in items {
            held.settle(&mut acknowledge, &mut return_items);
        }
        // What fails comes back when its lease expires.
        for mut one in acknowledge {
            let (index, receipt) = self.place.untag(&one.receipt);
            one.receipt = receipt;
            let acknowledge = vec![one];
            let _ = self.place.members()[index]
                .call(&v1::AcknowledgeRequest { acknowledge })
                .await;
        }
        for mut one in return_items {
            let (index, receipt) = self.place.untag(&one.receipt);
            one.receipt = receipt;
            let return_items = vec![one];
            let _ = self.place.members()[index]
                .call(&v1::ReturnItemsRequest { return_items })
                .await;
        }
    }

    /// Moves the item of a workflow to the workflow's member: somebody has enqueued it elsewhere, and
    /// a step is one transaction.
    pub(super) async fn put_right(&self, item: v1::DequeuedItem) -> Result<()> {
        let id = item.item.unwrap_or_default().id;
        let items = vec![self.item(QueueType::Workflow, &id)];
        let home = &self.place.members()[self.place.of_workflow(&id)];
        home.call(&v1::EnqueueRequest { items }).await?;
        let (index, receipt) = self.place.untag(&item.receipt);
        let acknowledge = vec![v1::Acknowledgement {
            receipt,
            confirmed: false,
        }];
        let request = v1::AcknowledgeRequest { acknowledge };
        self.place.members()[index].call(&request).await?;
        Ok(())
    }

    pub(super) async fn stop(self: &Arc<Self>) {
        {
            let mut handling = self.handling();
            handling.is_stopped = true;
            // What was taken ahead is given back.
            handling.ahead = Ahead::default();
        }
        self.settle_if_stopped();
        self.flush().await;
    }

    /// After `stop`, nobody takes the next item, which would settle the one before.
    pub(super) fn settle_if_stopped(self: &Arc<Self>) {
        let (left, tokens) = {
            let mut handling = self.handling();
            if !handling.is_stopped {
                return;
            }
            handling.left_over(self.settings.lease)
        };
        self.release_soon(tokens);
        self.settle_soon(left);
    }

    /// Says what the items of the queues stand for, unless that is known: an acknowledgement can
    /// only be confirmed then. How often an item is tried is left as it is.
    pub(super) async fn configure(&self, member: &GrpcPersistenceProvider) -> Result<()> {
        let kinds = [
            (QueueType::Workflow, QueueKind::Workflow),
            (QueueType::Event, QueueKind::Event),
        ];
        let request = v1::GetQueueStatsRequest {
            queues: kinds.map(|(queue, _)| self.queue_name(queue)).into(),
            ..Default::default()
        };
        let known = member.call(&request).await?.queues;
        for (queue, kind) in kinds {
            let name = self.queue_name(queue);
            let stats = known.iter().find(|stats| stats.queue == name);
            if stats.is_some_and(|stats| stats.kind() == kind) {
                continue;
            }
            let request = v1::ConfigureQueueRequest {
                queue: name,
                kind: kind.into(),
                max_attempts: stats.map_or(0, |stats| stats.max_attempts),
            };
            member.call(&request).await?;
        }
        Ok(())
    }
}
