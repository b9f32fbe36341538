//! What is sealed comes back, and only that; what is dropped is gone; whatever becomes of the memory or of who wrote to it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const CANARY: &[u8] = b"canary-7f3a-canary-7f3a-canary-7f3a";

fn wide(at: usize) -> u64 {
    u64::try_from(at).unwrap()
}

/// All that stands in the memory, with the places. It is not looked at through the mapping, which would make it take room.
fn raw(memory: &SealedMemory) -> Vec<(usize, Vec<u8>)> {
    let file = File::from(memory.memory.descriptor().try_clone().unwrap());
    let read = |range: Range<usize>| {
        let mut bytes = vec![0; range.len()];
        file.read_exact_at(&mut bytes, wide(range.start)).unwrap();
        (range.start, bytes)
    };
    memory
        .memory
        .held()
        .unwrap()
        .into_iter()
        .map(read)
        .collect()
}

fn holds(memory: &SealedMemory, bytes: &[u8]) -> bool {
    let parts = raw(memory);
    parts
        .iter()
        .any(|(_, part)| memchr::memmem::find(part, bytes).is_some())
}

/// How many bytes of the memory are not free.
fn taken(memory: &SealedMemory) -> usize {
    SharedMemory::SIZE - BLOCK - memory.free().total()
}

/// The memory as a server leaves it that dies at this moment.
fn left(memory: &SealedMemory) -> SharedMemory {
    let copy = SharedMemory::new().unwrap();
    for (at, bytes) in raw(memory) {
        copy.write(at, &bytes).unwrap();
    }
    copy
}

fn key_of(memory: &SealedMemory) -> SecretMemory {
    SecretMemory::map(memory.key.descriptor().try_clone().unwrap()).unwrap()
}

fn succeed(memory: SharedMemory, key: SecretMemory) -> (Arc<SealedMemory>, Survivors) {
    let descriptors = [memory.descriptor(), key.descriptor()];
    let [memory, key] = descriptors.map(|descriptor| descriptor.try_clone().unwrap());
    SealedMemory::take_over(memory, key).unwrap()
}

fn opened(left: &Survivors) -> Vec<(Kind, u64, Vec<u8>)> {
    let open = |(kind, sealed): &(Kind, Sealed)| {
        (
            *kind,
            sealed.number(),
            sealed.open().unwrap().expose().to_vec(),
        )
    };
    left.iter().map(open).collect()
}

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((at ^ (at >> 8)) % 251).unwrap())
        .collect()
}

/// Around the borders of blocks and chunks.
fn sizes() -> Vec<usize> {
    let borders = [0, 16, 32, BLOCK, 2 * BLOCK, CHUNK, 2 * CHUNK, 9 * CHUNK];
    let around = borders.iter().flat_map(|at| at.saturating_sub(2)..at + 3);
    around.chain([crate::secret::MAX_VALUE]).collect()
}

#[test]
fn every_size_comes_back_whole_and_in_parts() {
    let memory = SealedMemory::new().unwrap();
    let mut all = Vec::new();
    for size in sizes() {
        let bytes = pattern(size);
        let sealed = memory.seal(Kind::Value, &bytes).unwrap();
        assert_eq!((sealed.len(), sealed.is_empty()), (size, size == 0));
        all.push((sealed, bytes));
    }
    for (sealed, bytes) in &all {
        assert_eq!(sealed.open().unwrap().expose(), bytes);
        let offsets = [
            0,
            1,
            CHUNK - 1,
            CHUNK,
            bytes.len().saturating_sub(1),
            bytes.len(),
            usize::MAX,
        ];
        for offset in offsets {
            for size in [0, 1, CHUNK, CHUNK + 1, 8 * CHUNK, usize::MAX] {
                let start = offset.min(bytes.len());
                let size = size.min(Sealed::MAX_SHOWN);
                let end = start.saturating_add(size).min(bytes.len());
                let shown = sealed.show(offset, size, <[u8]>::to_vec).unwrap();
                assert!(
                    shown == bytes[start..end],
                    "{offset} {size} of {}",
                    bytes.len()
                );
            }
        }
    }
}

/// Whether the buffer of this thread has nothing in it.
fn is_blank() -> bool {
    let mut window = Window::open(Window::SIZE).unwrap();
    window.bytes().iter().all(|byte| *byte == 0)
}

#[test]
fn what_was_shown_is_wiped_from_the_buffer() {
    let memory = SealedMemory::new().unwrap();
    let sealed = memory.seal(Kind::Value, CANARY).unwrap();
    assert_eq!(sealed.show(0, 100, <[u8]>::to_vec).unwrap(), CANARY);
    assert!(is_blank());
    let panicked = std::panic::catch_unwind(|| sealed.show(0, 100, |_| panic!("on purpose")));
    assert!(panicked.is_err());
    assert!(is_blank());
    // Who shows one while another is shown has a buffer of his own.
    let both = sealed.show(0, 100, |outer| {
        sealed.show(1, 100, |inner| outer[1..] == *inner).unwrap()
    });
    assert!(both.unwrap());
}

#[test]
fn the_same_bytes_are_the_same_and_no_others() {
    let memory = SealedMemory::new().unwrap();
    let bytes = pattern(2 * CHUNK + 5);
    let sealed = memory.seal(Kind::Value, &bytes).unwrap();
    assert!(sealed.same(&sealed));
    assert!(sealed.same(&memory.seal(Kind::Note, &bytes).unwrap()));
    for at in [0, CHUNK, 2 * CHUNK + 4] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert!(!sealed.same(&memory.seal(Kind::Value, &other).unwrap()));
    }
    assert!(!sealed.same(&memory.seal(Kind::Value, &bytes[1..]).unwrap()));
    let mut turned = bytes.clone();
    let (first, rest) = turned.split_at_mut(CHUNK);
    first.swap_with_slice(&mut rest[..CHUNK]);
    assert!(!sealed.same(&memory.seal(Kind::Value, &turned).unwrap()));
    let [one, two] = [(); 2].map(|()| memory.seal(Kind::Value, b"").unwrap());
    assert!(one.same(&two));

    // The next server sees it, too.
    let (next, left) = succeed(super::tests::left(&memory), key_of(&memory));
    let [(_, left), _, _] = &left[..] else {
        panic!("{left:?}");
    };
    assert!(left.same(&next.seal(Kind::Value, &bytes).unwrap()));
    assert!(!left.same(&next.seal(Kind::Value, &turned).unwrap()));
}

#[test]
fn who_has_no_key_cannot_tell_whether_a_guess_is_right() {
    let [ours, theirs] = [(); 2].map(|()| SealedMemory::new().unwrap());
    let fingerprint = |memory: &Arc<SealedMemory>| {
        let sealed = memory.seal(Kind::Value, CANARY).unwrap();
        sealed.fingerprint
    };
    assert_eq!(fingerprint(&ours), fingerprint(&ours));
    assert_ne!(fingerprint(&ours), fingerprint(&theirs));
}

#[test]
fn to_compare_values_none_is_opened() {
    let memory = SealedMemory::new().unwrap();
    let sealed = memory.seal(Kind::Value, CANARY).unwrap();
    let other = memory.seal(Kind::Value, CANARY).unwrap();
    memory.memory.wipe(other.entry.range()).unwrap();
    assert_eq!(other.open().unwrap_err(), Broken);
    assert!(sealed.same(&other));
}

#[test]
fn nothing_of_a_value_is_in_the_memory_and_nothing_at_all_when_it_is_dropped() {
    let memory = SealedMemory::new().unwrap();
    let value = CANARY.repeat(2000);
    let sealed = memory.seal(Kind::Value, &value).unwrap();
    assert!(
        raw(&memory)
            .iter()
            .map(|(_, part)| part.len())
            .sum::<usize>()
            > value.len()
    );
    assert!(!holds(&memory, &CANARY[..8]));
    assert_eq!(format!("{sealed:?}"), "Sealed(redacted)");
    let page = memory.page;
    drop(sealed);
    let [(0, first)] = &raw(&memory)[..] else {
        panic!("pages are not given back");
    };
    assert_eq!(first.len(), page);
    assert!(first[BLOCK..].iter().all(|byte| *byte == 0));
    assert_eq!(taken(&memory), 0);
}

#[test]
fn a_search_would_find_what_is_in_the_memory() {
    let memory = SealedMemory::new().unwrap();
    memory.memory.write(5 * memory.page - 8, CANARY).unwrap();
    assert!(holds(&memory, CANARY));
}

#[test]
fn only_pages_that_nothing_is_left_on_are_given_back() {
    let memory = SealedMemory::new().unwrap();
    let seal = || memory.seal(Kind::Value, &[7; 1000]).unwrap();
    let mut all: Vec<Sealed> = (0..40).map(|_| seal()).collect();
    let pages = |memory: &SealedMemory| -> usize {
        raw(memory)
            .iter()
            .map(|(_, part)| part.len() / memory.page)
            .sum()
    };
    let full = pages(&memory);
    let kept = all.split_off(39);
    for (index, sealed) in all.into_iter().enumerate() {
        // First every other one, which leaves something on each page.
        if index % 2 == 0 {
            drop(sealed);
            assert_eq!(pages(&memory), full);
        } else {
            std::mem::forget(sealed);
        }
    }
    assert_eq!(kept[0].open().unwrap().expose(), [7; 1000]);
}

#[test]
fn when_it_is_full_something_has_to_go() {
    let memory = SealedMemory::new().unwrap();
    let large = vec![7; 8 << 20];
    let mut all: Vec<Sealed> =
        std::iter::from_fn(|| memory.seal(Kind::Note, &large).ok()).collect();
    assert_eq!(all.len(), SharedMemory::SIZE / large.len() - 1);
    assert!(memory.seal(Kind::Value, &large).is_err());
    drop(all.swap_remove(3));
    let again = memory.seal(Kind::Value, &large).unwrap();
    assert_eq!(again.open().unwrap().expose(), large);
    drop((all, again));
    assert_eq!(taken(&memory), 0);
}

#[test]
fn whoever_dies_while_sealing_leaves_all_of_it_or_nothing() {
    let memory = SealedMemory::new().unwrap();
    let before = memory.seal(Kind::Value, b"before").unwrap();
    let value = pattern(CHUNK + 100);
    let sealed = memory.seal(Kind::Value, &value).unwrap();
    let file = File::from(memory.memory.descriptor().try_clone().unwrap());
    let range = sealed.entry.range();
    let mut whole = vec![0; range.len()];
    file.read_exact_at(&mut whole, wide(range.start)).unwrap();
    // The first word comes last.
    let order: Vec<usize> = (8..whole.len()).step_by(8).chain([0]).collect();
    for written in (0..40)
        .chain((40..=order.len()).step_by(97))
        .chain([order.len() - 1, order.len()])
    {
        let torn = left(&memory);
        torn.wipe(range.clone()).unwrap();
        for at in &order[..written] {
            torn.write(range.start + at, &whole[*at..at + 8]).unwrap();
        }
        let (next, left) = succeed(torn, key_of(&memory));
        let found: Vec<u64> = left.iter().map(|(_, sealed)| sealed.number()).collect();
        if written == order.len() {
            assert_eq!(found, [before.number(), sealed.number()]);
            assert_eq!(left[1].1.open().unwrap().expose(), value);
        } else {
            assert_eq!(found, [before.number()], "{written}");
            assert_eq!(taken(&next), left[0].1.entry.range().len());
            assert!(written < 50 || !holds(&next, &whole[64..128]));
        }
    }
}

#[test]
fn an_entry_that_was_moved_or_copied_or_sealed_with_another_key_is_not_believed() {
    let memory = SealedMemory::new().unwrap();
    let sealed = memory.seal(Kind::Value, CANARY).unwrap();
    let range = sealed.entry.range();
    let mut bytes = vec![0; range.len()];
    memory.memory.read(range.start, &mut bytes).unwrap();
    let copied = left(&memory);
    copied.write(range.end, &bytes).unwrap();
    // The same as it would be if it stood there: but for the tag.
    let place = wide(range.end + range.len()).to_ne_bytes();
    bytes[16..24].copy_from_slice(&place);
    copied.write(range.end + range.len(), &bytes).unwrap();
    let (_, left) = succeed(copied, key_of(&memory));
    assert_eq!(
        opened(&left),
        [(Kind::Value, sealed.number(), CANARY.to_vec())]
    );

    let other = SealedMemory::new().unwrap();
    let (next, left) = succeed(super::tests::left(&memory), key_of(&other));
    assert!(left.is_empty());
    assert!(
        raw(&next)
            .iter()
            .all(|(_, part)| part[BLOCK..].iter().all(|byte| *byte == 0))
    );
}

#[test]
fn without_a_key_or_with_another_layout_all_is_made_afresh() {
    let memory = SealedMemory::new().unwrap();
    let sealed = memory.seal(Kind::Value, CANARY).unwrap();
    let old = memory.key.read().unwrap();
    let other_layout = left(&memory);
    other_layout.write(24, b"layout 2").unwrap();
    let cases = [
        (left(&memory), SecretMemory::new().unwrap()),
        (other_layout, key_of(&memory)),
    ];
    for (memory, key) in cases {
        let (next, left) = succeed(memory, key);
        assert!(left.is_empty());
        assert!(
            raw(&next)
                .iter()
                .all(|(at, part)| (*at, part.len()) == (0, next.page))
        );
        assert_ne!(next.key.read().unwrap(), old);
        let again = next.seal(Kind::Value, b"again").unwrap();
        assert_eq!(again.open().unwrap().expose(), b"again");
    }
    // The key of the first has changed.
    assert_eq!(sealed.open().unwrap_err(), Broken);
    assert_eq!(sealed.show(0, 1, |_| ()), Err(Broken));
    assert!(!sealed.same(&memory.seal(Kind::Value, CANARY).unwrap()));
}

#[test]
fn who_has_the_wrong_descriptors_is_told() {
    let [memory, key] = [(); 2].map(|()| SharedMemory::create().unwrap());
    assert!(SealedMemory::take_over(memory, key).is_err());
}

/// What is done, and what befalls the memory.
#[derive(Debug, Clone)]
enum Step {
    Seal(Kind, Vec<u8>),
    Drop(Index),
    /// The server dies, and the next one takes over.
    Die,
    /// A bit flips in what is held, and the server dies.
    Flip(Index, u8),
    /// The server dies with this much of a header written somewhere.
    Header(Index, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Value), Just(Kind::Note)];
    let size = prop_oneof![proptest::sample::select(sizes()), 0..300_usize];
    let bytes = size
        .prop_filter("quick", |size| *size < 4 * CHUNK)
        .prop_flat_map(|size| proptest::collection::vec(any::<u8>(), size));
    prop_oneof![
        8 => (kind, bytes).prop_map(|(kind, bytes)| Step::Seal(kind, bytes)),
        4 => any::<Index>().prop_map(Step::Drop),
        1 => Just(Step::Die),
        1 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Step::Flip(at, bit)),
        1 => (any::<Index>(), 1..32_usize).prop_map(|(at, length)| Step::Header(at, length)),
    ]
}

/// What should be there: each entry by its number.
type Model = BTreeMap<u64, (Kind, Vec<u8>)>;

/// What came of a death: everything but for an entry that was damaged.
fn check(model: &mut Model, left: &Survivors, damaged: bool) -> Result<(), TestCaseError> {
    let found = opened(left);
    for (kind, number, bytes) in &found {
        prop_assert_eq!(model.get(number), Some(&(*kind, bytes.clone())));
    }
    if !damaged {
        prop_assert_eq!(found.len(), model.len());
    }
    model.retain(|number, _| found.iter().any(|(_, other, _)| other == number));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_there_is_what_was_sealed_and_not_dropped(
        steps in proptest::collection::vec(step(), 1..30)
    ) {
        let mut memory = SealedMemory::new().unwrap();
        let mut live: Survivors = Vec::new();
        let mut model = Model::new();
        let mut numbers = HashSet::new();
        for step in steps {
            let torn = left(&memory);
            let damaged = match step {
                Step::Seal(kind, bytes) => {
                    let sealed = memory.seal(kind, &bytes).unwrap();
                    prop_assert!(numbers.insert(sealed.number()));
                    model.insert(sealed.number(), (kind, bytes));
                    live.push((kind, sealed));
                    None
                }
                Step::Drop(at) => {
                    if !live.is_empty() {
                        let (_, sealed) = live.swap_remove(at.index(live.len()));
                        model.remove(&sealed.number());
                    }
                    None
                }
                Step::Die => Some(false),
                Step::Flip(at, bit) => {
                    let held = memory.memory.held().unwrap();
                    let run = &held[at.index(held.len())];
                    let at = run.start + at.index(run.len());
                    let mut word = [0; 8];
                    torn.read(at / 8 * 8, &mut word).unwrap();
                    word[at % 8] ^= 1 << bit;
                    torn.write(at / 8 * 8, &word).unwrap();
                    Some(true)
                }
                Step::Header(at, length) => {
                    let place = memory.free().take(BLOCK).unwrap();
                    let entry = Entry { kind: Kind::Value, number: 1, place, length: at.index(1 << 21) };
                    torn.write(place, &entry.header()[..length]).unwrap();
                    memory.free().put(place..place + BLOCK);
                    Some(false)
                }
            };
            if let Some(damaged) = damaged {
                let (next, left) = succeed(torn, key_of(&memory));
                // Where the layout itself was damaged, there is another key by now, and what the dead one had is no more.
                check(&mut model, &left, damaged)?;
                (memory, live) = (next, left);
            }
            for (kind, sealed) in &live {
                let bytes = sealed.open().unwrap();
                prop_assert_eq!(&model[&sealed.number()], &(*kind, bytes.expose().to_vec()));
            }
            prop_assert_eq!(live.len(), model.len());
            let rooms = live.iter().map(|(_, sealed)| sealed.entry.range().len());
            prop_assert_eq!(taken(&memory), rooms.sum::<usize>());
        }
    }
}

/// How often these, which are written the other way round so that they are not found themselves, are in this process's
/// memory.
fn in_this_process(needles: &[[u8; 32]]) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mem = File::open("/proc/self/mem").unwrap();
    let mut buffer = Zeroizing::new(vec![0; 1 << 20]);
    let mut found = 0;
    // What is sealed is not looked at, and the memory for keys is where the key belongs.
    let ours = |line: &&str| {
        line.contains(" rw") && !line.contains("secretfs-") && !line.contains("secretmem")
    };
    for line in maps.lines().filter(ours) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        for at in (start..end).step_by(buffer.len()) {
            let length = buffer.len().min(end - at);
            // Other threads map and unmap.
            if mem.read_exact_at(&mut buffer[..length], wide(at)).is_ok() {
                let turned =
                    |part: &&[u8]| needles.iter().any(|needle| part.iter().rev().eq(needle));
                found += buffer[..length].windows(32).filter(turned).count();
            }
            zeroize::Zeroize::zeroize(buffer.as_mut_slice());
        }
    }
    found
}

/// The key, and that to the fingerprints.
fn turned_keys(memory: &SealedMemory) -> [[u8; 32]; 2] {
    let mut keys = [[0; 32]; 2];
    memory.key.read_into(&mut keys[0]).unwrap();
    let another = Cipher::new(&memory.key).unwrap().another().unwrap();
    keys[1].copy_from_slice(&*another);
    keys.iter_mut().for_each(|key| key.reverse());
    keys
}

#[test]
fn the_key_is_nowhere_but_in_its_memory() {
    let memory = SealedMemory::new().unwrap();
    let sealed = memory.seal(Kind::Value, &pattern(3 * CHUNK)).unwrap();
    let other = memory.seal(Kind::Note, CANARY).unwrap();
    assert!(
        sealed
            .show(0, CHUNK, |bytes| bytes == pattern(CHUNK))
            .unwrap()
    );
    assert_eq!(other.open().unwrap().expose(), CANARY);
    assert!(!sealed.same(&other));
    let turned = turned_keys(&memory);
    assert_eq!(in_this_process(&turned), 0);
    // That a copy would be found is seen with one.
    let copy: Zeroizing<Vec<u8>> = Zeroizing::new(turned[1].iter().rev().copied().collect());
    assert!(in_this_process(&turned) > 0);
    drop(copy);
}
