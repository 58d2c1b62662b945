//! Files and sockets in directories that a virtual machine's user can write to.
//!
//! The agent is root, and what lies there is whatever a hostile guest that broke out of QEMU put there: a link to a file of
//! root, a pipe that nobody writes to, a file without end. What is opened here is looked at by its descriptor, so it cannot
//! be exchanged between the look and the use: no link is followed, it belongs to the pod's user, and reading ends at
//! [`MAX`].

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// The most that is read of a file.
const MAX: u64 = 1 << 20;

/// Reads a file of the user `uid`. Never waits for a writer.
///
/// # Errors
/// When it is not there, not a regular file, another's, or larger than 1 MiB.
pub(crate) fn read(path: &Path, uid: u32) -> io::Result<Vec<u8>> {
    let fd = opened(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        FileType::RegularFile,
        uid,
    )?;
    let mut content = Vec::new();
    File::from(fd).take(MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {MAX} bytes"),
        ));
    }
    Ok(content)
}

/// A socket of the user `uid` that was looked at.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Looks at the socket without connecting.
    ///
    /// # Errors
    /// When it is not there, not a socket, or another's.
    pub(crate) fn open(path: &Path, uid: u32) -> io::Result<Self> {
        opened(path, OFlags::PATH, FileType::Socket, uid).map(Self)
    }

    /// What to connect to: this very socket, whatever its name stands for by now. Good for as long as `self` lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn opened(path: &Path, flags: OFlags, kind: FileType, uid: u32) -> io::Result<OwnedFd> {
    let fd = open(
        path,
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = fstat(&fd)?;
    let found = FileType::from_raw_mode(stat.st_mode);
    if found != kind {
        return Err(refused(format!("is a {found:?}, not a {kind:?}")));
    }
    if stat.st_uid != uid {
        return Err(refused(format!(
            "belongs to user {}, not to the pod's user {uid}",
            stat.st_uid
        )));
    }
    Ok(fd)
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn only_a_small_regular_file_of_the_user_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("good"), "words").unwrap();
        assert_eq!(read(&at("good"), me()).unwrap(), b"words");
        assert!(
            read(&at("good"), me() + 1)
                .unwrap_err()
                .to_string()
                .contains("belongs to user")
        );
        symlink(at("good"), at("link")).unwrap();
        read(&at("link"), me()).unwrap_err();
        symlink("/dev/zero", at("endless")).unwrap();
        read(&at("endless"), me()).unwrap_err();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        assert!(
            read(&at("pipe"), me())
                .unwrap_err()
                .to_string()
                .contains("not a RegularFile")
        );
        let large = File::create(at("large")).unwrap();
        large.set_len(MAX).unwrap();
        assert_eq!(read(&at("large"), me()).unwrap().len() as u64, MAX);
        large.set_len(MAX + 1).unwrap();
        assert_eq!(
            read(&at("large"), me()).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
    }

    #[test]
    fn only_a_socket_of_the_user_is_connected_to_even_when_its_name_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let (name, link) = (dir.path().join("s"), dir.path().join("link"));
        let _listener = UnixListener::bind(&name).unwrap();
        symlink(&name, &link).unwrap();
        assert!(Socket::open(&link, me()).is_err());
        assert!(Socket::open(&name, me() + 1).is_err());
        let socket = Socket::open(&name, me()).unwrap();
        std::fs::rename(&name, dir.path().join("old")).unwrap();
        std::fs::write(&name, "another").unwrap();
        UnixStream::connect(socket.path()).unwrap();
        assert!(Socket::open(&name, me()).is_err());
    }
}
