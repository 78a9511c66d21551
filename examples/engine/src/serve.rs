//! Puts an engine together: weights, model, agent, KV cache, engine thread, HTTP; and takes it apart again.

use crate::error::StartError;
use crate::events::{self, EventEndpoints, EventSettings, EventSink};
use crate::fingerprint;
use crate::http::{self, App, Info, Role, WeightsPull};
use crate::kv::layout::{Description, REGION_LABEL};
use crate::kv::store::RegionStore;
use crate::kv::{KvService, KvSettings};
use crate::metrics::Metrics;
use crate::sched::{Limits, Scheduler};
use crate::worker::{Command, EngineHandle, LoadFailurePolicy, Parts, Worker};
use engine_model::{Dtype, KvCache, KvLayout, Model, Tokenizer};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use transfer_core::{Address, Agent, Config, Key, PathSet, Region};
use weight_streamer::{PullOptions, Quiet, Server};

/// How long requests may go on after a signal, and how long their connections may take to end after that.
const GRACE: Duration = Duration::from_secs(5);
const HURRY: Duration = Duration::from_secs(2);

/// Everything that can be chosen about an engine.
#[derive(Debug)]
pub(crate) struct ServeOptions {
    pub(crate) model: PathBuf,
    pub(crate) served_model_name: String,
    pub(crate) weights: Vec<Address>,
    pub(crate) serve_weights: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) transfer_listen: SocketAddr,
    pub(crate) transfer_key_file: Option<PathBuf>,
    pub(crate) transfer_insecure_remote_without_key: bool,
    pub(crate) paths: PathSet,
    pub(crate) block_size: usize,
    /// `None`: as many as fit into `kv_cache_bytes`.
    pub(crate) kv_blocks: Option<u32>,
    pub(crate) kv_cache_bytes: usize,
    /// `None`: as the model says.
    pub(crate) dtype: Option<Dtype>,
    /// `None`: the type of the weights.
    pub(crate) kv_dtype: Option<Dtype>,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) max_num_requests: usize,
    pub(crate) max_model_len: Option<usize>,
    pub(crate) kv_lease: Duration,
    pub(crate) kv_pull_timeout: Duration,
    pub(crate) kv_load_failure_policy: LoadFailurePolicy,
    pub(crate) kv_events_endpoint: Option<String>,
    pub(crate) kv_events_replay_endpoint: Option<String>,
    pub(crate) kv_events_topic: String,
}

/// Serves until a signal asks for the end. `ready` hears where.
pub(crate) async fn serve(options: ServeOptions, ready: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
    check(&options)?;
    let options = Arc::new(options);
    let address = format!("{}:{}", options.host, options.port);
    let listen = |source| StartError::Listen { address: address.clone(), source };
    let listener = TcpListener::bind(&address).await.map_err(listen)?;
    let local = listener.local_addr().map_err(listen)?;
    // From here on a signal ends the process in an orderly way, also while the model is loading.
    let mut stop = stop_signal()?;
    let loading = Arc::clone(&options);
    let loading = tokio::task::spawn_blocking(move || load(&loading));
    let loaded = tokio::select! {
        loaded = loading => loaded.map_err(|error| StartError::Options(error.to_string()))??,
        _ = &mut stop => return Ok(()),
    };
    let events = bind_events(&options).await?;
    let engine = start(&options, loaded, events)?;
    ready(local);
    run_http(listener, &engine, stop).await
}

fn check(options: &ServeOptions) -> Result<(), StartError> {
    for (name, value) in [
        ("--block-size", options.block_size),
        ("--max-num-seqs", options.max_num_seqs),
        ("--max-num-batched-tokens", options.max_num_batched_tokens),
        ("--max-num-requests", options.max_num_requests),
        ("--max-model-len", options.max_model_len.unwrap_or(1)),
    ] {
        if value == 0 {
            return Err(StartError::Options(format!("{name} is 0; it must be at least 1")));
        }
    }
    if options.max_num_batched_tokens < options.max_num_seqs {
        let message = "--max-num-batched-tokens is below --max-num-seqs: some sequences could never take part in a step";
        return Err(StartError::Options(message.to_owned()));
    }
    Ok(())
}

/// What takes its time to load.
struct Loaded {
    model: Model,
    tokenizer: Tokenizer,
    description: Description,
    weights_server: Option<Server>,
    weights_pull: Option<WeightsPull>,
}

fn load(options: &ServeOptions) -> Result<Loaded, StartError> {
    let weights_pull = pull_weights(options)?;
    let model = Model::load(&options.model, options.dtype)?;
    let tokenizer = Tokenizer::load(&options.model)?;
    let key = key(options)?;
    let weights_server = options.serve_weights.map(|listen| {
        let mut serve = weight_streamer::ServeOptions::new(&options.model);
        serve.key = key;
        serve.insecure_remote_without_key = options.transfer_insecure_remote_without_key;
        serve.listen = listen;
        serve.paths = options.paths;
        Server::start(&serve)
    });
    let weights_server = weights_server.transpose()?;
    let dtype = options.dtype.unwrap_or_else(|| model.config().dtype);
    let description = Description {
        fingerprint: fingerprint::of_model(&options.model, dtype)?,
        layout: layout(options, &model, options.kv_dtype.unwrap_or(dtype))?,
    };
    Ok(Loaded { model, tokenizer, description, weights_server, weights_pull })
}

/// What engines, and sources and receivers of weights, have in common.
fn key(options: &ServeOptions) -> Result<Option<Key>, StartError> {
    Ok(options.transfer_key_file.as_ref().map(Key::from_file).transpose()?)
}

/// Gets the model directory from its sources, if any are named.
fn pull_weights(options: &ServeOptions) -> Result<Option<WeightsPull>, StartError> {
    if options.weights.is_empty() {
        return Ok(None);
    }
    let mut pull = PullOptions::new(options.weights.clone(), &options.model);
    pull.key = key(options)?;
    pull.insecure_remote_without_key = options.transfer_insecure_remote_without_key;
    pull.paths = options.paths;
    let report = weight_streamer::pull(&pull, &mut Quiet)?;
    let mut paths: Vec<&str> = report.sources.iter().filter_map(|source| source.path.as_deref()).collect();
    paths.sort_unstable();
    paths.dedup();
    let pull = WeightsPull {
        path: paths.join(", "),
        bytes: report.bytes,
        bytes_fetched: report.bytes_fetched,
        transfer_seconds: report.transfer_seconds,
        seconds: report.seconds,
    };
    tracing::info!(dir = %options.model.display(), bytes = pull.bytes, seconds = pull.seconds, "the weights are here");
    Ok(Some(pull))
}

fn layout(options: &ServeOptions, model: &Model, dtype: Dtype) -> Result<KvLayout, StartError> {
    let block = model.config().kv_layout(options.block_size, 1, dtype).total_bytes();
    let blocks = match options.kv_blocks {
        Some(blocks) => usize::try_from(blocks).unwrap_or(usize::MAX),
        None => options.kv_cache_bytes / block.max(1),
    };
    if blocks == 0 {
        let message =
            format!("the KV cache is too small for one block of {block} bytes; raise --kv-cache-mb");
        return Err(StartError::Options(message));
    }
    Ok(model.config().kv_layout(options.block_size, blocks, dtype))
}

async fn bind_events(options: &ServeOptions) -> Result<Option<(EventSink, EventEndpoints)>, StartError> {
    let Some(endpoint) = options.kv_events_endpoint.clone() else { return Ok(None) };
    let settings = EventSettings {
        endpoint,
        replay_endpoint: options.kv_events_replay_endpoint.clone(),
        topic: options.kv_events_topic.clone(),
        block_size: options.block_size,
    };
    events::bind(settings).await.map(Some)
}

/// A running engine.
struct Engine {
    app: Arc<App>,
    /// Serves the model directory as long as it lives.
    _weights_server: Option<Server>,
}

fn start(
    options: &ServeOptions,
    loaded: Loaded,
    events: Option<(EventSink, EventEndpoints)>,
) -> Result<Engine, StartError> {
    let Loaded { model, tokenizer, description, weights_server, weights_pull } = loaded;
    let layout = description.layout;
    let (agent, region) = open_agent(options, &description)?;
    let cache = KvCache::new(layout, Arc::new(RegionStore::new(region.clone(), layout.total_bytes())))?;
    let metrics = Arc::new(Metrics::default());
    let (sender, commands) = mpsc::channel();
    let settings = KvSettings {
        agent,
        region: region.id(),
        description,
        lease: options.kv_lease,
        pull_timeout: options.kv_pull_timeout,
        metrics: Arc::clone(&metrics),
    };
    let back = sender.clone();
    // When the engine thread has ended, so have its blocks.
    let kv = KvService::start(settings, move |blocks| drop(back.send(Command::Release(blocks))));
    let (sink, endpoints) = events.unzip();
    let mut info = info(options, &model, &layout, &kv);
    info.kv_events = endpoints;
    info.weights_address = weights_server.as_ref().map(|server| server.address().to_string());
    info.weights_pull = weights_pull;
    tracing::info!(
        model = info.model,
        agent = info.agent_address,
        weights = info.weights_address,
        kv_blocks = info.kv_blocks,
        max_model_len = info.max_model_len,
        "the engine is set up"
    );
    let app = App {
        engine: EngineHandle::new(sender.clone(), options.max_num_requests),
        alive: Arc::new(AtomicBool::new(true)),
        tokenizer: tokenizer.clone(),
        vocab_size: model.config().vocab_size,
        end_tokens: model.config().eos_token_ids.clone(),
        kv: kv.clone(),
        metrics: Arc::clone(&metrics),
        info,
        started: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let scheduler = Scheduler::new(Limits {
        block_size: layout.block_size,
        blocks: u32::try_from(layout.num_blocks).unwrap_or(u32::MAX),
        max_seqs: options.max_num_seqs,
        max_batched_tokens: options.max_num_batched_tokens,
    });
    let policy = options.kv_load_failure_policy;
    let parts =
        Parts { scheduler, model, cache, tokenizer, kv, events: sink, metrics, policy, commands, sender };
    spawn_worker(parts, Arc::clone(&app.alive))?;
    Ok(Engine { app: Arc::new(app), _weights_server: weights_server })
}

fn open_agent(options: &ServeOptions, description: &Description) -> Result<(Agent, Region), StartError> {
    let role = match options.role {
        Role::Both => "engine",
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    };
    let mut config = Config::new(role);
    config.tcp_listen = Some(options.transfer_listen);
    config.key = key(options)?;
    config.insecure_remote_without_key = options.transfer_insecure_remote_without_key;
    config.paths = options.paths;
    config.app_metadata = description.encode();
    let agent = Agent::new(config)?;
    let region = agent.alloc(description.layout.total_bytes(), REGION_LABEL)?;
    Ok((agent, region))
}

fn info(options: &ServeOptions, model: &Model, layout: &KvLayout, kv: &KvService) -> Info {
    // A sequence that runs alone must always be able to finish.
    let possible = model.config().max_position_embeddings.min(layout.num_blocks * layout.block_size);
    Info {
        version: env!("CARGO_PKG_VERSION"),
        model: options.served_model_name.clone(),
        role: options.role,
        engine_id: kv.engine_id().to_owned(),
        agent_address: kv.agent_address(),
        weights_address: None,
        weights_pull: None,
        max_model_len: options.max_model_len.map_or(possible, |len| len.min(possible)),
        block_size: layout.block_size,
        kv_blocks: layout.num_blocks,
        kv_dtype: layout.dtype.name(),
        kv_block_bytes: layout.block_bytes(),
        kv_events: None,
    }
}

fn spawn_worker(parts: Parts, alive: Arc<AtomicBool>) -> Result<(), StartError> {
    /// Tells `/health` about the end of the engine thread, a panic included.
    struct Ended(Arc<AtomicBool>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.store(false, Relaxed);
        }
    }
    let ended = Ended(alive);
    let run = move || {
        let _ended = ended;
        Worker::new(parts).run();
    };
    let spawned = std::thread::Builder::new().name("engine".into()).spawn(run);
    spawned.map(drop).map_err(StartError::system("cannot start the engine thread"))
}

/// Resolves at the first SIGTERM or SIGINT.
fn stop_signal() -> Result<oneshot::Receiver<()>, StartError> {
    let listen = |kind| signal(kind).map_err(StartError::system("cannot listen for signals"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A start that has failed in the meantime needs no signal.
        let _ = sender.send(());
    });
    Ok(receiver)
}

async fn run_http(
    listener: TcpListener,
    engine: &Engine,
    stop: oneshot::Receiver<()>,
) -> Result<(), StartError> {
    let (stopping, stopped) = oneshot::channel();
    let graceful = async move {
        // Both ends of the signal mean the same: stop.
        drop(stop.await);
        tracing::info!("stopping");
        let _ = stopping.send(());
    };
    let server =
        axum::serve(listener, http::router(Arc::clone(&engine.app))).with_graceful_shutdown(graceful);
    let deadline = async {
        drop(stopped.await);
        tokio::time::sleep(GRACE).await;
        engine.app.engine.stop();
        tokio::time::sleep(HURRY).await;
    };
    tokio::select! {
        result = server => {
            engine.app.engine.stop();
            result.map_err(StartError::system("the HTTP server failed"))
        }
        () = deadline => Ok(()),
    }
}
