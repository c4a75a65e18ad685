//! The server under test: the one at `WFE_PERSISTENCE_TARGET`, or one that is started here,
//! with an embedded PostgreSQL in a temporary directory, and stopped at the end.
#![allow(dead_code)] // each binary uses a part of it

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{mpsc, Mutex, Once, OnceLock};
use std::time::Duration;

use wfe_persistence_client::GrpcPersistenceProvider;

/// The address of the server under test.
pub fn target() -> String {
    std::env::var("WFE_PERSISTENCE_TARGET").unwrap_or_else(|_| shared().target.clone())
}

/// A provider for the server under test.
pub async fn provider() -> GrpcPersistenceProvider {
    connect(&target()).await
}

/// A provider for a server. Its timeout is long, for servers that are killed and restarted: on a
/// busy machine that takes a while.
pub async fn connect(target: &str) -> GrpcPersistenceProvider {
    GrpcPersistenceProvider::builder(target)
        .timeout(Duration::from_secs(120))
        .connect()
        .await
        .expect("the server responds")
}

/// The server with an embedded PostgreSQL, started by the first test that needs it.
pub fn shared() -> &'static Embedded {
    static SHARED: OnceLock<Embedded> = OnceLock::new();
    SHARED.get_or_init(|| {
        let directory = temporary_directory();
        let target = start_server(&["--data-dir", directory.to_str().unwrap()]);
        Embedded { target, directory }
    })
}

/// A server and its embedded PostgreSQL.
pub struct Embedded {
    pub target: String,
    directory: PathBuf,
}

impl Embedded {
    /// The connection string of a database in the embedded PostgreSQL, for sqlx.
    pub fn database_url(&self, database: &str) -> String {
        let socket = self.directory.join("postgres-18");
        format!(
            "postgres://postgres@localhost/{database}?host={}",
            socket.display()
        )
    }
}

/// Runs a server until its standard input is closed, which happens when this process ends,
/// for whatever reason; prints the server's process id first.
const WATCH: &str = r#"
    "$@" </dev/null & server=$!
    echo $server >&2
    cat >/dev/null
    kill -TERM $server 2>/dev/null
    wait $server
"#;

/// The server's command, without arguments.
pub fn server_command() -> Command {
    let program = std::env::var_os("WFE_TEST_COMMAND").map_or_else(
        || {
            let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
            let mut found = above.map(|dir| dir.join(".venv/bin/wfe-persistence"));
            found
                .find(|path| path.exists())
                .expect("`./run wfe version` installs the server")
        },
        PathBuf::from,
    );
    Command::new(program)
}

/// Starts a server that is stopped when this process ends; returns its address.
pub fn start_server(arguments: &[&str]) -> String {
    start_server_process(arguments).0
}

/// The same; also returns the process id.
pub fn start_server_process(arguments: &[&str]) -> (String, u32) {
    let mut child = Command::new("sh")
        .args(["-c", WATCH, "sh"])
        .arg(server_command().get_program())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(["--allow-truncate", "--allow-delete-namespace"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    let log = BufReader::new(child.stderr.take().unwrap());
    at_exit(Leftover::Process(child));

    // The log is read to its end, so that the pipe does not fill up.
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if std::env::var_os("WFE_TEST_LOG").is_some() {
                eprintln!("server: {line}");
            }
            let _ = send.send(line);
        }
    });
    let first = receive.recv_timeout(Duration::from_secs(60));
    let pid = first.ok().and_then(|line| line.parse().ok());
    let pid = pid.expect("the shell prints the server's process id first");
    let mut seen = Vec::new();
    while let Ok(line) = receive.recv_timeout(Duration::from_secs(120)) {
        if let Some((_, rest)) = line.split_once("listens on ") {
            let end = rest.find([' ', '"']).unwrap_or(rest.len());
            return (rest[..end].to_string(), pid);
        }
        seen.push(line);
    }
    panic!("the server did not start:\n{}", seen.join("\n"));
}

/// An address at which nobody listens.
pub fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

/// The metrics of the server that has this admin port.
pub fn metrics(admin: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    let request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A directory that is removed when this process ends.
pub fn temporary_directory() -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("wfe-rs-")
        .tempdir()
        .unwrap()
        .keep();
    at_exit(Leftover::Directory(directory.clone()));
    directory
}

enum Leftover {
    Process(Child),
    Directory(PathBuf),
}

static LEFTOVERS: Mutex<Vec<Leftover>> = Mutex::new(Vec::new());

/// Registers something for removal when this process ends; statics are not dropped.
fn at_exit(leftover: Leftover) {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // SAFETY: `clean_up` takes no arguments and does not unwind: a panic in an
        // `extern "C"` function aborts.
        unsafe { libc::atexit(clean_up) };
    });
    LEFTOVERS.lock().unwrap().push(leftover);
}

extern "C" fn clean_up() {
    let mut leftovers = std::mem::take(&mut *LEFTOVERS.lock().unwrap());
    // In reverse order: servers before the directory of their database.
    while let Some(leftover) = leftovers.pop() {
        match leftover {
            Leftover::Process(mut child) => {
                drop(child.stdin.take());
                let _ = child.wait();
            }
            Leftover::Directory(directory) => {
                let _ = std::fs::remove_dir_all(directory);
            }
        }
    }
}

/// Creates an empty database, in the PostgreSQL of `WFE_TEST_POSTGRES` (the URL
/// of any database there) or else in the embedded one; returns its URL, which is valid for
/// sqlx and for a server's `--db-url`.
pub async fn new_database() -> String {
    use sqlx::Connection;
    let admin =
        std::env::var("WFE_TEST_POSTGRES").unwrap_or_else(|_| shared().database_url("postgres"));
    let name = format!("wfe_rs_{}", uuid::Uuid::new_v4().simple());
    let mut connection = sqlx::PgConnection::connect(&admin).await.unwrap();
    sqlx::query(&format!("CREATE DATABASE {name}"))
        .execute(&mut connection)
        .await
        .unwrap();
    let (base, options) = admin
        .split_once('?')
        .map_or((admin.as_str(), String::new()), |(base, options)| {
            (base, format!("?{options}"))
        });
    let (server, _) = base.rsplit_once('/').unwrap();
    format!("{server}/{name}{options}")
}
