//! [`Objects`]: an object store as the place of a tile store: S3 and alike, through the crate `object_store`.
//!
//! An object appears whole or not at all, by the promise of every such store, so a `put` is one request and there are no
//! drafts. The requests run on a runtime of this store's own, on one thread; the caller's thread waits.

use std::io::{self, ErrorKind};
use std::sync::{Arc, mpsc};

use dd_core::Tier;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::runtime::{Builder, Runtime};

use super::medium::Medium;
use super::options::ZarrOptions;
use super::store::ZarrTileStore;
use crate::error::{Error, Result};

/// An object store and a prefix in it. See the [module](self).
struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// There until this is dropped.
    runtime: Option<Runtime>,
}

impl ZarrTileStore {
    /// The store in an object store, below a prefix such as `maps/terrain` (or none), whose description is written where
    /// nothing is below it yet. [`ZarrOptions::flush`] means nothing here.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over_objects(store: Arc<dyn ObjectStore>, prefix: &str, options: ZarrOptions) -> Result<Self> {
        let place = format!("{store}/{prefix}");
        let failed = |error: io::Error| Error::store("open", "", &place, error);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
        let objects = Objects { store, prefix: prefix.trim_matches('/').to_owned(), runtime: Some(runtime) };
        let fresh = objects.is_empty().map_err(failed)?;
        Self::over(Box::new(objects), options, fresh)
    }
}

impl Objects {
    fn path(&self, name: &str) -> io::Result<Path> {
        let path = match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        };
        let path = path.trim_end_matches('/');
        Path::parse(path).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
    }

    /// Runs one request to its end, on the runtime's thread: the caller's may belong to another runtime.
    fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let runtime = self.runtime.as_ref().ok_or_else(|| io::Error::other("the store is being dropped"))?;
        let (give, take) = mpsc::sync_channel(1);
        runtime.spawn(async move { give.send(request.await) });
        take.recv().map_err(io::Error::other)?.map_err(named)
    }

    fn is_empty(&self) -> io::Result<bool> {
        let (store, path) = (Arc::clone(&self.store), self.path("")?);
        self.run(async move {
            let found = store.list_with_delimiter(Some(&path)).await?;
            Ok(found.objects.is_empty() && found.common_prefixes.is_empty())
        })
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // Waiting is forbidden where a caller's runtime drops this.
        }
    }
}

impl Medium for Objects {
    fn place(&self) -> String {
        format!("{}/{}", self.store, self.prefix)
    }

    fn tier(&self) -> Tier {
        Tier::Remote
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let (store, path) = (Arc::clone(&self.store), self.path(name)?);
        let read = self.run(async move {
            let found = store.get(&path).await?;
            match found.meta.size {
                size if size > most => Ok(Err(size)),
                _ => Ok(Ok(found.bytes().await?)),
            }
        });
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(size)) => {
                let what = format!("it has {size} B, at most {most} B were ever written");
                Err(io::Error::new(ErrorKind::InvalidData, what))
            }
        }
    }

    fn write(&self, name: &str, bytes: Vec<u8>, replace: bool) -> io::Result<bool> {
        let (store, path) = (Arc::clone(&self.store), self.path(name)?);
        let mode = if replace { PutMode::Overwrite } else { PutMode::Create };
        let written = self.run(async move {
            let options = PutOptions { mode, ..PutOptions::default() };
            store.put_opts(&path, bytes.into(), options).await
        });
        match written {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|_| true),
        }
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        let (store, path) = (Arc::clone(&self.store), self.path(name)?);
        match self.run(async move { store.head(&path).await }) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(|meta| Some(meta.size)),
        }
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(&str, u64) -> bool) -> io::Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder)?);
        let found = self.run(async move { store.list_with_delimiter(Some(&path)).await })?;
        for object in found.objects {
            if let Some(name) = object.location.filename()
                && !visit(name, object.size)
            {
                break;
            }
        }
        Ok(())
    }

    fn folders(&self) -> io::Result<Vec<String>> {
        let (store, path) = (Arc::clone(&self.store), self.path("")?);
        let found = self.run(async move { store.list_with_delimiter(Some(&path)).await })?;
        let folders = found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
        Ok(folders.collect())
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        let there = self.length(name)?.is_some(); // Most stores do not say whether there was one.
        let (store, path) = (Arc::clone(&self.store), self.path(name)?);
        match self.run(async move { store.delete(&path).await }) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            other => other.map(|()| there),
        }
    }

    fn remove_folder(&self, _folder: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(()) // A request that was answered is kept.
    }
}

/// What an object store said, by the name that the system has for it.
fn named(error: object_store::Error) -> io::Error {
    let full = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
        .find(|kind| {
            matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        });
    let kind = full.unwrap_or(match error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            ErrorKind::AlreadyExists
        }
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            ErrorKind::PermissionDenied
        }
        _ => ErrorKind::Other,
    });
    io::Error::new(kind, error)
}
