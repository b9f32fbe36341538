//! Names: look-ups and listings. They never fetch a value, and ask no backend for who may read nothing.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};

use crate::cache::{Answer, Names};
use crate::caller::Caller;
use crate::fs::inodes::Hidden;
use crate::fs::node::View;
use crate::fs::{Attr, DirEntry, FsError, Kind, Reply, Tree};
use crate::secret::{Name, SecretPath};

/// The last listing of a service, and what it was made from.
#[derive(Debug)]
pub(super) struct Listing {
    names: Names,
    bound: Vec<Name>,
    superseded: u64,
    entries: Entries,
}

type Entries = Arc<Vec<DirEntry>>;

impl Tree {
    pub(super) fn look_up_service(
        self: &Arc<Self>,
        caller: Caller,
        name: &OsStr,
    ) -> Answer<Reply<Attr>> {
        let name = match parse(name) {
            Ok(name) => name,
            Err(error) => return Answer::Ready(Err(error)),
        };
        let catalogue = self.editions.current();
        if catalogue.has_service(&name) {
            return Answer::Ready(Ok(self.directory(self.inodes.service(&name))));
        }
        let Some(backend) = catalogue.defaults() else {
            return Answer::Ready(Err(FsError::Absent));
        };
        if !self.access.may_list_defaults(caller) {
            return Answer::Ready(Err(FsError::Denied));
        }
        let tree = Arc::clone(self);
        self.cache.folders(backend).map(move |folders| {
            let folders = folders.map_err(|error| FsError::from(&error))?;
            folders.binary_search(&name).map_err(|_| FsError::Absent)?;
            Ok(tree.directory(tree.inodes.service(&name)))
        })
    }

    pub(super) fn look_up_secret(
        self: &Arc<Self>,
        caller: Caller,
        service: Name,
        name: &OsStr,
    ) -> Answer<Reply<Attr>> {
        if !self.access.may_look_up(caller, &service) {
            return Answer::Ready(Err(FsError::Denied));
        }
        if let Some(hidden) = name.to_str().and_then(Hidden::named) {
            let ino = self.inodes.hidden(&service, hidden);
            return Answer::Ready(Ok(self.directory(ino)));
        }
        self.look_up_view(service, View::Current, name)
    }

    /// Looks a name up in a folder that no listing shows, for who may see into its service.
    pub(super) fn look_up_hidden(
        self: &Arc<Self>,
        caller: Caller,
        service: Name,
        hidden: &Hidden,
        name: &OsStr,
    ) -> Answer<Reply<Attr>> {
        if !self.access.may_look_up(caller, &service) {
            return Answer::Ready(Err(FsError::Denied));
        }
        match hidden {
            Hidden::Of(view) => self.look_up_view(service, view.clone(), name),
            Hidden::Versions => {
                let version = name.to_str().and_then(Hidden::version);
                let ino = version.map(|version| self.inodes.hidden(&service, version));
                let folder = ino.map(|ino| self.directory(ino));
                Answer::Ready(folder.ok_or(FsError::Absent))
            }
        }
    }

    fn look_up_view(
        self: &Arc<Self>,
        service: Name,
        view: View,
        name: &OsStr,
    ) -> Answer<Reply<Attr>> {
        let name = match parse(name) {
            Ok(name) => name,
            Err(error) => return Answer::Ready(Err(error)),
        };
        let catalogue = self.editions.current();
        let path = SecretPath { service, name };
        if catalogue.is_bound(&path) {
            return Answer::Ready(Ok(self.seen(&path, view)));
        }
        let Some(folder) = catalogue.folder(&path.service) else {
            return Answer::Ready(Err(FsError::Absent));
        };
        let tree = Arc::clone(self);
        self.cache
            .names(&folder.backend, &folder.folder)
            .map(move |names| {
                let names = names.map_err(|error| FsError::from(&error))?;
                names
                    .binary_search(&path.name)
                    .map_err(|_| FsError::Absent)?;
                Ok(tree.seen(&path, view))
            })
    }

    fn seen(&self, path: &SecretPath, view: View) -> Attr {
        let node = match view {
            View::Current => self.inodes.secret(path),
            view @ (View::Fresh | View::Previous | View::Version(_)) => {
                self.inodes.view(path, view)
            }
        };
        self.file(&node)
    }

    /// Whether there are services in a listing for this caller that have no section of their own.
    pub(super) fn sees_defaults(&self, caller: &Caller) -> bool {
        self.editions.current().defaults().is_some()
            && self.access.may_list_defaults(caller.clone())
    }

    /// The services, those of `[defaults]` among them or not.
    pub(super) fn all_services(self: &Arc<Self>, defaults: bool) -> Answer<Reply<Entries>> {
        let catalogue = self.editions.current();
        let mut services: Vec<Name> = catalogue.services().cloned().collect();
        let tree = Arc::clone(self);
        let entries = move |services: Vec<Name>| -> Entries {
            let entry = |name: Name| DirEntry {
                ino: tree.inodes.service(&name),
                kind: Kind::Directory,
                name,
            };
            Arc::new(services.into_iter().map(entry).collect())
        };
        match catalogue.defaults() {
            Some(backend) if defaults => self.cache.folders(backend).map(move |folders| {
                services.extend(
                    folders
                        .map_err(|error| FsError::from(&error))?
                        .iter()
                        .cloned(),
                );
                services.sort_unstable();
                services.dedup();
                Ok(entries(services))
            }),
            Some(_) | None => Answer::Ready(Ok(entries(services))),
        }
    }

    pub(super) fn list_secrets(
        self: &Arc<Self>,
        caller: Caller,
        service: Name,
    ) -> Answer<Reply<Entries>> {
        if !self.access.may_list(caller, &service) {
            return Answer::Ready(Ok(Arc::default()));
        }
        let catalogue = self.editions.current();
        let bound = catalogue.bound_names(&service);
        let Some(folder) = catalogue.folder(&service) else {
            return Answer::Ready(Ok(self.listing(service, bound, Names::default())));
        };
        let tree = Arc::clone(self);
        let listed = self.cache.names(&folder.backend, &folder.folder);
        listed.map(move |names| {
            let names = names.map_err(|error| FsError::from(&error))?;
            Ok(tree.listing(service, bound, names))
        })
    }

    /// The lines of a service's listing: the last ones, unless something has changed of what they were made from.
    fn listing(&self, service: Name, bound: Vec<Name>, names: Names) -> Entries {
        let superseded = self.inodes.superseded();
        let listings = || self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = listings().get(&service)
            && Arc::ptr_eq(&last.names, &names)
            && last.bound == bound
            && last.superseded == superseded
        {
            return Arc::clone(&last.entries);
        }
        let mut all: Vec<Name> = bound.iter().chain(names.iter()).cloned().collect();
        all.sort_unstable();
        all.dedup();
        let inos = self.inodes.secrets(&service, &all);
        let entry = |(ino, name)| DirEntry {
            ino,
            kind: Kind::File,
            name,
        };
        let entries = Arc::new(inos.into_iter().zip(all).map(entry).collect());
        let listing = Listing {
            names,
            bound,
            superseded,
            entries: Arc::clone(&entries),
        };
        listings().insert(service, listing);
        entries
    }
}

/// A path component as a name. What cannot be a name does not exist.
fn parse(name: &OsStr) -> Reply<Name> {
    if name.len() > Name::MAX {
        return Err(FsError::NameTooLong);
    }
    name.to_str()
        .and_then(|name| name.parse().ok())
        .ok_or(FsError::Absent)
}
