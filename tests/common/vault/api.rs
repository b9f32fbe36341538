//! What a test asks Vault for itself. Every question has a connection of its own, so that none meets one from before a
//! restart.

use std::time::Duration;

use reqwest::{Certificate, Client, Method, redirect};
use serde_json::{Value, json};

use super::{Vault, text};
use crate::common::DEADLINE;
use crate::common::runtime::wait_for;

/// How an answer says no: the status, or 0 where there was no answer, and what it said.
pub(crate) type Refusal = (u16, Value);

impl Vault {
    /// Asks something with the root token, which must succeed.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, path: &str, body: Value) -> Value {
        self.call_as(&self.root_token, method, path, body)
            .unwrap_or_else(|(status, said)| panic!("{method} {path}: {status} {said}"))
    }

    /// Asks something with some token, or with none where that is empty. A `body` of null is none; neither is the answer.
    #[track_caller]
    pub(crate) fn call_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<Value, Refusal> {
        match self.ask(token, method, path, body, DEADLINE) {
            Ok((200..=299, said)) => Ok(said),
            Ok(refusal) => Err(refusal),
            Err(error) => Err((0, Value::String(error))),
        }
    }

    /// A new version of a record in `secret/`, and its number.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, fields: Value) -> u64 {
        let body = json!({"data": fields});
        let made = self.call("POST", &format!("secret/data/{path}"), body);
        made["data"]["version"].as_u64().unwrap()
    }

    /// Deletes the newest version of a record in `secret/`, which can be undone.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) {
        self.call("DELETE", &format!("secret/data/{path}"), Value::Null);
    }

    /// Makes or changes a policy.
    #[track_caller]
    pub(crate) fn policy(&self, name: &str, rules: &str) {
        let body = json!({"policy": rules});
        self.call("PUT", &format!("sys/policies/acl/{name}"), body);
    }

    /// A renewable token with these policies for so long: `10s`.
    #[track_caller]
    pub(crate) fn token(&self, policies: &[&str], ttl: &str) -> String {
        let body = json!({"policies": policies, "ttl": ttl});
        let made = self.call("POST", "auth/token/create", body);
        text(&made["auth"]["client_token"])
    }

    /// A role to sign in with: its id and a secret id.
    #[track_caller]
    pub(crate) fn approle(&self, role: &str, policies: &[&str]) -> (String, String) {
        self.enable("auth/approle", "approle");
        let role = format!("auth/approle/role/{role}");
        self.call("POST", &role, json!({"token_policies": policies}));
        let id = self.call("GET", &format!("{role}/role-id"), Value::Null);
        let secret = self.call("POST", &format!("{role}/secret-id"), Value::Null);
        (
            text(&id["data"]["role_id"]),
            text(&secret["data"]["secret_id"]),
        )
    }

    /// What `path` answers to this, in a wrapping: the token that unwraps it, once.
    #[track_caller]
    pub(crate) fn wrapped(&self, path: &str, body: &Value) -> String {
        let request = self
            .client
            .post(format!("{}/v1/{path}", self.address()))
            .header("X-Vault-Token", &self.root_token)
            .header("X-Vault-Wrap-TTL", "5m")
            .body(body.to_string());
        let said = wait_for(async { request.send().await.unwrap().text().await.unwrap() });
        let said: Value = serde_json::from_str(&said).unwrap();
        text(&said["wrap_info"]["token"])
    }

    /// Makes sure that a method to sign in with (`auth/approle`) or an engine (`mounts/pki`) is there.
    #[track_caller]
    pub(crate) fn enable(&self, place: &str, kind: &str) {
        let body = json!({"type": kind});
        let made = self.call_as(&self.root_token, "POST", &format!("sys/{place}"), body);
        match made {
            Err((400, said)) if said.to_string().contains("already in use") => {}
            Err((status, said)) => panic!("enabling {place}: {status} {said}"),
            Ok(_) => {}
        }
    }

    /// The status that its health has: 200 if it serves, 503 if it is sealed, 501 if it is new. `None` without an answer.
    pub(crate) fn health(&self) -> Option<u16> {
        let soon = Duration::from_secs(1);
        let answer = self.ask("", "GET", "sys/health", Value::Null, soon);
        answer.ok().map(|(status, _)| status)
    }

    fn ask(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
        within: Duration,
    ) -> Result<(u16, Value), String> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .client
            .request(method, format!("{}/v1/{path}", self.address()))
            .timeout(within);
        if !token.is_empty() {
            request = request.header("X-Vault-Token", token);
        }
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let answered = async move {
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        };
        let (status, said) =
            wait_for(answered).map_err(|error: reqwest::Error| format!("{error:?}"))?;
        let value = match said.as_str() {
            "" => Value::Null,
            _ => serde_json::from_str(&said).unwrap_or(Value::String(said)),
        };
        Ok((status, value))
    }
}

/// Trusts one authority and nobody's settings.
#[track_caller]
pub(crate) fn client(ca: &str) -> Client {
    Client::builder()
        .tls_certs_only([Certificate::from_pem(ca.as_bytes()).unwrap()])
        .no_proxy()
        .redirect(redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .build()
        .unwrap()
}
