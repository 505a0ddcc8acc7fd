//! TLS for what listens: HTTP, OTLP and SQL, with certificates that are made for the test.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus::Registry;
use runwarden::clock::{SECOND, Wall};
use runwarden::metrics::Metrics;
use runwarden::serve::Health;
use runwarden::serve::access::{Access, Caller};
use runwarden::serve::http::{self, Views};
use runwarden::serve::sql::{self, Sql};
use runwarden::serve::tables::{Bounds, Limits, Tables};
use runwarden::serve::tls::{self, Speaks, Tls};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::support::certificates::{Authority, Pair, files, replace};
use crate::support::process::{Process, runwarden};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "a token of tenant acme";

/// A server on threads of its own; it ends with this.
struct Served {
    address: SocketAddr,
    _runtime: Runtime,
    _stop: watch::Sender<bool>,
}

fn served<F>(serve: impl FnOnce(TcpListener, watch::Receiver<bool>) -> F) -> Served
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let (address, (stop, stopping)) = (listener.local_addr().unwrap(), watch::channel(false));
    drop(runtime.spawn(serve(listener, stopping)));
    Served { address, _runtime: runtime, _stop: stop }
}

fn http(tls: Tls) -> Served {
    let metrics = Arc::new(Metrics::register(&Registry::new(), &["run_tokens"]).unwrap());
    let views = Views::new(Arc::new(Health::new(Wall::now())), metrics, Wall::now);
    served(move |listener, stopping| http::serve(listener, Some(Arc::new(tls)), views, stopping))
}

fn sql(tls: Tls) -> Served {
    let tables = Tables::new(Bounds::default(), Limits::default(), Wall::now).unwrap();
    tables.filled();
    let access = Access::new(false).with(TOKEN, Caller::new("a", 1, "acme"));
    let sql = Sql::new(Arc::new(tables), Arc::new(access), sql::Limits::default()).unwrap();
    let sql = Arc::new(sql.with_tls(Some(Arc::new(tls))));
    served(move |listener, stopping| sql::serve(listener, sql, stopping))
}

/// A directory with a server's certificate.
fn home(authority: &Authority) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    authority.server().write(dir.path());
    dir
}

fn tls(dir: &Path, client_ca: Option<&str>, speaks: Speaks) -> Tls {
    Tls::new(files(dir, client_ca), speaks, Wall::now).unwrap()
}

/// The status of `/healthz`, or what kept it from being told.
fn health(address: SocketAddr, agent: &ureq::Agent) -> Result<u16, String> {
    let answer = agent.get(format!("https://localhost:{}/healthz", address.port())).call();
    answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
}

/// Sends bytes and reads what comes until the end.
fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it was closed"),
    }
    answer
}

#[test]
fn https_is_answered_to_who_trusts_the_authority_and_not_believed_by_others() {
    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    let dir = home(&ours);
    let served = http(tls(dir.path(), None, Speaks::Http));
    assert_eq!(health(served.address, &ours.agent(None)), Ok(200));
    let refused = health(served.address, &other.agent(None)).unwrap_err();
    assert!(refused.contains("UnknownIssuer") || refused.contains("certificate"), "{refused}");
    // a certificate that nobody asks for does no harm
    assert_eq!(health(served.address, &ours.agent(Some(&other.client()))), Ok(200));
}

#[test]
fn what_is_spoken_is_agreed_upon_and_old_versions_are_not() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    let served = http(tls(dir.path(), None, Speaks::Http));
    let config = |protocol: &[u8], version: &'static rustls::SupportedProtocolVersion| {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(ours.client_config(None).crypto_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(ours.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream = connect(served.address, Arc::new(config(b"http/1.1", version)));
        stream.conn.complete_io(&mut stream.sock).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(b"http/1.1".as_slice()), "{version:?}");
        let mut stream = connect(served.address, Arc::new(config(b"h2", version)));
        assert!(stream.conn.complete_io(&mut stream.sock).is_err(), "HTTP/2 is not spoken");
    }
}

#[test]
fn where_an_authority_of_clients_is_named_they_must_show_a_certificate_of_it() {
    let (ours, clients, other) = (Authority::new("ours"), Authority::new("clients"), Authority::new("another"));
    let dir = home(&ours);
    replace(&dir.path().join("clients.pem"), &clients.pem());
    let served = http(tls(dir.path(), Some("clients.pem"), Speaks::Http));
    assert_eq!(health(served.address, &ours.agent(Some(&clients.client()))), Ok(200));
    for shows in [None, Some(other.client()), Some(ours.client())] {
        let refused = health(served.address, &ours.agent(shows.as_ref()));
        assert!(refused.is_err(), "{refused:?}");
    }
    // a server's certificate is none of a client
    assert!(health(served.address, &ours.agent(Some(&clients.server()))).is_err());
}

#[test]
fn a_certificate_that_is_renewed_on_disk_is_taken_up_and_a_damaged_one_changes_nothing() {
    static NOW: AtomicI64 = AtomicI64::new(1_700_000_000 * SECOND);
    fn clock() -> Wall {
        Wall(NOW.load(Ordering::SeqCst))
    }
    let pass = || NOW.store(NOW.load(Ordering::SeqCst) + 3 * SECOND, Ordering::SeqCst);
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let dir = home(&old);
    let served = http(Tls::new(files(dir.path(), None), Speaks::Http, clock).unwrap());
    let (trusts_old, trusts_new) =
        (|| health(served.address, &old.agent(None)), || health(served.address, &new.agent(None)));
    assert!(trusts_old() == Ok(200) && trusts_new().is_err());

    new.server().write(dir.path());
    assert_eq!(trusts_old(), Ok(200), "it is not looked at with every connection");
    pass();
    assert_eq!(trusts_new(), Ok(200));
    assert!(trusts_old().is_err());

    // a certificate without its key, one that is none, a file that is gone
    let pair = old.server();
    replace(&dir.path().join("cert.pem"), &pair.cert);
    pass();
    assert_eq!(trusts_new(), Ok(200));
    replace(&dir.path().join("cert.pem"), "-----BEGIN CERTIFICATE-----\nno\n");
    pass();
    assert_eq!(trusts_new(), Ok(200));
    fs::remove_file(dir.path().join("key.pem")).unwrap();
    pass();
    assert_eq!(trusts_new(), Ok(200));

    pair.write(dir.path());
    pass();
    assert_eq!(trusts_old(), Ok(200), "what can be used again is");
}

#[test]
fn who_speaks_no_tls_is_left_and_disturbs_nobody() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    let served = http(tls(dir.path(), None, Speaks::Http));
    // they say nothing: the others need not wait for their end
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(served.address).unwrap()).collect();
    let plain = raw(served.address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!plain.windows(4).any(|part| part == b"HTTP"), "{plain:?}");
    for garbage in
        [vec![0; 4_096], vec![0x16, 3, 1, 0xff, 0xff], b"\x16\x03\x01\x00\x05hello".to_vec(), vec![0xff; 70_000]]
    {
        let mut stream = TcpStream::connect(served.address).unwrap();
        // it may be closed before all is sent
        let _sent = stream.write_all(&garbage);
        assert_eq!(health(served.address, &ours.agent(None)), Ok(200));
    }
    drop(silent);
}

fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream)
}

/// What asks a server of Postgres for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];

/// Asks for TLS, and goes on over it.
fn upgraded(address: SocketAddr, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = connect(address, config);
    stream.sock.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    stream.sock.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    stream
}

fn startup() -> Vec<u8> {
    let body = [&196_608_i32.to_be_bytes(), b"user\0somebody\0database\0runwarden\0\0".as_slice()].concat();
    [&i32::try_from(body.len() + 4).unwrap().to_be_bytes(), body.as_slice()].concat()
}

fn message(kind: u8, body: &str) -> Vec<u8> {
    let length = i32::try_from(body.len() + 5).unwrap();
    [&[kind], length.to_be_bytes().as_slice(), body.as_bytes(), &[0]].concat()
}

/// Messages until one of a kind, which is given.
fn until(stream: &mut impl Read, wanted: u8) -> Vec<u8> {
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        stream.read_exact(&mut body).unwrap();
        if head[0] == wanted {
            return body;
        }
        assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&body));
    }
}

fn asked(stream: &mut (impl Read + Write), question: &str) -> String {
    stream.write_all(&message(b'Q', question)).unwrap();
    let row = until(stream, b'D');
    until(stream, b'Z');
    String::from_utf8_lossy(&row[6..]).into_owned()
}

fn logged_in(stream: &mut (impl Read + Write)) {
    stream.write_all(&startup()).unwrap();
    until(stream, b'R');
    stream.write_all(&message(b'p', TOKEN)).unwrap();
    until(stream, b'Z');
}

#[test]
fn sql_is_given_over_tls_and_not_in_clear() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    let served = sql(tls(dir.path(), None, Speaks::Postgres));
    let mut stream = upgraded(served.address, ours.client_config(None));
    logged_in(&mut stream);
    assert_eq!(asked(&mut stream, "SELECT 40 + 2"), "42");
    // more than any buffer holds
    stream.write_all(&message(b'Q', "SELECT value FROM generate_series(1, 50000)")).unwrap();
    assert_eq!(until(&mut stream, b'C'), b"SELECT 50000\0");
    stream.write_all(&[b'X', 0, 0, 0, 4]).unwrap();
    // a session in clear is refused before a password is asked for; what is sent beside the request for TLS does not count
    let refused = String::from_utf8_lossy(&raw(served.address, &startup())).into_owned();
    assert!(refused.contains("28000") && refused.contains("sslmode=require"), "{refused}");
    let smuggled = raw(served.address, &[SSL_REQUEST.as_slice(), &startup()].concat());
    assert!(smuggled.starts_with(b"S") && !String::from_utf8_lossy(&smuggled).contains('R'), "{smuggled:?}");
}

#[test]
fn a_statement_over_tls_ends_when_its_client_is_gone() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    let tables = Tables::new(Bounds::default(), Limits::default(), Wall::now).unwrap();
    tables.filled();
    let access = Access::new(false).with(TOKEN, Caller::new("a", 1, "acme"));
    let sql = Sql::new(Arc::new(tables), Arc::new(access), sql::Limits::default()).unwrap();
    let sql = Arc::new(sql.with_tls(Some(Arc::new(tls(dir.path(), None, Speaks::Postgres)))));
    let counting = Arc::clone(&sql);
    let served = served(move |listener, stopping| sql::serve(listener, sql, stopping));
    // it would take days
    let long = "SELECT count(*) FROM generate_series(1, 1000000000000000) a WHERE a.value % 7 = 3";
    for takes_leave in [false, true] {
        let mut stream = upgraded(served.address, ours.client_config(None));
        logged_in(&mut stream);
        assert_eq!(counting.counts().open(), 1);
        stream.write_all(&message(b'Q', long)).unwrap();
        // what it wants after that waits
        stream.write_all(&message(b'Q', "SELECT 1")).unwrap();
        if takes_leave {
            stream.conn.send_close_notify();
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        drop(stream);
        eventually("its connection is gone", SOON, || counting.counts().open() == 0);
    }
}

#[test]
fn sql_of_clients_with_a_certificate_is_for_them_alone() {
    let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
    let dir = home(&ours);
    replace(&dir.path().join("clients.pem"), &clients.pem());
    let served = sql(tls(dir.path(), Some("clients.pem"), Speaks::Postgres));
    let mut stream = upgraded(served.address, ours.client_config(Some(&clients.client())));
    logged_in(&mut stream);
    assert_eq!(asked(&mut stream, "SELECT 1"), "1");
    let mut stream = upgraded(served.address, ours.client_config(None));
    // the refusal may come after the client's side of the handshake is done
    let answered = stream.write_all(&startup()).and_then(|()| stream.read_exact(&mut [0; 5]));
    assert!(answered.is_err());
}

#[test]
fn psql_verifies_the_server() {
    let psql = std::env::var("RUNWARDEN_TEST_PSQL").unwrap_or_else(|_| "psql".to_owned());
    if Command::new(&psql).arg("--version").output().is_err() {
        println!("skipped: {psql} is not there");
        return;
    }
    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    let dir = home(&ours);
    replace(&dir.path().join("ca.pem"), &ours.pem());
    replace(&dir.path().join("other.pem"), &other.pem());
    let served = sql(tls(dir.path(), None, Speaks::Postgres));
    let ask = |mode: &str, ca: &str| {
        let ca = dir.path().join(ca);
        let (port, ca) = (served.address.port(), ca.display());
        let url = format!("host=localhost port={port} user=runwarden dbname=runwarden sslmode={mode} sslrootcert={ca}");
        let output = Command::new(&psql).env("PGPASSWORD", TOKEN).args(["-AtXd", &url, "-c", "SELECT 6 * 7"]).output();
        let output = output.unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(ask("verify-full", "ca.pem").0, "42\n");
    assert!(ask("verify-full", "other.pem").1.contains("certificate verify failed"));
    assert!(ask("disable", "ca.pem").1.contains("sslmode=require"));
}

#[test]
fn files_that_cannot_be_used_say_which_key_names_them_and_what_to_do() {
    let ours = Authority::new("ours");
    let (pair, another): (Pair, Pair) = (ours.server(), ours.server());
    let dir = tempfile::tempdir().unwrap();
    let refused = |client_ca: Option<&str>| {
        let error = tls::check(&files(dir.path(), client_ca)).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error} {cause}")
    };
    let put = |file: &str, text: &str| replace(&dir.path().join(file), text);
    let said = refused(None);
    assert!(said.contains("http.tls-cert: /") && said.contains("cert.pem cannot be read"), "{said}");
    for (cert, key, part) in [
        (pair.key.as_str(), pair.key.as_str(), "http.tls-cert: "),
        ("", &pair.key, "holds no certificate; it must be PEM"),
        (&pair.cert, &pair.cert, "key.pem holds no private key; it must be PEM"),
        (
            &pair.cert,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "openssl pkey",
        ),
        (&pair.cert, &another.key, "cannot be used with the key"),
    ] {
        put("cert.pem", cert);
        put("key.pem", key);
        let said = refused(None);
        assert!(said.contains(part), "{said}");
        assert!(!said.contains(pair.key.lines().nth(1).unwrap()), "{said}");
    }
    pair.write(dir.path());
    put("ca.pem", "nothing");
    assert!(refused(Some("ca.pem")).contains("http.tls-client-ca: "), "{}", refused(Some("ca.pem")));
    put("large.pem", &"x".repeat(2 << 20));
    assert!(refused(Some("large.pem")).contains("large.pem has more than"), "{}", refused(Some("large.pem")));
    put("ca.pem", &ours.pem());
    assert_eq!(tls::check(&files(dir.path(), Some("ca.pem"))).unwrap(), None);
    fs::set_permissions(dir.path().join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = tls::check(&files(dir.path(), None)).unwrap().unwrap();
    assert!(said.contains("http.tls-key") && said.contains("chmod o-r"), "{said}");
}

fn configured(dir: &Path) {
    let here = dir.display();
    let text = format!(
        "[roles]\nenabled = [\"edge\", \"serve\"]\n[paths]\ndata = \"{here}/data\"\n[kafka]\nbrokers = \"127.0.0.1:1\"\n[http]\nlisten = \
         \"127.0.0.1:0\"\ntls-cert = \"{here}/cert.pem\"\ntls-key = \"{here}/key.pem\"\n[sql]\nlisten = \"127.0.0.1:0\"\n[otlp]\nlisten = \
         \"127.0.0.1:0\"\n[log]\nlevel = \"debug\"\n"
    );
    fs::write(dir.join("runwarden.toml"), text).unwrap();
}

#[test]
fn one_certificate_serves_everything_that_a_process_listens_on_and_its_key_is_not_in_the_log() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    configured(dir.path());
    let process = Process::start(dir);
    let agent = ours.agent(None);
    let get =
        |port: u16, path: &str| agent.get(format!("https://127.0.0.1:{port}{path}")).call().unwrap().status().as_u16();
    let http = process.port("address");
    assert_eq!((get(http, "/healthz"), get(http, "/metrics"), get(http, "/")), (200, 200, 200));
    let otlp = process.port("otlp");
    let sent = agent.post(format!("https://127.0.0.1:{otlp}/v1/traces")).header("content-type", "application/json");
    assert_eq!(sent.send("{}").unwrap().status().as_u16(), 200);
    let mut stream = upgraded(([127, 0, 0, 1], process.port("sql")).into(), ours.client_config(None));
    stream.write_all(&startup()).unwrap();
    until(&mut stream, b'R');
    raw(([127, 0, 0, 1], http).into(), b"GET / HTTP/1.1\r\n\r\n");
    eventually("it says why it was closed", SOON, || process.said().contains("it spoke no TLS"));
    let key = fs::read_to_string(process.home().join("key.pem")).unwrap();
    let said = process.said();
    for line in key.lines().filter(|line| line.len() > 20) {
        assert!(!said.contains(line), "the key is in the log");
    }
}

#[test]
fn a_process_with_a_certificate_that_cannot_be_used_does_not_start_and_check_finds_it() {
    let ours = Authority::new("ours");
    let dir = home(&ours);
    configured(dir.path());
    replace(&dir.path().join("key.pem"), &ours.server().key);
    for command in ["run", "check"] {
        let output = runwarden(dir.path(), &[command]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("http.tls-cert: ") && said.contains("cert.pem cannot be used with the key"), "{said}");
    }
    ours.server().write(dir.path());
    let checked = runwarden(dir.path(), &["check"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_to_kafka_says_so_at_once_and_check_warns_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for property in
        ["\"security.protocol\" = \"SSL\"", "\"security.protocol\" = \"SASL_SSL\"", "\"ssl.ca.location\" = \"ca.pem\""]
    {
        let text = format!(
            "[kafka]\nbrokers = \"127.0.0.1:1\"\n[kafka.client]\n{property}\n[http]\nlisten = \"127.0.0.1:0\"\n"
        );
        fs::write(dir.path().join("runwarden.toml"), text).unwrap();
        for command in [&["run"][..], &["topics", "create"]] {
            let output = runwarden(dir.path(), command).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("[kafka.client] s") && said.contains("--features tls"), "{said}");
        }
        let checked = runwarden(dir.path(), &["check"]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && said.contains("warning: [kafka.client] s"), "{said}");
    }
}
