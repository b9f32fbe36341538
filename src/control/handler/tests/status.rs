//! What status says.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_how_changes_at_a_backend_are_noticed_and_how_the_broker_is() {
    let world = world(Authority::Policy);
    let status = world.call(ROOT, Request::Status {}, Body::Empty);
    let status = status.await.unwrap().json;
    let signals = &status["backends"][0]["signals"];
    let expected = serde_json::json!({
        "polled": "1970-01-01T00:00:00Z",
        "heard": null,
        "in_use": 5,
        "refused": 2,
    });
    assert_eq!(*signals, expected);
    assert!(status["backends"][0].get("leases").is_none());
    let expected = serde_json::json!({ "url": "tls://n.example:4222", "trouble": "no route" });
    assert_eq!(status["broker"], expected);
}
