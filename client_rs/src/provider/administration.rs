//! What operators and tests need beyond the engine's traits: the store, the error log,
//! namespaces.

use wfe_core::models::ExecutionError;

use super::{all_pages, GrpcPersistenceProvider, PAGE_SIZE};
use crate::convert::from_execution_error;
use crate::error::Error;
use crate::v1;

impl GrpcPersistenceProvider {
    /// Returns the versions and capabilities of the server and its store.
    ///
    /// # Errors
    ///
    /// The server cannot be reached; the namespace does not exist.
    pub async fn store_info(&self) -> Result<v1::GetStoreInfoResponse, Error> {
        self.call(&v1::GetStoreInfoRequest {}).await
    }

    /// Returns all logged errors, those of one workflow or (`None`) of all, the most recently
    /// logged first.
    ///
    /// # Errors
    ///
    /// The server cannot be reached; the id is longer than 512 bytes.
    pub async fn list_errors(
        &self,
        workflow_id: Option<&str>,
    ) -> Result<Vec<ExecutionError>, Error> {
        all_pages(|page_token| async move {
            let request = v1::ListErrorsRequest {
                workflow_id: workflow_id.unwrap_or_default().into(),
                page_size: PAGE_SIZE,
                page_token,
                ..Default::default()
            };
            let response = self.call(&request).await?;
            Ok((response.errors, response.next_page_token))
        })
        .await?
        .into_iter()
        .map(from_execution_error)
        .collect()
    }

    /// Empties the store, including the definition sequences; for tests.
    ///
    /// # Errors
    ///
    /// `TRUNCATE_NOT_ALLOWED` unless the server was started with `--allow-truncate`.
    pub async fn truncate_all(&self) -> Result<(), Error> {
        self.call(&v1::TruncateAllRequest {}).await?;
        Ok(())
    }

    /// Creates a namespace, a separate store for [`Builder::namespace`](crate::Builder::namespace),
    /// or migrates it to the server's version. The namespace of this provider does not matter.
    ///
    /// # Errors
    ///
    /// `INVALID_FIELD` if the name does not match `[a-z][a-z0-9_]{0,39}`;
    /// `CREATE_NAMESPACE_NOT_ALLOWED` if the server was started without
    /// `--allow-create-namespace`; `STORE_NOT_OWNED` if its schema contains the store of other
    /// servers; `TOO_MANY_NAMESPACES`; `SCHEMA_TOO_NEW`; `DATABASE_PERMISSION_DENIED`.
    pub async fn create_namespace(&self, name: &str) -> Result<(), Error> {
        let request = v1::CreateNamespaceRequest {
            name: name.into(),
            ..Default::default()
        };
        self.call(&request).await?;
        Ok(())
    }

    /// Creates a namespace set with so many members, for ever, or finishes a creation that was
    /// interrupted; see [`Builder::connect_set`](crate::Builder::connect_set).
    ///
    /// # Errors
    ///
    /// `NAMESPACE_SET_EXISTS`: with another number of members; `NAMESPACE_NOT_EMPTY`: a member
    /// existed before, with data; `NAMESPACE_SET_INCOMPLETE`: it is being deleted; those of
    /// `create_namespace`.
    pub async fn create_namespace_set(
        &self,
        name: &str,
        members: u32,
    ) -> Result<v1::NamespaceSet, Error> {
        let request = v1::CreateNamespaceSetRequest {
            name: name.into(),
            members: i32::try_from(members).unwrap_or(i32::MAX),
            ..Default::default()
        };
        Ok(self.call(&request).await?.namespace_set.unwrap_or_default())
    }

    /// Deletes a namespace set with its members; with `force`, even if they are not empty.
    ///
    /// # Errors
    ///
    /// `NAMESPACE_SET_NOT_FOUND`; `NAMESPACE_NOT_EMPTY`; those of `delete_namespace`.
    pub async fn delete_namespace_set(&self, name: &str, force: bool) -> Result<(), Error> {
        let request = v1::DeleteNamespaceSetRequest {
            name: name.into(),
            force,
        };
        self.call(&request).await?;
        Ok(())
    }

    /// Returns the databases in which namespaces live, `home` first.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or is older than this.
    pub async fn list_databases(&self) -> Result<Vec<v1::Database>, Error> {
        let response = self.call(&v1::ListDatabasesRequest {}).await?;
        Ok(response.databases)
    }

    /// Returns all namespaces of the server, `default` first.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub async fn list_namespaces(&self) -> Result<Vec<v1::Namespace>, Error> {
        all_pages(|page_token| async move {
            let request = v1::ListNamespacesRequest {
                page_size: PAGE_SIZE,
                page_token,
            };
            let response = self.call(&request).await?;
            Ok((response.namespaces, response.next_page_token))
        })
        .await
    }

    /// Deletes a namespace; with `force`, even if it is not empty.
    ///
    /// # Errors
    ///
    /// `DELETE_NAMESPACE_NOT_ALLOWED` unless the server was started with
    /// `--allow-delete-namespace`; `NAMESPACE_NOT_EMPTY`; `NAMESPACE_NOT_FOUND`, also if it
    /// belongs to other servers; `STORE_NOT_OWNED` if it is older than the record of its owner.
    pub async fn delete_namespace(&self, name: &str, force: bool) -> Result<(), Error> {
        let request = v1::DeleteNamespaceRequest {
            name: name.into(),
            force,
        };
        self.call(&request).await?;
        Ok(())
    }
}
