//! What is imported has names that the store takes and values that stood there; an error is one line and quotes none.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use secretfs::cli::import::{Imported, ImportError, parse_env, parse_json};


fuzz_target!(|bytes: &[u8]| {
    let origin = Path::new("input");
    if let Some(imported) = checked(parse_env(origin, bytes)) {
        // Written plainly, it is the same again.
        let mut plain = Vec::new();
        for (name, value) in &imported {
            if value.expose().contains(&b'\'') {
                return;
            }
            plain.extend_from_slice(name.as_str().as_bytes());
            plain.extend_from_slice(b"='");
            plain.extend_from_slice(value.expose());
            plain.extend_from_slice(b"'\n");
        }
        same(imported, checked(parse_env(origin, &plain)));
    }
    if let Some(imported) = checked(parse_json(origin, bytes)) {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).unwrap();
        assert_eq!(object.len(), imported.len());
        for (name, value) in &imported {
            if let serde_json::Value::String(text) = &object[name.as_str()] {
                assert_eq!(value.expose(), text.as_bytes());
            }
        }
    }
});

fn checked(parsed: Result<Imported, ImportError>) -> Option<Imported> {
    match parsed {
        Ok(imported) => {
            assert!(imported.is_sorted_by(|one, other| one.0 < other.0));
            Some(imported)
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.starts_with("input"), "{line}");
            None
        }
    }
}

fn same(one: Imported, other: Option<Imported>) {
    let other = other.expect("what was written plainly");
    assert_eq!(one.len(), other.len());
    for ((name, value), (other_name, other_value)) in one.iter().zip(&other) {
        assert_eq!((name, value.expose()), (other_name, other_value.expose()));
    }
}
