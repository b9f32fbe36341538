//! The raw form of the config: TOML sections, items and where they stand.
//!
//! Each value is read on its own, rather than all by one derived `Deserialize`, which ends at the first mistake: here each
//! mistake is put on one [`Report`], with its line and its dotted key, so that all of them are told at once. Keys are told apart here: a section is opened with the keys that it may have, and any
//! other is an error. What stood in the file is never repeated, only where it stood: it may be a secret in a wrong place.

use std::cell::RefCell;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use crate::config::{ConfigError, ConfigErrors};
use crate::secret::Name;

/// The mistakes found so far.
#[derive(Debug)]
pub(super) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        Self {
            file,
            text,
            errors: RefCell::default(),
        }
    }

    /// The top of the document.
    ///
    /// # Errors
    /// The first mistake in its syntax.
    pub(super) fn document(&self) -> Result<Spanned<DeValue<'t>>, ConfigErrors> {
        match DeTable::parse(self.text) {
            Ok(table) => Ok(Spanned::new(
                table.span(),
                DeValue::Table(table.into_inner()),
            )),
            Err(error) => {
                let at = error.span().map_or(self.text.len(), |span| span.start);
                self.add(at, None, format!("not TOML: {}", error.message()));
                Err(self.errors())
            }
        }
    }

    /// `value`, if there was no mistake in it.
    ///
    /// # Errors
    /// All mistakes, in the order of the lines.
    pub(super) fn finish<T>(&self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.errors.borrow().is_empty() => Ok(value),
            _ => Err(self.errors()),
        }
    }

    fn errors(&self) -> ConfigErrors {
        let mut errors = self.errors.take();
        errors.sort_by_key(|error| error.line);
        ConfigErrors(errors)
    }

    fn add(&self, at: usize, key: Option<String>, problem: String) {
        let before = self.text.as_bytes().iter().take(at);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        self.errors.borrow_mut().push(ConfigError {
            file: self.file.to_owned(),
            line: Some(line),
            key,
            problem,
        });
    }
}

/// One value and its place.
#[derive(Debug, Clone)]
pub(super) struct Item<'r> {
    report: &'r Report<'r>,
    key: String,
    value: &'r Spanned<DeValue<'r>>,
}

impl<'r> Item<'r> {
    /// The whole document, which has no key.
    pub(super) fn top(report: &'r Report<'r>, value: &'r Spanned<DeValue<'r>>) -> Self {
        Self {
            report,
            key: String::new(),
            value,
        }
    }

    /// Puts a mistake in this value on the report.
    pub(super) fn fail(&self, problem: impl Into<String>) {
        let key = (!self.key.is_empty()).then(|| self.key.clone());
        let at = self.value.span().start;
        self.report.add(at, key, problem.into());
    }

    /// The value, if it is a string. `example` is what to write instead of something else.
    pub(super) fn text(&self, example: &str) -> Option<&'r str> {
        let text = self.value.get_ref().as_str();
        self.or_fail(text, example)
    }

    /// The value, if it is a string; without a word about anything else.
    pub(super) fn as_text(&self) -> Option<&'r str> {
        self.value.get_ref().as_str()
    }

    /// The value, if it is a whole number that is not negative; without a word about anything else.
    pub(super) fn as_number(&self) -> Option<u64> {
        let number: &DeInteger<'_> = self.value.get_ref().as_integer()?;
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    /// The value, which must be true or false.
    pub(super) fn yes_or_no(&self) -> Option<bool> {
        let value = self.value.get_ref().as_bool();
        self.or_fail(value, "true or false, without quotation marks")
    }

    /// Its elements, if it is an array; without a word about anything else.
    pub(super) fn as_list(&self) -> Option<Vec<Self>> {
        let array = self.value.get_ref().as_array()?;
        let element = |(index, value)| Self {
            report: self.report,
            key: format!("{}[{index}]", self.key),
            value,
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// Its elements, which must be there. `example` is what to write instead of something else.
    pub(super) fn list(&self, example: &str) -> Option<Vec<Self>> {
        let list = self.as_list();
        if list.as_ref().is_some_and(Vec::is_empty) {
            self.fail("the list is empty: put something in it, or leave the key out");
        }
        self.or_fail(list, example)
    }

    /// What stands under `key`, whatever else stands beside it and whatever this is.
    pub(super) fn peek(&self, key: &str) -> Option<Self> {
        let value = self.value.get_ref().as_table()?.get(key)?;
        Some(self.child(key, value))
    }

    /// True if it is a table, which it must be.
    pub(super) fn must_be_table(&self) -> bool {
        self.table().is_some()
    }

    /// True if it is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// The section, if it is a table. Keys that are not in `known` go on the report.
    pub(super) fn section(&self, known: &'static [&'static str]) -> Option<Section<'r>> {
        let table = self.table()?;
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let dotted = self.child(name, value).key;
                let problem = format!("unknown key: {}", suggestion(name, known));
                self.report.add(key.span().start, Some(dotted), problem);
            }
        }
        Some(Section {
            item: self.clone(),
            table,
            known,
        })
    }

    /// The members, if it is a table of things that have names of the user's choice.
    pub(super) fn members(&self) -> Vec<(Name, Self)> {
        let mut members = Vec::new();
        for (key, value) in self.table().into_iter().flatten() {
            let item = self.child(key.get_ref(), value);
            match key.get_ref().parse() {
                Ok(name) => members.push((name, item)),
                Err(error) => {
                    let problem = format!("{error}");
                    self.report.add(key.span().start, Some(item.key), problem);
                }
            }
        }
        members
    }

    fn table(&self) -> Option<&'r DeTable<'r>> {
        let table = self.value.get_ref().as_table();
        self.or_fail(table, "a table, as in [section] or { key = \"value\" }")
    }

    fn child(&self, name: &str, value: &'r Spanned<DeValue<'r>>) -> Self {
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let shown: String = name.chars().take(40).collect();
        let part = match !name.is_empty() && name.chars().all(bare) {
            true => shown,
            false => format!("{shown:?}"),
        };
        let dot = if self.key.is_empty() { "" } else { "." };
        Self {
            report: self.report,
            key: format!("{}{dot}{part}", self.key),
            value,
        }
    }

    fn or_fail<T>(&self, value: Option<T>, example: &str) -> Option<T> {
        if value.is_none() {
            let found = self.value.get_ref().type_str();
            self.fail(format!(
                "write {example}; here stands a value of type {found}"
            ));
        }
        value
    }
}

/// A table with keys of our choice.
#[derive(Debug)]
pub(super) struct Section<'r> {
    item: Item<'r>,
    table: &'r DeTable<'r>,
    known: &'static [&'static str],
}

impl<'r> Section<'r> {
    /// What stands under `key`, if anything does.
    pub(super) fn get(&self, key: &'static str) -> Option<Item<'r>> {
        debug_assert!(self.known.contains(&key), "{key} is not known here");
        let value = self.table.get(key)?;
        Some(self.item.child(key, value))
    }

    /// What stands under `key`, which must be there. `example` is what to write.
    pub(super) fn need(&self, key: &'static str, example: &str) -> Option<Item<'r>> {
        let item = self.get(key);
        if item.is_none() {
            self.fail(format!("`{key}` is missing: write {key} = {example}"));
        }
        item
    }

    /// Puts a mistake in this section as a whole on the report.
    pub(super) fn fail(&self, problem: impl Into<String>) {
        self.item.fail(problem);
    }
}

/// The known key that was probably meant, or all of them.
fn suggestion(unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|key| (strsim::osa_distance(unknown, key), key))
        .min();
    match nearest {
        Some((distance, key)) if distance <= 2 && distance < key.len() => {
            format!("did you mean `{key}`?")
        }
        _ => format!("known here are `{}`", known.join("`, `")),
    }
}
