//! The control socket: connections in, requests to the driver, answers and states out.

use std::io;
use std::os::fd::OwnedFd;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::protocol::{Answer, Call, LauncherState, MAX_LINE, Message, Request, line};
use crate::socket::{LineReader, send};

/// A call on its way to the driver.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// What to do.
    pub(crate) call: Call,
    /// The DHCP sockets that came with it.
    pub(crate) fds: Vec<OwnedFd>,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Result<Answer, String>>,
}

/// What every connection shares.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// Where requests go.
    pub(crate) requests: mpsc::Sender<Incoming>,
    /// What the launcher says about itself.
    pub(crate) state: watch::Receiver<LauncherState>,
    /// Cancelled at the end: connections send the last state and close.
    pub(crate) closing: CancellationToken,
    /// The connections, to wait for at the end.
    pub(crate) connections: TaskTracker,
}

impl Server {
    /// Takes connections until `closing`.
    pub(crate) async fn serve(self, listener: UnixListener) {
        loop {
            let stream = tokio::select! {
                () = self.closing.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely; the next one may work again once some are closed.
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let server = self.clone();
            self.connections.spawn(async move {
                if let Err(error) = server.connection(&stream).await {
                    tracing::debug!("control connection: {error}");
                }
            });
        }
    }

    async fn connection(mut self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = LineReader::new(stream, MAX_LINE);
        let mut answers = FuturesUnordered::new();
        self.state.mark_changed();
        loop {
            let message = tokio::select! {
                biased;
                changed = self.state.changed() => {
                    // The driver is gone, and the calls it has answered are still owed their answers.
                    if changed.is_err() {
                        break;
                    }
                    Message { state: Some(self.state.borrow_and_update().clone()), ..Message::default() }
                }
                Some((id, answer)) = answers.next() => reply(id, answer),
                // The state was looked at first, so nothing that happened before the end is missed.
                () = self.closing.cancelled() => break,
                request = reader.line() => {
                    let Some(request) = request? else { return Ok(()) };
                    match self.take(&mut reader, &request).await {
                        Ok((id, answer)) => {
                            answers.push(async move { (id, answer.await) });
                            continue;
                        }
                        Err((id, words)) => Message { id: Some(id), error: Some(words), ..Message::default() },
                    }
                }
            };
            send(stream, &line(&message), &[]).await?;
        }
        // The driver has answered or dropped every call by now.
        while let Some((id, answer)) = answers.next().await {
            send(stream, &line(&reply(id, answer)), &[]).await?;
        }
        Ok(())
    }

    /// Reads a request and hands it on.
    async fn take(
        &self,
        reader: &mut LineReader<'_>,
        bytes: &[u8],
    ) -> Result<(u64, oneshot::Receiver<Result<Answer, String>>), (u64, String)> {
        let request: Request = match serde_json::from_slice(bytes) {
            Ok(request) => request,
            Err(error) => return Err((0, format!("not a request: {error}"))),
        };
        let wanted = match &request.call {
            Call::Sync(sync) => sync.nics.iter().filter(|nic| nic.lease.is_some()).count(),
            Call::Shutdown { .. }
            | Call::Kill
            | Call::Pause
            | Call::Resume
            | Call::Ask(_)
            | Call::Status => 0,
        };
        let Some(fds) = reader.take_fds(wanted) else {
            return Err((
                request.id,
                format!("{wanted} DHCP sockets are needed, and fewer came with the request"),
            ));
        };
        let (reply, answer) = oneshot::channel();
        let incoming = Incoming {
            call: request.call,
            fds,
            reply,
        };
        match self.requests.send(incoming).await {
            Ok(()) => Ok((request.id, answer)),
            Err(_) => Err((request.id, "the launcher is ending".to_owned())),
        }
    }
}

fn reply(id: u64, answer: Result<Result<Answer, String>, oneshot::error::RecvError>) -> Message {
    match answer {
        Ok(Ok(answer)) => Message {
            id: Some(id),
            result: Some(answer.state),
            data: answer.data,
            ..Message::default()
        },
        Ok(Err(words)) => Message {
            id: Some(id),
            error: Some(words),
            ..Message::default()
        },
        Err(_) => Message {
            id: Some(id),
            error: Some("the launcher is ending".to_owned()),
            ..Message::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_delivered_after_the_driver_is_gone() {
        let (state, watched) = watch::channel(LauncherState::default());
        let (requests, mut queue) = mpsc::channel(1);
        let server = Server {
            requests,
            state: watched,
            closing: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        let (mut client, stream) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(async move { server.connection(&stream).await });
        let request = Request {
            id: 7,
            call: Call::Kill,
        };
        client.write_all(&line(&request)).await.unwrap();
        let incoming = queue.recv().await.unwrap();
        // In one step, as a driver that ends at once: the answer, and nobody who could change the state any more.
        incoming.reply.send(Ok(Answer::default())).unwrap();
        drop((state, queue));
        serving.await.unwrap().unwrap();
        let mut received = String::new();
        client.read_to_string(&mut received).await.unwrap();
        let messages: Vec<Message> = received
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(
            messages
                .iter()
                .any(|message| message.id == Some(7) && message.result.is_some()),
            "{received}"
        );
    }
}
