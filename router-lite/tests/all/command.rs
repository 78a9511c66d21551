//! The command line: what it prints, what it returns, how it ends.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::support::{DEADLINE, Mock};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_router-lite"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn says_one_line_serves_and_ends_on_sigterm() {
    let worker = Mock::start("w", &["m"]).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "port = 1\nworker = [\"http://127.0.0.1:9\"]\nhealth_recheck_ms = 50").unwrap();
    for signal in ["-TERM", "-INT"] {
        // The command line goes before the file, for the port and for the workers.
        let mut child = command()
            .args(["serve", "--port", "0", "--worker", &worker.url, "--config"])
            .arg(file.path())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        tokio::time::timeout(DEADLINE, stdout.read_line(&mut line)).await.unwrap().unwrap();
        let url =
            line.strip_prefix("router-lite listening on ").unwrap().strip_suffix('\n').unwrap().to_owned();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(format!("{url}/v1/completions")).body("{}").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let workers: serde_json::Value =
            client.get(format!("{url}/workers")).send().await.unwrap().json().await.unwrap();
        assert_eq!(workers["workers"].as_array().unwrap().len(), 1);
        assert_eq!(workers["workers"][0]["url"], json!(worker.url));
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
        let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
        let mut more = String::new();
        stdout.read_to_string(&mut more).await.unwrap();
        assert_eq!(more, "");
    }
}

async fn refused(args: &[&str]) -> (i32, String) {
    let output = tokio::time::timeout(DEADLINE, command().args(args).output()).await.unwrap().unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn refuses_what_cannot_work_with_status_two() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "port = 0\nwroker = [\"http://127.0.0.1:9\"]").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    for (args, reason) in [
        (&["serve"][..], "give --worker URL"),
        (&["serve", "--prefill", "http://a"], "without --decode"),
        (&["serve", "--worker", "https://a"], "https to workers is not supported"),
        (
            &["serve", "--worker", "http://a", "--idle-timeout-ms", "0"],
            "idle_timeout_ms must be more than zero",
        ),
        (&["serve", "--wroker", "http://a"], "--wroker"),
        (&["serve", "--config", "/nowhere/router.toml"], "cannot read /nowhere/router.toml"),
        (&["serve", "--config", &path], "wroker"),
        (&["serve", "--worker", "http://a", "--log", "a=b=c"], "--log"),
    ] {
        let (status, stderr) = refused(args).await;
        assert_eq!(status, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
    }
}

#[tokio::test]
async fn a_taken_port_is_status_one() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, stderr) = refused(&["serve", "--worker", "http://127.0.0.1:9", "--port", &port]).await;
    assert_eq!(status, 1);
    assert!(stderr.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{stderr}");
}

#[tokio::test]
async fn help_names_every_setting_with_its_default() {
    let output = command().args(["serve", "--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    let default = router_lite::Config::default();
    for (flag, value) in [
        ("--port", u128::from(default.port)),
        ("--body-bytes-max", default.body_bytes_max as u128),
        ("--buffered-bytes-max", default.buffered_bytes_max as u128),
        ("--prefill-answer-bytes-max", default.prefill_answer_bytes_max as u128),
        ("--inflight-max", default.inflight_max as u128),
        ("--connections-max", default.connections_max as u128),
        ("--retries-max", u128::from(default.retries_max)),
        ("--connect-timeout-ms", default.connect_timeout.as_millis()),
        ("--request-timeout-ms", default.request_timeout.as_millis()),
        ("--prefill-timeout-ms", default.prefill_timeout.as_millis()),
        ("--first-byte-timeout-ms", default.first_byte_timeout.as_millis()),
        ("--idle-timeout-ms", default.idle_timeout.as_millis()),
        ("--drain-timeout-ms", default.drain_timeout.as_millis()),
        ("--pool-idle-timeout-ms", default.pool_idle_timeout.as_millis()),
        ("--health-interval-ms", default.health_interval.as_millis()),
        ("--health-recheck-ms", default.health_recheck.as_millis()),
        ("--health-timeout-ms", default.health_timeout.as_millis()),
        ("--health-down-after", u128::from(default.health_down_after)),
        ("--health-up-after", u128::from(default.health_up_after)),
    ] {
        let at = help.find(&format!("{flag} <")).unwrap_or_else(|| panic!("{flag} is not in the help"));
        let entry: String =
            help[at..].split("\n\n").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(entry.contains(&format!("[default: {value}]")), "{entry}");
    }
}
