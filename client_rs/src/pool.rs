//! Several connections to one server, over which the calls are spread.
//!
//! A connection stays with one process of a server, and with one pod behind a Service of
//! Kubernetes; so a host with one connection uses one core of its servers at a time.
//!
//! (Not tonic's `balance_channel`: it makes one connection of endpoints that have the same
//! address as a key, chooses at random, without regard to the calls in progress, and has a call
//! wait for a connection while others are there.)

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::clients::{Call, Clients};
use crate::error::is_disconnected;
use crate::v1;

/// The pause after a connection could not be made: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the server may take to answer on a new connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes each call on the connection with the fewest calls in progress, of those that are
/// connected; if there are several, they take turns. So calls that wait, and streams, do not pile
/// up on one of them, and nobody waits for one that is being made again.
///
/// Clones share the connections, which are closed with the last of them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Connections>);

struct Connections {
    all: Vec<Connection>,
    next: AtomicUsize,
    /// Whether one is being made in the background. One after the other: a server of several
    /// processes spreads evenly what does not come at the same moment.
    is_connecting: AtomicBool,
    /// How many could not be made since one could.
    failures: AtomicUsize,
}

struct Connection {
    channel: Channel,
    clients: Clients,
    /// Whether the last call was answered.
    is_ready: AtomicBool,
    in_progress: AtomicUsize,
}

/// A connection that a call or a stream uses.
struct InUse {
    connections: Arc<Connections>,
    index: usize,
}

/// A stream of lifecycle events.
pub(crate) struct Watching {
    stream: Streaming<v1::WatchResponse>,
    _connection: InUse,
}

impl Pool {
    /// `max_bytes`: the largest response that is accepted.
    pub(crate) fn new(channels: impl IntoIterator<Item = Channel>, max_bytes: usize) -> Self {
        let all = channels.into_iter().map(|channel| Connection {
            clients: Clients::new(channel.clone(), max_bytes),
            channel,
            is_ready: AtomicBool::new(false),
            in_progress: AtomicUsize::new(0),
        });
        Self(Arc::new(Connections {
            all: all.collect(),
            next: AtomicUsize::new(0),
            is_connecting: AtomicBool::new(false),
            failures: AtomicUsize::new(0),
        }))
    }

    /// Makes one attempt of a call.
    pub(crate) async fn send<C: Call>(
        &self,
        request: Request<C>,
    ) -> Result<Response<C::Response>, Status> {
        let connection = self.choose();
        let outcome = C::send(&connection.get().clients, request).await;
        connection.was_used(&outcome);
        outcome
    }

    /// Opens a stream of lifecycle events.
    pub(crate) async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Watching, Status> {
        let connection = self.choose();
        let outcome = connection.get().clients.watch(request).await;
        connection.was_used(&outcome);
        Ok(Watching {
            stream: outcome?,
            _connection: connection,
        })
    }

    fn choose(&self) -> InUse {
        let connections = Arc::clone(&self.0);
        let index = connections.choose();
        if connections.all.iter().any(|one| !one.is_ready()) {
            connections.connect();
        }
        connections.all[index]
            .in_progress
            .fetch_add(1, Ordering::Relaxed);
        InUse { connections, index }
    }
}

impl Connections {
    fn choose(&self) -> usize {
        let count = self.all.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let in_turn = (first..count).chain(0..first);
        in_turn
            .filter(|index| self.all[*index].is_ready())
            .min_by_key(|index| self.all[*index].in_progress.load(Ordering::Relaxed))
            // The call connects it.
            .unwrap_or(first)
    }

    /// Makes those connections in the background that are not there, if another one is: else the
    /// calls themselves do.
    fn connect(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let has_one = self.all.iter().any(Connection::is_ready);
        if !has_one || self.is_connecting.swap(true, Ordering::Relaxed) {
            return;
        }
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            connect_all(&weak).await;
            if let Some(connections) = weak.upgrade() {
                connections.is_connecting.store(false, Ordering::Relaxed);
            }
        });
    }

    fn pause(&self) -> Duration {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(10);
        LONGEST_PAUSE.min(FIRST_PAUSE * (1 << failures))
    }
}

async fn connect_all(connections: &Weak<Connections>) {
    loop {
        let Some(pool) = connections.upgrade() else {
            return;
        };
        let Some(index) = pool.all.iter().position(|one| !one.is_ready()) else {
            return;
        };
        let channel = pool.all[index].channel.clone();
        // Nobody else uses it meanwhile, so the pool may be dropped.
        drop(pool);
        let answers = tokio::time::timeout(PATIENCE, is_answered(channel)).await;
        let Some(pool) = connections.upgrade() else {
            return;
        };
        if answers == Ok(true) {
            pool.failures.store(0, Ordering::Relaxed);
            pool.all[index].is_ready.store(true, Ordering::Relaxed);
        } else {
            let pause = pool.pause();
            drop(pool);
            tokio::time::sleep(pause).await;
            return;
        }
    }
}

/// Whether the server answers, whatever it does: a channel connects only for a call.
async fn is_answered(channel: Channel) -> bool {
    let mut grpc = Grpc::new(channel);
    if grpc.ready().await.is_err() {
        return false;
    }
    // No message has no fields that this would have to know.
    let codec = ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = grpc.unary(Request::new(()), path, codec).await;
    match answer {
        Ok(_) => true,
        Err(status) => !is_disconnected(&status),
    }
}

impl Connection {
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }
}

impl InUse {
    fn get(&self) -> &Connection {
        &self.connections.all[self.index]
    }

    fn was_used<T>(&self, outcome: &Result<T, Status>) {
        let is_ready = match outcome {
            Ok(_) => true,
            Err(status) => !is_disconnected(status),
        };
        self.get().is_ready.store(is_ready, Ordering::Relaxed);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.get().in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watching {
    /// The next response.
    pub(crate) async fn message(&mut self) -> Result<Option<v1::WatchResponse>, Status> {
        self.stream.message().await
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn pool(count: usize, ready: &[usize]) -> Pool {
        let nowhere = Endpoint::from_static("http://127.0.0.1:1");
        let pool = Pool::new((0..count).map(|_| nowhere.connect_lazy()), 1024);
        for index in ready {
            pool.0.all[*index].is_ready.store(true, Ordering::Relaxed);
        }
        // Nothing is connected here.
        pool.0.is_connecting.store(true, Ordering::Relaxed);
        pool
    }

    fn chosen(pool: &Pool, count: usize) -> Vec<usize> {
        (0..count).map(|_| pool.choose().index).collect()
    }

    #[tokio::test]
    async fn calls_take_turns_over_those_that_are_connected() {
        assert_eq!(chosen(&pool(3, &[0, 1, 2]), 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(chosen(&pool(3, &[0, 2]), 6), [0, 2, 2, 0, 2, 2]);
        // None is: each call connects another one.
        assert_eq!(chosen(&pool(3, &[]), 4), [0, 1, 2, 0]);
        assert_eq!(chosen(&pool(1, &[]), 2), [0, 0]);
    }

    #[tokio::test]
    async fn calls_that_wait_do_not_pile_up() {
        let pool = pool(3, &[0, 1, 2]);
        let waiting: Vec<_> = (0..6).map(|_| pool.choose()).collect();
        let on_each = |pool: &Pool| {
            let all = pool.0.all.iter();
            let counts = all.map(|one| one.in_progress.load(Ordering::Relaxed));
            counts.collect::<Vec<_>>()
        };
        assert_eq!(on_each(&pool), [2, 2, 2]);
        // Those of one end: it is the one that has the next ones.
        let (ended, left): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|one| one.index == 1);
        drop(ended);
        assert_eq!(chosen(&pool, 5), [1; 5]);
        let more: Vec<_> = (0..2).map(|_| pool.choose()).collect();
        assert!(more.iter().all(|one| one.index == 1));
        drop((left, more));
        assert_eq!(on_each(&pool), [0, 0, 0]);
    }

    #[tokio::test]
    async fn one_whose_call_was_not_answered_is_avoided() {
        let pool = pool(2, &[0, 1]);
        let call = pool.choose();
        let answer: Result<(), _> = Err(Status::not_found("the server says so"));
        call.was_used(&answer);
        assert!(pool.0.all[0].is_ready());
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let lost: Result<(), _> = Err(Status::from_error(Box::new(lost)));
        call.was_used(&lost);
        drop(call);
        assert_eq!(chosen(&pool, 3), [1, 1, 1]);
    }

    #[tokio::test]
    async fn the_pause_grows_up_to_a_bound() {
        let pool = pool(1, &[]);
        let pauses: Vec<_> = (0..7).map(|_| pool.0.pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
