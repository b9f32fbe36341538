//! What is read from /proc is what stands there: a unit is a component of the path, a container an id in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secretfs::caller::procfs::{parse_cgroup, parse_groups};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(groups) = parse_groups(bytes) {
        let text = std::str::from_utf8(bytes).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Groups:"));
        let line = lines.next().unwrap();
        assert_eq!(lines.next(), None);
        let numbers: Vec<u32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(groups.iter().map(|gid| gid.0).collect::<Vec<_>>(), numbers);
    }
    let Ok(cgroup) = parse_cgroup(bytes) else {
        return;
    };
    let text = std::str::from_utf8(bytes).unwrap();
    let mut parts = text.lines().flat_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/'));
    if let Some(unit) = &cgroup.unit {
        assert!(unit.ends_with(".service") || unit.ends_with(".scope"));
        assert!(parts.any(|part| part == unit || part.strip_prefix('_') == Some(unit)), "{unit}");
    }
    if let Some(container) = &cgroup.container {
        assert_eq!(container.len(), 64);
        assert!(container.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'a'..=b'f')));
        assert!(text.contains(container.as_str()));
        // Below a service nobody but that service decides what things are called.
        if let Some(unit) = &cgroup.unit {
            assert!(unit.ends_with(".scope") && unit.contains(container.as_str()));
        }
    }
});
