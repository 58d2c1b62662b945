//! The serial console of the guest, for any number of listeners.
//!
//! QEMU takes one connection on its serial socket. The launcher is that one, always reads, so that the guest never waits
//! for a reader, and passes on: the last 64 KiB and then everything to each client of `console.sock`, input from any of
//! them to the guest, and, unless the machine does not want it, a copy to `serial.log`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, oneshot};

/// What a new client sees of the past.
const RING: usize = 64 << 10;
/// Pieces that a slow client may be behind before it loses some.
const BEHIND: usize = 64;
/// Most bytes in a piece.
const PIECE: usize = 4 << 10;
/// The log is moved to `serial.log.1` when it has grown to this.
const LOG_LIMIT: u64 = 1 << 20;
/// More clients than people at one machine.
const MAX_CLIENTS: usize = 16;

enum Command {
    /// The guest's serial port, and whether to log it.
    Attach(UnixStream, bool),
    /// A new client: what was, and what comes.
    Subscribe(oneshot::Sender<(Vec<u8>, broadcast::Receiver<Bytes>)>),
    /// A client typed.
    Input(Bytes),
}

/// The console. Clones share it; it ends when the guest's side closes.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    commands: mpsc::Sender<Command>,
}

impl Console {
    /// Serves clients on `listener`; logs to `log`.
    pub(crate) fn start(listener: UnixListener, log: PathBuf) -> Self {
        let (commands, queue) = mpsc::channel(16);
        tokio::spawn(own(queue, log));
        tokio::spawn(accept(listener, commands.clone()));
        Self { commands }
    }

    /// Connects to QEMU's serial socket and begins to read.
    pub(crate) async fn attach(&self, socket: &Path, logged: bool) -> io::Result<()> {
        let stream = crate::socket::connect(socket).await?;
        self.commands
            .send(Command::Attach(stream, logged))
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn accept(listener: UnixListener, commands: mpsc::Sender<Command>) {
    let mut clients = tokio::task::JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a console connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        if clients.len() < MAX_CLIENTS {
            clients.spawn(serve(stream, commands.clone()));
        } else {
            tracing::warn!("over {MAX_CLIENTS} console connections: one more is refused");
        }
    }
}

/// One client: the past, then what comes; its input to the guest.
async fn serve(mut stream: UnixStream, commands: mpsc::Sender<Command>) {
    let (reply, answer) = oneshot::channel();
    if commands.send(Command::Subscribe(reply)).await.is_err() {
        return;
    }
    let Ok((past, mut live)) = answer.await else {
        return;
    };
    let (mut reader, mut writer) = stream.split();
    let output = async {
        writer.write_all(&past).await?;
        drop(past);
        loop {
            match live.recv().await {
                Ok(piece) => writer.write_all(&piece).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok::<(), io::Error>(()),
            }
        }
    };
    let input = async {
        let mut buffer = [0; 512];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok::<(), io::Error>(()),
                count => {
                    let piece = Bytes::copy_from_slice(&buffer[..count]);
                    commands
                        .send(Command::Input(piece))
                        .await
                        .map_err(|_| io::ErrorKind::BrokenPipe)?;
                }
            }
        }
    };
    let ended = tokio::select! {
        ended = output => ended,
        // A client that only closed its writing side still listens.
        ended = async { input.await?; std::future::pending().await } => ended,
    };
    if let Err(error) = ended {
        tracing::debug!("console client: {error}");
    }
}

/// The task that owns the serial port.
async fn own(mut queue: mpsc::Receiver<Command>, log: PathBuf) {
    let mut ring = Ring::default();
    let mut log = Log::new(log);
    let (live, _) = broadcast::channel(BEHIND);
    let mut serial: Option<UnixStream> = None;
    let mut logged = false;
    let mut buffer = vec![0; PIECE];
    loop {
        let command = match &mut serial {
            None => queue.recv().await,
            Some(stream) => tokio::select! {
                biased;
                count = stream.read(&mut buffer) => {
                    let Some(piece) = count.ok().and_then(|count| buffer.get(..count)).filter(|p| !p.is_empty()) else {
                        // QEMU is gone. A corrected `sync` may bring another.
                        serial = None;
                        continue;
                    };
                    ring.push(piece);
                    if logged {
                        log.write(piece);
                    }
                    // Nobody need listen.
                    let _ = live.send(Bytes::copy_from_slice(piece));
                    continue;
                }
                command = queue.recv() => command,
            },
        };
        match command {
            None => return,
            Some(Command::Attach(stream, wanted)) => {
                serial = Some(stream);
                logged = wanted;
            }
            Some(Command::Subscribe(reply)) => {
                let _ = reply.send((ring.contents(), live.subscribe()));
            }
            Some(Command::Input(piece)) => {
                if let Some(stream) = &mut serial {
                    feed(stream, &piece).await;
                }
            }
        }
    }
}

/// Types into the guest. A guest that does not read its serial port must not hold up its own output, so what does not
/// fit is dropped, as a real UART would.
async fn feed(stream: &mut UnixStream, piece: &[u8]) {
    let patience = std::time::Duration::from_millis(200);
    if tokio::time::timeout(patience, stream.write_all(piece))
        .await
        .is_err()
    {
        tracing::debug!("the guest does not read its console: input is dropped");
    }
}

#[derive(Default)]
struct Ring(VecDeque<u8>);

impl Ring {
    fn push(&mut self, piece: &[u8]) {
        let excess = (self.0.len() + piece.len()).saturating_sub(RING);
        self.0.drain(..excess.min(self.0.len()));
        self.0.extend(piece);
    }

    fn contents(&self) -> Vec<u8> {
        let (front, back) = self.0.as_slices();
        [front, back].concat()
    }
}

/// The log file, bounded, with one older one kept.
struct Log {
    path: PathBuf,
    file: Option<(File, u64)>,
    failed: bool,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            failed: false,
        }
    }

    fn write(&mut self, piece: &[u8]) {
        match self.try_write(piece) {
            Ok(()) => self.failed = false,
            Err(error) => {
                // A full disk must not stop the console, nor fill the other log.
                if !self.failed {
                    tracing::warn!("cannot write {}: {error}", self.path.display());
                }
                self.failed = true;
                self.file = None;
            }
        }
    }

    fn try_write(&mut self, piece: &[u8]) -> io::Result<()> {
        if self
            .file
            .as_ref()
            .is_some_and(|(_, size)| size + piece.len() as u64 > LOG_LIMIT)
        {
            self.file = None;
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        if self.file.is_none() {
            let file = File::options().create(true).append(true).open(&self.path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            file.write_all(piece)?;
            *size += piece.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
        let mut seen = Vec::new();
        let mut buffer = [0; 1024];
        tokio::time::timeout(Duration::from_secs(10), async {
            while !String::from_utf8_lossy(&seen).contains(wanted) {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "ended before {wanted:?}");
                seen.extend_from_slice(&buffer[..count]);
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {wanted:?}"));
        String::from_utf8_lossy(&seen).into_owned()
    }

    #[tokio::test]
    async fn clients_see_the_past_and_each_others_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (clients, qemu) = (
            dir.path().join("console.sock"),
            dir.path().join("serial.sock"),
        );
        let console = Console::start(
            crate::socket::listen(&clients).unwrap(),
            dir.path().join("serial.log"),
        );
        let mut early = UnixStream::connect(&clients).await.unwrap();
        let port = UnixListener::bind(&qemu).unwrap();
        console.attach(&qemu, true).await.unwrap();
        let (mut guest, _) = port.accept().await.unwrap();
        guest.write_all(b"login: ").await.unwrap();
        read_until(&mut early, "login: ").await;
        let mut late = UnixStream::connect(&clients).await.unwrap();
        assert_eq!(read_until(&mut late, "login: ").await, "login: ");
        late.write_all(b"root\n").await.unwrap();
        assert_eq!(read_until(&mut guest, "root\n").await, "root\n");
        early.write_all(b"exit\n").await.unwrap();
        read_until(&mut guest, "exit\n").await;
        // A client that leaves takes nothing with it.
        drop(early);
        guest.write_all(b"bye").await.unwrap();
        read_until(&mut late, "bye").await;
        assert_eq!(
            std::fs::read_to_string(dir.path().join("serial.log")).unwrap(),
            "login: bye"
        );
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let mut ring = Ring::default();
        ring.push(&[b'a'; RING]);
        ring.push(b"the end");
        let contents = ring.contents();
        assert_eq!(contents.len(), RING);
        assert!(contents.ends_with(b"athe end"));
        ring.push(&vec![b'b'; RING - 1]);
        assert_eq!(ring.contents()[0], b'd');
    }

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path().join("serial.log"));
        let piece = vec![b'x'; 100_000];
        for _ in 0..35 {
            log.write(&piece);
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("serial.log") <= LOG_LIMIT && size("serial.log.1") <= LOG_LIMIT);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
