//! Rules, and the users and groups in them.

use crate::config::check::{keys, value};
use crate::config::file::{Item, Section};
use crate::config::values::{self, ValueError};
use crate::config::{IdSpec, RuleSpec};

const RULES: &str = "a list of rules, as in [{ uid = \"billing\" }]";

/// The rules under `key`; `None` where the key is left out.
pub(super) fn rules(section: &Section<'_>, key: &'static str) -> Option<Vec<RuleSpec>> {
    let items = section.get(key)?.list(RULES).unwrap_or_default();
    Some(items.iter().filter_map(rule).collect())
}

fn rule(item: &Item<'_>) -> Option<RuleSpec> {
    let section = item.section(keys::RULE)?;
    let checked = |key, example, check: fn(&str) -> Result<(), ValueError>| {
        value(&section, key, example, |text| {
            check(text).map(|()| text.to_owned())
        })
    };
    let rule = RuleSpec {
        uid: section.get("uid").map(|item| each(&item, id)),
        uid_map: section.get("uid_map").map(|item| each(&item, account)),
        gid: section.get("gid").map(|item| each(&item, id)),
        unit: checked(
            "unit",
            "a unit's name, as in \"billing.service\"",
            values::check_unit,
        ),
        container: checked(
            "container",
            "a container's whole id",
            values::check_container,
        ),
    };
    if let Err(error) = rule.check_ids() {
        item.fail(error.to_string());
    }
    Some(rule)
}

const ID: &str = "a name, a number, or a range as in \"61184-65519\"";

/// What stands there, alone or in a list.
fn each(item: &Item<'_>, one: fn(&Item<'_>) -> Option<IdSpec>) -> Vec<IdSpec> {
    match item.as_list() {
        Some(_) => {
            let items = item.list(ID).unwrap_or_default();
            items.iter().filter_map(one).collect()
        }
        None => one(item).into_iter().collect(),
    }
}

fn id(item: &Item<'_>) -> Option<IdSpec> {
    let parsed = match item.as_number() {
        Some(number) => IdSpec::number(number),
        None => item.text(ID)?.parse(),
    };
    parsed.map_err(|error| item.fail(error.to_string())).ok()
}

/// One account to which uids are delegated.
fn account(item: &Item<'_>) -> Option<IdSpec> {
    let account = id(item)?;
    let checked = values::check_account(&account);
    checked.map_err(|error| item.fail(error.to_string())).ok()?;
    Some(account)
}

/// One user or group.
pub(super) fn single_id(item: &Item<'_>) -> Option<IdSpec> {
    match id(item)? {
        IdSpec::Range(range) if range.start() != range.end() => {
            item.fail("a file has one owner: write one name or number");
            None
        }
        id @ (IdSpec::Name(_) | IdSpec::Range(_)) => Some(id),
    }
}
