//! Reads of whole objects, by those who know how long they can be.

use bytes::Bytes;

use super::{ErrorKind, ObjectPath, Provider, ProviderError};

/// Reads an object that is not longer than `longest` bytes. Of a longer one nothing is read: that is [`ErrorKind::Corrupt`].
///
/// # Errors
/// What the provider says; [`ErrorKind::NotFound`] where there is none.
pub async fn read_whole(provider: &dyn Provider, path: &ObjectPath, longest: u64) -> Result<Bytes, ProviderError> {
    let failed = |kind| ProviderError::new(kind, "get", provider.name(), path.as_str());
    match provider.head(path).await? {
        None => Err(failed(ErrorKind::NotFound)),
        Some(there) if there.size > longest => {
            let reason = format!("it has {} bytes, more than the {longest} that it can have", there.size);
            Err(failed(ErrorKind::Corrupt).with_source(reason))
        }
        Some(there) => provider.get(path, Some(0..there.size)).await,
    }
}

/// Whether an object that is there has exactly these bytes. However long it is, no more than that is read.
///
/// # Errors
/// What the provider says; [`ErrorKind::NotFound`] where there is none.
pub async fn holds(provider: &dyn Provider, path: &ObjectPath, body: &Bytes) -> Result<bool, ProviderError> {
    let length = body.len() as u64;
    match provider.head(path).await? {
        None => Err(ProviderError::new(ErrorKind::NotFound, "get", provider.name(), path.as_str())),
        Some(there) if there.size != length => Ok(false),
        Some(_) => Ok(provider.get(path, Some(0..length)).await? == *body),
    }
}
