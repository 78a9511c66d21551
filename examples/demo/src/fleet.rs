//! All processes of the demo, and the model they share.

use crate::process::Process;
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The made model: large enough that its KV blocks are worth moving, small enough to answer at once on any CPU.
const LAYERS: usize = 8;
const HIDDEN_SIZE: usize = 512;

/// The running parts. Dropping it kills them; [`Fleet::stop`] lets them end in an orderly way.
#[derive(Debug)]
pub(crate) struct Fleet {
    dir: PathBuf,
    processes: Vec<Process>,
}

impl Fleet {
    /// No processes yet; their logs go to `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), processes: Vec::new() }
    }

    /// Starts a part and waits until it listens: its URL, and its process id.
    ///
    /// # Errors
    /// It did not get ready.
    pub(crate) async fn start(&mut self, name: &'static str, args: &[&str]) -> anyhow::Result<(String, u32)> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let process = Process::start(name, &args, &self.dir)?;
        // It is ours from here on, whatever happens while it gets ready.
        let process = self.processes.push_mut(process);
        let url = process.url().await?;
        Ok((url, process.id().unwrap_or_default()))
    }

    /// Makes the model in `model`, which appears when it is complete.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn make_model(&self, model: &Path) -> anyhow::Result<()> {
        let parent = model.parent().context("the model's directory has no parent")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let making = tempfile::Builder::new().prefix("making-").tempdir_in(parent)?;
        let made = making.path().join("model");
        let (layers, hidden) = (LAYERS.to_string(), HIDDEN_SIZE.to_string());
        let dir = made.to_str().context("the model's directory is not valid UTF-8")?;
        let args = ["engine-lite", "make-model", dir, "--layers", &layers, "--hidden-size", &hidden];
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Process::start("make-model", &args, &self.dir)?.finish().await?;
        match std::fs::rename(&made, model) {
            // Another demo was faster: the same spec gives the same bytes.
            Err(_) if is_model(model) => Ok(()),
            moved => moved.with_context(|| format!("cannot write {}", model.display())),
        }
    }

    /// The parts that are no longer there, and why.
    pub(crate) fn obituaries(&mut self) -> Vec<String> {
        self.processes.iter_mut().filter_map(Process::obituary).collect()
    }

    /// Resolves when a part has ended by itself.
    pub(crate) async fn any_end(&mut self) -> String {
        let ends = self.processes.iter_mut().map(|process| Box::pin(process.ended()));
        futures_util::future::select_all(ends).await.0
    }

    /// Ends all parts. The router comes first, so that none of its requests meets an engine that is gone.
    pub(crate) async fn stop(&mut self) {
        while let Some(process) = self.processes.pop() {
            process.end().await;
        }
    }
}

/// Whether `dir` holds a complete model: this file is written last.
pub(crate) fn is_model(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}

/// Where the made model is kept: in cargo's target directory, if this program is in one.
pub(crate) fn default_model_dir() -> PathBuf {
    let name = format!("model-{LAYERS}x{HIDDEN_SIZE}");
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.map_or_else(|| std::env::temp_dir().join("headrace-demo"), |target| target.join("demo")).join(name)
}
