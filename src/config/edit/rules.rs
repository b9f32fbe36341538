//! Rules as TOML, and lists of them as people lay them out.
//!
//! A comment belongs to the rule that it stands above of or in one line with. It comes with its rule, goes with it, and
//! never moves on to another: a comment on a rule that it was not written for would mislead.

use std::ops::RangeInclusive;

use toml_edit::{Array, InlineTable, Item, TableLike, Value};

use crate::config::{IdSpec, RuleSpec};

/// Appends a rule to a section's `allow`. `None` if that is not a list.
pub(super) fn add(section: &mut dyn TableLike, rule: &RuleSpec) -> Option<()> {
    let rule = inline(rule);
    match section
        .entry("allow")
        .or_insert(Item::Value(Array::new().into()))
    {
        Item::Value(Value::Array(list)) => append(list, rule),
        Item::ArrayOfTables(list) => list.push(rule.into_table()),
        Item::None | Item::Value(_) | Item::Table(_) => return None,
    }
    Some(())
}

/// Removes the rule at `index` from a section's `allow`, and the key with the last one. `None` if that is not a list.
pub(super) fn take(section: &mut dyn TableLike, index: usize) -> Option<()> {
    let left = match section.get_mut("allow")? {
        Item::Value(Value::Array(list)) => {
            remove(list, index);
            list.len()
        }
        Item::ArrayOfTables(list) => {
            list.remove(index);
            list.len()
        }
        Item::None | Item::Value(_) | Item::Table(_) => return None,
    };
    if left == 0 {
        section.remove("allow");
    }
    Some(())
}

/// A rule as it stands in a config.
pub(super) fn show(rule: &RuleSpec) -> String {
    inline(rule).to_string().trim().to_owned()
}

fn inline(rule: &RuleSpec) -> InlineTable {
    let mut table = InlineTable::new();
    let ids = [
        ("uid", &rule.uid),
        ("uid_map", &rule.uid_map),
        ("gid", &rule.gid),
    ];
    for (key, ids) in ids {
        match ids.as_deref() {
            Some([one]) => drop(table.insert(key, id(one))),
            Some(several) => {
                drop(table.insert(key, Value::Array(several.iter().map(id).collect())))
            }
            None => {}
        }
    }
    for (key, text) in [("unit", &rule.unit), ("container", &rule.container)] {
        if let Some(text) = text {
            table.insert(key, text.as_str().into());
        }
    }
    table
}

fn id(id: &IdSpec) -> Value {
    match id {
        IdSpec::Name(name) => name.as_str().into(),
        IdSpec::Range(range) if range.start() == range.end() => i64::from(*range.start()).into(),
        IdSpec::Range(range) => format!("{}-{}", range.start(), range.end()).into(),
    }
}

fn append(list: &mut Array, rule: InlineTable) {
    let end = end(list);
    let Some(last) = list.len().checked_sub(1) else {
        list.push(rule);
        return;
    };
    let mut rule = Value::from(rule);
    let mut before = String::new();
    if let Some(last) = list.get_mut(last) {
        before = prefix(last);
        last.decor_mut().set_suffix("");
    }
    let Some((above, closing)) = end.rsplit_once('\n') else {
        rule.decor_mut().set_prefix(" ");
        list.push_formatted(rule);
        list.set_trailing(end);
        return;
    };
    // One rule a line. What stands behind the last rule, or in lines of its own below it, stays before the new one.
    let indent = before
        .rsplit_once('\n')
        .map_or("    ", |(_, indent)| indent);
    rule.decor_mut()
        .set_prefix(format!("{}\n{indent}", above.trim_end()));
    list.push_formatted(rule);
    list.set_trailing_comma(true);
    list.set_trailing(format!("\n{closing}"));
}

fn remove(list: &mut Array, index: usize) {
    let before = list.get(index).map(prefix).unwrap_or_default();
    let is_last = index + 1 == list.len();
    let after = match list.get(index + 1) {
        Some(next) => prefix(next),
        None => end(list),
    };
    list.remove(index);
    // Up to the end of the line, what stands before a rule belongs to the rule before it.
    let (its_line, _) = split_line(&before);
    let (_, below) = split_line(&after);
    let kept = match (after.contains('\n'), is_last) {
        (true, _) => format!("{its_line}{below}"),
        (false, false) => before,
        (false, true) => after,
    };
    match list.get_mut(index) {
        Some(next) => next.decor_mut().set_prefix(kept),
        None => list.set_trailing(kept),
    }
}

/// What stands between the last rule, with or without its comma, and the closing bracket.
fn end(list: &Array) -> String {
    let last = list.len().checked_sub(1).and_then(|last| list.get(last));
    let suffix = last.and_then(|last| last.decor().suffix()?.as_str());
    let trailing = list.trailing().as_str();
    format!(
        "{}{}",
        suffix.unwrap_or_default(),
        trailing.unwrap_or_default()
    )
}

fn prefix(value: &Value) -> String {
    let prefix = value.decor().prefix().and_then(|prefix| prefix.as_str());
    prefix.unwrap_or_default().to_owned()
}

fn split_line(text: &str) -> (&str, &str) {
    text.split_at(text.find('\n').unwrap_or(text.len()))
}

impl RuleSpec {
    /// True if both name one user, one map or one group, as far as can be seen without looking names up.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let some = |ours: &Option<Vec<IdSpec>>, others: &Option<Vec<IdSpec>>| {
            let others = others.as_deref().unwrap_or_default();
            let mut ours = ours.iter().flatten();
            ours.any(|id| others.iter().any(|other| same(id, other)))
        };
        some(&self.uid, &other.uid)
            || some(&self.uid_map, &other.uid_map)
            || some(&self.gid, &other.gid)
    }
}

fn same(one: &IdSpec, other: &IdSpec) -> bool {
    let touches = |a: &RangeInclusive<u32>, b: &RangeInclusive<u32>| {
        a.start() <= b.end() && b.start() <= a.end()
    };
    match (one, other) {
        (IdSpec::Name(one), IdSpec::Name(other)) => one == other,
        (IdSpec::Range(one), IdSpec::Range(other)) => touches(one, other),
        (IdSpec::Name(_), IdSpec::Range(_)) | (IdSpec::Range(_), IdSpec::Name(_)) => false,
    }
}
