//! The shape of the code: who may import whom, who alone may do what. It reads the sources.
//!
//! Each module has a rank, and imports only modules of a lower one: imports run one way and never in a circle, and
//! siblings do not know each other. In words: `main` → `cli` → `run` → `keeper` → `fuse`, `control` → `fs` → `access`
//! and `cache` → what they stand on. The server (`run`) and the command line know the words in which the keeper speaks. `config` stands above the rules and references that it reads and below
//! everything that is set up by one of its sections.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is a test, and clippy sees only #[test] functions as such"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

/// From the bottom to the top. Modules in one line do not import each other.
const RANKS: &[&[&str]] = &[
    &["clock", "sync", "sys"],
    &["secret"],
    &["backend", "caller"],
    &["policy", "signal", "events"],
    &["config"],
    &["audit", "cache", "relay"],
    &["access"],
    &["fs"],
    &["control", "fuse"],
    &["keeper"],
    &["run"],
    &["cli"],
    &["main"],
];

/// The modules through whose hands values go, or keys of our own: the audit log's (`audit`), a sealed identity's (`run`).
/// In all others nothing is ever exposed.
const HANDLE_VALUES: &[&str] = &[
    "secret", "backend", "cache", "control", "cli", "audit", "run",
];

const MAX_LINES: usize = 600;

struct Source {
    /// Below `src`.
    path: PathBuf,
    /// The module at the top that the file is part of: its first folder or its name.
    module: String,
    text: String,
    /// Without comments; groups as their brackets, strings as one token.
    tokens: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                sources.push(source(&path, path.strip_prefix(&root).unwrap()));
            }
        }
    }
    assert!(sources.len() > 10, "these are not the sources: {root:?}");
    sources
}

fn source(path: &Path, below: &Path) -> Source {
    parse(below, std::fs::read_to_string(path).unwrap())
}

fn parse(path: &Path, text: String) -> Source {
    let stream: TokenStream = text
        .parse()
        .unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    let first = Path::new(path.iter().next().unwrap());
    Source {
        path: path.to_owned(),
        module: first.file_stem().unwrap().to_str().unwrap().to_owned(),
        text,
        tokens,
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<String>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                let text = format!("{:?}", group.delimiter());
                let (open, close) = match text.as_str() {
                    "Brace" => ("{", "}"),
                    "Bracket" => ("[", "]"),
                    _ => ("(", ")"),
                };
                tokens.push(open.to_owned());
                flatten(group.stream(), tokens);
                tokens.push(close.to_owned());
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => tokens.push(token.to_string()),
            TokenTree::Literal(_) => tokens.push("literal".to_owned()),
        }
    }
}

/// The modules at the top that a file names: `crate::a`, `crate::{a, b::c}`, `secretfs::a` in the binary, and
/// `super::a` where that is the top.
fn imports(source: &Source) -> Vec<String> {
    let at_top = source.path.components().count() == 1;
    let mut found = Vec::new();
    for (index, window) in source.tokens.windows(4).enumerate() {
        let [start, colon, again, first] = window else {
            continue;
        };
        let from_root = match start.as_str() {
            "crate" => true,
            "secretfs" => source.module == "main",
            "super" => at_top,
            _ => false,
        };
        if !from_root || colon != ":" || again != ":" {
            continue;
        }
        if first != "{" {
            found.push(first.clone());
            continue;
        }
        let mut depth = 0;
        for pair in source.tokens[index + 3..].windows(2) {
            match pair[0].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (pair[0] == "{" || pair[0] == ",") {
                found.push(pair[1].clone());
            }
        }
    }
    found
}

#[test]
fn imports_run_one_way() {
    let ranks: BTreeMap<&str, usize> = RANKS
        .iter()
        .enumerate()
        .flat_map(|(rank, modules)| modules.iter().map(move |module| (*module, rank)))
        .collect();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        let Some(rank) = ranks.get(source.module.as_str()) else {
            wrong.push(format!(
                "{:?}: its module has no rank: give it one in this test",
                source.path
            ));
            continue;
        };
        for import in imports(source) {
            let ours = import == source.module;
            if !ours
                && ranks
                    .get(import.as_str())
                    .is_some_and(|other| other >= rank)
            {
                wrong.push(format!("{:?} must not import {import}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Fails if `found` finds something in files of other modules than these.
#[track_caller]
fn only(modules: &[&str], found: impl Fn(&Source) -> bool) {
    let sources = sources().into_iter();
    let wrong: Vec<_> = sources
        .filter(|source| !modules.contains(&source.module.as_str()) && found(source))
        .map(|source| source.path)
        .collect();
    assert!(wrong.is_empty(), "only {modules:?} may do this: {wrong:?}");
}

fn names(source: &Source, name: &str) -> bool {
    source.tokens.iter().any(|token| token == name)
}

#[test]
fn only_fuse_names_fuser() {
    only(&["fuse"], |source| names(source, "fuser"));
}

#[test]
fn only_sys_is_unsafe() {
    only(&["sys"], |source| {
        names(source, "unsafe") || names(source, "unsafe_code")
    });
}

#[test]
fn only_the_modules_that_handle_values_expose_them() {
    only(HANDLE_VALUES, |source| names(source, "expose"));
}

#[test]
fn only_main_ends_the_process() {
    only(&["main"], ends_process);
}

#[test]
fn only_access_makes_a_permit() {
    only(&["access"], makes_permit);
}

fn ends_process(source: &Source) -> bool {
    [["process", ":", ":", "exit"], ["libc", ":", ":", "_exit"]]
        .iter()
        .any(|path| {
            source
                .tokens
                .windows(path.len())
                .any(|window| window == path)
        })
}

/// True for `Permit { … }` and `Permit(…)`, but for the body of a function that hands one on, and of an impl.
fn makes_permit(source: &Source) -> bool {
    source.tokens.windows(2).enumerate().any(|(index, window)| {
        let made = window[0] == "Permit" && (window[1] == "{" || window[1] == "(");
        let mut before = source.tokens[..index].iter().rev();
        let before = before.find(|token| ![":", "access", "crate"].contains(&token.as_str()));
        made && before.is_none_or(|token| !["for", "impl", ">"].contains(&token.as_str()))
    })
}

#[test]
fn files_are_short_and_say_why_they_exist() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{:?} has {lines} lines: split it",
            source.path
        );
        assert!(
            source.text.starts_with("//! "),
            "{:?} does not start with //!",
            source.path
        );
    }
}

#[test]
fn these_tests_see_what_they_look_for() {
    let file = |path: &str, text: &str| parse(Path::new(path), text.to_owned());
    let table: [(&str, &str, &[&str]); 7] = [
        (
            "a.rs",
            "use crate::b::c; fn f() { crate::d::e() }",
            &["b", "d"],
        ),
        ("a.rs", "use crate::{b::{x, y}, c, d::*};", &["b", "c", "d"]),
        ("a.rs", "fn f() { println!(\"{}\", crate::b::C); }", &["b"]),
        (
            "a.rs",
            "//! crate::b\n/// [`crate::c`]\nfn f(s: &str) { s == \"crate::d\"; }",
            &[],
        ),
        ("a.rs", "use super::b;", &["b"]),
        ("a/x.rs", "use super::b; pub(crate) fn f() {}", &[]),
        ("main.rs", "use secretfs::{a, b::c};", &["a", "b"]),
    ];
    for (path, text, expected) in table {
        assert_eq!(imports(&file(path, text)), expected, "{text}");
    }
    for (text, expected) in [
        ("fn f() { Permit { a: 1 } }", true),
        ("fn f() { access::Permit(1) }", true),
        ("fn f() -> Permit { g() }", false),
        ("fn f() -> crate::access::Permit { g() }", false),
        ("impl Show for Permit { }", false),
        ("fn f(permit: &Permit) {}", false),
    ] {
        assert_eq!(makes_permit(&file("a.rs", text)), expected, "{text}");
    }
    assert!(ends_process(&file(
        "a.rs",
        "fn f() { std::process::exit(1) }"
    )));
    assert!(!ends_process(&file("a.rs", "use std::process::ExitCode;")));
}

/// docs/semantics.md names tests as `program::test`, or `src::test` for one beside the code.
#[test]
fn each_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = std::fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut without = Vec::new();
    for section in promises.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let named = section
            .split('`')
            .skip(1)
            .step_by(2)
            .filter_map(|code| code.split_once("::"));
        let mut tests = 0;
        for (program, test) in named {
            tests += 1;
            let folder = match program {
                "src" => root.join("src"),
                program => root.join("tests").join(program),
            };
            let function = format!("fn {test}(");
            assert!(
                files(&folder).iter().any(|text| text.contains(&function)),
                "{title}: there is no test {program}::{test}"
            );
        }
        if tests == 0 {
            without.push(title.to_owned());
        }
    }
    assert_eq!(without, ["What differs on older kernels"]);
}

/// The Rust files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts
}
