//! What a human sees while the demo runs. Colours and moving parts are for terminals only.

use crate::wrap::{Wrap, shorten};
use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The width without a terminal, and the widest that is used with one.
const WIDTH: usize = 110;
/// Below this, lines are left to the terminal.
const WIDTH_MIN: usize = 40;
/// Where prompts and answers begin.
const INDENT: usize = 6;
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// How a piece of text is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// Of less interest.
    Dim,
    /// A heading.
    Bold,
    /// It went well.
    Good,
    /// It did not.
    Bad,
    /// What the model says.
    Answer,
}

/// The terminal, or the file that stands for it.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Nothing is shown: a program reads the output.
    silent: bool,
    /// It is a terminal.
    live: bool,
    colour: bool,
    width: usize,
    wrap: Wrap,
}

impl Screen {
    /// stdout, which shows nothing of this if it is `silent`.
    pub(crate) fn new(silent: bool) -> Self {
        let stdout = std::io::stdout();
        let live = stdout.is_terminal();
        let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
        let width = if live && columns > 0 { columns.clamp(WIDTH_MIN, WIDTH) } else { WIDTH };
        let colour = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { silent, live: live && !silent, colour, width, wrap: Wrap::new(width, INDENT) }
    }

    /// `text` in its style.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Dim => "2",
            Style::Bold => "1",
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Answer => "36",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Shows `text`.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn show(&self, text: &str) -> std::io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Shows a line.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn line(&self, text: &str) -> std::io::Result<()> {
        self.show(&format!("{text}\n"))
    }

    /// Shows that something of the start is done.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn done(&self, name: &str, what: &str) -> std::io::Result<()> {
        let mark = self.paint(Style::Good, "✓");
        self.line(&format!("  {mark} {} {what}", self.paint(Style::Bold, &format!("{name:<10}"))))
    }

    /// Waits for `work` and shows meanwhile that the program is alive.
    ///
    /// # Errors
    /// Those of `work`, or stdout is closed.
    pub(crate) async fn wait<T>(
        &self,
        name: &str,
        doing: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        if !self.live {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(Duration::from_millis(80));
        for frame in FRAMES.iter().cycle() {
            tokio::select! {
                result = &mut work => {
                    self.show("\r\x1b[2K")?;
                    return result;
                }
                _ = ticks.tick() => {
                    let doing = self.paint(Style::Dim, doing);
                    self.show(&format!("\r\x1b[2K  {frame} {name:<10} {doing}"))?;
                }
            }
        }
        work.await
    }

    /// Shows a prompt. What [`hear`](Self::hear) gets then is its answer.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn prompt(&mut self, number: usize, title: &str, text: &str) -> std::io::Result<()> {
        self.wrap = Wrap::new(self.width, INDENT);
        let text = shorten(text, self.width - INDENT);
        self.line(&format!("\n  {number:>2}  {}", self.paint(Style::Bold, title)))?;
        self.line(&format!("      {}", self.paint(Style::Dim, &text)))?;
        self.show(&format!("    {} ", self.paint(Style::Answer, "›")))
    }

    /// Shows a piece of an answer.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn hear(&mut self, text: &str) -> std::io::Result<()> {
        let ready = self.wrap.push(text);
        self.answer(&ready)
    }

    /// Shows the rest of an answer, and how it came.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn end(&mut self, how: &str) -> std::io::Result<()> {
        let rest = self.wrap.finish();
        self.answer(&rest)?;
        self.line(&format!("\n      {how}"))
    }

    fn answer(&self, text: &str) -> std::io::Result<()> {
        if text.is_empty() { Ok(()) } else { self.show(&self.paint(Style::Answer, text)) }
    }
}
