//! `[offline]`.

use super::*;

#[test]
fn what_is_kept_for_a_start_without_a_network_needs_a_store_and_a_time() {
    let config = parse(&format!("{STORE}[offline]\npath = \"/s/offline.age\"\n")).unwrap();
    let offline = config.offline.unwrap();
    assert_eq!(offline.max_age, Duration::from_secs(7 * 86_400));
    for (text, said) in [
        ("[offline]\npath = \"/s/o\"\n".to_owned(), "there is none"),
        (format!("{STORE}[offline]\nmax_age = \"1h\"\n"), "path"),
        (
            format!("{STORE}[offline]\npath = \"/s/o\"\nmax_age = \"0\"\n"),
            "nothing would be kept",
        ),
        (
            format!("mount = \"/s\"\n{STORE}[offline]\npath = \"/s/o\"\n"),
            "offline.path",
        ),
    ] {
        let errors = parse(&text).unwrap_err().to_string();
        assert!(errors.contains(said), "{errors}");
    }
}
