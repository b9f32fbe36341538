//! Finds the value in any of the forms in which programs write bytes down.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::scratch::CANARY;

/// The value as it may be written, each with what that is called.
fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let raw = CANARY.as_bytes();
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    let json = serde_json::to_string(CANARY).unwrap();
    let escaped: String = raw
        .iter()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let ascii: String = json
        .chars()
        .map(|c| match c.is_ascii() {
            true => c.to_string(),
            false => format!("\\u{:04x}", u32::from(c)),
        })
        .collect();
    let list = format!("{raw:?}");
    let mut forms = vec![
        ("raw", raw.to_vec()),
        ("JSON", json.trim_matches('"').as_bytes().to_vec()),
        ("ASCII JSON", ascii.trim_matches('"').as_bytes().to_vec()),
        ("Debug", CANARY.escape_debug().to_string().into_bytes()),
        ("bytes", raw.escape_ascii().to_string().into_bytes()),
        ("a list", list.trim_matches(['[', ']']).as_bytes().to_vec()),
        ("hex", hex.clone().into_bytes()),
        ("upper-case hex", hex.to_uppercase().into_bytes()),
        ("URL", escaped.clone().into_bytes()),
        ("lower-case URL", escaped.to_lowercase().into_bytes()),
        (
            "UTF-16",
            CANARY.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        // What is cut off or wrapped keeps at least one of the ends.
        ("its start", b"canary-Vx7".to_vec()),
        ("its end", b"q9Zt2Lw".to_vec()),
    ];
    // Base64 of something that holds it looks different for each of three places in it.
    for before in 0..3 {
        let mut bytes = vec![b'.'; before];
        bytes.extend_from_slice(raw);
        for (name, engine) in [("base64", &STANDARD), ("URL-safe base64", &URL_SAFE)] {
            let text = engine.encode(&bytes);
            let whole = &text.as_bytes()[4.min(before * 4)..text.len() - 4];
            forms.push((name, whole.to_vec()));
        }
    }
    forms
}

/// The names of the forms in which the value stands in `bytes`.
pub(crate) fn forms_in(bytes: &[u8]) -> Vec<&'static str> {
    let lower = bytes.to_ascii_lowercase();
    forms()
        .into_iter()
        .filter(|(name, form)| match *name {
            "lower-case URL" => holds(&lower, form),
            _ => holds(bytes, form),
        })
        .map(|(name, _)| name)
        .collect()
}

fn holds(bytes: &[u8], form: &[u8]) -> bool {
    memchr::memmem::find(bytes, form).is_some()
}

/// Fails if the value stands in `bytes` in any form; and if it would not be found there.
#[track_caller]
pub(crate) fn assert_none(what: &str, bytes: &[u8]) {
    let found = forms_in(bytes);
    assert!(found.is_empty(), "{what} holds the value: {found:?}");
    let mut planted = bytes.to_vec();
    for (_, form) in forms() {
        planted.extend_from_slice(&form);
        planted.push(b' ');
    }
    let all: Vec<&str> = forms().iter().map(|(name, _)| *name).collect();
    assert_eq!(forms_in(&planted), all, "{what}: not all forms are found");
}

/// Fails if the value stands in any file below `folder`, or in a name; and if it would not be found there.
#[track_caller]
pub(crate) fn search_tree(folder: &Path) {
    let planted = folder.join("planted");
    fs::create_dir(&planted).unwrap();
    for (number, (_, form)) in forms().into_iter().enumerate() {
        let file = planted.join(number.to_string());
        fs::write(file, [&b"before "[..], &form, b" after"].concat()).unwrap();
    }
    let (there, found): (Vec<_>, Vec<_>) = found_below(folder)
        .into_iter()
        .partition(|line| line.starts_with(planted.to_str().unwrap()));
    fs::remove_dir_all(&planted).unwrap();
    assert_eq!(
        there.len(),
        forms().len(),
        "found of the planted: {there:?}"
    );
    assert!(found.is_empty(), "the value is on the disk: {found:#?}");
}

fn found_below(folder: &Path) -> Vec<String> {
    let device = fs::symlink_metadata(folder).unwrap().dev();
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.dev() != device {
                continue;
            }
            let name = path.file_name().unwrap().as_encoded_bytes();
            let mut forms = forms_in(name);
            if metadata.is_dir() {
                folders.push(path.clone());
            } else if metadata.is_file() {
                seen += 1;
                forms.extend(forms_in(&fs::read(&path).unwrap()));
            }
            if !forms.is_empty() {
                found.push(format!("{}: {forms:?}", path.display()));
            }
        }
    }
    assert!(seen > 5, "these are not the files");
    found
}
