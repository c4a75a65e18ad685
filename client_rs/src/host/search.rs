//! Search, over the stored workflows themselves: there is no index beside them that could be out
//! of date.

use std::cmp::Reverse;

use async_trait::async_trait;
use wfe_core::models::{WorkflowInstance, WorkflowStatus};
use wfe_core::traits::search::{Page, SearchFilter, SearchIndex, WorkflowSearchResult};

use super::GrpcHost;
use crate::convert::{from_workflow, to_time, to_workflow_status};
use crate::error::{Error, Result};
use crate::provider::{GrpcPersistenceProvider, PAGE_SIZE};
use crate::v1;

#[async_trait]
impl SearchIndex for GrpcHost {
    /// Does nothing: what is stored can be found.
    async fn index_workflow(&self, _: &WorkflowInstance) -> wfe_core::Result<()> {
        Ok(())
    }

    /// Finds workflows that match all filters, the ones created last first, and counts them.
    ///
    /// - `terms` must be empty: the server has no full-text search.
    /// - A date range is one of `create_time` or `complete_time`, from `after` (included) to
    ///   `before` (excluded). Of each, one.
    /// - A reference is compared as a whole; of several different ones, or several statuses, no
    ///   workflow has all.
    /// - To skip workflows, they are read; so `skip` should not be large.
    /// - The page and the total are not read in one snapshot.
    ///
    /// # Errors
    ///
    /// `Persistence` for terms, other fields, and a second range of the same field.
    async fn search(
        &self,
        terms: &str,
        skip: u64,
        take: u64,
        filters: &[SearchFilter],
    ) -> wfe_core::Result<Page<WorkflowSearchResult>> {
        if !terms.trim().is_empty() {
            return Err(Error::invalid("search terms are not supported, only filters").into());
        }
        let Some(filter) = to_filter(filters)? else {
            return Ok(Page {
                data: Vec::new(),
                total: 0,
            });
        };
        Ok(self.find(filter, skip, take).await?)
    }

    /// Need not be called.
    async fn start(&self) -> wfe_core::Result<()> {
        Ok(())
    }

    /// Does nothing.
    async fn stop(&self) -> wfe_core::Result<()> {
        Ok(())
    }
}

impl GrpcHost {
    async fn find(
        &self,
        filter: v1::WorkflowFilter,
        skip: u64,
        take: u64,
    ) -> Result<Page<WorkflowSearchResult>> {
        // What is skipped of several lists is known only when they have been merged.
        let members = self.0.place.members();
        let (skip_there, skip) = if members.len() == 1 {
            (skip, 0)
        } else {
            (0, skip)
        };
        let most = skip.saturating_add(take);
        let mut total = 0;
        let mut found = Vec::new();
        for member in members {
            let request = v1::CountWorkflowsRequest {
                filter: Some(filter.clone()),
            };
            let counts = member.call(&request).await?.counts;
            total += counts.iter().map(|c| c.count).sum::<i64>();
            if take > 0 {
                found.extend(list(member, &filter, skip_there, most).await?);
            }
        }
        // In the order of the server's lists, which a single one has already.
        found.sort_by_key(|one: &v1::WorkflowInstance| {
            let time = one.create_time.unwrap_or_default();
            Reverse((time.seconds, time.nanos, one.id.clone()))
        });
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let take = usize::try_from(take).unwrap_or(usize::MAX);
        let page = found.into_iter().skip(skip).take(take);
        Ok(Page {
            data: page
                .map(|message| Ok(to_result(from_workflow(message)?)))
                .collect::<Result<_>>()?,
            total: u64::try_from(total).unwrap_or_default(),
        })
    }
}

/// Workflows of a namespace that match, the ones created last first.
async fn list(
    member: &GrpcPersistenceProvider,
    filter: &v1::WorkflowFilter,
    mut skip: u64,
    most: u64,
) -> Result<Vec<v1::WorkflowInstance>> {
    let mut request = v1::ListWorkflowsRequest {
        filter: Some(filter.clone()),
        order: v1::ListOrder::NewestFirst.into(),
        view: v1::WorkflowView::Header.into(),
        page_size: i32::try_from(skip.saturating_add(most))
            .unwrap_or(PAGE_SIZE)
            .clamp(1, PAGE_SIZE),
        page_token: String::new(),
    };
    let mut found = Vec::new();
    while (found.len() as u64) < most {
        let response = member.call(&request).await?;
        for message in response.instances {
            if skip > 0 {
                skip -= 1;
            } else if (found.len() as u64) < most {
                found.push(message);
            }
        }
        if response.next_page_token.is_empty() {
            break;
        }
        request.page_token = response.next_page_token;
    }
    Ok(found)
}

fn to_result(workflow: WorkflowInstance) -> WorkflowSearchResult {
    WorkflowSearchResult {
        id: workflow.id,
        workflow_definition_id: workflow.workflow_definition_id,
        version: workflow.version,
        status: workflow.status,
        reference: workflow.reference,
        description: workflow.description,
    }
}

/// All filters as one; `None` if nothing can match.
fn to_filter(filters: &[SearchFilter]) -> Result<Option<v1::WorkflowFilter>> {
    let mut all = v1::WorkflowFilter::default();
    let mut status: Option<WorkflowStatus> = None;
    for filter in filters {
        match filter {
            SearchFilter::Status(wanted) => {
                if status.is_some_and(|status| status != *wanted) {
                    return Ok(None);
                }
                status = Some(*wanted);
                all.statuses = vec![to_workflow_status(*wanted).into()];
            }
            SearchFilter::Reference(wanted) => {
                if all.reference.as_ref().is_some_and(|known| known != wanted) {
                    return Ok(None);
                }
                all.reference = Some(wanted.clone());
            }
            SearchFilter::DateRange {
                field,
                before,
                after,
            } => {
                let (from, to) = match field.as_str() {
                    "create_time" => (&mut all.create_time_from, &mut all.create_time_before),
                    "complete_time" => (&mut all.complete_time_from, &mut all.complete_time_before),
                    _ => {
                        return Err(Error::invalid(format!(
                            "no search by {field:?}, only by create_time and complete_time"
                        )))
                    }
                };
                if from.is_some() || to.is_some() {
                    return Err(Error::invalid(format!("a second range of {field}")));
                }
                *from = after.map(to_time);
                *to = before.map(to_time);
            }
        }
    }
    Ok(Some(all))
}
