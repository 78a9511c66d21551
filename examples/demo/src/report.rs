//! The outcome, as a table and as JSON.

use crate::client::{Answer, Pull, WeightsPull};
use crate::scenario::Prompt;
use crate::screen::{Screen, Style};
use serde::Serialize;
use std::fmt::Write as _;

/// One prompt and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    prompt: &'static str,
    mode: String,
    prompt_tokens: usize,
    answer_tokens: usize,
    /// Of streamed answers.
    first_token_ms: Option<f64>,
    kv_blocks_had: usize,
    kv_blocks_moved: usize,
    kv_bytes_moved: u64,
    path: String,
    gigabytes_per_second: f64,
    memcpy_gigabytes_per_second: f64,
    identical: bool,
    /// What is wrong, if anything is.
    problem: Option<String>,
}

/// How the decode engine got its weights.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Warm {
    bytes: u64,
    seconds: f64,
    transfer_seconds: f64,
    gigabytes_per_second: f64,
    memcpy_gigabytes_per_second: f64,
    path: String,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// A row for each prompt.
    pub(crate) rows: Vec<Row>,
    /// The warm-up.
    pub(crate) warm: Warm,
}

impl Row {
    /// Puts the numbers together. `memcpy` is in bytes per second.
    pub(crate) fn new(
        prompt: &Prompt,
        answer: &Answer,
        pull: &Pull,
        memcpy: f64,
        verdict: Result<(), String>,
    ) -> Self {
        Self {
            prompt: prompt.name,
            mode: prompt.mode(),
            prompt_tokens: answer.prompt_tokens.len(),
            answer_tokens: answer.tokens.len(),
            first_token_ms: answer.first_token.map(|time| time.as_secs_f64() * 1e3),
            kv_blocks_had: pull.local_blocks,
            kv_blocks_moved: pull.blocks,
            kv_bytes_moved: pull.bytes,
            path: pull.path.clone(),
            gigabytes_per_second: rate(pull.bytes, pull.seconds),
            memcpy_gigabytes_per_second: memcpy / 1e9,
            identical: verdict.is_ok(),
            problem: verdict.err(),
        }
    }

    /// In a line, for under the answer.
    pub(crate) fn summary(&self, screen: &Screen) -> String {
        let mut text = format!("{} + {} tokens", self.prompt_tokens, self.answer_tokens);
        if let Some(first) = self.first_token_ms {
            write!(text, " · first after {}", milliseconds(first)).unwrap_or_default();
        }
        let (blocks, bytes) = (self.kv_blocks_moved, size(self.kv_bytes_moved));
        let blocks = format!("{blocks} KV block{}", if blocks == 1 { "" } else { "s" });
        match (self.kv_blocks_moved, self.kv_blocks_had) {
            (0, _) => text.push_str(" · no KV block lacking"),
            (_, 0) => write!(text, " · {blocks} ({bytes}) by {}", self.path).unwrap_or_default(),
            (_, had) => {
                write!(text, " · {blocks} ({bytes}) by {}, {had} were there", self.path).unwrap_or_default()
            }
        }
        let verdict = match &self.problem {
            None => screen.paint(Style::Good, "identical"),
            Some(problem) => screen.paint(Style::Bad, &format!("DIFFERENT: {problem}")),
        };
        format!("{} {verdict}", screen.paint(Style::Dim, &format!("{text} ·")))
    }

    fn cells(&self) -> Vec<String> {
        let moved = self.kv_blocks_moved > 0;
        let some = |text: String| if moved { text } else { "–".to_owned() };
        vec![
            self.prompt.to_owned(),
            self.mode.clone(),
            self.prompt_tokens.to_string(),
            self.answer_tokens.to_string(),
            self.first_token_ms.map_or_else(|| "–".to_owned(), milliseconds),
            self.kv_blocks_had.to_string(),
            self.kv_blocks_moved.to_string(),
            size(self.kv_bytes_moved),
            some(self.path.clone()),
            some(format!("{:.2}", self.gigabytes_per_second)),
            some(share(self.gigabytes_per_second, self.memcpy_gigabytes_per_second)),
            if self.identical { "yes" } else { "NO" }.to_owned(),
        ]
    }
}

impl Warm {
    /// Puts the numbers together. `memcpy` is in bytes per second.
    pub(crate) fn new(pull: &WeightsPull, memcpy: f64) -> Self {
        Self {
            bytes: pull.bytes,
            seconds: pull.seconds,
            transfer_seconds: pull.transfer_seconds,
            gigabytes_per_second: rate(pull.bytes_fetched, pull.transfer_seconds),
            memcpy_gigabytes_per_second: memcpy / 1e9,
            path: pull.path.clone(),
        }
    }
}

/// The headings of [`Row::cells`], in two lines, and whether a column is text.
const COLUMNS: [(&str, &str, bool); 12] = [
    ("", "prompt", true),
    ("", "mode", true),
    ("prompt", "tokens", false),
    ("answer", "tokens", false),
    ("first", "token", false),
    ("blocks", "had", false),
    ("blocks", "moved", false),
    ("KV", "moved", false),
    ("", "path", true),
    ("", "GB/s", false),
    ("of", "memcpy", false),
    ("", "identical", true),
];

impl Report {
    /// How many answers are identical.
    pub(crate) fn identical(&self) -> usize {
        self.rows.iter().filter(|row| row.identical).count()
    }

    /// Every answer is identical, and there is one.
    pub(crate) fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.identical() == self.rows.len()
    }

    /// As a table for humans.
    pub(crate) fn table(&self, screen: &Screen) -> String {
        let rows: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
        let widths: Vec<usize> = COLUMNS
            .iter()
            .enumerate()
            .map(|(at, (top, bottom, _))| {
                let cells = rows.iter().map(|row| row[at].chars().count());
                cells.chain([top.chars().count(), bottom.chars().count()]).max().unwrap_or_default()
            })
            .collect();
        let line = |cells: &[&str]| {
            let padded = cells.iter().zip(&widths).zip(COLUMNS).map(|((cell, &width), (_, _, text))| {
                if text { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            format!("  {}", padded.collect::<Vec<_>>().join("  "))
        };
        let mut out = String::new();
        for heading in [COLUMNS.map(|column| column.0), COLUMNS.map(|column| column.1)] {
            push_line(&mut out, &screen.paint(Style::Bold, line(&heading).trim_end()));
        }
        let width = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        push_line(&mut out, &screen.paint(Style::Dim, &format!("  {}", "─".repeat(width))));
        for (cells, row) in rows.iter().zip(&self.rows) {
            let (last, rest) = cells.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
            let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
            let style = if row.identical { Style::Good } else { Style::Bad };
            push_line(&mut out, &format!("{}  {}", line(&rest), screen.paint(style, last)));
        }
        out.push('\n');
        out.push_str(&self.notes(screen));
        out
    }

    fn notes(&self, screen: &Screen) -> String {
        let name = |name: &str| screen.paint(Style::Bold, &format!("{name:<10}"));
        let warm = &self.warm;
        let path = if warm.path.is_empty() { String::new() } else { format!(" by {}", warm.path) };
        let warm = format!(
            "{} of weights in {}, of which {} on the way{path}: {:.2} GB/s, {} of memcpy",
            size(warm.bytes),
            milliseconds(warm.seconds * 1e3),
            milliseconds(warm.transfer_seconds * 1e3),
            warm.gigabytes_per_second,
            share(warm.gigabytes_per_second, warm.memcpy_gigabytes_per_second),
        );
        let largest =
            self.rows.iter().max_by_key(|row| row.kv_bytes_moved).filter(|row| row.kv_bytes_moved > 0);
        let memcpy = largest.map_or_else(String::new, |row| {
            let (rate, bytes) = (row.memcpy_gigabytes_per_second, size(row.kv_bytes_moved));
            format!(", here {rate:.1} GB/s for {bytes}")
        });
        let (count, all) = (self.identical(), self.rows.len());
        let style = if self.is_good() { Style::Good } else { Style::Bad };
        let verdict = format!("{count} of {all} answers have exactly the tokens of the undivided engine");
        format!(
            "  {} {warm}\n  {} one thread copying as many bytes, from its cache if they fit{memcpy}\n  {} {}\n",
            name("to warm"),
            name("memcpy"),
            name("identical"),
            screen.paint(style, &verdict)
        )
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / 1e9 / seconds } else { 0.0 }
}

fn share(part: f64, whole: f64) -> String {
    let percent = 100.0 * part / whole.max(f64::MIN_POSITIVE);
    if percent < 1.0 { "< 1 %".to_owned() } else { format!("{percent:.0} %") }
}

fn milliseconds(value: f64) -> String {
    if value >= 1e4 {
        format!("{:.1} s", value / 1e3)
    } else if value >= 10.0 {
        format!("{value:.0} ms")
    } else {
        format!("{value:.1} ms")
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "–".to_owned(),
        1..=0x3ff => format!("{bytes} B"),
        0x400..=0xf_ffff => format!("{:.0} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{GROUPS, prompts};

    fn report(verdicts: &[Result<(), String>]) -> Report {
        let pull = Pull {
            local_blocks: 2,
            blocks: 3,
            bytes: 3 << 20,
            seconds: 0.001,
            path: "shm".to_owned(),
            error: None,
        };
        let weights = WeightsPull {
            bytes: 1 << 20,
            bytes_fetched: 1 << 20,
            transfer_seconds: 0.001,
            seconds: 0.1,
            path: "shm".to_owned(),
        };
        let answer = Answer { prompt_tokens: vec![1; 9], tokens: vec![2; 4], ..Answer::default() };
        let prompts = prompts(&GROUPS, 100);
        let row = |verdict: &Result<(), String>| Row::new(&prompts[0], &answer, &pull, 10e9, verdict.clone());
        Report { rows: verdicts.iter().map(row).collect(), warm: Warm::new(&weights, 10e9) }
    }

    #[test]
    fn one_difference_spoils_it_and_so_does_nothing_at_all() {
        assert!(report(&[Ok(()), Ok(())]).is_good());
        let bad = report(&[Ok(()), Err("token 1".to_owned()), Ok(())]);
        assert!(!bad.is_good());
        assert!(!report(&[]).is_good());
        let table = bad.table(&Screen::new(false));
        assert!(table.contains("NO") && table.contains("2 of 3 answers"), "{table}");
        assert!(table.contains("31 %"), "{table}");
        let width = table.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(width <= 118, "{width}\n{table}");
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!([0, 1000, 64 << 10, 3 << 20].map(size), ["–", "1000 B", "64 KiB", "3.0 MiB"]);
        assert_eq!([0.24, 23.4, 12345.0].map(milliseconds), ["0.2 ms", "23 ms", "12.3 s"]);
    }
}
