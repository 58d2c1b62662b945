//! The node agent's side of the control socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::AbortHandle;

use crate::protocol::{
    Answer, Call, LauncherState, MAX_LINE, Message, Question, Request, SyncRequest, line,
};
use crate::socket::{self, LineReader};

/// Why a call, or the connection, failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered at the socket in time.
    #[error("no launcher at {path} after {seconds} s")]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// The deadline.
        seconds: u64,
    },
    /// The socket cannot be used.
    #[error("cannot connect to the launcher at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request could not be sent.
    #[error("cannot send to the launcher")]
    Send(#[source] io::Error),
    /// The connection ended before the answer came.
    #[error("the launcher closed the connection")]
    Closed,
    /// The launcher could not do it; its words.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a launcher. Clones share it; it is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: Arc<UnixStream>,
    /// Lines must not be mixed, whoever writes.
    writing: AsyncMutex<()>,
    next_id: AtomicU64,
    pending: Pending,
    state: watch::Receiver<LauncherState>,
    closed: watch::Receiver<bool>,
    reader: AbortHandle,
}

/// The calls that wait for an answer; `None` once none can come any more.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Answer, String>>>>>>;

impl Client {
    /// Connects as soon as the launcher listens at `sock`, and waits for its first state.
    ///
    /// The directory of the socket must exist. Waiting costs nothing: the kernel says when the socket appears.
    pub async fn connect(
        sock: &Path,
        owner: Option<u32>,
        deadline: Duration,
    ) -> Result<Self, ClientError> {
        let connecting = async {
            let stream = Arc::new(socket::connect_when_there(sock).await?);
            let listener = stream.peer_cred()?.uid();
            if owner.is_some_and(|owner| owner != listener) {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("user {listener} listens there, not the launcher's"),
                ));
            }
            let pending = Pending::new(Mutex::new(Some(HashMap::new())));
            let (first, started) = oneshot::channel();
            let (closing, closed) = watch::channel(false);
            let (updates, state) = watch::channel(LauncherState::default());
            let reader = tokio::spawn({
                let (stream, pending) = (Arc::clone(&stream), Arc::clone(&pending));
                async move {
                    if let Err(error) = read(&stream, &pending, &updates, first).await {
                        tracing::debug!("connection to the launcher: {error}");
                    }
                    // Dropping the senders fails the calls that still wait.
                    drop(
                        pending
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .take(),
                    );
                    closing.send_replace(true);
                }
            })
            .abort_handle();
            let inner = Inner {
                stream,
                writing: AsyncMutex::new(()),
                next_id: AtomicU64::new(1),
                pending,
                state,
                closed,
                reader,
            };
            let client = Self {
                inner: Arc::new(inner),
            };
            started
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
            Ok(client)
        };
        match tokio::time::timeout(deadline, connecting).await {
            Ok(done) => done.map_err(|source| ClientError::Connect {
                path: sock.to_owned(),
                source,
            }),
            Err(_) => Err(ClientError::NotThere {
                path: sock.to_owned(),
                seconds: deadline.as_secs(),
            }),
        }
    }

    /// Brings the machine up; returns once it runs. `fds`: one DHCP socket for each NIC with a lease, in their order.
    pub async fn sync(
        &self,
        request: SyncRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<LauncherState, ClientError> {
        self.call(Call::Sync(Box::new(request)), fds).await
    }

    /// Presses the power button; the power is cut after `grace_seconds`. Returns at once: watch the state for the end.
    pub async fn shutdown(&self, grace_seconds: u64) -> Result<LauncherState, ClientError> {
        self.call(Call::Shutdown { grace_seconds }, Vec::new())
            .await
    }

    /// Cuts the power. The launcher ends afterwards.
    pub async fn kill(&self) -> Result<LauncherState, ClientError> {
        self.call(Call::Kill, Vec::new()).await
    }

    /// Stops the guest between two instructions.
    pub async fn pause(&self) -> Result<LauncherState, ClientError> {
        self.call(Call::Pause, Vec::new()).await
    }

    /// Lets a paused guest go on.
    pub async fn resume(&self) -> Result<LauncherState, ClientError> {
        self.call(Call::Resume, Vec::new()).await
    }

    /// Has something of a guest that runs; what the answer is made of, [`Question`] says.
    pub async fn ask(&self, question: Question) -> Result<Value, ClientError> {
        let answer = self.answer(Call::Ask(question), Vec::new()).await?;
        Ok(answer.data.unwrap_or_default())
    }

    /// Asks for the state. [`Client::state`] has it without asking.
    pub async fn status(&self) -> Result<LauncherState, ClientError> {
        self.call(Call::Status, Vec::new()).await
    }

    /// The state and its changes. After the connection has ended it keeps the last one.
    pub fn state(&self) -> watch::Receiver<LauncherState> {
        self.inner.state.clone()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        // An error means that the reader is gone, which is the same.
        let _ = self.inner.closed.clone().wait_for(|closed| *closed).await;
    }

    async fn call(&self, call: Call, fds: Vec<OwnedFd>) -> Result<LauncherState, ClientError> {
        self.answer(call, fds).await.map(|answer| answer.state)
    }

    async fn answer(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Answer, ClientError> {
        let inner = &self.inner;
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match inner
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            Some(pending) => pending.insert(id, sender),
            None => return Err(ClientError::Closed),
        };
        // In a task of its own: a caller that gives up halfway must not leave half a line behind.
        let connection = Arc::clone(inner);
        let sending = tokio::spawn(async move {
            let bytes = line(&Request { id, call });
            let _one_at_a_time = connection.writing.lock().await;
            socket::send(&connection.stream, &bytes, &fds).await
        });
        let sent = sending
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = sent {
            if let Some(pending) = inner
                .pending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
            {
                pending.remove(&id);
            }
            return Err(ClientError::Send(error));
        }
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(words)) => Err(ClientError::Refused(words)),
            Err(_) => Err(ClientError::Closed),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(
    stream: &UnixStream,
    pending: &Pending,
    updates: &watch::Sender<LauncherState>,
    first: oneshot::Sender<()>,
) -> io::Result<()> {
    let mut reader = LineReader::new(stream, MAX_LINE);
    let mut first = Some(first);
    while let Some(line) = reader.line().await? {
        let message: Message = serde_json::from_slice(&line)?;
        if let Some(state) = message.state {
            updates.send_replace(state);
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
        }
        let Some(id) = message.id else { continue };
        let waiting = pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|pending| pending.remove(&id));
        let answer = match (message.result, message.error) {
            (_, Some(error)) => Err(error),
            (Some(state), None) => Ok(Answer {
                state,
                data: message.data,
            }),
            (None, None) => Err("the launcher sent an empty answer".to_owned()),
        };
        if let Some(waiting) = waiting {
            // The caller may have given up.
            let _ = waiting.send(answer);
        }
    }
    Ok(())
}
