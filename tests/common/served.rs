//! A tree with backends that do as they are told, on a real mount, served by the test itself.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "it is part of tests")]

use std::path::PathBuf;
use std::sync::Arc;

use nix::mount::{MntFlags, umount2};
use secretfs::clock::Clock;
use secretfs::fuse::Session;
use secretfs::keeper::mountpoint::Mountpoint;
use tokio::runtime::{Builder, Runtime};

use crate::common::daemon::{Daemon, Setup};
use crate::common::mounts::{abort, connection};
use crate::world::World;

pub struct Served {
    pub world: World,
    session: Option<Session>,
    runtime: Runtime,
    /// Lends its folder and its watchdog, and does not run.
    pub folder: Daemon,
}

#[allow(dead_code, reason = "each test uses its part")]
impl Served {
    /// As [`World::new`]; `writable` if names change through a mount of the server's own, as they do for root.
    #[track_caller]
    pub fn start(a: &[(&str, &str)], b: &[(&str, &str)], services: &str, writable: bool) -> Self {
        let world = || World::unattached(a, b, services, Clock::manual());
        Self::start_world(world, writable)
    }

    /// The same with time that passes.
    #[track_caller]
    pub fn start_in_time(b: &[(&str, &str)], services: &str) -> Self {
        Self::start_world(
            || World::unattached(&[], b, services, Clock::default()),
            true,
        )
    }

    #[track_caller]
    fn start_world(world: impl FnOnce() -> World, writable: bool) -> Self {
        let folder = Setup::default().prepare();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let inside = runtime.enter();
        let world = world();
        let place = Mountpoint::new(&folder.mountpoint(), &folder.at("config.toml"));
        let mounted = place.mount().unwrap();
        let through = mounted.writable.filter(|_| writable);
        let tree = Arc::clone(&world.tree);
        let session = Session::start(tree, (mounted.device, through), runtime.handle().clone());
        drop(inside);
        Self {
            world,
            session: Some(session.unwrap()),
            runtime,
            folder,
        }
    }

    /// Where the tree's tasks run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub fn path(&self, secret: &str) -> PathBuf {
        self.folder.path(secret)
    }

    /// A change that is announced. When it returns, whoever watches has heard of it or cannot hear of it yet.
    pub fn put(&self, place: &str, value: &str) {
        self.runtime.block_on(self.world.put(place, value));
    }

    /// How many requests wait for an answer.
    pub fn waiting(&self) -> usize {
        let mounts = self.folder.mounts();
        let mounted = mounts.last().unwrap();
        let waiting = connection(mounted.device).join("waiting");
        let text = std::fs::read_to_string(waiting).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        abort(&self.folder.mountpoint());
        let _ = umount2(&self.folder.mountpoint(), MntFlags::MNT_DETACH);
        if let Some(session) = self.session.take() {
            let _ = session.wait();
        }
    }
}
