//! A reference prints as it may be written, and is a place below its backend.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secretfs::backend::Reference;

fuzz_target!(|text: &str| {
    let reference = match text.parse::<Reference>() {
        Ok(reference) => reference,
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            return;
        }
    };
    let printed = reference.to_string();
    assert_eq!(printed.parse::<Reference>().as_ref(), Ok(&reference), "{printed}");
    assert!(!printed.chars().any(char::is_control));
    assert!(!reference.path.is_empty() && !reference.path.starts_with('/'));
    for part in reference.path.split('/') {
        assert!(part != "." && part != "..");
    }
    assert_ne!(reference.field.as_deref(), Some(""));
    let name = reference.backend.as_str();
    assert!(text.starts_with(name) && text[name.len()..].starts_with(':'));
});
