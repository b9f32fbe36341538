//! Which uids are delegated to whom: `/etc/subuid`, from which containers get the host's uids for their own.
//!
//! What is not surely a range of somebody's is nobody's, and no line can stand for everybody.

use std::collections::HashMap;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::config::open;
use crate::config::values::MAX_ID;
use crate::policy::IdSet;
use crate::sys::Uid;

/// Where the machine says it.
pub const FILE: &str = "/etc/subuid";

/// Room for a hundred thousand accounts.
const MAX_SIZE: u64 = 4 << 20;

/// Whom the kernel shows where it cannot say who it is.
const NOBODY: u32 = 65534;

/// The uids that are delegated to accounts, by the accounts' names or numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subuids(HashMap<String, Vec<Line>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    number: usize,
    /// `None` if it goes beyond the largest uid.
    range: Option<RangeInclusive<u32>>,
}

impl Subuids {
    /// Reads the file, if nobody but root can have changed it. Where there is none, nothing is delegated.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(format!("{shown} cannot be opened: {error}: mend that")),
        };
        let mut text = Vec::new();
        open::trusted(path, &real, Uid::ROOT)?
            .take(MAX_SIZE + 1)
            .read_to_end(&mut text)
            .map_err(|error| format!("{shown} cannot be read: {error}: mend that"))?;
        if u64::try_from(text.len()).is_ok_and(|size| size > MAX_SIZE) {
            return Err(format!(
                "{shown} is larger than 4 MiB: keep the lines of accounts that there are"
            ));
        }
        Ok(Self::parse(&text))
    }

    /// Reads lines of `ACCOUNT:FIRST:COUNT`, and skips what is none, as the programs do that delegate uids by them.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut accounts: HashMap<String, Vec<Line>> = HashMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if let Some((account, first, count)) = fields(line) {
                accounts.entry(account.to_owned()).or_default().push(Line {
                    number: index + 1,
                    range: range(first, count),
                });
            }
        }
        Self(accounts)
    }

    /// What is delegated to an account by its name and, where that is known, by its number. Neither root nor uid 65534
    /// ever is.
    pub(super) fn of(&self, name: &str, uid: Option<Uid>) -> Result<IdSet, String> {
        let number = uid.map(|uid| uid.0.to_string());
        let by_number = number.filter(|number| number != name);
        let keys = [Some(name), by_number.as_deref()];
        let lines = keys.into_iter().flatten().filter_map(|key| self.0.get(key));
        let ranges: Result<IdSet, String> = lines
            .flatten()
            .map(|line| line.range.clone().ok_or_else(|| too_large(line.number)))
            .collect();
        let somebody = IdSet::from_iter([1..=NOBODY - 1, NOBODY + 1..=MAX_ID]);
        let delegated = ranges?.and(&somebody);
        if delegated.is_empty() {
            return Err(format!(
                "{FILE} delegates no uids to {name:?}: `usermod --add-subuids FIRST-LAST {name}`, or write the line {name}:FIRST:COUNT into it"
            ));
        }
        Ok(delegated)
    }
}

fn too_large(line: usize) -> String {
    format!("line {line} of {FILE} goes beyond the largest uid: make its count smaller")
}

fn fields(line: &[u8]) -> Option<(&str, u64, u64)> {
    let mut fields = std::str::from_utf8(line).ok()?.split(':');
    let (account, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    let (first, count) = (number(first)?, number(count)?);
    let whole = fields.next().is_none() && !account.is_empty() && count > 0;
    whole.then_some((account, first, count))
}

/// A decimal number. With a zero before it, it is octal to some programs and not to others.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().unwrap_or(u64::MAX))
}

fn range(first: u64, count: u64) -> Option<RangeInclusive<u32>> {
    let last = first.checked_add(count.checked_sub(1)?)?;
    let (first, last) = (u32::try_from(first).ok()?, u32::try_from(last).ok()?);
    (last <= MAX_ID).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The least and the largest of some numbers that `name` is delegated, or why it has none.
    fn delegated(text: &str, name: &str, uid: Option<u32>) -> Result<Vec<u32>, String> {
        let tried = [
            0,
            1,
            99,
            100,
            109,
            110,
            199,
            200,
            209,
            65533,
            NOBODY,
            65535,
            70000,
            1 << 31,
            MAX_ID,
            u32::MAX,
        ];
        let set = Subuids::parse(text.as_bytes()).of(name, uid.map(Uid))?;
        Ok(tried.into_iter().filter(|id| set.contains(*id)).collect())
    }

    #[test]
    fn the_lines_of_an_account_count_by_its_name_and_its_number() {
        let text = "other:1:5\nbilling:100:10\n1001:200:10\nbilling:70000:1\n";
        let table: [(&str, Option<u32>, &[u32]); 6] = [
            ("billing", None, &[100, 109, 70000]),
            ("billing", Some(7), &[100, 109, 70000]),
            ("billing", Some(1001), &[100, 109, 200, 209, 70000]),
            ("1001", None, &[200, 209]),
            ("1001", Some(1001), &[200, 209]),
            ("other", Some(100), &[1]),
        ];
        for (name, uid, expected) in table {
            assert_eq!(
                delegated(text, name, uid).as_deref(),
                Ok(expected),
                "{name} {uid:?}"
            );
        }
        // As podman's manual has it for `--userns=auto`.
        let most = delegated("containers:2147483647:2147483648", "containers", None);
        assert_eq!(most, Ok(vec![1 << 31, MAX_ID]));
        let why = delegated(text, "bill", None).unwrap_err();
        assert!(
            why.contains("/etc/subuid") && why.contains("usermod --add-subuids FIRST-LAST bill"),
            "{why}"
        );
    }

    #[test]
    fn what_is_no_range_is_nobodys() {
        for line in [
            "",
            "a",
            "a:100",
            "a:100:",
            "a::10",
            ":100:10",
            "a:100:10:",
            "a:100:0",
            "a:-1:10",
            "a:+100:10",
            "a:100:-10",
            "a: 100:10",
            "a:100:10\r",
            "a :100:10",
            "#a:100:10",
            "a:0100:10",
            "a:100:010",
            "a:0x64:10",
            "a:1e2:10",
            "A:100:10",
        ] {
            let why = delegated(&format!("{line}\n"), "a", None).unwrap_err();
            assert!(
                why.contains("delegates no uids to \"a\""),
                "{line:?}: {why}"
            );
            // Nor does it spoil the others.
            let text = format!("a:200:10\n{line}\nb:1:1");
            assert_eq!(delegated(&text, "a", None), Ok(vec![200, 209]), "{line:?}");
        }
        assert_eq!(Subuids::parse(b"\xff\na\xff:1:1\n\0"), Subuids::default());
    }

    #[test]
    fn a_range_beyond_all_uids_is_refused_and_root_and_nobody_are_never_delegated() {
        for line in [
            "a:100:4294967295",
            "a:0:4294967296",
            "a:4294967295:1",
            "a:4294967295:2",
            "a:4294967296:1",
            "a:1:18446744073709551615",
            "a:18446744073709551615:1",
            "a:18446744073709551615:18446744073709551615",
            "a:100:99999999999999999999999",
            "a:99999999999999999999999:1",
        ] {
            let why = delegated(&format!("b:1:1\n{line}\na:200:10"), "a", None).unwrap_err();
            assert!(why.contains("line 2 of /etc/subuid"), "{line}: {why}");
        }
        let all = delegated("a:0:4294967295", "a", None).unwrap();
        assert!(!all.contains(&0) && !all.contains(&NOBODY) && !all.contains(&u32::MAX));
        assert_eq!(all.len(), 13);
        assert_eq!(
            delegated("a:1:65534", "a", None).unwrap().last(),
            Some(&65533)
        );
        for line in ["a:0:1", "a:65534:1"] {
            assert!(delegated(line, "a", None).is_err(), "{line}");
        }
    }

    #[test]
    fn a_file_that_others_than_root_can_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subuid");
        assert_eq!(Subuids::read(&file), Ok(Subuids::default()));
        fs::write(&file, "a:100:10\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let refused = |path: &Path, mend: &str| {
            let why = Subuids::read(path).unwrap_err();
            assert!(why.contains(mend) && why.contains("subuid"), "{why}");
        };
        if Uid::effective() != Uid::ROOT {
            return refused(&file, "chown root");
        }
        assert!(Subuids::read(&file).unwrap().of("a", None).is_ok());
        for mode in [0o664, 0o646, 0o666] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            refused(&file, "chmod go-w");
        }
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let link = folder.path().join("subuid-link");
        symlink(&file, &link).unwrap();
        assert!(Subuids::read(&link).is_ok());
        std::os::unix::fs::lchown(&link, Some(4001), None).unwrap();
        refused(&link, "chown -h root");
        std::os::unix::fs::chown(&file, Some(4001), None).unwrap();
        refused(&file, "chown root");
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        fs::write(&file, vec![b'\n'; 1 + (4 << 20)]).unwrap();
        refused(&file, "4 MiB");
        refused(folder.path().join("subuid/x").as_path(), "cannot be opened");
    }

    proptest! {
        #[test]
        fn nobody_is_delegated_more_than_the_lines_say(
            lines in proptest::collection::vec(("[ab]|1", 0_u64..=1 << 33, 0_u64..=1 << 33), 0..4),
            shift in 0_u32..33,
            id in 0_u64..=1 << 32,
        ) {
            let lines: Vec<_> = lines.into_iter().map(|(name, first, count)| (name, first >> shift, count >> shift)).collect();
            let id = u32::try_from(id >> shift).unwrap_or(u32::MAX);
            let text: String = lines.iter().map(|(name, first, count)| format!("{name}:{first}:{count}\n")).collect();
            let mine: Vec<_> = lines.iter().filter(|(name, ..)| name == "a" || name == "1").collect();
            let fits = mine.iter().all(|(_, first, count)| *count == 0 || first + count <= u64::from(u32::MAX));
            let inside = mine.iter().any(|(_, first, count)| (*first..first + count).contains(&u64::from(id)));
            let found = Subuids::parse(text.as_bytes()).of("a", Some(Uid(1)));
            let expected = fits && inside && id != 0 && id != NOBODY;
            prop_assert_eq!(found.is_ok_and(|set| set.contains(id)), expected, "{} {:?}", id, text);
        }

        #[test]
        fn whatever_stands_there_root_and_nobody_are_not_delegated(text in "([a:0-9 \\-]{0,12}\n|a:[0-9]{1,11}:[0-9]{1,21}\n){0,4}") {
            if let Ok(set) = Subuids::parse(text.as_bytes()).of("a", None) {
                for id in [0, NOBODY, u32::MAX] {
                    prop_assert!(!set.contains(id), "{} {:?}", id, text);
                }
            }
        }
    }
}
