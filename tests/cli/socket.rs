//! The same commands through a control socket: the program finds a daemon there and touches no store itself.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use secretfs::backend::store::Prompt;
use secretfs::caller::procfs::Procfs;
use secretfs::clock::Clock;
use secretfs::config::Config;
use secretfs::control::server::{self, Limits};
use secretfs::{keeper, run};

use crate::Demo;

/// Serves the demo's config without a mount, under the identity's authority, while `act` runs.
fn served(act: impl FnOnce(&Demo)) {
    let demo = Demo::new();
    let clock = Clock::default();
    let config = Config::load(&demo.path("config.toml")).unwrap();
    fs::create_dir_all(&config.runtime).unwrap();
    let lock = keeper::runtime::lock(&config.runtime, &clock).unwrap();
    let listener = UnixListener::bind(demo.path("run/control.sock")).unwrap();
    let runtime = run::runtime().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = {
        let _context = runtime.enter();
        let handler = run::direct(&config, &Prompt::nobody(), &clock).unwrap();
        let lookup = Arc::new(Procfs::default());
        runtime.spawn(server::serve(
            listener,
            Arc::new(handler),
            lookup,
            Limits::default(),
            async {
                drop(ended.await);
            },
        ))
    };
    act(&demo);
    drop(end);
    runtime.block_on(serving).unwrap().unwrap();
    drop(lock);
}

#[test]
fn values_and_copies_go_through_the_socket() {
    served(|demo| {
        let largest: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        demo.put("billing/large", &largest);
        assert_eq!(demo.get("billing/large"), largest);
        demo.put("billing/pw", b"one");
        demo.run(&["get", "billing/none"]).failed(3, "billing/none");

        fs::write(demo.path("env"), "A=1\nB=2\n").unwrap();
        demo.run(&["import", "web", "--env", &demo.arg("env")])
            .done();
        let listed = demo.run(&["ls"]).done();
        assert_eq!(listed.text(), "billing/large\nbilling/pw\nweb/A\nweb/B\n");

        let copy = demo.arg("backup.age");
        demo.run(&["export", &copy]).done();
        assert!(fs::metadata(&copy).unwrap().len() > 1 << 20);
        demo.put("billing/pw", b"two");
        demo.run(&["restore", &copy]).failed(1, "--replace");
        demo.run(&["restore", &copy, "--replace"]).done();
        assert_eq!(demo.get("billing/pw"), b"one");
        assert_eq!(demo.get("billing/large"), largest);

        fs::write(demo.path("no.age"), vec![7; 1 << 20]).unwrap();
        demo.run(&["restore", &demo.arg("no.age"), "--replace"])
            .failed(1, "restored");
        demo.run(&["rekey"]).done();
        assert_eq!(demo.get("billing/pw"), b"one");
        demo.run(&["doctor", "--repair"])
            .failed(1, "secretfs unmount");

        let log = demo.run(&["audit", "--secret", "billing/pw"]).done();
        assert!(log.text().lines().count() >= 4, "{}", log.text());
    });
}

#[test]
fn forty_writers_at_once_share_one_daemon() {
    served(|demo| {
        std::thread::scope(|scope| {
            for n in 0..40 {
                scope.spawn(move || demo.put(&format!("many/n{n}"), format!("{n}").as_bytes()));
            }
        });
        assert_eq!(demo.run(&["ls", "many"]).done().text().lines().count(), 40);
    });
}
