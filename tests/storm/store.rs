//! The same readers below the real daemon, whose store is put to as fast as it can.

use std::path::Path;

use secretfs::clock::Clock;
use secretfs::control::SOCKET;
use secretfs::control::client::{Client, Upload};
use secretfs::control::protocol::Request;
use secretfs::secret::SecretBytes;

use crate::common::daemon::Daemon;
use crate::common::machine::needs;
use crate::readers::{Readers, SECRETS};
use crate::rotation::{SERVICES, said};
use crate::values::value;
use crate::{alone, seconds};

#[test]
fn as_many_puts_as_the_store_can_take_below_32_readers() {
    needs!();
    let _alone = alone();
    let first = value(1);
    let services = SERVICES.replace("b:s", "local:s");
    let values = [("s/checked", first.as_slice()), ("s/cached", &first)];
    let daemon = Daemon::start(&services, &values);
    let readers = Readers::start(&daemon.mountpoint(), daemon.at("numbers"), |from, name| {
        daemon.bind(from, name)
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (clock, numbers) = (Clock::default(), readers.numbers());
    let start = clock.now();
    let mut number = 1;
    while clock.now() - start < seconds() {
        number += 1;
        for (secret, name) in SECRETS.into_iter().enumerate() {
            let socket = daemon.at("run").join(SOCKET);
            runtime.block_on(put(&socket, &format!("s/{name}"), value(number)));
            numbers.acknowledge(secret, number);
        }
    }
    let (reads, wrong) = readers.end();
    let puts = 2 * (number - 1);
    eprintln!("with the store: {}", said(puts, reads, clock.now() - start));
    assert_eq!(wrong, Vec::<String>::new());
    assert!(reads > 1000, "{reads} reads");
}

/// As the command does it.
async fn put(socket: &Path, path: &str, value: Vec<u8>) {
    let client = Client::connect(socket).await.unwrap();
    let path = path.parse().unwrap();
    let upload = Upload::Value(SecretBytes::new(value));
    let mut client = client.expect("the daemon listens");
    let (request, mut progress) = (Request::Put { path }, |_: _| Ok(()));
    let put = client.call(&request, upload, &mut progress);
    put.await.unwrap();
}
