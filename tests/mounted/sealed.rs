//! An identity that somebody has to open by hand is opened once.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use secretfs::backend::store::{Identity, Prompt};
use secretfs::clock::Clock;
use secretfs::secret::SecretBytes;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{eventually, run};

const PASSPHRASE: &str = "canary-of-the-passphrase";
const VALUE: &[u8] = b"what the passphrase guards";

/// Starts its arguments on a terminal of their own and types the passphrase there, once. SIGTERM is passed on.
const TYPIST: &str = r#"
import os, pty, signal, sys, termios, time
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[2], sys.argv[2:])
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
seen, typed = b"", False
while True:
    try:
        said = os.read(terminal, 4096)
    except OSError:
        break
    if not said:
        break
    seen += said
    sys.stderr.write(said.decode(errors="replace"))
    if b"Passphrase" in seen and not typed:
        typed = True
        # As a person would: not before the terminal has stopped showing what is typed.
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, sys.argv[1].encode() + b"\n")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

fn prepare(wrapped: &[&str]) -> Daemon {
    let setup = Setup {
        services: "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 4001 }]\n",
        values: &[("a/x", VALUE)],
        wrapped,
        ..Setup::default()
    };
    let daemon = setup.prepare();
    let file = daemon.at("identity.txt");
    let passphrase = SecretBytes::new(PASSPHRASE.as_bytes().to_vec());
    let identity = Identity::load(&file, &Prompt::nobody()).unwrap();
    let sealed = identity.to_sealed_text(&passphrase, Clock::default().timestamp());
    fs::write(&file, sealed.unwrap()).unwrap();
    daemon
}

#[test]
fn a_passphrase_is_asked_for_once_also_when_the_server_is_started_again() {
    needs!();
    let mut daemon = prepare(&["python3", "-c", TYPIST, PASSPHRASE]);
    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));

    kill(daemon.server(), Signal::SIGKILL).unwrap();
    let again = eventually(Duration::from_secs(8), || {
        reader.cat(&daemon.path("a/x")).as_deref() == Ok(VALUE)
    });
    assert!(again, "no read works: {}", daemon.log());
    assert_eq!(daemon.log().matches("Passphrase").count(), 1);
    assert!(!daemon.log().contains(PASSPHRASE));
    daemon.stop();
}

#[test]
fn without_a_terminal_a_sealed_identity_is_refused_in_one_line() {
    needs!();
    let daemon = prepare(&["setsid", "--wait"]);
    let refused = run(&mut daemon.command(&["mount"]), b"");
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("identity.txt"), "{refused:?}");
    assert_eq!(daemon.mounts(), []);
}
