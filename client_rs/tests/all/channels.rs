//! Several connections to one server: the calls are spread over them, and over the processes of the
//! server; one that breaks disturbs nobody; all of them carry the token, and all are closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tonic::transport::Server;
use wfe::models::Event;
use wfe::traits::EventRepository;
use wfe_persistence_client::GrpcPersistenceProvider;

use crate::{common, stub};

/// Forwards connections, counts them, and cuts them.
#[derive(Clone, Default)]
pub(crate) struct Proxy {
    open: Arc<AtomicUsize>,
    refuses: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<AbortHandle>>>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Proxy {
    /// Returns the address to connect to.
    pub(crate) async fn start(target: &str) -> (String, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let proxy = Self::default();
        let (this, target) = (proxy.clone(), target.to_string());
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                if this.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                this.open.fetch_add(1, Ordering::SeqCst);
                let (open, target) = (Open(this.open.clone()), target.clone());
                let task = tokio::spawn(async move {
                    let _open = open;
                    let mut server = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
                this.all.lock().unwrap().push(task.abort_handle());
            }
        });
        (address, proxy)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    async fn wait_for(&self, open: usize) {
        wait_until(|| self.open() == open).await;
    }
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(
            tokio::time::Instant::now() < end,
            "it does not come to that"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Calls until that many connections are there: they are made while there are calls.
pub(crate) async fn warm(provider: &GrpcPersistenceProvider, is_warm: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is_warm() {
        assert!(tokio::time::Instant::now() < end, "some are missing");
        provider.store_info().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn write_and_read(provider: &GrpcPersistenceProvider, key: &str) {
    let mut event = Event::new("channels", key, json!(1));
    event.is_processed = true;
    let id = provider.create_event(&event).await.unwrap();
    assert_eq!(provider.get_event(&id).await.unwrap().event_key, key);
}

/// How many connections each worker process of a server has accepted, by its process id.
fn accepted(server: u32, port: u16) -> HashMap<u32, usize> {
    let local = format!(":{port:04X}");
    let sockets: Vec<String> = std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // Established, and this end of it.
        .filter(|fields| fields[3] == "01" && fields[1].ends_with(&local))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent(*pid) == Some(server))
        .map(|pid: u32| {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let links = fds.into_iter().flatten();
            let links = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            let count = links
                .filter(|link| sockets.iter().any(|s| link.as_os_str() == s.as_str()))
                .count();
            (pid, count)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[tokio::test]
async fn all_processes_of_a_server_are_used_and_one_may_be_killed() {
    let url = common::new_database().await;
    let (target, server) = common::start_server_process(&["--db-url", &url, "--workers", "2"]);
    let port = target.rsplit_once(':').unwrap().1.parse().unwrap();
    let provider = GrpcPersistenceProvider::builder(&target)
        .channels(4)
        .timeout(Duration::from_secs(120))
        .connect()
        .await
        .unwrap();
    warm(&provider, || {
        accepted(server, port).values().sum::<usize>() == 4
    })
    .await;
    let workers = accepted(server, port);
    // Two each, unless two came at the same moment or a process got no time for a while.
    assert_eq!(workers.len(), 2, "{workers:?}");

    let killed = *workers.keys().next().unwrap();
    // SAFETY: it has no preconditions; the process is one of this test's own.
    unsafe { libc::kill(killed as i32, libc::SIGKILL) };
    for key in 0..100 {
        write_and_read(&provider, &key.to_string()).await;
    }
    // They are made again.
    warm(&provider, || {
        accepted(server, port).values().sum::<usize>() == 4
    })
    .await;
}

#[tokio::test]
async fn one_that_breaks_does_not_disturb_the_others() {
    let (address, proxy) = Proxy::start(&common::target()).await;
    let provider = GrpcPersistenceProvider::builder(&address)
        .channels(3)
        .timeout(Duration::from_secs(60))
        .max_attempts(1)
        .connect()
        .await
        .unwrap();
    warm(&provider, || proxy.open() == 3).await;
    proxy.refuses.store(true, Ordering::SeqCst);
    proxy.all.lock().unwrap()[0].abort();
    proxy.wait_for(2).await;
    // The first call that is made on it finds out; with more attempts, nobody notices.
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(provider.store_info().await.is_err());
    }
    assert!(failed <= 1, "{failed} calls failed");
    assert_eq!(proxy.open(), 2);
    proxy.refuses.store(false, Ordering::SeqCst);
    warm(&provider, || proxy.open() == 3).await;
    // Nobody uses it any more: all are closed.
    drop(provider);
    proxy.wait_for(0).await;
}

#[tokio::test]
async fn calls_are_repeated_on_the_others() {
    let (address, proxy) = Proxy::start(&common::target()).await;
    let provider = GrpcPersistenceProvider::builder(&address)
        .channels(3)
        .timeout(Duration::from_secs(60))
        .connect()
        .await
        .unwrap();
    warm(&provider, || proxy.open() == 3).await;
    proxy.refuses.store(true, Ordering::SeqCst);
    for cut in 0..2 {
        proxy.all.lock().unwrap()[cut].abort();
        for key in 0..20 {
            write_and_read(&provider, &key.to_string()).await;
        }
    }
    assert_eq!(proxy.open(), 1);
}

#[tokio::test]
async fn the_token_goes_over_each_of_them() {
    let (port, seen) = stub::on_tcp(Server::builder()).await;
    let (address, proxy) = Proxy::start(&format!("127.0.0.1:{port}")).await;
    let provider = GrpcPersistenceProvider::builder(&address)
        .channels(3)
        .bearer_token("s3cret-token")
        .connect()
        .await
        .unwrap();
    warm(&provider, || proxy.open() == 3).await;
    for _ in 0..12 {
        provider.store_info().await.unwrap();
        assert_eq!(seen.last("authorization"), ["Bearer s3cret-token"]);
    }
}

#[tokio::test]
async fn one_is_the_default_and_their_number_is_checked() {
    let (address, proxy) = Proxy::start(&common::target()).await;
    let provider = GrpcPersistenceProvider::new(&*address).await.unwrap();
    for _ in 0..10 {
        provider.store_info().await.unwrap();
    }
    assert_eq!(proxy.all.lock().unwrap().len(), 1);
    for bad in [0, 65] {
        let builder = GrpcPersistenceProvider::builder(&address).channels(bad);
        let error = builder.connect_lazy().unwrap_err();
        assert!(error.message().contains("from 1 to 64"), "{error}");
    }
}
