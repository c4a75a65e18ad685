//! Lifecycle events that are received.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::{broadcast, watch};
use tonic::Status;
use wfe_core::models::LifecycleEvent;

use super::{to_duration, GrpcHost, Inner};
use crate::convert::from_lifecycle_event;
use crate::error::{Error, Result};
use crate::v1::{self, ErrorReason};

/// The most events that wait for a receiver; a slower one is told how many it has missed.
const CAPACITY: usize = 4096;

const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long to wait before the stream is opened again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long those who publish wait for the first response of a stream that is being opened.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the stream of lifecycle events is behind; see [`GrpcHost::lag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// How long ago the server was heard of. It sends a heartbeat every 5 s, so if this is much
    /// longer, the connection is broken, and is being made again; events come later, but are not
    /// lost.
    pub silent: Duration,
    /// How old the last event was when it came, by its host's clock; zero before the first.
    pub last_event: Duration,
    /// How often the stream was interrupted for so long that events are no longer there
    /// (`--lifecycle-retention`).
    pub gaps: u64,
}

#[derive(Default)]
pub(super) struct Watcher {
    state: Mutex<Option<Stream>>,
}

struct Stream {
    sender: broadcast::Sender<LifecycleEvent>,
    /// Of each member, whether the first response has come.
    ready: watch::Receiver<Vec<bool>>,
    /// When each member was heard of.
    heard: Vec<Instant>,
    last_event: Duration,
    gaps: u64,
}

impl GrpcHost {
    /// Receives all lifecycle events of the namespace from now on, also those of other hosts, in
    /// the order in which they were committed (over a namespace set, in each member), at least once.
    /// They come over one stream in the
    /// background, which all receivers share, and which is resumed where it was when the
    /// connection breaks; [`lag`](Self::lag) tells how far it is behind. A receiver that does not
    /// keep up is told by `RecvError::Lagged` how many events it has missed.
    ///
    /// What this host publishes after this call is received. What others publish is received
    /// from the moment on at which the server has answered.
    ///
    /// # Errors
    ///
    /// It is called outside a Tokio runtime.
    pub fn subscribe(&self) -> Result<broadcast::Receiver<LifecycleEvent>> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|_| Error::invalid("subscribe was called outside a Tokio runtime"))?;
        let mut state = self.0.watcher.state();
        if let Some(stream) = state.as_ref().filter(|stream| stream.is_running()) {
            return Ok(stream.sender.subscribe());
        }
        let (sender, receiver) = broadcast::channel(CAPACITY);
        let members = self.0.place.members().len();
        let (is_ready, ready) = watch::channel(vec![false; members]);
        let is_ready = Arc::new(is_ready);
        *state = Some(Stream {
            sender: sender.clone(),
            ready,
            heard: vec![Instant::now(); members],
            last_event: Duration::ZERO,
            gaps: 0,
        });
        for index in 0..members {
            let feed = Feed {
                host: Arc::downgrade(&self.0),
                index,
                sender: sender.clone(),
                is_ready: Arc::clone(&is_ready),
            };
            runtime.spawn(feed.follow());
        }
        Ok(receiver)
    }

    /// How far the stream of lifecycle events is behind; `None` if nobody has subscribed.
    pub fn lag(&self) -> Option<Lag> {
        let state = self.0.watcher.state();
        let stream = state.as_ref().filter(|stream| stream.is_running())?;
        Some(Lag {
            silent: stream.heard.iter().map(Instant::elapsed).max()?,
            last_event: stream.last_event,
            gaps: stream.gaps,
        })
    }
}

impl Stream {
    fn is_running(&self) -> bool {
        self.ready.has_changed().is_ok()
    }
}

impl Watcher {
    /// Waits until a stream that is being opened is open, but not for ever.
    pub(super) async fn is_ready(&self) {
        let ready = self.state().as_ref().map(|stream| stream.ready.clone());
        if let Some(mut ready) = ready {
            let opened = ready.wait_for(|ready| all(ready));
            let _ = tokio::time::timeout(PATIENCE, opened).await;
        }
    }

    /// Whether a stream is being opened.
    pub(super) fn is_opening(&self) -> bool {
        let state = self.state();
        state
            .as_ref()
            .is_some_and(|stream| stream.is_running() && !all(&stream.ready.borrow()))
    }

    fn update(&self, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.state().as_mut() {
            change(stream);
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Stream>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all(ready: &[bool]) -> bool {
    ready.iter().all(|ready| *ready)
}

/// The stream of a member.
struct Feed {
    host: Weak<Inner>,
    index: usize,
    sender: broadcast::Sender<LifecycleEvent>,
    is_ready: Arc<watch::Sender<Vec<bool>>>,
}

impl Feed {
    /// Feeds the receivers until there are none, or the host is dropped.
    async fn follow(self) {
        let Self {
            host,
            index,
            sender,
            is_ready,
        } = self;
        let mut cursor = String::new();
        while sender.receiver_count() > 0 {
            let Some(inner) = host.upgrade() else {
                return;
            };
            let request = v1::WatchRequest {
                after: cursor.clone(),
                heartbeat: to_duration(HEARTBEAT),
                ..Default::default()
            };
            let member = &inner.place.members()[index];
            let stream = match member.caller.endless(request) {
                Ok(request) => member.pool.watch(request).await,
                Err(error) => Err(Status::unauthenticated(error.to_string())),
            };
            drop(inner);
            let ended = match stream {
                Ok(mut stream) => loop {
                    // A connection that is dead is noticed by its silence.
                    let next = tokio::time::timeout(3 * HEARTBEAT, stream.message()).await;
                    match next {
                        Ok(Ok(Some(response))) if sender.receiver_count() > 0 => {
                            let Some(inner) = host.upgrade() else {
                                return;
                            };
                            cursor.clone_from(&response.cursor);
                            receive(&inner.watcher, index, response, &sender);
                            is_ready.send_if_modified(|ready| {
                                !std::mem::replace(&mut ready[index], true)
                            });
                        }
                        Ok(Err(status)) => break Some(status),
                        Ok(Ok(_)) | Err(_) => break None,
                    }
                },
                Err(status) => Some(status),
            };
            let reason = ended.and_then(|status| Error::from_status(&status).reason());
            if reason == Some(ErrorReason::CursorExpired) {
                cursor.clear();
                if let Some(inner) = host.upgrade() {
                    inner.watcher.update(|stream| stream.gaps += 1);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn receive(
    watcher: &Watcher,
    index: usize,
    response: v1::WatchResponse,
    sender: &broadcast::Sender<LifecycleEvent>,
) {
    let mut last_event = None;
    for watched in response.events {
        // One of a type that this version does not know is nothing that it could tell.
        if let Ok(event) = from_lifecycle_event(watched.event.unwrap_or_default()) {
            last_event = Some(Utc::now() - event.event_time_utc);
            let _ = sender.send(event);
        }
    }
    watcher.update(|stream| {
        stream.heard[index] = Instant::now();
        if let Some(age) = last_event {
            stream.last_event = age.to_std().unwrap_or_default();
        }
    });
}
