//! A real etcd, of a test's own.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use transfer_core::directory::{EtcdConfig, EtcdDirectory};

use crate::directories::{WAIT, eventually};

fn scheme(flags: &[OsString]) -> &'static str {
    if flags.is_empty() { "http" } else { "https" }
}

/// A server, killed when this is dropped.
pub struct Etcd {
    pub data: TempDir,
    ports: [u16; 2],
    /// What it is told beside its addresses; `https` where that has to do with TLS.
    flags: Vec<OsString>,
    child: Child,
}

impl Etcd {
    pub fn new() -> Self {
        let etcd = Self::start(Vec::new());
        eventually("etcd answers", || etcd.try_ask("kv/range", &json!({ "key": "YQ==" })).is_some());
        etcd
    }

    /// With further flags; it is not waited for.
    pub fn start(flags: Vec<OsString>) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [free(), free()].map(|listener| listener.local_addr().unwrap().port());
        let data = tempfile::tempdir().unwrap();
        let child = Self::spawn(&data, ports, &flags);
        Self { data, ports, flags, child }
    }

    fn spawn(data: &TempDir, [client, peer]: [u16; 2], flags: &[OsString]) -> Child {
        let server =
            std::env::var("HEADRACE_TEST_ETCD").expect("HEADRACE_TEST_ETCD names no etcd; run ci/etcd");
        let (client, peer) =
            (format!("{}://127.0.0.1:{client}", scheme(flags)), format!("http://127.0.0.1:{peer}"));
        // It ends with the test, however that ends. Short elections let it count short times to live.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", &server])
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--unsafe-no-fsync"])
            .args(flags)
            .env_clear()
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(data.path().join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = Self::spawn(&self.data, self.ports, &self.flags);
        eventually("etcd answers", || self.try_ask("kv/range", &json!({ "key": "YQ==" })).is_some());
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", scheme(&self.flags), self.ports[0])
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::new([self.url()])
    }

    pub fn directory(&self) -> EtcdDirectory {
        EtcdDirectory::new(self.config()).unwrap()
    }

    /// A request in its plainest form, so that the tests do not ask the code that they test.
    pub fn try_ask(&self, path: &str, body: &Value) -> Option<Value> {
        self.try_ask_as("", path, body)
    }

    pub fn try_ask_as(&self, token: &str, path: &str, body: &Value) -> Option<Value> {
        let body = body.to_string();
        let token = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[0])).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "POST /v3/{path} HTTP/1.0\r\n{token}Content-Length: {}\r\n\r\n{body}", body.len())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| serde_json::from_str(body).ok())?
    }

    pub fn ask(&self, path: &str, body: Value) -> Value {
        self.try_ask(path, &body).unwrap_or_else(|| panic!("{path} {body}"))
    }

    pub fn put(&self, key: &[u8], value: &[u8]) {
        self.ask("kv/put", json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) }));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
