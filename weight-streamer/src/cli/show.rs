//! What people see: a progress bar or plain lines, the summary, the manifest.

use crate::clock;
use crate::manifest::Manifest;
use crate::pull::{Progress, PullEvent, PullReport, Quiet};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often plain lines are printed.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A bar on a terminal, lines elsewhere, nothing when quiet.
pub(super) fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar { bar: ProgressBar::hidden() })
    } else {
        Box::new(Lines { last: None })
    }
}

/// The text of an event that is worth a line of its own.
fn line_of(event: &PullEvent<'_>) -> Option<String> {
    Some(match event {
        PullEvent::Connected { address, root } => format!("source {address} serves {root}"),
        PullEvent::Started { total_bytes, resumed_bytes, sources, .. } => format!(
            "pulling {} from {sources} source(s), {} verified before",
            HumanBytes(total_bytes - resumed_bytes),
            HumanBytes(*resumed_bytes)
        ),
        PullEvent::Corrupt { address, chunk, file, tries } => {
            format!("corrupt: chunk {chunk} of {file} from {address} (try {tries}); asking again")
        }
        PullEvent::SourceLost(failure) => format!("source {failure}"),
        PullEvent::Checking { bytes } => format!("checking {} as a whole", HumanBytes(*bytes)),
        PullEvent::Moved { .. } => return None,
    })
}

struct Bar {
    bar: ProgressBar,
}

impl Progress for Bar {
    fn event(&mut self, event: &PullEvent<'_>) {
        match event {
            PullEvent::Started { total_bytes, resumed_bytes, sources, .. } => {
                self.bar = ProgressBar::new(*total_bytes);
                let template = "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta} {msg}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style);
                }
                self.bar.set_position(*resumed_bytes);
                self.bar.reset_eta();
                self.bar.set_message(format!("from {sources} source(s)"));
            }
            PullEvent::Moved { bytes, .. } => self.bar.set_position(*bytes),
            PullEvent::Checking { .. } => self.bar.set_message("checking"),
            other => {
                if let Some(line) = line_of(other) {
                    self.bar.suspend(|| eprintln!("{line}"));
                }
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Plain lines, and how far it was when the last one was printed.
struct Lines {
    last: Option<(Instant, u64)>,
}

impl Progress for Lines {
    fn event(&mut self, event: &PullEvent<'_>) {
        if let Some(line) = line_of(event) {
            eprintln!("{line}");
        }
        let PullEvent::Moved { bytes, total_bytes } = *event else { return };
        let now = clock::now();
        let (since, before) = *self.last.get_or_insert((now, bytes));
        let elapsed = now.duration_since(since);
        if elapsed < LINE_EVERY {
            return;
        }
        let rate = u128::from(bytes.saturating_sub(before)) * 1000 / elapsed.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let percent = (bytes * 100).checked_div(total_bytes).unwrap_or(100);
        let eta = total_bytes
            .saturating_sub(bytes)
            .checked_div(rate)
            .map_or_else(|| "?".into(), |left| left.to_string());
        eprintln!(
            "{percent}% {} of {}, {}/s, {eta} s left",
            HumanBytes(bytes),
            HumanBytes(total_bytes),
            HumanBytes(rate)
        );
        self.last = Some((now, bytes));
    }
}

/// The last lines of a pull.
pub(super) fn summary(report: &PullReport) -> String {
    let mut out = String::new();
    if report.already_complete {
        let dir = report.dir.display();
        return format!("{dir} is complete already (checked, root {}); nothing to do\n", report.root);
    }
    for source in &report.sources {
        let path = source.path.as_deref().unwrap_or("-");
        let corrupt =
            if source.corrupt > 0 { format!(", {} corrupt", source.corrupt) } else { String::new() };
        let lost = source.lost.as_ref().map(|reason| format!(", left: {reason}")).unwrap_or_default();
        let (chunks, bytes) = (source.chunks, HumanBytes(source.bytes));
        put(
            &mut out,
            format_args!("{}: {chunks} chunks, {bytes} over {path}{corrupt}{lost}\n", source.address),
        );
    }
    put(
        &mut out,
        format_args!(
            "{} complete: {} bytes moved in {:.3} s ({:.3} GB/s), {} chunks refetched, {} resumed; {:.3} s with checks; root {}\n",
            report.dir.display(),
            report.bytes_fetched,
            report.transfer_seconds,
            report.gigabytes_per_second(),
            report.chunks_refetched,
            report.chunks_resumed,
            report.seconds,
            report.root
        ),
    );
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.push_str(&text.to_string());
}

/// The manifest for people: files, then how many tensors of which type.
pub(super) fn manifest_table(manifest: &Manifest) -> String {
    let mut out = String::new();
    put(
        &mut out,
        format_args!("{:>14}  {:>7}  {:>8}  {:16}  file\n", "bytes", "chunks", "tensors", "blake3"),
    );
    for (index, file) in manifest.files().iter().enumerate() {
        let tensors =
            manifest.tensors().iter().filter(|tensor| usize::try_from(tensor.file) == Ok(index)).count();
        let chunks = file.size.div_ceil(u64::from(manifest.chunk_bytes()));
        let hash = file.hash.to_string();
        let short = &hash[..16];
        put(&mut out, format_args!("{:>14}  {chunks:>7}  {tensors:>8}  {short}  {}\n", file.size, file.path));
    }
    put(
        &mut out,
        format_args!(
            "{} files, {} tensors, {} bytes in {} chunks of {} bytes\nroot {}\n",
            manifest.files().len(),
            manifest.tensors().len(),
            manifest.total_bytes(),
            manifest.chunk_count(),
            manifest.chunk_bytes(),
            manifest.root()
        ),
    );
    out
}

/// The manifest for machines.
pub(super) fn manifest_json(manifest: &Manifest) -> serde_json::Value {
    let files: Vec<_> = manifest
        .files()
        .iter()
        .map(|file| {
            serde_json::json!({
                "path": file.path, "size": file.size, "executable": file.executable,
                "blake3": file.hash.to_string(), "first_chunk": file.first_chunk(),
            })
        })
        .collect();
    let tensors: Vec<_> = manifest
        .tensors()
        .iter()
        .map(|tensor| {
            serde_json::json!({
                "name": tensor.name, "dtype": tensor.dtype.name(), "shape": tensor.shape,
                "file": tensor.file, "begin": tensor.begin, "len": tensor.len,
            })
        })
        .collect();
    serde_json::json!({
        "root": manifest.root().to_string(), "chunk_bytes": manifest.chunk_bytes(),
        "chunks": manifest.chunk_count(), "bytes": manifest.total_bytes(), "files": files, "tensors": tensors,
    })
}
