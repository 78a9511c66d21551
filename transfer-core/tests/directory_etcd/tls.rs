//! TLS to a real etcd that wants certificates of its clients; all of them are made here, by openssl.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use transfer_core::directory::{
    CertificateProblem, Directory, DirectoryError, EtcdConfig, EtcdDirectory, EtcdTls, Listing, Pem,
};

use crate::directories::{LONG, blob, eventually, life, next, not_found};
use crate::server::Etcd;

/// Days that a certificate holds.
const VALID: &str = "2";
/// It ends in the second in which it begins.
const OVER: &str = "0";

/// Authorities, and certificates that they sign.
struct Office {
    dir: TempDir,
}

impl Office {
    fn new() -> Self {
        let office = Self { dir: tempfile::tempdir().unwrap() };
        let extension = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(office.path("leaf.ext"), extension).unwrap();
        for authority in ["ours", "other"] {
            office.request(authority, &["-x509", "-days", VALID, "-out", &format!("{authority}.pem")]);
        }
        office
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output();
        let output = output.expect("openssl makes the certificates; install it");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A key and a request, or with `-x509` a certificate; one that is called nameless has no common name.
    fn request(&self, name: &str, rest: &[&str]) {
        let subject = if name == "nameless" { "/O=nobody".to_owned() } else { format!("/CN={name}") };
        let key = format!("{name}.key");
        let args =
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", &subject];
        self.openssl(&[&args[..], &["-keyout", &key], rest].concat());
    }

    /// A certificate that `authority` signs; its files are NAME.pem and NAME.key.
    fn sign(&self, name: &str, authority: &str, days: &str) {
        let (request, out) = (format!("{name}.csr"), format!("{name}.pem"));
        let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}.key"));
        self.request(name, &["-out", &request]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-set_serial",
            "7",
            "-days",
            days,
            "-extfile",
            "leaf.ext",
            "-out",
            &out,
        ]);
    }

    /// Waits until a certificate that was signed as [`OVER`] is; times in it are whole seconds.
    fn wait_until_over(&self, name: &str) {
        let signed = std::fs::metadata(self.path(&format!("{name}.pem"))).unwrap().modified().unwrap();
        let over = || signed.elapsed().is_ok_and(|age| age > Duration::from_secs(2));
        eventually("a certificate expires", over);
    }

    /// An etcd with the certificate of that name; it asks its clients for one that `ours` signed.
    fn etcd(&self, name: &str) -> Etcd {
        let file = |file: String| self.path(&file).into_os_string();
        let mut flags: Vec<OsString> = vec!["--cert-file".into(), file(format!("{name}.pem"))];
        flags.extend(["--key-file".into(), file(format!("{name}.key"))]);
        flags.extend(["--client-cert-auth".into(), "--trusted-ca-file".into(), file("ours.pem".to_owned())]);
        Etcd::start(flags)
    }

    fn trusting(&self, authority: &str) -> EtcdTls {
        EtcdTls::new(Pem::file(self.path(&format!("{authority}.pem"))))
    }

    /// Trusts `ours`, and shows the certificate of that name.
    fn showing(&self, name: &str) -> EtcdTls {
        let file = |ending: &str| Pem::file(self.path(&format!("{name}.{ending}")));
        self.trusting("ours").identity(file("pem"), file("key"))
    }
}

fn directory(etcd: &Etcd, tls: EtcdTls) -> EtcdDirectory {
    let mut config = etcd.config();
    config.tls = Some(tls);
    EtcdDirectory::new(config).unwrap()
}

/// What is wrong with which certificate; the server may take a moment to start.
fn problem(etcd: &Etcd, tls: EtcdTls) -> CertificateProblem {
    let directory = directory(etcd, tls);
    let mut found = None;
    eventually("a certificate is refused", || {
        let error = directory.lookup("a").unwrap_err();
        if let DirectoryError::Certificate { problem, place } = error.clone() {
            assert!(place == etcd.url() && !error.is_retryable(), "{error}");
            found = Some(problem);
        }
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn the_right_certificate_is_let_in_and_no_other() {
    let office = Office::new();
    for (name, authority, days) in [
        ("server", "ours", VALID),
        ("client", "ours", VALID),
        ("old", "ours", OVER),
        ("stranger", "other", VALID),
    ] {
        office.sign(name, authority, days);
    }
    office.wait_until_over("old");
    let etcd = office.etcd("server");
    let good = directory(&etcd, office.showing("client"));
    eventually("etcd answers", || not_found(good.lookup("a")));
    let mut watch = good.watch("", &Listing::default()).unwrap();
    let held = good.publish(&blob("a", 1, 0), LONG).unwrap();
    assert_eq!(next(&mut watch), "added a 1");
    assert_eq!(good.lookup("a").unwrap().incarnation, life(1));
    // From memory, as well as from files.
    let read = |file: &str| Pem::bytes(std::fs::read(office.path(file)).unwrap());
    let tls = EtcdTls::new(read("ours.pem")).identity(read("client.pem"), read("client.key"));
    assert_eq!(directory(&etcd, tls).lookup("a").unwrap().incarnation, life(1));

    assert_eq!(problem(&etcd, office.trusting("ours")), CertificateProblem::ClientMissing);
    assert_eq!(problem(&etcd, office.showing("stranger")), CertificateProblem::ClientUntrusted);
    assert_eq!(problem(&etcd, office.showing("old")), CertificateProblem::ClientExpired);
    assert_eq!(problem(&etcd, office.trusting("other")), CertificateProblem::ServerUntrusted);
    held.close().unwrap();
    assert_eq!(next(&mut watch), "removed a 1");
}

#[test]
fn a_server_with_a_certificate_that_does_not_do_is_not_spoken_to() {
    let office = Office::new();
    office.sign("client", "ours", VALID);
    office.sign("old", "ours", OVER);
    office.wait_until_over("old");
    assert_eq!(problem(&office.etcd("old"), office.showing("client")), CertificateProblem::ServerExpired);
    // The same server, by a name that its certificate does not have.
    office.sign("server", "ours", VALID);
    let etcd = office.etcd("server");
    let mut config = EtcdConfig::new([etcd.url().replace("127.0.0.1", "localhost")]);
    config.tls = Some(office.showing("client"));
    let named = EtcdDirectory::new(config).unwrap();
    eventually("the name is told", || {
        let error = named.lookup("a").unwrap_err();
        matches!(&error, DirectoryError::Certificate { problem: CertificateProblem::ServerRefused(why), .. }
            if why.contains("localhost"))
    });
}

#[test]
fn a_certificate_and_a_password_go_together() {
    let office = Office::new();
    for name in ["server", "client", "nameless"] {
        office.sign(name, "ours", VALID);
    }
    let etcd = office.etcd("server");
    eventually("etcd answers", || not_found(directory(&etcd, office.showing("client")).lookup("a")));
    let ctl = |path: &str, body: serde_json::Value| {
        let request = ["--fail", "--silent", "--show-error", "--cacert", "ours.pem", "--cert", "client.pem"];
        let url = format!("{}/v3/{path}", etcd.url());
        let mut curl = Command::new("curl");
        curl.stdout(Stdio::null()).args(request).args([
            "--key",
            "client.key",
            "--data",
            &body.to_string(),
            &url,
        ]);
        assert!(curl.current_dir(office.dir.path()).status().unwrap().success(), "{path}");
    };
    ctl("auth/user/add", json!({ "name": "root", "password": "secret" }));
    ctl("auth/role/add", json!({ "name": "root" }));
    ctl("auth/user/grant", json!({ "user": "root", "role": "root" }));
    ctl("auth/enable", json!({}));
    let with = |password: &str| {
        let mut config = etcd.config();
        config.tls = Some(office.showing("nameless"));
        config.user = Some(("root".to_owned(), password.to_owned()));
        EtcdDirectory::new(config).unwrap()
    };
    let error = with("wrong").lookup("a").unwrap_err();
    assert!(matches!(error, DirectoryError::Denied { .. }), "{error}");
    assert!(not_found(with("secret").lookup("a")));
    assert_eq!(problem(&etcd, office.showing("client")), CertificateProblem::ClientNamed);
}

/// What listens there and speaks no TLS, and configurations that do not hold together.
#[test]
fn nonsense_is_named() {
    let office = Office::new();
    office.sign("client", "ours", VALID);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            // The client may be gone by then.
            let _sent = std::io::Write::write_all(&mut stream.unwrap(), b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let mut config = EtcdConfig::new([url]);
    config.timeout = Duration::from_secs(5);
    config.tls = Some(office.trusting("ours"));
    let plain = EtcdDirectory::new(config.clone()).unwrap().lookup("a").unwrap_err();
    assert!(matches!(plain, DirectoryError::Unreachable { .. }), "{plain}");

    let file = |file: &str| Pem::file(office.path(file));
    let mut refused = |certificate: &str, key: &str| {
        config.tls = Some(office.trusting("ours").identity(file(certificate), file(key)));
        EtcdDirectory::new(config.clone()).unwrap_err().to_string()
    };
    assert!(refused("client.pem", "other.key").contains("do not belong together"));
    assert!(refused("client.pem", "client.pem").contains("has no private key"));
    assert!(refused("client.key", "client.key").contains("has no certificate"));
    assert!(refused("none.pem", "client.key").contains("cannot be read from"));
}
