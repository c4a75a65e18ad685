//! Scheduled commands.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::time::Instant;
use wfe_core::models::ScheduledCommand;
use wfe_core::traits::ScheduledCommandRepository;

use super::GrpcPersistenceProvider;
use crate::convert::{from_command, to_command, to_time};
use crate::error::{Error, Result};
use crate::v1;

impl GrpcPersistenceProvider {
    /// Claims a batch of due commands; returns each with its lease token.
    async fn claim_commands(
        &self,
        as_of: DateTime<Utc>,
    ) -> Result<Vec<(ScheduledCommand, String)>> {
        let lease = self.claims.lease.try_into();
        let request = v1::ClaimCommandsRequest {
            as_of: Some(to_time(as_of)),
            limit: self.claims.batch as i32,
            lease_duration: Some(
                lease.map_err(|_| Error::invalid("the command lease is too long"))?,
            ),
            worker_id: self.claims.worker_id.clone(),
            ..Default::default()
        };
        self.call(&request)
            .await?
            .commands
            .into_iter()
            .map(|claimed| {
                let command = from_command(claimed.command.unwrap_or_default())?;
                Ok((command, claimed.lease_token))
            })
            .collect()
    }

    async fn complete_command(&self, lease_token: String) -> Result<()> {
        let request = v1::CompleteCommandsRequest {
            lease_tokens: vec![lease_token],
        };
        self.call(&request).await?;
        Ok(())
    }

    async fn release_command(&self, lease_token: String) -> Result<()> {
        let request = v1::ReleaseCommandsRequest {
            lease_tokens: vec![lease_token],
        };
        self.call(&request).await?;
        Ok(())
    }
}

#[async_trait]
impl ScheduledCommandRepository for GrpcPersistenceProvider {
    /// What the server said when connecting; true after `connect_lazy`.
    fn supports_scheduled_commands(&self) -> bool {
        self.scheduled_commands
    }

    /// Schedules a command, or reschedules it if it is scheduled already.
    async fn schedule_command(&self, command: &ScheduledCommand) -> wfe_core::Result<()> {
        let request = v1::ScheduleCommandRequest {
            command: Some(to_command(command)),
        };
        self.call(&request).await?;
        Ok(())
    }

    /// Handles every command that is due at this time, soonest first, one after the other.
    /// Each is claimed under a lease while it is handled, and removed right after.
    ///
    /// A command whose handler fails does not hold up the others: it is released at the end,
    /// for the next round. So is one that was scheduled again while it was handled. A command
    /// is handled at least once; more than once if this host dies, or if handling it takes
    /// longer than [`Builder::command_lease`](crate::Builder::command_lease).
    ///
    /// # Errors
    ///
    /// The first error of a handler or of the store.
    async fn process_commands(
        &self,
        as_of: DateTime<Utc>,
        handler: &(dyn Fn(ScheduledCommand) -> Pin<Box<dyn Future<Output = wfe_core::Result<()>> + Send>>
              + Send
              + Sync),
    ) -> wfe_core::Result<()> {
        let mut first_error = None;
        // No command is handled twice in a round: those that failed or were scheduled again
        // stay claimed until its end, so that they are not claimed anew in between.
        let mut handled: HashSet<(i32, String)> = HashSet::new();
        let mut held: HashSet<(i32, String)> = HashSet::new();
        let mut to_release: Vec<String> = Vec::new();
        loop {
            let lease_expiry = Instant::now() + self.claims.lease;
            let claimed = match self.claim_commands(as_of).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    first_error.get_or_insert(error.into());
                    break;
                }
            };
            let more_may_be_due = claimed.len() >= self.claims.batch as usize;
            let mut new = 0;
            let mut lost_lease = false;
            for (command, lease_token) in claimed {
                let key = (to_command(&command).command_name, command.data.clone());
                if handled.contains(&key) {
                    lost_lease |= !held.insert(key);
                    to_release.push(lease_token);
                    continue;
                }
                // Once the lease has expired, another worker may have claimed the command.
                if new > 0 && Instant::now() >= lease_expiry {
                    continue;
                }
                new += 1;
                handled.insert(key.clone());
                let result = match handler(command).await {
                    Ok(()) => self.complete_command(lease_token).await.map_err(Into::into),
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
            // Commands whose lease was lost are claimed again and again if the lease is shorter
            // than the round.
            if new == 0 && (!more_may_be_due || lost_lease) {
                break;
            }
        }
        for lease_token in to_release {
            // If this fails, the lease expires.
            let _ = self.release_command(lease_token).await;
        }
        first_error.map_or(Ok(()), Err)
    }
}
