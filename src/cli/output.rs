//! What the commands print: tables and colours for a terminal, plain text for a pipe, JSON for a program.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::control::Failure;

/// How output looks.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Print JSON.
    pub json: bool,
    /// stdout is a terminal.
    pub terminal: bool,
    colour: bool,
}

/// What a cell says, beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Nothing.
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Doubtful,
    /// Something is wrong.
    Bad,
}

/// One cell of a table.
pub type Styled = (String, Mood);

impl Output {
    /// As this process's stdout is, and `NO_COLOR` says.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json,
            terminal,
            colour: terminal && wanted,
        }
    }

    /// Prints one JSON document on a line.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print_json(&self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text =
            serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?;
        self.line(&text)
    }

    /// Prints a line.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        write(&[text.as_bytes(), b"\n"])
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        write(&[bytes])
    }

    /// Prints a table: its first row is the headings.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn table(&self, headings: &[&str], rows: Vec<Vec<Styled>>) -> Result<(), Failure> {
        self.line(&self.render(headings, rows))
    }

    fn render(&self, headings: &[&str], rows: Vec<Vec<Styled>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if !headings.is_empty() {
            table.set_header(headings.iter().map(|heading| {
                let cell = Cell::new(heading);
                if self.colour {
                    cell.add_attribute(Attribute::Bold)
                } else {
                    cell
                }
            }));
        }
        for row in rows {
            table.add_row(row.into_iter().map(|(text, mood)| {
                let cell = Cell::new(printable(&text));
                match (self.colour, mood) {
                    (false, _) | (true, Mood::Plain) => cell,
                    (true, Mood::Good) => cell.fg(Color::Green),
                    (true, Mood::Doubtful) => cell.fg(Color::Yellow),
                    (true, Mood::Bad) => cell.fg(Color::Red),
                }
            }));
        }
        // Nothing before the first column: a script may take it by its place.
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Says something to the person at the terminal: on stderr, so that a pipe gets only what was asked for.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// A plain cell.
pub(crate) fn plain(text: impl ToString) -> Styled {
    (text.to_string(), Mood::Plain)
}

/// Control characters, which a terminal would obey, as escapes.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (escaped, kept) = if c.is_control() && c != '\n' {
                (Some(c.escape_default()), None)
            } else {
                (None, Some(c))
            };
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// A progress bar on stderr. Nothing is drawn in a pipe, nor in the first second.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: std::time::Instant,
    clock: crate::clock::Clock,
}

impl Progress {
    /// A bar that is not shown yet.
    #[must_use]
    pub fn new(clock: &crate::clock::Clock) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        Self {
            bar,
            started: clock.now(),
            clock: clock.clone(),
        }
    }

    /// So much is done.
    pub fn set(&self, done: u64, total: u64) {
        if total == 0 {
            return;
        }
        let late = self
            .clock
            .now()
            .saturating_duration_since(self.started)
            .as_secs()
            >= 1;
        if late && self.bar.is_hidden() {
            // stderr() draws on a terminal only.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Progress {
    /// So many steps are done.
    pub(crate) fn step(&self, done: usize, total: Option<usize>) {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        self.set(number(done), total.map_or(0, number));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes to stdout. Whoever reads it may have had enough: then the command ends, without a word.
fn write(parts: &[&[u8]]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = parts
        .iter()
        .try_for_each(|part| stdout.write_all(part))
        .and_then(|()| stdout.flush());
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::failed("");
        }
        unwritable(&error)
    })
}

/// What to say of a stdout that takes nothing.
pub(crate) fn unwritable(error: &io::Error) -> Failure {
    Failure::failed(format!(
        "stdout cannot be written: {error}: look where it goes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(terminal: bool, colour: bool) -> Output {
        Output {
            json: false,
            terminal,
            colour,
        }
    }

    fn rows() -> Vec<Vec<Styled>> {
        vec![
            vec![plain("store"), ("good".into(), Mood::Good)],
            vec![plain("a\x1b[31mlonger"), ("bad".into(), Mood::Bad)],
        ]
    }

    #[test]
    fn a_pipe_gets_plain_aligned_text() {
        let text = output(false, false).render(&["CHECK", "STATE"], rows());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(!text.contains('\x1b'), "{text}");
        let column = lines[0].find("STATE").unwrap();
        assert_eq!(lines[1].find("good"), Some(column));
        assert_eq!(lines[2].find("bad"), Some(column));
    }

    #[test]
    fn a_terminal_gets_colours_but_none_of_the_texts_own() {
        let text = output(true, true).render(&["CHECK", "STATE"], rows());
        assert!(text.contains("\x1b["), "{text:?}");
        assert!(!text.contains("\x1b[31mlonger"), "{text:?}");
    }
}
