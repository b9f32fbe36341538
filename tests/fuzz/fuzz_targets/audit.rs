//! The audit log's reader: no log, however damaged, makes it fail, lie or print more than a line for a line.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use secretfs::audit::{Reader, Record};
use secretfs::secret::SecretBytes;

fuzz_target!(|bytes: &[u8]| {
    let key = SecretBytes::new(vec![7; 32]);
    for key in [None, Some(&key)] {
        let mut reader = Reader::stream(Cursor::new(bytes.to_vec()), key).unwrap();
        let mut lines = 0_u64;
        while let Some(line) = reader.read().unwrap() {
            lines += 1;
            let shown = line.record.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            let printed = serde_json::to_vec(&line.record).unwrap();
            let again: Record = serde_json::from_slice(&printed).unwrap();
            assert_eq!(again, line.record);
        }
        let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
        assert!(lines <= u64::try_from(ends).unwrap() + 1);
        let report = reader.report();
        assert_eq!(report.keyed, key.is_some());
    }
});
