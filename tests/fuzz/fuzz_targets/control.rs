//! The control protocol: what is read was written by somebody who could have, and nothing of it is quoted in an error.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use secretfs::control::batch;
use secretfs::control::protocol::{
    Failure, Header, Hello, MAX_REQUEST, Part, Reply, parse, parse_header,
};
use secretfs::control::wire::{Wire, WireError};
use secretfs::secret::SecretBytes;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let line = &bytes[..end];
    match parse_header(line) {
        Ok(header) => {
            assert!(header.body <= header.request.max_body());
            same(&header, |line| parse_header(line));
            let Header { body, .. } = header;
            frames(bytes, body);
        }
        Err(failure) => {
            one_line(&failure);
            frames(bytes, bytes.len() / 2);
        }
    }
    match batch::unpack(&SecretBytes::new(bytes.to_vec())) {
        Ok(values) => assert!(batch::pack(&values).is_ok()),
        Err(failure) => one_line(&failure),
    }
    if let Ok(reply) = parse::<Reply>(line) {
        // A number may be printed with fewer digits than it was written with, once.
        let printed = serde_json::to_vec(&reply).unwrap();
        let reply = parse::<Reply>(&printed).unwrap();
        assert_eq!(serde_json::to_vec(&reply).unwrap(), printed);
    }
    if let Ok(part) = parse::<Part>(line) {
        same(&part, |line| parse(line));
    }
    if let Ok(hello) = parse::<Hello>(line) {
        same(&hello, |line| parse(line));
    }
});

fn same<T: PartialEq + std::fmt::Debug + serde::Serialize>(
    value: &T,
    parse: impl Fn(&[u8]) -> Result<T, Failure>,
) {
    let printed = serde_json::to_vec(value).unwrap();
    assert_eq!(parse(&printed).as_ref(), Ok(value));
}

fn one_line(failure: &Failure) {
    assert!(!failure.message.is_empty() && !failure.message.contains(['\n', '\r']));
}

/// A line, its body and the next line come out of a stream as they went in.
fn frames(bytes: &[u8], body: usize) {
    const LIMIT: Duration = Duration::from_secs(10);
    RUNTIME.block_on(async {
        let mut wire = Wire::new(Cursor::new(bytes.to_vec()), MAX_REQUEST);
        let mut rest = bytes;
        let first = wire.line(LIMIT).await;
        if !line_is(first, &mut rest) {
            return;
        }
        match wire.bytes(body, LIMIT).await {
            Ok(read) => {
                assert_eq!(read, rest[..body]);
                rest = &rest[body..];
            }
            Err(error) => {
                assert!(
                    matches!(error, WireError::Closed | WireError::Broken(_)) && rest.len() < body
                );
                return;
            }
        }
        let next = wire.line(LIMIT).await;
        line_is(next, &mut rest);
    });
}

fn line_is(read: Result<Vec<u8>, WireError>, rest: &mut &[u8]) -> bool {
    let end = rest.iter().position(|byte| *byte == b'\n');
    match (read, end) {
        (Ok(line), Some(end)) => {
            assert!(line == rest[..end] && end <= MAX_REQUEST);
            *rest = &rest[end + 1..];
            true
        }
        (Ok(_), None) => panic!("a line without an end"),
        (Err(WireError::Long(_)), end) => {
            assert!(end.unwrap_or(rest.len()) > MAX_REQUEST);
            false
        }
        (Err(error), end) => {
            assert!(matches!(error, WireError::Closed | WireError::Broken(_)) && end.is_none());
            false
        }
    }
}
