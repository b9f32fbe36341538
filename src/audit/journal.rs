//! The log as messages to systemd's journal, by its native protocol: one datagram of `KEY=value` lines each.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// What the lines are found by again: `journalctl -t secretfs -o cat`.
const FIELDS: &[u8] = b"SYSLOG_IDENTIFIER=secretfs\nPRIORITY=6\nMESSAGE=";

/// How long journald may take to make room.
const DEADLINE: Duration = Duration::from_secs(2);

/// A connection to the journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let connection = UnixDatagram::unbound()?;
        connection.set_write_timeout(Some(DEADLINE))?;
        connection.connect(socket)?;
        Ok(Self(connection))
    }

    /// Sends one line with its newline, which ends the field too: JSON has none inside.
    pub(super) fn send(&self, line: &[u8]) -> io::Result<()> {
        let message = [FIELDS, line].concat();
        self.0.send(&message).map(|_| ())
    }
}
