//! A row: its columns for people, its JSON for programs.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::path::{Op, PathName};
use crate::shape::{Shape, size};

/// What the share of a row refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoofKind {
    /// One thread's memcpy of the same spans.
    Memcpy,
    /// process_vm_readv or process_vm_writev of the same spans, in calls of 1024.
    ProcessVm,
    /// Plain sockets that move as many bytes, as many of them as the engine uses.
    Sockets,
    /// iperf3 with as many streams.
    Iperf3,
    /// What encrypts, on one core, with nothing else to do.
    Cipher,
}

impl fmt::Display for RoofKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memcpy => "memcpy, one thread",
            Self::ProcessVm => "bare process_vm calls",
            Self::Sockets => "bare sockets",
            Self::Iperf3 => "iperf3",
            Self::Cipher => "AES-GCM on one core",
        })
    }
}

/// How a transfer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "one sleeps or one does not")]
pub enum Wait {
    /// Sleep until it is done: no CPU is used meanwhile
    Block,
    /// Look again and again: quicker, and costs a core
    Poll,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Block => "block",
            Self::Poll => "poll",
        })
    }
}

/// What was measured. `NaN` stands for what was not, and is `null` in JSON.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(clippy::exhaustive_structs, reason = "the columns; the binary fills them in")]
pub struct Figures {
    /// Gigabytes (10^9) per second, post to done, one transfer at a time; median of the windows.
    pub gbps: f64,
    /// Post to done, median of all transfers.
    pub p50_us: f64,
    /// Post to done, 99th percentile of all transfers.
    pub p99_us: f64,
    /// Post to done, what one in a thousand transfers exceeds.
    pub p999_us: f64,
    /// Preparing both lists, for each span.
    pub prep_ns_per_desc: f64,
    /// Inside the call that posts, for each span; where the call itself copies, that is in it.
    pub post_ns_per_desc: f64,
    /// CPU time of both processes, for each GiB moved.
    pub cpu_s_per_gib: f64,
    /// The roof, in GB/s; median of its windows.
    pub roof: f64,
    /// The median of what each window reached of the roof just before and after it.
    pub share: f64,
}

impl Figures {
    /// Nothing was measured.
    pub const NONE: Self = Self {
        gbps: f64::NAN,
        p50_us: f64::NAN,
        p99_us: f64::NAN,
        p999_us: f64::NAN,
        prep_ns_per_desc: f64::NAN,
        post_ns_per_desc: f64::NAN,
        cpu_s_per_gib: f64::NAN,
        roof: f64::NAN,
        share: f64::NAN,
    };
}

/// How the figures came about, and what else is known.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(clippy::exhaustive_structs, reason = "the binary fills them in")]
pub struct Details {
    /// The smallest share of a window.
    pub share_min: f64,
    /// The largest share of a window.
    pub share_max: f64,
    /// What the roof is.
    pub roof_kind: RoofKind,
    /// One round of the roof, median: a bare round trip for sockets. `NaN` where rounds are not timed one by one.
    pub roof_p50_us: f64,
    /// Post to done beside a round of the roof: the median of what the medians of each window are to those of the roof
    /// just before and after it. `NaN` where rounds are not timed one by one.
    pub p50_of_roof: f64,
    /// How transfers were waited for.
    pub wait: Wait,
    /// Windows measured.
    pub windows: u32,
    /// Transfers measured.
    pub transfers: u64,
    /// Bytes of the remote list on the wire.
    pub wire_bytes: u64,
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Which way.
    pub path: PathName,
    /// Which direction.
    pub op: Op,
    /// How many spans.
    pub count: u32,
    /// How long each, in bytes.
    pub len: u64,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// Whether every byte was right, before and after.
    pub verified: bool,
    /// How it came about.
    #[serde(flatten)]
    pub details: Option<Details>,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Row {
    /// A row whose bytes were right.
    #[must_use]
    pub fn verified(path: PathName, op: Op, shape: Shape, figures: Figures, details: Details) -> Self {
        let (count, len) = (shape.count(), shape.len());
        Self { path, op, count, len, figures, verified: true, details: Some(details), error: None }
    }

    /// A row that does not count.
    #[must_use]
    pub fn failed(path: PathName, op: Op, shape: Shape, error: String) -> Self {
        let (count, len) = (shape.count(), shape.len());
        let figures = Figures::NONE;
        Self { path, op, count, len, figures, verified: false, details: None, error: Some(error) }
    }

    /// One JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        // A row has nothing that JSON cannot hold.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// One line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let f = &self.figures;
        let shape =
            if self.count == 1 { size(self.len) } else { format!("{} x {}", self.count, size(self.len)) };
        let range = self.details.map_or_else(String::new, |d| {
            let short = |share: f64| format!("{share:.2}").trim_start_matches('0').to_owned();
            format!("{}-{}", short(d.share_min), short(d.share_max))
        });
        let verified = if self.verified { "yes" } else { "NO" };
        let cells = [self.path.to_string(), self.op.to_string(), shape].into_iter();
        let cells = cells.chain([f.gbps, f.roof].map(number)).chain([share(f.share), range]);
        let cells = cells.chain([f.p50_us, f.p99_us, f.p999_us].map(number));
        let cells = cells.chain([f.prep_ns_per_desc, f.post_ns_per_desc, f.cpu_s_per_gib].map(number));
        let line = line(cells.chain([verified.to_owned()]));
        match &self.error {
            Some(error) => format!("{line}\n    {error}"),
            None => line,
        }
    }
}

/// The columns: first and second line of the heading, and the width. The first two are words, so they start left.
const COLUMNS: [(&str, &str, usize); 14] = [
    ("", "path", 10),
    ("", "op", 5),
    ("", "spans", 14),
    ("", "GB/s", 5),
    ("roof", "GB/s", 5),
    ("of", "roof", 4),
    ("lowest-", "highest", 9),
    ("p50", "us", 6),
    ("p99", "us", 6),
    ("p99.9", "us", 6),
    ("prep", "ns/desc", 7),
    ("post", "ns/desc", 7),
    ("CPU", "s/GiB", 5),
    ("", "verified", 8),
];
const WORDS: usize = 2;

fn line(cells: impl IntoIterator<Item = String>) -> String {
    let aligned = cells.into_iter().zip(COLUMNS).enumerate().map(|(index, (cell, (_, _, width)))| {
        if index < WORDS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    aligned.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// The heading of the table, three lines.
#[must_use]
pub fn heading() -> String {
    let above = line(COLUMNS.map(|(above, _, _)| above.to_owned()));
    let below = line(COLUMNS.map(|(_, below, _)| below.to_owned()));
    let rule = line(COLUMNS.map(|(_, _, width)| "─".repeat(width)));
    [above, below, rule].join("\n")
}

/// Two digits behind the point.
fn share(value: f64) -> String {
    if value.is_nan() { "–".to_owned() } else { format!("{value:.2}") }
}

/// Three digits, or more before the point.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let shape = Shape::new(8192, 16 << 10).unwrap();
        let figures = Figures {
            gbps: 12.345_6,
            p50_us: 10_871.9,
            p99_us: 123_456.7,
            p999_us: 123_456.7,
            prep_ns_per_desc: 9.5,
            post_ns_per_desc: 0.033,
            cpu_s_per_gib: 0.087_1,
            roof: 15.0,
            share: 0.823,
        };
        let details = Details {
            share_min: 0.79,
            share_max: 1.02,
            roof_kind: RoofKind::ProcessVm,
            roof_p50_us: f64::NAN,
            p50_of_roof: f64::NAN,
            wait: Wait::Block,
            windows: 5,
            transfers: 90,
            wire_bytes: 32_800,
        };
        Row::verified(PathName::ProcessVm, Op::Write, shape, figures, details)
    }

    #[test]
    fn lines_stand_under_their_headings_and_fit_a_terminal() {
        let heading = heading();
        let width = heading.lines().last().unwrap().chars().count();
        assert!(width <= 120, "{width}");
        let line = row().line();
        assert_eq!(line.chars().count(), width);
        assert!(
            line.starts_with("process-vm write  8192 x 16 KiB  12.3  15.0 0.82  .79-1.02  10872"),
            "{line}"
        );
        assert!(line.ends_with("yes"), "{line}");
    }

    #[test]
    fn json_has_the_promised_names_first_and_plain_numbers() {
        let json: serde_json::Value = serde_json::from_str(&row().json()).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let promised = "path op count len gbps p50_us p99_us p999_us prep_ns_per_desc post_ns_per_desc \
                        cpu_s_per_gib roof share verified";
        let promised: Vec<&str> = promised.split_whitespace().collect();
        assert_eq!(names[..promised.len()], promised);
        let further =
            "share_min share_max roof_kind roof_p50_us p50_of_roof wait windows transfers wire_bytes";
        assert_eq!(names[promised.len()..], further.split(' ').collect::<Vec<_>>());
        assert_eq!(json["path"], "process-vm");
        assert_eq!(json["op"], "write");
        assert_eq!(json["len"], 16384);
        assert_eq!(json["share"], 0.823);
        assert_eq!(json["verified"], true);
        assert_eq!((&json["roof_kind"], &json["wait"]), (&"process-vm".into(), &"block".into()));
        assert!(json["roof_p50_us"].is_null());
    }

    #[test]
    fn a_failed_row_says_so_and_has_no_figures() {
        let shape = Shape::new(1, 4096).unwrap();
        let row = Row::failed(PathName::Shm, Op::Read, shape, "byte 7 is wrong".to_owned());
        assert!(row.line().contains("–") && row.line().contains("NO\n    byte 7 is wrong"), "{}", row.line());
        let json: serde_json::Value = serde_json::from_str(&row.json()).unwrap();
        assert!(json["gbps"].is_null() && json["verified"] == false && json["error"] == "byte 7 is wrong");
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases = [
            (123_456.7, "123457"),
            (99.96, "100"),
            (12.34, "12.3"),
            (9.996, "10.0"),
            (1.234, "1.23"),
            (0.012_34, "0.012"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
