//! What is kept for a start without a network: what is read is what was written, and everything else is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secretfs::cache::legacy::Legacy;
use secretfs::secret::SecretBytes;

fuzz_target!(|input: &[u8]| {
    let Ok(legacy) = Legacy::parse(&SecretBytes::new(input.to_vec())) else {
        return;
    };
    let mut written = Vec::new();
    legacy.write(&mut written).unwrap();
    let again = Legacy::parse(&SecretBytes::new(written)).unwrap();
    assert_eq!(again.lists, legacy.lists);
    assert_eq!(again.records.len(), legacy.records.len());
    for ((one, value), (other, same)) in again.records.iter().zip(&legacy.records) {
        assert_eq!(one, other);
        assert_eq!(value.expose(), same.expose());
    }
});
