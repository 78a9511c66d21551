//! The rows as a picture: bandwidth over the length of a span, a panel for each path, the roof above.
//!
//! Both axes are logarithmic, and all panels share theirs. Colours follow the reader's light or dark setting; the
//! background is part of the picture, so that it can be read on any page.

use std::fmt::Write as _;

use crate::path::{Op, PathName};
use crate::report::Row;
use crate::shape::size;

const PANEL_WIDTH: f64 = 268.0;
const PANEL_HEIGHT: f64 = 220.0;
const GAP: f64 = 18.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 66.0;
/// Within a panel, so that no mark sits on its edge.
const INSET: f64 = 16.0;

const STYLE: &str = "\
text{font-family:ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.name{font-size:13px;font-weight:600}\
.soft{fill:#656d76}.small{font-size:11px}.back{fill:#ffffff}.panel{fill:#f6f8fa}\
.grid{stroke:#d8dee4;stroke-width:1}.roof{stroke:#8c959f;stroke-width:2;stroke-dasharray:5 4;fill:none}\
.read{stroke:#0969da;stroke-width:2.2;fill:none}.write{stroke:#c2570c;stroke-width:2.2;fill:none}\
.read.mark{fill:#0969da;stroke:#f6f8fa;stroke-width:1.2}.write.mark{fill:#c2570c;stroke:#f6f8fa;stroke-width:1.2}\
.read.many{fill:#f6f8fa;stroke:#0969da;stroke-width:2}.write.many{fill:#f6f8fa;stroke:#c2570c;stroke-width:2}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}.back{fill:#0d1117}.panel{fill:#161b22}\
.grid{stroke:#30363d}.roof{stroke:#7d8590}.read{stroke:#58a6ff}.write{stroke:#f0883e}\
.read.mark{fill:#58a6ff;stroke:#161b22}.write.mark{fill:#f0883e;stroke:#161b22}\
.read.many{fill:#161b22;stroke:#58a6ff}.write.many{fill:#161b22;stroke:#f0883e}}";

/// A picture of the rows that were verified, as a complete SVG document. `caption` says what machine it was.
///
/// `None` where there is nothing to show.
#[must_use]
pub fn svg(rows: &[Row], caption: &str) -> Option<String> {
    let shown = |row: &&Row| row.verified && row.figures.gbps > 0.0 && row.figures.roof > 0.0;
    let rows: Vec<&Row> = rows.iter().filter(shown).collect();
    let paths: Vec<PathName> =
        PathName::ALL.into_iter().filter(|path| rows.iter().any(|row| row.path == *path)).collect();
    let axes = Axes::of(&rows)?;
    let panels = f64::from(u8::try_from(paths.len()).ok()?);
    let width = LEFT + panels * PANEL_WIDTH + (panels - 1.0) * GAP + RIGHT;
    let height = TOP + PANEL_HEIGHT + BOTTOM;
    let mut out = Svg::default();
    out.add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Bandwidth of each path over the length of a span\">\
         <style>{STYLE}</style><rect class=\"back\" width=\"100%\" height=\"100%\" rx=\"8\"/>"
    ));
    out.text(LEFT, 30.0, "title", "start", "Bandwidth between two processes, beside the roof");
    legend(&mut out, &rows);
    out.text(14.0, TOP - 12.0, "soft small", "start", "GB/s");
    let mut left = LEFT;
    for path in paths {
        let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.path == path).collect();
        panel(&mut out, &axes, left, path, &rows);
        left += PANEL_WIDTH + GAP;
    }
    let bottom = TOP + PANEL_HEIGHT;
    for (value, y) in axes.rates() {
        out.text(LEFT - 8.0, y + 4.0, "soft small", "end", &value.to_string());
    }
    out.text(LEFT, bottom + 38.0, "soft small", "start", "bytes of a span");
    out.text(LEFT, bottom + 55.0, "soft small", "start", caption);
    out.0.push_str("</svg>\n");
    Some(out.0)
}

/// What each mark means.
fn legend(out: &mut Svg, rows: &[&Row]) {
    let mut x = LEFT;
    let y = 52.0;
    for op in Op::ALL {
        if rows.iter().any(|row| row.op == op) {
            out.line("", op, &[(x, y - 4.0), (x + 22.0, y - 4.0)]);
            out.mark(op, false, (x + 11.0, y - 4.0), "");
            out.text(x + 28.0, y, "", "start", &op.to_string());
            x += 82.0;
        }
    }
    if rows.iter().any(|row| row.count > 1) {
        for (op, offset) in [(Op::Read, 4.0), (Op::Write, 17.0)] {
            out.mark(op, true, (x + offset, y - 4.0), "");
        }
        out.text(x + 28.0, y, "", "start", "scattered pages");
        x += 144.0;
    }
    out.add(format_args!("<path class=\"roof\" d=\"M{x:.1} {:.1}h24\"/>", y - 4.0));
    out.text(x + 30.0, y, "", "start", "roof, measured in the same run");
}

fn panel(out: &mut Svg, axes: &Axes, left: f64, path: PathName, rows: &[&Row]) {
    let bottom = TOP + PANEL_HEIGHT;
    out.add(format_args!(
        "<rect class=\"panel\" x=\"{left:.1}\" y=\"{TOP:.1}\" width=\"{PANEL_WIDTH:.1}\" height=\"{PANEL_HEIGHT:.1}\" \
         rx=\"4\"/>"
    ));
    for (_, y) in axes.rates() {
        out.add(format_args!("<path class=\"grid\" d=\"M{left:.1} {y:.1}h{PANEL_WIDTH:.1}\"/>"));
    }
    for (len, x) in axes.lens() {
        out.text(left + x, bottom + 18.0, "soft small", "middle", &size(len));
    }
    out.text(left, TOP - 12.0, "name", "start", &path.to_string());
    if let Some(details) = rows.first().and_then(|row| row.details) {
        let roof = format!("roof: {}", details.roof_kind);
        out.text(left + PANEL_WIDTH, TOP - 12.0, "soft small", "end", &roof);
    }
    let mut counts: Vec<u32> = rows.iter().map(|row| row.count).collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let of_count: Vec<&Row> = rows.iter().copied().filter(|row| row.count == count).collect();
        roof(out, axes, left, &of_count);
        for op in Op::ALL {
            series(out, axes, left, op, of_count.iter().copied().filter(|row| row.op == op));
        }
        if count > 1
            && let Some(row) = of_count.iter().max_by(|a, b| a.len.cmp(&b.len))
        {
            let (x, y) = axes.place(left, row.len, row.figures.gbps.min(row.figures.roof));
            out.text(x, (y + 26.0).min(bottom - 6.0), "small", "middle", &format!("{count} ×"));
        }
    }
}

/// The roof of rows that differ in their length and direction: one line through the mean of both directions.
fn roof(out: &mut Svg, axes: &Axes, left: f64, rows: &[&Row]) {
    let mut lens: Vec<u64> = rows.iter().map(|row| row.len).collect();
    lens.sort_unstable();
    lens.dedup();
    let points: Vec<(f64, f64)> = lens
        .iter()
        .map(|len| {
            let roofs = rows.iter().filter(|row| row.len == *len).map(|row| row.figures.roof.ln());
            axes.place(left, *len, crate::stats::median(roofs).exp())
        })
        .collect();
    match points[..] {
        [(x, y)] => out.add(format_args!("<path class=\"roof\" d=\"M{:.1} {y:.1}h24\"/>", x - 12.0)),
        _ => out.path("roof", &points),
    }
}

fn series<'a>(out: &mut Svg, axes: &Axes, left: f64, op: Op, rows: impl Iterator<Item = &'a Row>) {
    let mut rows: Vec<&Row> = rows.collect();
    rows.sort_unstable_by_key(|row| row.len);
    let points: Vec<(f64, f64)> =
        rows.iter().map(|row| axes.place(left, row.len, row.figures.gbps)).collect();
    out.line("", op, &points);
    for (row, point) in rows.iter().zip(points) {
        let told = format!(
            "{} {} {} x {}: {:.2} GB/s, {:.2} of the roof",
            row.path,
            row.op,
            row.count,
            size(row.len),
            row.figures.gbps,
            row.figures.share
        );
        out.mark(op, row.count > 1, point, &told);
    }
}

/// From figures to places: logarithms of both.
struct Axes {
    /// Logarithms of the shortest and the longest span.
    len: (f64, f64),
    /// Of the lowest and the highest rate.
    rate: (f64, f64),
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture has fewer digits")]
fn log_len(len: u64) -> f64 {
    (len as f64).log2()
}

impl Axes {
    fn of(rows: &[&Row]) -> Option<Self> {
        let (low, high) = (rows.iter().map(|row| row.len).min()?, rows.iter().map(|row| row.len).max()?);
        let rates = rows.iter().flat_map(|row| [row.figures.gbps, row.figures.roof]);
        let (slowest, fastest) = crate::stats::spread(rates);
        // A lone length stands in the middle.
        let len = if low == high {
            (log_len(low) - 1.0, log_len(low) + 1.0)
        } else {
            (log_len(low), log_len(high))
        };
        Some(Self { len, rate: ((slowest * 0.8).log10(), (fastest * 1.25).log10()) })
    }

    fn place(&self, left: f64, len: u64, rate: f64) -> (f64, f64) {
        (left + self.x(len), self.y(rate))
    }

    fn x(&self, len: u64) -> f64 {
        INSET + (log_len(len) - self.len.0) / (self.len.1 - self.len.0) * (PANEL_WIDTH - 2.0 * INSET)
    }

    fn y(&self, rate: f64) -> f64 {
        let share = (rate.log10() - self.rate.0) / (self.rate.1 - self.rate.0);
        TOP + PANEL_HEIGHT - share * PANEL_HEIGHT
    }

    /// The rates that get a line: 1, 2 and 5 of each decade.
    fn rates(&self) -> Vec<(f64, f64)> {
        let ticks = (-4..=4).flat_map(|decade: i32| {
            [1.0, 2.0, 5.0].map(|digit| {
                if decade < 0 { digit / 10_f64.powi(-decade) } else { digit * 10_f64.powi(decade) }
            })
        });
        let inside = |tick: &f64| (self.rate.0..=self.rate.1).contains(&tick.log10());
        ticks.filter(inside).map(|tick| (tick, self.y(tick))).collect()
    }

    /// The lengths that get a name: every fourth doubling, or every one where there are few.
    fn lens(&self) -> Vec<(u64, f64)> {
        let step = if self.len.1 - self.len.0 > 5.0 { 4 } else { 1 };
        let powers = (0..=40_u32).filter(|power| power % step == 0);
        let inside = |power: &u32| (self.len.0 - 0.01..=self.len.1 + 0.01).contains(&f64::from(*power));
        powers.filter(inside).map(|power| (1 << power, self.x(1 << power))).collect()
    }
}

/// The document as it grows.
#[derive(Default)]
struct Svg(String);

impl Svg {
    fn add(&mut self, what: std::fmt::Arguments<'_>) {
        // A string takes everything.
        let _always = self.0.write_fmt(what);
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut d = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let _always = write!(d, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
        }
        self.add(format_args!("<path class=\"{class}\" d=\"{d}\"/>"));
    }

    fn line(&mut self, class: &str, op: Op, points: &[(f64, f64)]) {
        if points.len() > 1 {
            self.path(format!("{op} {class}").trim_end(), points);
        }
    }

    /// A circle for reads, a square for writes; hollow where there are many spans. `told` appears under the pointer.
    fn mark(&mut self, op: Op, many: bool, (x, y): (f64, f64), told: &str) {
        let class = if many { "many" } else { "mark" };
        let title = if told.is_empty() { String::new() } else { format!("<title>{}</title>", escape(told)) };
        match op {
            Op::Read => self.add(format_args!(
                "<circle class=\"read {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.4\">{title}</circle>"
            )),
            Op::Write => self.add(format_args!(
                "<rect class=\"write {class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\" rx=\"1\">{title}</rect>",
                x - 4.0,
                y - 4.0
            )),
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Details, Figures, RoofKind, Wait};
    use crate::shape::Shape;

    fn row(path: PathName, op: Op, shape: Shape, gbps: f64) -> Row {
        let figures = Figures { gbps, roof: gbps * 1.1, share: 0.9, ..Figures::NONE };
        let details = Details {
            share_min: 0.9,
            share_max: 0.9,
            roof_kind: RoofKind::Memcpy,
            roof_p50_us: f64::NAN,
            p50_of_roof: f64::NAN,
            wait: Wait::Block,
            windows: 5,
            transfers: 5,
            wire_bytes: 0,
        };
        Row::verified(path, op, shape, figures, details)
    }

    fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for path in PathName::ALL {
            for op in Op::ALL {
                for (index, power) in [12, 16, 20, 24, 28].into_iter().enumerate() {
                    let gbps = 0.2 * 3_f64.powi(i32::try_from(index).unwrap());
                    rows.push(row(path, op, Shape::new(1, 1 << power).unwrap(), gbps));
                }
                rows.push(row(path, op, Shape::new(8192, 16 << 10).unwrap(), 9.0));
            }
        }
        rows
    }

    /// Every element is closed, in order, and attributes are quoted: what an XML parser asks for.
    fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        for part in text.split('<').skip(1) {
            let (tag, rest) = part.split_once('>').expect("a tag ends");
            assert!(!rest.contains('>'), "{part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split_whitespace().next().unwrap();
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn every_row_has_a_mark_inside_the_picture_and_the_document_is_well_formed() {
        let svg = svg(&rows(), "a machine with <2> cores & \"more\"").unwrap();
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<title>").count(), 36);
        assert!(svg.contains("&lt;2&gt; cores &amp; &quot;more&quot;"));
        for name in ["shm", "process-vm", "tcp", "256 MiB", "8192 ×", "prefers-color-scheme:dark"] {
            assert!(svg.contains(name), "{name}");
        }
        let width = LEFT + 3.0 * PANEL_WIDTH + 2.0 * GAP + RIGHT;
        for (key, max) in
            [("cx", width), ("cy", TOP + PANEL_HEIGHT), ("x", width), ("y", TOP + PANEL_HEIGHT + BOTTOM)]
        {
            for part in svg.split(&format!(" {key}=\"")).skip(1) {
                let value: f64 = part.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=max).contains(&value), "{key} {value}");
            }
        }
    }

    #[test]
    fn one_row_is_enough_and_none_or_failed_ones_are_not() {
        let shape = Shape::new(1, 4096).unwrap();
        assert_well_formed(&svg(&[row(PathName::Tcp, Op::Read, shape, 1.0)], "").unwrap());
        assert!(svg(&[], "").is_none());
        assert!(svg(&[Row::failed(PathName::Shm, Op::Read, shape, "wrong".to_owned())], "").is_none());
    }

    #[test]
    fn higher_rates_stand_higher_and_longer_spans_further_right() {
        let all = rows();
        let rows: Vec<&Row> = all.iter().collect();
        let axes = Axes::of(&rows).unwrap();
        assert!(axes.y(10.0) < axes.y(1.0) && axes.x(1 << 20) > axes.x(1 << 12));
        assert!(axes.rates().len() >= 4 && axes.lens().len() == 5);
    }
}
