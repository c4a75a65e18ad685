//! The bearer token of a provider: where it comes from, and where it may go.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Uri;

use crate::error::Error;

/// Returns the current value of the metadata `authorization`; asked before each attempt.
pub(crate) type Authorization = Arc<dyn Fn() -> Result<MetadataValue<Ascii>, Error> + Send + Sync>;

/// The same token for every call.
pub(crate) fn constant(token: &str) -> Result<Authorization, Error> {
    let value = authorization(token)?;
    Ok(Arc::new(move || Ok(value.clone())))
}

/// The content of a file, which is read before each attempt: a token takes a page at most. While
/// it cannot be read, as in the middle of its replacement, the last token stays in use.
pub(crate) fn file(path: PathBuf) -> Result<Authorization, Error> {
    let last = Mutex::new(read(&path)?);
    Ok(Arc::new(move || {
        let mut last = last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Ok(value) = read(&path) {
            *last = value;
        }
        Ok(last.clone())
    }))
}

/// What a function of the application returns.
pub(crate) fn function<F, E>(function: F) -> Authorization
where
    F: Fn() -> Result<String, E> + Send + Sync + 'static,
    E: std::fmt::Display,
{
    Arc::new(move || match function() {
        Ok(token) => authorization(&token),
        Err(error) => Err(Error::invalid(format!("there is no bearer token: {error}"))),
    })
}

fn read(path: &Path) -> Result<MetadataValue<Ascii>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::invalid(format!(
            "the token file {} cannot be read: {error}",
            path.display()
        ))
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::invalid(format!(
            "the token file {} is empty",
            path.display()
        )));
    }
    authorization(token)
}

fn authorization(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    // The token itself is not shown.
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| {
        Error::invalid("the bearer token contains characters that are not allowed in metadata")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether nobody on a network can read what is sent to this address.
pub(crate) fn is_private(address: &str) -> bool {
    if address.starts_with("unix:") || address.starts_with("https://") {
        return true;
    }
    let Ok(uri) = address.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private() {
        for (address, private) in [
            ("https://store.example:1", true),
            ("unix:/run/wfe.sock", true),
            ("http://localhost:1", true),
            ("http://127.0.0.2:1", true),
            ("http://[::1]:1", true),
            ("http://store.example:1", false),
            ("http://10.0.0.1:1", false),
            ("http://[2001:db8::1]:1", false),
            ("http://127.0.0.1.example:1", false),
            ("http://127.0.0.1@store.example:1", false),
        ] {
            assert_eq!(is_private(address), private, "{address}");
        }
    }

    #[test]
    fn a_file_is_read_again_and_its_last_token_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(file(path.clone()).is_err());
        std::fs::write(&path, " \n").unwrap();
        assert!(file(path.clone()).is_err());
        std::fs::write(&path, "one\n").unwrap();
        let current = file(path.clone()).unwrap();
        assert_eq!(current().unwrap(), "Bearer one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(current().unwrap(), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(current().unwrap(), "Bearer two");
    }
}
