//! The tables, in Markdown, or the same as JSON.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::load::Sample;
use crate::micro::Micro;
use crate::rotation::Rotation;
use crate::vault::{Beside, Count, Figures};

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) puts: Option<PutRow>,
    pub(crate) waits: Vec<Wait>,
    pub(crate) rotation: Vec<Rotation>,
    pub(crate) micro: Vec<Micro>,
    pub(crate) memory: Option<Memory>,
    pub(crate) vault: Figures,
}

/// One kind of work, by each contender.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) clients: String,
    /// By contender, in the order of the table, each with its rounds.
    pub(crate) rounds: [Vec<Sample>; 3],
}

/// `put` with many secrets in the store.
#[derive(Debug, Serialize)]
pub(crate) struct PutRow {
    pub(crate) secrets: usize,
    pub(crate) put: Sample,
    pub(crate) disk: Sample,
}

/// How long somebody waits for something.
#[derive(Debug, Serialize)]
pub(crate) struct Wait {
    pub(crate) what: &'static str,
    pub(crate) of: Sample,
}

/// The server's resident memory, in KiB.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    /// With a store opened and nothing read.
    pub(crate) idle: u64,
    /// With so many values cached.
    pub(crate) cached: u64,
    pub(crate) values: usize,
    /// Values that the listing of all of them fetched.
    pub(crate) fetched_by_listing: usize,
}

impl Report {
    pub(crate) fn print(&self) {
        println!("{}", self.machine);
        let tables = [
            self.reads(),
            self.puts(),
            self.waits(),
            self.rotation(),
            self.parts(),
            self.times(),
            self.counts(),
        ];
        for table in tables.iter().filter(|table| !table.is_empty()) {
            println!("\n{table}");
        }
        let Some(memory) = &self.memory else {
            return;
        };
        let Memory {
            idle,
            cached,
            values,
            fetched_by_listing,
        } = memory;
        println!(
            "\nResident memory of the server: {:.1} MiB with nothing read, {:.1} MiB with {values} values of 1 KiB cached.",
            *idle as f64 / 1024.0,
            *cached as f64 / 1024.0
        );
        println!("Values fetched by a cold `ls -l` of all secrets: {fetched_by_listing}.");
    }

    fn reads(&self) -> Table {
        let mut table = table([
            "what",
            "clients",
            "tmpfs p50 µs",
            "bare p50 µs",
            "bare p99",
            "secretfs p50 µs",
            "secretfs p99",
            "ops/s",
            "× bare",
            "least–most",
            "× tmpfs",
        ]);
        for row in &self.rows {
            let [tmpfs, bare, ours] = &row.rounds;
            let by_bare = ratios(ours, bare);
            table.add_row([
                row.work.clone(),
                row.clients.clone(),
                number(median(tmpfs, |sample| sample.p50)),
                number(median(bare, |sample| sample.p50)),
                number(median(bare, |sample| sample.p99)),
                number(median(ours, |sample| sample.p50)),
                number(median(ours, |sample| sample.p99)),
                format!("{:.0}", median(ours, |sample| sample.rate)),
                format!("{:.2}", middle(&by_bare)),
                format!("{:.2}–{:.2}", by_bare[0], by_bare[by_bare.len() - 1]),
                format!("{:.1}", middle(&ratios(ours, tmpfs))),
            ]);
        }
        align(&mut table, 2);
        table
    }

    fn puts(&self) -> Table {
        let mut table = table(["what", "p50 ms", "p99 ms", "ops/s"]);
        let Some(PutRow { secrets, put, disk }) = &self.puts else {
            return table;
        };
        let names = [
            (format!("put, {secrets} secrets in the store"), put),
            ("the same bytes on the same disk, plain".to_owned(), disk),
        ];
        for (name, sample) in names {
            let ms = |micros: f64| format!("{:.1}", micros / 1000.0);
            table.add_row([
                name,
                ms(sample.p50),
                ms(sample.p99),
                format!("{:.0}", sample.rate),
            ]);
        }
        align(&mut table, 1);
        table
    }

    fn waits(&self) -> Table {
        let mut table = table(["what", "p50 ms", "p99 ms"]);
        for Wait { what, of } in &self.waits {
            let ms = |micros: f64| format!("{:.2}", micros / 1000.0);
            table.add_row([(*what).to_owned(), ms(of.p50), ms(of.p99)]);
        }
        align(&mut table, 1);
        table
    }

    fn rotation(&self) -> Table {
        let mut table = table([
            "open+read+close 64 B while one rotates",
            "rotations/s",
            "p50 µs",
            "p99",
            "× nothing",
            "least–most",
        ]);
        let Some(nothing) = self.rotation.first() else {
            return table;
        };
        for rotation in &self.rotation {
            let ratios = ratios(&rotation.rounds, &nothing.rounds);
            table.add_row([
                rotation.what.to_owned(),
                format!("{:.0}", rotation.rate),
                number(median(&rotation.rounds, |sample| sample.p50)),
                number(median(&rotation.rounds, |sample| sample.p99)),
                format!("{:.2}", middle(&ratios)),
                format!("{:.2}–{:.2}", ratios[0], ratios[ratios.len() - 1]),
            ]);
        }
        align(&mut table, 1);
        table
    }

    fn parts(&self) -> Table {
        let mut table = table(["part", "µs", "least–most"]);
        for micro in &self.micro {
            table.add_row([
                micro.name.to_owned(),
                format!("{:.2}", micro.median),
                format!("{:.2}–{:.2}", micro.least, micro.most),
            ]);
        }
        align(&mut table, 1);
        table
    }

    fn times(&self) -> Table {
        let mut table = table([
            "with a server",
            "beside",
            "its p50 ms",
            "its p99",
            "p50 ms",
            "p99",
            "longest",
            "× p50",
            "least–most",
            "× p99",
        ]);
        for Beside {
            what,
            beside,
            ours,
            theirs,
        } in &self.vault.times
        {
            let by_p50 = ratios(ours, theirs);
            let ms = |micros: f64| significant(micros / 1000.0);
            let longest = ours.iter().map(|sample| sample.longest).fold(0.0, f64::max);
            let [our_p99, their_p99] = [ours, theirs].map(|of| median(of, |sample| sample.p99));
            table.add_row([
                what.clone(),
                (*beside).to_owned(),
                ms(median(theirs, |sample| sample.p50)),
                ms(their_p99),
                ms(median(ours, |sample| sample.p50)),
                ms(our_p99),
                ms(longest),
                format!("{:.2}", middle(&by_p50)),
                format!("{:.2}–{:.2}", by_p50[0], by_p50[by_p50.len() - 1]),
                format!("{:.2}", our_p99 / their_p99),
            ]);
        }
        align(&mut table, 2);
        table
    }

    fn counts(&self) -> Table {
        let mut table = table(["what the server is asked", "count", "at most"]);
        for Count { what, count, goal } in &self.vault.counts {
            table.add_row([what.clone(), significant(*count), significant(*goal)]);
        }
        align(&mut table, 1);
        table
    }
}

/// Round by round, smallest first: what disturbed a round has mostly disturbed both.
fn ratios(ours: &[Sample], theirs: &[Sample]) -> Vec<f64> {
    let rounds = ours.iter().zip(theirs);
    let mut ratios: Vec<f64> = rounds.map(|(ours, theirs)| ours.p50 / theirs.p50).collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

fn median(rounds: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    middle(&values)
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Three digits that mean something.
fn number(micros: f64) -> String {
    if micros >= 100.0 {
        format!("{micros:.0}")
    } else {
        format!("{micros:.1}")
    }
}

/// The same of anything between a thousandth and thousands.
fn significant(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{number:.4}"),
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
