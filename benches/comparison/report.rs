//! The table and `target/bench-report.json`.

use std::error::Error;
use std::path::PathBuf;

use serde_json::json;

/// What a row came to, or why it could not be measured.
pub(crate) type Outcome = Result<Measured, Box<dyn Error>>;

/// A figure, and what one should know about it: the spread, the figures behind a ratio.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) value: f64,
    pub(crate) note: String,
}

/// What a figure is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::Exactly(bar) => (value - bar).abs() < f64::EPSILON,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bar) => format!(">= {bar}"),
            Self::AtMost(bar) => format!("<= {bar}"),
            Self::Exactly(bar) => format!("= {bar}"),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    unit: &'static str,
    bar: Bar,
    value: Option<f64>,
    note: String,
    asked: bool,
}

impl Row {
    /// `None` for one that was not asked for.
    pub(crate) fn new(name: &'static str, unit: &'static str, bar: Bar, outcome: Option<Outcome>) -> Self {
        let asked = outcome.is_some();
        let (value, note) = match outcome {
            Some(Ok(measured)) => (Some(measured.value), measured.note),
            Some(Err(reason)) => (None, format!("not measured: {reason}")),
            None => (None, "not asked for".into()),
        };
        Self { name, unit, bar, value, note, asked }
    }

    fn ok(&self) -> bool {
        self.value.is_some_and(|value| self.bar.holds(value))
    }

    pub(crate) fn print(&self) {
        let value = self.value.map_or("-".into(), |value| format!("{value:.3}"));
        let word = match (self.value, self.ok()) {
            (None, _) => "n/a",
            (_, true) => "ok",
            (_, false) => "MISS",
        };
        println!("{:<28} {value:>10} {:<6} {:<9} {word:<5} {}", self.name, self.unit, self.bar.text(), self.note);
    }

    fn json(&self) -> serde_json::Value {
        // Three decimals are more than any of these figures is good for.
        let value = self.value.map(|value| (value * 1000.0).round() / 1000.0);
        json!({
            "name": self.name, "value": value, "unit": self.unit, "bar": self.bar.text(), "ok": self.ok(), "note": self.note,
        })
    }
}

/// Prints the table's head, with the load that other work puts on the machine.
pub(crate) fn begin() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, load average before: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    println!("{:<28} {:>10} {:<6} {:<9} {:<5} spread and figures", "name", "value", "unit", "bar", "");
}

/// Names the rows that miss their bar, or that could not be measured. No failure of this program: on a busy machine any
/// row may miss.
pub(crate) fn end(rows: &[Row]) {
    let asked: Vec<_> = rows.iter().filter(|row| row.asked).collect();
    let names = |wanted: &dyn Fn(&Row) -> bool| {
        let names: Vec<_> = asked.iter().filter(|row| wanted(row)).map(|row| row.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    println!(
        "\n{} of {} hold their bar; missed: {}; not measured: {}",
        asked.iter().filter(|row| row.ok()).count(),
        asked.len(),
        names(&|row| row.value.is_some() && !row.ok()),
        names(&|row| row.value.is_none()),
    );
}

/// Writes the report and returns where.
pub(crate) fn write(rows: &[Row]) -> std::io::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let path = target.join("bench-report.json");
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    std::fs::create_dir_all(&target)?;
    std::fs::write(&path, format!("{:#}\n", serde_json::Value::from(rows)))?;
    Ok(path)
}
