//! The trait that combines the repositories: the error log, and the store as a whole.

use async_trait::async_trait;
use wfe_core::models::ExecutionError;
use wfe_core::traits::PersistenceProvider;

use super::GrpcPersistenceProvider;
use crate::convert::to_execution_error;
use crate::v1;

#[async_trait]
impl PersistenceProvider for GrpcPersistenceProvider {
    /// Appends errors to the log, all or none.
    async fn persist_errors(&self, errors: &[ExecutionError]) -> wfe_core::Result<()> {
        if errors.is_empty() {
            return Ok(());
        }
        let request = v1::PersistErrorsRequest {
            errors: errors.iter().map(to_execution_error).collect(),
        };
        self.call(&request).await?;
        Ok(())
    }

    /// Creates the store, or migrates it to the server's version.
    ///
    /// # Errors
    ///
    /// `Persistence` with `SCHEMA_TOO_NEW`, `DATABASE_PERMISSION_DENIED`,
    /// `NAMESPACE_NOT_FOUND`, …
    async fn ensure_store_exists(&self) -> wfe_core::Result<()> {
        self.call(&v1::EnsureStoreExistsRequest {}).await?;
        Ok(())
    }
}
