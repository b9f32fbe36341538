//! A field picked out of a record is what a JSON reader finds there, and an error quotes nothing of the record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secretfs::backend::{BackendError, field};
use secretfs::secret::SecretBytes;

fuzz_target!(|input: &[u8]| {
    // The field's name, a newline, the record.
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let Ok(name) = std::str::from_utf8(&input[..end]) else {
        return;
    };
    let bytes = &input[end..];
    let value = SecretBytes::new(bytes.to_vec());
    let picked = field(&value, name);
    let record: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(bytes).ok();
    match picked {
        Ok(picked) => {
            // Of members of one name serde_json keeps the last, the picker takes the first: compare only where there is one.
            let quoted = serde_json::to_string(name).unwrap();
            let text = std::str::from_utf8(bytes).unwrap();
            if let Some(record) = record
                && text.matches(quoted.as_str()).count() == 1
                && !text.contains('\\')
            {
                match &record[name] {
                    serde_json::Value::String(text) => assert_eq!(text.as_bytes(), picked.expose()),
                    other => {
                        let again: serde_json::Value = serde_json::from_slice(picked.expose()).unwrap();
                        assert_eq!(again, *other);
                    }
                }
            }
        }
        Err(BackendError::Absent(_)) => assert!(record.is_none_or(|record| !record.contains_key(name))),
        Err(BackendError::Unusable(why)) => {
            assert_eq!(why, format!("#{name}: the value is not a JSON object"));
        }
        Err(other) => panic!("{other}"),
    }
});
