//! Starts engines, talks to them, and ends them with the test.

use engine_model::{ModelSpec, make_model};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a model that computes 1500 tokens in about a second and never ends an answer by itself.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine-test-model");
        let spec = ModelSpec {
            hidden_size: 64,
            intermediate_size: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            max_position_embeddings: 2048,
            eos_bias: -100.0,
            ..ModelSpec::default()
        };
        make_model(&dir, &spec).unwrap();
        dir
    })
}

/// An engine process; killed when dropped.
pub struct Engine {
    child: Child,
    pub url: String,
    client: reqwest::Client,
}

/// The arguments of an engine with the test model.
pub fn serve_args(model: &Path, extra: &[&str]) -> Vec<String> {
    let model = model.to_str().unwrap();
    let fixed = ["serve", "--model", model, "--served-model-name", "tiny", "--port", "0"];
    let small = if extra.contains(&"--kv-blocks") { &[][..] } else { &["--kv-cache-mb", "4"][..] };
    [&fixed, small, extra].concat().into_iter().map(str::to_owned).collect()
}

impl Engine {
    /// Starts an engine with the test model and waits until it serves.
    pub fn start(extra: &[&str]) -> Self {
        Self::start_with(&serve_args(model(), extra))
    }

    pub fn start_with(args: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_engine-lite"))
            .args(args)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let mut engine = Self { child, url: String::new(), client: reqwest::Client::new() };
        let line = lines.recv_timeout(PATIENCE).expect("the engine says where it listens");
        engine.url = line.strip_prefix("engine-lite listening on ").expect("a readiness line").to_owned();
        engine
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let killed = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(killed.success());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine does not end on SIGTERM");
    }

    pub fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).timeout(PATIENCE)
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.request(path).json(body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// A request that has to succeed.
    pub async fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// A request that has to fail; status, kind and message of the error.
    pub async fn error(&self, path: &str, body: &Value) -> (u16, String, String) {
        let (status, answer) = self.post(path, body).await;
        let field = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
        assert!(status.is_client_error() || status.is_server_error(), "{answer}");
        assert_eq!(answer["error"]["code"], status.as_u16(), "{answer}");
        (status.as_u16(), field("kind"), field("message"))
    }

    pub async fn get(&self, path: &str) -> String {
        let response = self.client.get(format!("{}{path}", self.url)).timeout(PATIENCE).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.unwrap()
    }

    pub async fn info(&self) -> Value {
        serde_json::from_str(&self.get("/headrace/info").await).unwrap()
    }

    /// The record of the pull for one request.
    pub async fn pull_of(&self, request_id: &str) -> Value {
        let info = self.get(&format!("/headrace/info?request_id={request_id}")).await;
        let info: Value = serde_json::from_str(&info).unwrap();
        info["pulls"].as_array().unwrap().last().cloned().unwrap_or_default()
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).expect(name);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// How many requests have ended because their client left.
    pub async fn aborted(&self) -> u64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find(|line| line.contains("finished_reason=\"abort\"")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn wait_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(name).await;
            if wanted(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} stays {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until no request and no hand-off holds a block.
    pub async fn wait_no_blocks(&self) {
        self.wait_metric("headrace_kv_leased_blocks", |blocks| blocks == 0.0).await;
        self.wait_metric("headrace_kv_blocks_used", |blocks| blocks == 0.0).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A prompt of `length` tokens; another one for every `salt`.
pub fn prompt(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|n| ((n * 31 + salt * 17 + n / 7) % 200 + 20) as u32).collect()
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug)]
pub enum Choose {
    Greedy,
    Seeded,
}

/// A completion request for some tokens.
pub fn completion(prompt: &[u32], choose: Choose, max_tokens: usize) -> Value {
    let mut body = json!({
        "model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true,
        "return_token_ids": true, "temperature": 0.0,
    });
    if matches!(choose, Choose::Seeded) {
        body["temperature"] = json!(0.9);
        body["top_p"] = json!(0.95);
        body["seed"] = json!(4711);
    }
    body
}

pub fn token_ids(answer: &Value) -> Vec<u32> {
    let ids = answer["choices"][0]["token_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The first leg as a careless router sends it, with the client's `min_tokens`: the request's params for the second leg.
pub async fn prefill(engine: &Engine, body: &Value) -> Value {
    let mut body = body.clone();
    body["max_tokens"] = json!(1);
    body["min_tokens"] = json!(3);
    body["kv_transfer_params"] = json!({
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null,
    });
    let answer = engine.ok("/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let params = answer["kv_transfer_params"].clone();
    assert_eq!(params["do_remote_prefill"], true, "{answer}");
    params
}

/// The second leg: the original body with the params.
pub fn with_params(body: &Value, params: &Value) -> Value {
    let mut body = body.clone();
    body["kv_transfer_params"] = params.clone();
    body
}
