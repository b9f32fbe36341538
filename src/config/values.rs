//! The small values of the config: durations, sizes, modes, users and groups, units, containers.
//!
//! An error says what to write instead and never repeats what stood there.

use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::config::{IdSpec, RuleSpec};

/// Why a value is wrong and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(super) &'static str);

/// Longer than anybody means, short enough to be added to any time.
const MAX_DURATION: Duration = Duration::from_secs(10 * 366 * 86_400);

/// `"90s"`, `"10m"`, `"24h"`, `"0"`.
///
/// # Errors
/// [`ValueError`]
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    const WRONG: ValueError = ValueError(
        "this is not a duration: write a number and a unit, as in \"90s\", \"10m\" or \"24h\", or \"0\"",
    );
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| WRONG)?;
    let duration = Duration::try_from(parsed).map_err(|_| WRONG)?;
    if duration > MAX_DURATION {
        return Err(ValueError("more than ten years: write a shorter time"));
    }
    Ok(duration)
}

/// `"100MiB"`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    let size: bytesize::ByteSize = text.parse().map_err(|_| {
        ValueError("this is not a size: write a number and a unit, as in \"100MiB\" or \"1GiB\"")
    })?;
    Ok(size.as_u64())
}

/// `"0400"`: the bits that `stat` shows.
pub(super) fn mode(text: &str) -> Result<u16, ValueError> {
    let octal = !text.is_empty() && text.bytes().all(|c| matches!(c, b'0'..=b'7'));
    let mode = u16::from_str_radix(text, 8).ok().filter(|_| octal);
    match mode {
        Some(mode) if mode & !0o444 == 0 => Ok(mode),
        Some(_) => Err(ValueError(
            "secrets are read-only: write a mode of read bits alone, as in \"0400\" or \"0440\"",
        )),
        None => Err(ValueError(
            "this is not a mode: write an octal number, as in \"0400\" or \"0440\"",
        )),
    }
}

/// An absolute path without `.` and `..`.
pub(super) fn path(text: &str) -> Result<PathBuf, ValueError> {
    let path = PathBuf::from(text);
    let wrong = |part: Component<'_>| matches!(part, Component::ParentDir);
    if !path.is_absolute() || path.components().any(wrong) || text.contains('\0') {
        return Err(ValueError(
            "write an absolute path without `..`, as in \"/var/lib/secretfs\"",
        ));
    }
    Ok(path.components().collect())
}

/// The largest number of a user or group: the one after it means "none" to the kernel.
pub(super) const MAX_ID: u32 = u32::MAX - 1;

impl IdSpec {
    /// One number.
    ///
    /// # Errors
    /// [`ValueError`] where it cannot be a user's or group's.
    pub fn number(number: u64) -> Result<Self, ValueError> {
        match u32::try_from(number) {
            Ok(id) if id <= MAX_ID => Ok(Self::Range(id..=id)),
            _ => Err(ValueError("no user or group has so large a number")),
        }
    }
}

impl FromStr for IdSpec {
    type Err = ValueError;

    /// A name, a number, or a range (`61184-65519`).
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        if let Some(number) = number(text) {
            return Self::number(number);
        }
        if let Some((first, last)) = text.split_once('-')
            && let (Some(first), Some(last)) = (number(first), number(last))
        {
            return match (u32::try_from(first), u32::try_from(last)) {
                (Ok(0), Ok(MAX_ID..)) => Err(ValueError(
                    "a range of all numbers is a wildcard: name the users or groups",
                )),
                (Ok(first), Ok(last)) if first <= last && last <= MAX_ID => {
                    Ok(Self::Range(first..=last))
                }
                _ => Err(ValueError(
                    "this is not a range: write the smaller number first, as in \"61184-65519\"",
                )),
            };
        }
        if text.contains(['*', '?']) {
            return Err(ValueError(
                "wildcards are not allowed: name the users or groups",
            ));
        }
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ',');
        if text.is_empty() || text.len() > 256 || text.starts_with('-') || text.contains(odd) {
            return Err(ValueError(
                "this is not a user or group: write its name, its number, or a range as in \"61184-65519\"",
            ));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl RuleSpec {
    /// A rule as it is given on a command line, where nothing given is an empty list.
    ///
    /// # Errors
    /// [`ValueError`] where the config would refuse it.
    pub fn new(
        uid: Vec<IdSpec>,
        uid_map: Vec<IdSpec>,
        gid: Vec<IdSpec>,
        unit: Option<String>,
        container: Option<String>,
    ) -> Result<Self, ValueError> {
        let given = |ids: Vec<IdSpec>| (!ids.is_empty()).then_some(ids);
        let rule = Self {
            uid: given(uid),
            uid_map: given(uid_map),
            gid: given(gid),
            unit,
            container,
        };
        rule.check_ids()?;
        rule.uid_map.iter().flatten().try_for_each(check_account)?;
        rule.unit.as_deref().map_or(Ok(()), check_unit)?;
        rule.container.as_deref().map_or(Ok(()), check_container)?;
        Ok(rule)
    }

    /// A rule must name somebody.
    pub(super) fn check_ids(&self) -> Result<(), ValueError> {
        if self.uid.is_none() && self.uid_map.is_none() && self.gid.is_none() {
            return Err(ValueError(
                "a rule must name a `uid`, a `uid_map` or a `gid`: add one; `unit` and `container` only narrow it",
            ));
        }
        Ok(())
    }
}

/// An account to which uids are delegated.
pub(super) fn check_account(id: &IdSpec) -> Result<(), ValueError> {
    match id {
        IdSpec::Range(range) if range.start() != range.end() => Err(ValueError(
            "the ranges stand in /etc/subuid: write the name or number of the account that they are delegated to",
        )),
        IdSpec::Name(_) | IdSpec::Range(_) => Ok(()),
    }
}

/// A whole unit name.
pub(super) fn check_unit(unit: &str) -> Result<(), ValueError> {
    let name = unit
        .strip_suffix(".service")
        .or_else(|| unit.strip_suffix(".scope"));
    let odd =
        |c: char| !c.is_ascii_alphanumeric() && !matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    if unit.contains(['*', '?']) {
        return Err(ValueError("wildcards are not allowed: name the unit"));
    }
    match name {
        Some(name) if !name.is_empty() && !name.contains(odd) => Ok(()),
        _ => Err(ValueError(
            "write the unit's whole name, as in \"billing.service\" or \"session-3.scope\"",
        )),
    }
}

/// A whole container id.
pub(super) fn check_container(id: &str) -> Result<(), ValueError> {
    let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if id.len() == 64 && id.bytes().all(hex) {
        return Ok(());
    }
    Err(ValueError(
        "write the container's whole id, 64 lower-case hexadecimal digits, as `docker inspect -f '{{.Id}}' NAME` shows it",
    ))
}
