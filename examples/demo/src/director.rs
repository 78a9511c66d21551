//! The run, from the first process to the table.

use crate::cli::Options;
use crate::client::{Client, Pull};
use crate::compare::compare;
use crate::fleet::{Fleet, default_model_dir, is_model};
use crate::memcpy;
use crate::report::{Report, Row, Warm};
use crate::scenario::{Chat, GROUPS, Input, Prompt, prompts, story};
use crate::screen::{Screen, Style};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit status after a signal.
const INTERRUPTED: u8 = 130;
/// How the engines call the model.
const MODEL: &str = "headrace-demo";

/// Plays the demo.
///
/// # Errors
/// What failed, with the end of the log of a part that is no longer there.
pub(crate) async fn direct(options: &Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::new(options.json);
    let dir = tempfile::Builder::new().prefix("headrace-demo-").tempdir()?;
    let mut fleet = Fleet::new(dir.path());
    // Whichever way this ends, the processes are stopped before it is told.
    let ended = tokio::select! {
        result = play(options, &dir, &mut fleet, &mut screen) => Some(result),
        () = signals.next() => None,
    };
    let ended = match ended {
        Some(Ok(report)) if options.keep => keep(report, &mut fleet, &mut signals).await,
        other => other,
    };
    let obituaries = fleet.obituaries();
    tokio::select! {
        () = fleet.stop() => {}
        // Whoever asks twice does not want to wait: what is left is killed when it is dropped.
        () = signals.next() => {}
    }
    match ended {
        None => {
            screen.line("\ninterrupted; every process is stopped")?;
            Ok(ExitCode::from(INTERRUPTED))
        }
        Some(Ok(report)) => Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Some(Err(error)) => {
            // The logs are worth keeping, the copied model is not; it may also not have come yet.
            drop(std::fs::remove_dir_all(decode_model(&dir)));
            let logs = dir.keep();
            let error = obituaries.into_iter().fold(error, |error, obituary| error.context(obituary));
            Err(error.context(format!("it did not work; all logs are in {}", logs.display())))
        }
    }
}

/// Leaves everything running until a signal comes, which is the good end then.
async fn keep(report: Report, fleet: &mut Fleet, signals: &mut Signals) -> Option<anyhow::Result<Report>> {
    tokio::select! {
        obituary = fleet.any_end() => Some(Err(anyhow::anyhow!(obituary))),
        () = signals.next() => Some(Ok(report)),
    }
}

/// Where requests go.
struct Urls {
    router: String,
    decode: String,
    undivided: String,
}

async fn play(
    options: &Options,
    dir: &TempDir,
    fleet: &mut Fleet,
    screen: &mut Screen,
) -> anyhow::Result<Report> {
    let client = Client::new()?;
    let title = screen.paint(Style::Bold, "Headrace");
    screen.line(&format!("\n  {title}: one model, prefill in one process, decode in another\n"))?;
    let model = model(options, fleet, screen).await?;
    let urls = start(options, &model, &decode_model(dir), fleet, screen, &client).await?;

    let info = client.info(&urls.decode, "none").await?;
    let weights = info.weights_pull.context("the decode engine does not say how it got its weights")?;
    let warm = Warm::new(&weights, roof(weights.bytes_fetched).await?);

    let story_tokens = client.count_tokens(&urls.undivided, &story(1)).await?;
    let groups = if options.prompts.is_empty() { &GROUPS[..] } else { &options.prompts };
    let mut chat = Chat::default();
    let mut rows = Vec::new();
    for (index, prompt) in prompts(groups, story_tokens).iter().enumerate() {
        rows.push(ask(options, index + 1, prompt, &mut chat, &urls, &client, screen).await?);
    }
    let report = Report { rows, warm };
    tell(options, &report, &urls, screen)?;
    Ok(report)
}

/// The model: the user's, or the made one, made when missing.
async fn model(options: &Options, fleet: &Fleet, screen: &Screen) -> anyhow::Result<PathBuf> {
    let dir = options.model.clone().unwrap_or_else(default_model_dir);
    let what = if is_model(&dir) {
        "is there"
    } else if options.model.is_some() {
        bail!("{} has no config.json: --model wants a Hugging Face model directory", dir.display());
    } else {
        screen.wait("model", "writing a small random one", fleet.make_model(&dir)).await?;
        "made"
    };
    screen.done("model", &format!("{what}: {}", screen.paint(Style::Dim, &dir.display().to_string())))?;
    Ok(dir)
}

async fn start(
    options: &Options,
    model: &Path,
    copy: &Path,
    fleet: &mut Fleet,
    screen: &Screen,
    client: &Client,
) -> anyhow::Result<Urls> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the model's path is not valid UTF-8");
    let block_size = options.block_size.to_string();
    let common = |model: &str| {
        let args = ["engine-lite", "serve", "--model", model, "--served-model-name", MODEL, "--port", "0"];
        let more = ["--block-size", &block_size, "--paths", options.paths.name()];
        args.into_iter().chain(more).map(str::to_owned).collect::<Vec<_>>()
    };
    let engine = async |fleet: &mut Fleet, name, doing, model: &str, more: &[&str]| {
        let args = common(model);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        screen.wait(name, doing, fleet.start(name, &args)).await
    };

    let prefill =
        engine(fleet, "prefill", "loading", &text(model)?, &["--role", "prefill", "--serve-weights"]).await?;
    let weights = client.info(&prefill.0, "none").await?.weights_address;
    let weights = weights.context("the prefill engine does not say where it serves its weights")?;
    started(screen, "prefill", &prefill, &format!("serves its weights at {weights}"))?;

    let more = ["--role", "decode", "--weights", &weights];
    let decode = engine(fleet, "decode", "warming its weights from prefill", &text(copy)?, &more).await?;
    started(screen, "decode", &decode, "has its weights from prefill")?;

    let other = options.undivided_model.as_deref().unwrap_or(model);
    let undivided = engine(fleet, "undivided", "loading", &text(other)?, &[]).await?;
    started(screen, "undivided", &undivided, "does both, to compare with")?;

    let args = ["router-lite", "serve", "--port", "0", "--prefill", &prefill.0, "--decode", &decode.0];
    let router = screen.wait("router", "starting", fleet.start("router", &args)).await?;
    screen.wait("router", "looking at its workers", client.healthy(&router.0)).await?;
    started(screen, "router", &router, "sends prompts to prefill, then to decode")?;
    Ok(Urls { router: router.0, decode: decode.0, undivided: undivided.0 })
}

fn started(screen: &Screen, name: &str, (url, id): &(String, u32), what: &str) -> anyhow::Result<()> {
    let process = screen.paint(Style::Dim, &format!("process {id:<8}"));
    Ok(screen.done(name, &format!("{url}  {process} {what}"))?)
}

/// Sends one prompt through the router, then to the undivided engine.
async fn ask(
    options: &Options,
    number: usize,
    prompt: &Prompt,
    chat: &mut Chat,
    urls: &Urls,
    client: &Client,
    screen: &mut Screen,
) -> anyhow::Result<Row> {
    let (path, mut body) = chat.request(prompt, options.max_tokens);
    let text = match &prompt.input {
        Input::Text(text) => text,
        Input::Turn(text) => *text,
    };
    screen.prompt(number, &format!("{}, {}", prompt.name, prompt.mode()), text)?;
    body["stream"] = json!(prompt.stream);
    let id = format!("demo-{number}");
    let url = format!("{}{path}", urls.router);
    let answer = client.ask(&url, &id, &body, |text| Ok(screen.hear(text)?)).await?;
    chat.answered(prompt, &answer.text);

    let pull = client.info(&urls.decode, &id).await?.pulls.pop();
    let memcpy = roof(pull.as_ref().map_or(0, |pull| pull.bytes)).await?;
    // Compared with an answer that came at once, streaming is checked as well.
    body["stream"] = Value::Bool(false);
    let undivided = client.ask(&format!("{}{path}", urls.undivided), &id, &body, |_| Ok(())).await?;
    let verdict = handed_over(pull.as_ref()).and_then(|()| compare(&answer, &undivided));
    let row = Row::new(prompt, &answer, &pull.unwrap_or_default(), memcpy, verdict);
    screen.end(&row.summary(screen))?;
    Ok(row)
}

/// Identical tokens prove nothing if the decode engine has computed the prompt itself.
fn handed_over(pull: Option<&Pull>) -> Result<(), String> {
    match pull {
        None => Err("no KV blocks were handed over".to_owned()),
        Some(Pull { error: Some(error), .. }) => Err(format!("the KV hand-off failed: {error}")),
        Some(Pull { blocks: 0, local_blocks: 0, .. }) => Err("the KV hand-off was empty".to_owned()),
        Some(_) => Ok(()),
    }
}

/// What memcpy makes of so many bytes, in bytes per second.
async fn roof(bytes: u64) -> anyhow::Result<f64> {
    let len = usize::try_from(bytes)?;
    Ok(tokio::task::spawn_blocking(move || memcpy::bytes_per_second(len)).await?)
}

fn tell(options: &Options, report: &Report, urls: &Urls, screen: &Screen) -> anyhow::Result<()> {
    screen.line(&format!("\n{}", report.table(screen)))?;
    if options.json {
        use std::io::Write as _;
        let mut stdout = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, report)?;
        writeln!(stdout)?;
        stdout.flush()?;
    }
    if options.keep {
        let body =
            r#"{"messages":[{"role":"user","content":"What is a good day?"}],"max_tokens":60,"stream":true}"#;
        let (router, decode) = (&urls.router, &urls.decode);
        screen.line("  Everything keeps running until Ctrl-C. Try it:\n")?;
        screen.line(&format!("    curl -N {router}/v1/chat/completions -d '{body}'"))?;
        screen.line(&format!("    curl {router}/workers"))?;
        screen.line(&format!("    curl {decode}/headrace/info\n"))?;
    } else {
        screen.line(
            "  To keep it running and send prompts of your own:  cargo run --release -p demo -- --keep\n",
        )?;
    }
    Ok(())
}

/// Where the decode engine puts the weights it gets.
fn decode_model(dir: &TempDir) -> PathBuf {
    dir.path().join("decode-model")
}

/// The signals that ask for an end.
struct Signals {
    all: [Signal; 3],
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self { all: [interrupt?, terminate?, hangup?] })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.all;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
