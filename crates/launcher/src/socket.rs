//! Unix sockets: paths of any length, waiting for one to appear, lines, and file descriptors that travel with them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};

/// Longest path that fits `sockaddr_un` with its closing zero.
const SUN_PATH: usize = 107;
/// Most file descriptors in one message: one for each NIC, and no machine has that many.
const MAX_FDS: usize = 32;

/// A path that is short enough for a socket address, and what must stay open for it to work.
struct Short {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

/// Directories of pods can be long; through `/proc/self/fd` any directory is short.
fn short(path: &Path) -> io::Result<Short> {
    if path.as_os_str().len() <= SUN_PATH {
        return Ok(Short {
            path: path.to_owned(),
            _dir: None,
        });
    }
    let (dir, name) = split(path)?;
    let dir = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok(Short {
        path,
        _dir: Some(dir),
    })
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if dir.as_os_str().is_empty() => Ok((Path::new("."), name)),
        (Some(dir), Some(name)) => Ok((dir, name)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the path of a socket",
        )),
    }
}

/// Listens at `path`, for the owner only. What was there before is replaced.
///
/// The socket appears under its name only once it listens, so whoever sees it can connect.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (dir, name) = split(path)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let hidden = dir.join(hidden);
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&short(&hidden)?.path)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Connects to `path`.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let short = short(path)?;
    UnixStream::connect(&short.path).await
}

/// Connects to `path` as soon as somebody listens there. The directory must exist; waits for ever.
pub(crate) async fn connect_when_there(path: &Path) -> io::Result<UnixStream> {
    let mut watch = DirWatch::new(split(path)?.0)?;
    loop {
        match connect(path).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                watch.changed().await?;
            }
            done => return done,
        }
    }
}

/// Waits until something at `path` exists. The directory must exist.
pub(crate) async fn exists(path: &Path) -> io::Result<()> {
    let mut watch = DirWatch::new(split(path)?.0)?;
    while !path.try_exists()? {
        watch.changed().await?;
    }
    Ok(())
}

/// Names that appear in one directory.
struct DirWatch {
    // Nothing but a descriptor that can be read: tokio has no safe type that says less than this one.
    inotify: pipe::Receiver,
}

impl DirWatch {
    fn new(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &inotify,
            dir,
            WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR,
        )?;
        Ok(Self {
            inotify: pipe::Receiver::from_owned_fd_unchecked(inotify)?,
        })
    }

    /// Returns after the next change, or the changes since the last call. Fails when the directory is gone.
    async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0_u8; 2048];
        let length = loop {
            self.inotify.readable().await?;
            match self.inotify.try_read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => break done?,
            }
        };
        if watch_is_gone(&buffer[..length]) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the directory was removed",
            ));
        }
        Ok(())
    }
}

/// Whether one of these events says that the kernel has dropped the watch. `struct inotify_event` is four words (watch,
/// mask, cookie, length of the name) and the name.
fn watch_is_gone(mut events: &[u8]) -> bool {
    const HEADER: usize = 16;
    while let Some((header, rest)) = events.split_at_checked(HEADER) {
        let word =
            |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if word(4) & ReadFlags::IGNORED.bits() != 0 {
            return true;
        }
        events = rest.get(word(12) as usize..).unwrap_or_default();
    }
    false
}

/// Reads lines, and keeps the file descriptors that came with them until they are taken.
pub(crate) struct LineReader<'a> {
    stream: &'a UnixStream,
    buffer: Vec<u8>,
    scanned: usize,
    fds: VecDeque<OwnedFd>,
    limit: usize,
}

impl<'a> LineReader<'a> {
    pub(crate) fn new(stream: &'a UnixStream, limit: usize) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            fds: VecDeque::new(),
            limit,
        }
    }

    /// The next line without its end; `None` when the other side has closed. Dropping the future loses nothing.
    pub(crate) async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let mut line: Vec<u8> = self.buffer.drain(..=self.scanned + at).collect();
                line.pop();
                self.scanned = 0;
                if self.buffer.is_empty() {
                    // A `sync` is large and comes once: do not keep its space for the life of the connection.
                    self.buffer = Vec::new();
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > self.limit {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line of over {} bytes", self.limit),
                ));
            }
            if self.receive().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The oldest `count` descriptors that were received; `None`, and nothing taken, when there are fewer.
    pub(crate) fn take_fds(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (count <= self.fds.len()).then(|| self.fds.drain(..count).collect())
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0_u8; 8192];
        let (buffer, fds) = (&mut self.buffer, &mut self.fds);
        self.stream
            .async_io(Interest::READABLE, || {
                let mut space =
                    [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let message = rustix::net::recvmsg(
                    self.stream.as_fd(),
                    &mut [IoSliceMut::new(&mut chunk)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = message {
                        fds.extend(received);
                    }
                }
                if fds.len() > MAX_FDS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "too many file descriptors",
                    ));
                }
                buffer.extend_from_slice(&chunk[..message.bytes]);
                Ok(message.bytes)
            })
            .await
    }
}

/// Writes all bytes; the descriptors go with the first of them. Must not run twice at once on a stream.
pub(crate) async fn send(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many file descriptors",
        ));
    }
    let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let mut space =
                    [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if sent == 0 && !fds.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&fds));
                }
                let rest = [IoSlice::new(&bytes[sent..])];
                Ok(rustix::net::sendmsg(
                    stream.as_fd(),
                    &rest,
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?)
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn lines_bring_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"in the file").unwrap();
        let long = [vec![b'x'; 300_000], b"\n".to_vec()].concat();
        let sender = tokio::spawn(async move {
            send(&a, b"one\ntw", &[]).await.unwrap();
            send(&a, b"o\n", &[]).await.unwrap();
            send(&a, &long, &[file.into()]).await.unwrap();
            a
        });
        let mut reader = LineReader::new(&b, 1 << 20);
        assert_eq!(reader.line().await.unwrap().unwrap(), b"one");
        assert_eq!(reader.line().await.unwrap().unwrap(), b"two");
        assert_eq!(reader.line().await.unwrap().unwrap().len(), 300_000);
        let mut received = std::fs::File::from(reader.take_fds(1).unwrap().remove(0));
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "in the file");
        drop(sender.await.unwrap());
        assert!(reader.line().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("run");
        std::fs::create_dir(&inner).unwrap();
        let waiting = tokio::spawn({
            let path = inner.join("a.sock");
            async move { connect_when_there(&path).await }
        });
        tokio::task::yield_now().await;
        std::fs::remove_dir(&inner).unwrap();
        let error = tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let sender = tokio::spawn(async move { send(&a, &vec![b'x'; 200_000], &[]).await });
        let error = LineReader::new(&b, 1000).line().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(b);
        let _ = sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_is_waited_for_in_a_directory_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("a.sock");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { connect_when_there(&path).await }
        });
        tokio::task::yield_now().await;
        // Another name does not end the wait.
        std::fs::write(deep.join("other"), "").unwrap();
        let listener = listen(&path).unwrap();
        listener.accept().await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        // Listening again replaces what a dead process left.
        drop(listener);
        let _listener = listen(&path).unwrap();
        connect(&path).await.unwrap();
    }
}
