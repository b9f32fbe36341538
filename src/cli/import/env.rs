//! .env files, read strictly.
//!
//! There is no standard, and the usual libraries put variables of their own process into values and quote whole lines
//! in errors. This reader takes what all dialects agree on and refuses the rest.

use std::path::Path;

use super::{Collected, ImportError, Imported, Problem};
use crate::secret::SecretBytes;

/// The assignments of a .env file: `[export] NAME=VALUE`, a line each, with comments.
///
/// A value is plain (to the end of the line or to a `#` behind a space), in single quotes (as it is) or in double quotes
/// (with `\n`, `\r`, `\t`, `\\`, `\"` and `\$`); in quotes it may go over several lines. A plain or double-quoted `$`
/// that others would take for a variable, and a plain backslash or quote, are refused.
///
/// # Errors
/// [`ImportError`], which never shows a line.
pub fn parse_env(origin: &Path, bytes: &[u8]) -> Result<Imported, ImportError> {
    let mut input = Input {
        rest: bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes),
        line: 1,
    };
    let mut found = Collected::default();
    while !input.rest.is_empty() {
        let line = input.line;
        let assignment = input
            .assignment()
            .map_err(|fault| ImportError::new(origin, Problem::Env { line, fault }))?;
        if let Some((name, value)) = assignment {
            found.add(name, value);
        }
    }
    found.finish(origin)
}

/// What can be wrong with an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvFault {
    /// Not `NAME=`.
    #[error("not NAME=VALUE: mend it, or begin it with '#'")]
    Form,
    /// A `$` that elsewhere begins a variable.
    #[error("'$' begins a variable for other programs: put the value in single quotes")]
    Dollar,
    /// A backslash or quote in a plain value.
    #[error(
        "a backslash or quote inside a value without quotes is read differently elsewhere: put the value in quotes"
    )]
    Plain,
    /// An unknown `\x`.
    #[error(
        r#"in double quotes a backslash stands only before n, r, t, \, " or $: use single quotes"#
    )]
    Escape,
    /// No closing quote.
    #[error("the quote that begins here has no end")]
    Open,
    /// Something behind the closing quote.
    #[error("there is something behind the closing quote: only a comment may follow")]
    Behind,
}

struct Input<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Input<'a> {
    /// Reads one line, or the lines of a quoted value.
    fn assignment(&mut self) -> Result<Option<(&'a str, SecretBytes)>, EnvFault> {
        self.skip_blanks();
        if self.at_end_of_line() {
            self.skip_line();
            return Ok(None);
        }
        let mut name = self.name()?;
        self.skip_blanks();
        if name == "export" && self.rest.first() != Some(&b'=') {
            name = self.name()?;
            self.skip_blanks();
        }
        self.rest = self.rest.strip_prefix(b"=").ok_or(EnvFault::Form)?;
        let before = self.rest;
        self.skip_blanks();
        let value = match self.rest.first() {
            Some(b'\'') => self.single_quoted()?,
            Some(b'"') => self.double_quoted()?,
            Some(_) | None => {
                // `NAME= # comment` is empty, `NAME=#x` is not: the blank before makes the comment.
                let blanks = before.len() - self.rest.len();
                return self.plain(blanks > 0).map(|value| Some((name, value)));
            }
        };
        self.skip_blanks();
        if !self.at_end_of_line() {
            return Err(EnvFault::Behind);
        }
        self.skip_line();
        Ok(Some((name, value)))
    }

    fn name(&mut self) -> Result<&'a str, EnvFault> {
        let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let end = self.rest.iter().position(|byte| !inside(byte));
        let (name, rest) = self.rest.split_at(end.ok_or(EnvFault::Form)?);
        let name = std::str::from_utf8(name).map_err(|_| EnvFault::Form)?;
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(EnvFault::Form);
        }
        self.rest = rest;
        Ok(name)
    }

    fn plain(&mut self, mut blank: bool) -> Result<SecretBytes, EnvFault> {
        let line = self.skip_line();
        let mut end = line.len();
        for (at, byte) in line.iter().enumerate() {
            match byte {
                b'#' if blank => {
                    end = at;
                    break;
                }
                b'\\' | b'\'' | b'"' | b'`' => return Err(EnvFault::Plain),
                b'$' if is_variable(line.get(at + 1)) => return Err(EnvFault::Dollar),
                _ => {}
            }
            blank = matches!(byte, b' ' | b'\t');
        }
        let value = line.get(..end).unwrap_or_default().trim_ascii_end();
        Ok(SecretBytes::new(value.to_vec()))
    }

    fn single_quoted(&mut self) -> Result<SecretBytes, EnvFault> {
        let quoted = self.rest.strip_prefix(b"'").unwrap_or_default();
        let end = quoted.iter().position(|byte| *byte == b'\'');
        let (value, rest) = quoted.split_at(end.ok_or(EnvFault::Open)?);
        self.go_to(rest.strip_prefix(b"'").unwrap_or_default());
        Ok(SecretBytes::new(value.to_vec()))
    }

    fn double_quoted(&mut self) -> Result<SecretBytes, EnvFault> {
        let quoted = self.rest.strip_prefix(b"\"").unwrap_or_default();
        let mut escaped = false;
        let end = quoted.iter().position(|byte| {
            let closing = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            closing
        });
        let (text, rest) = quoted.split_at(end.ok_or(EnvFault::Open)?);
        // Made with its final room: growing would leave copies behind.
        let mut value = zeroize::Zeroizing::new(Vec::with_capacity(text.len()));
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            value.push(match byte {
                b'\\' => match bytes.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(same @ (b'\\' | b'"' | b'$')) => *same,
                    Some(_) | None => return Err(EnvFault::Escape),
                },
                b'$' if is_variable(bytes.as_slice().first()) => return Err(EnvFault::Dollar),
                b'`' => return Err(EnvFault::Dollar),
                other => *other,
            });
        }
        self.go_to(rest.strip_prefix(b"\"").unwrap_or_default());
        Ok(SecretBytes::new(std::mem::take(&mut *value)))
    }

    fn go_to(&mut self, rest: &'a [u8]) {
        let passed = self.rest.get(..self.rest.len() - rest.len());
        let newlines = passed.unwrap_or_default().iter().filter(|b| **b == b'\n');
        self.line += newlines.count();
        self.rest = rest;
    }

    fn skip_blanks(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// True if nothing but a comment is left on the line.
    fn at_end_of_line(&self) -> bool {
        matches!(self.rest, [] | [b'\n' | b'#', ..] | [b'\r', b'\n', ..])
    }

    /// Returns what is left of the line, without its end.
    fn skip_line(&mut self) -> &'a [u8] {
        let mut parts = self.rest.splitn(2, |byte| *byte == b'\n');
        let line = parts.next().unwrap_or_default();
        self.rest = parts.next().unwrap_or_default();
        self.line += 1;
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}

fn is_variable(next: Option<&u8>) -> bool {
    next.is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'{' | b'('))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin() -> &'static Path {
        Path::new(".env")
    }

    fn value(text: &str) -> String {
        let found = parse_env(origin(), text.as_bytes()).unwrap();
        assert_eq!(found.len(), 1, "{text:?}");
        String::from_utf8(found[0].1.expose().to_vec()).unwrap()
    }

    #[test]
    fn what_all_dialects_agree_on_is_read() {
        for (text, expected) in [
            ("A=1", "1"),
            ("A=1\r\n", "1"),
            ("\u{feff}A=1", "1"),
            ("export A=1", "1"),
            ("export=1", "1"),
            ("export = 1", "1"),
            ("  A = 1  ", "1"),
            ("A=", ""),
            ("A= # comment", ""),
            ("A=x # comment", "x"),
            ("A=x#y", "x#y"),
            ("A=#x", "#x"),
            ("A=a b", "a b"),
            ("A=a=b==", "a=b=="),
            ("A=5$", "5$"),
            ("A=5$ x", "5$ x"),
            ("A='$B \\n \"'", "$B \\n \""),
            ("A='x' # comment", "x"),
            ("A='x\ny'\n", "x\ny"),
            (r#"A="a\nb\t\"\\\$C""#, "a\nb\t\"\\$C"),
            ("A=\"x\ny\"", "x\ny"),
            ("A=\"#\"", "#"),
            ("# A=2\n\n \t\nA=1\n#", "1"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn several_lines_come_in_the_order_of_their_names_and_hold_any_bytes() {
        let found = parse_env(origin(), b"B='two\nlines'\nA=\xff\xfe\n").unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["A", "B"]);
        assert_eq!(found[0].1.expose(), b"\xff\xfe");
    }

    #[test]
    fn what_they_do_not_agree_on_is_refused_with_its_line() {
        for (text, line, fault) in [
            ("canary", 1, EnvFault::Form),
            ("A=1\ncanary", 2, EnvFault::Form),
            ("A='x\ny'\ncanary", 3, EnvFault::Form),
            ("can ary=1", 1, EnvFault::Form),
            ("=canary", 1, EnvFault::Form),
            ("1A=canary", 1, EnvFault::Form),
            ("export canary", 1, EnvFault::Form),
            ("A=${canary}", 1, EnvFault::Dollar),
            ("A=x$canary", 1, EnvFault::Dollar),
            ("A=\"x$canary\"", 1, EnvFault::Dollar),
            ("A=\"$(canary)\"", 1, EnvFault::Dollar),
            ("A=canary\\ x", 1, EnvFault::Plain),
            ("A=can'ary", 1, EnvFault::Plain),
            ("A=\"canary\\q\"", 1, EnvFault::Escape),
            ("A='canary", 1, EnvFault::Open),
            ("A=\"canary\\\"", 1, EnvFault::Open),
            ("A='x'canary", 1, EnvFault::Behind),
        ] {
            let error = parse_env(origin(), text.as_bytes()).unwrap_err();
            assert_eq!(error.problem, Problem::Env { line, fault }, "{text:?}");
            let shown = error.to_string();
            assert!(
                !shown.contains("canary") && !shown.contains('\n'),
                "{shown}"
            );
        }
        let twice = parse_env(origin(), b"A=canary\nA=canary").unwrap_err();
        assert_eq!(twice.problem, Problem::Twice("A".to_owned()));
        let bad = parse_env(origin(), b"_A=canary\nB=1\n__C=2").unwrap_err();
        assert_eq!(
            bad.problem,
            Problem::Names("\"_A\" (perhaps A), \"__C\" (perhaps C)".to_owned())
        );
    }

    proptest! {
        #[test]
        fn any_value_survives_double_quotes(text in "\\PC*[\n\r\t$`\"\\\\]{0,5}\\PC*") {
            prop_assume!(!text.contains('`'));
            let mut quoted = String::new();
            for c in text.chars() {
                if matches!(c, '\\' | '"' | '$') {
                    quoted.push('\\');
                }
                quoted.push(c);
            }
            prop_assert_eq!(value(&format!("A=\"{quoted}\"\n")), text);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_env(origin(), &bytes);
        }
    }
}
