//! What Vault's own audit log says: who asked for which path, and for no value.

use std::fs;

use serde_json::Value;

use super::Vault;

impl Vault {
    /// All of it, a line of JSON for each request and each answer. Vault writes a line before it goes on.
    pub(crate) fn audit_log(&self) -> String {
        fs::read_to_string(self.at("audit.log")).unwrap()
    }

    /// How many requests, our own among them, went to paths that begin like this: `secret/data/billing`.
    pub(crate) fn counted(&self, prefix: &str) -> usize {
        self.requests(prefix).len()
    }

    /// These requests: `operation`, `path`, `data` and more.
    pub(crate) fn requests(&self, prefix: &str) -> Vec<Value> {
        let log = self.audit_log();
        // Most lines are about something else.
        let part = format!("\"path\":\"{prefix}");
        let lines = log.lines().filter(|line| line.contains(&part));
        lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|entry| entry["type"] == "request")
            .map(|mut entry| entry["request"].take())
            .filter(|request| {
                let path = request["path"].as_str();
                path.is_some_and(|path| path.starts_with(prefix))
            })
            .collect()
    }
}
