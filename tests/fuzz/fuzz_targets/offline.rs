//! What is kept for a start without a network: what is read is what was written, and everything else is refused.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use secretfs::cache::legacy::Legacy;
use secretfs::secret::{SealedMemory, SecretBytes};

fuzz_target!(|input: &[u8]| {
    static MEMORY: LazyLock<Arc<SealedMemory>> = LazyLock::new(|| SealedMemory::new().unwrap());
    let parse = |bytes: &[u8]| Legacy::parse(&SecretBytes::new(bytes.to_vec()), &MEMORY);
    let Ok(legacy) = parse(input) else {
        return;
    };
    let mut written = Vec::new();
    legacy.write(&mut written).unwrap();
    let again = parse(&written).unwrap();
    assert_eq!(again.lists, legacy.lists);
    assert_eq!(again.records.len(), legacy.records.len());
    for ((one, value), (other, same)) in again.records.iter().zip(&legacy.records) {
        assert_eq!(one, other);
        assert!(value.same(same));
    }
});
