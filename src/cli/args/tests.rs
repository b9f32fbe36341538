//! What the grammar takes, and what its errors never repeat.

use super::*;

fn read(line: &str) -> Result<Cli, Stop> {
    parse(line.split(' ').map(OsString::from))
}

#[test]
fn the_grammar_is_sound_and_every_argument_explained() {
    grammar().debug_assert();
    for command in grammar().get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "{} {id}", command.get_name());
        }
        if !command.is_hide_set() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
            assert!(help.contains("Exit codes:"), "{}", command.get_name());
        }
    }
}

#[test]
fn json_may_stand_before_or_after_the_command() {
    assert!(read("secretfs --json ls").unwrap().json);
    assert!(read("secretfs ls --json").unwrap().json);
    assert!(!read("secretfs ls").unwrap().json);
    let import = read("secretfs import billing --json x.json").unwrap();
    assert!(!import.json);
    assert!(matches!(
        import.command,
        Command::Import(Import { json: Some(_), .. })
    ));
    assert!(read("secretfs --json import billing --env x").unwrap().json);
}

#[test]
fn a_value_on_the_command_line_is_taken_apart_from_the_flags() {
    for line in [
        "secretfs put a/b canary-7f3a",
        "secretfs put a/b -canary-7f3a",
        "secretfs put a/b --canary-7f3a",
        "secretfs put a/b canary 7f3a",
    ] {
        let Ok(Cli {
            command: Command::Put(put),
            ..
        }) = read(line)
        else {
            panic!("{line}");
        };
        assert!(!put.value.is_empty(), "{line}");
    }
    let Ok(Cli {
        command: Command::Put(put),
        ..
    }) = read("secretfs put a/b --generate hex:16")
    else {
        panic!();
    };
    assert_eq!(
        (put.value.len(), put.generate.as_deref()),
        (0, Some("hex:16"))
    );
}

#[test]
fn wrong_arguments_give_one_line_that_does_not_repeat_them() {
    let table = [
        ("secretfs canary-7f3a", "no such command"),
        ("secretfs get", "missing"),
        ("secretfs get a/b canary-7f3a", "secretfs get --help"),
        ("secretfs get a/b --canary-7f3a", "secretfs get --help"),
        (
            "secretfs put a/b --file x --generate canary-7f3a",
            "--generate",
        ),
        ("secretfs explain a/b --pid canary-7f3a", "--pid"),
        ("secretfs import billing", "--env"),
        (
            "secretfs import billing --env a --dir b",
            "cannot stand together",
        ),
        ("secretfs allow billing", "--uid"),
        ("secretfs rollback a/b", "--to"),
        ("secretfs revoke", "--all"),
        ("secretfs unrevoke", "--uid"),
        ("secretfs revoke a/b --all", "cannot stand together"),
        ("secretfs revoke --uid x --all", "cannot stand together"),
        (
            "secretfs revoke --all --version canary-7f3a",
            "cannot stand",
        ),
        ("secretfs revoke --version canary-7f3a", "PATH|SERVICE"),
        ("secretfs unrevoke a/b --for 1h", "secretfs unrevoke --help"),
        ("secretfs watch canary-7f3a", "secretfs watch --help"),
        ("secretfs wait", "missing"),
        ("secretfs wait a/b --after canary-7f3a", "--after"),
        ("secretfs wait a/b --after -1", "secretfs wait --help"),
        ("secretfs wait a/b canary-7f3a", "secretfs wait --help"),
        (
            "secretfs completions canary-7f3a",
            "secretfs completions --help",
        ),
    ];
    for (line, wanted) in table {
        let Err(Stop::Wrong(failure)) = read(line) else {
            panic!("{line}");
        };
        assert_eq!(failure.kind.exit_code(), 2, "{line}");
        assert!(failure.message.contains(wanted), "{line}: {failure}");
        assert!(!failure.message.contains("canary"), "{line}: {failure}");
        assert!(!failure.message.contains('\n'), "{line}");
    }
}

#[test]
fn help_is_help() {
    assert!(matches!(read("secretfs --help"), Err(Stop::Shown(_))));
    assert!(matches!(read("secretfs put --help"), Err(Stop::Shown(_))));
    assert!(matches!(read("secretfs"), Err(Stop::Shown(_))));
}
