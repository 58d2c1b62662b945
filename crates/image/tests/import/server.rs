//! A web server that behaves as badly as it is told to.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How it behaves.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Gives whole files only.
    pub(crate) no_ranges: bool,
    /// Breaks each answer off after so many bytes of the body.
    pub(crate) breaks_after: Option<usize>,
    /// How often it does that; for ever if not told.
    pub(crate) breaks: Option<u32>,
    /// Tells so many bytes more than there are.
    pub(crate) lies: usize,
    /// Tells no length.
    pub(crate) no_length: bool,
    /// What must be in `Authorization`.
    pub(crate) authorization: Option<&'static str>,
    /// What must be in the header `x-token`.
    pub(crate) token: Option<&'static str>,
    /// Answers 503 so often first.
    pub(crate) unavailable: u32,
    /// Sends everybody there.
    pub(crate) redirect: Option<String>,
    /// Another ETag with each answer.
    pub(crate) changes: bool,
}

/// What was asked: `GET` with the headers.
pub(crate) type Asked = Arc<Mutex<Vec<BTreeMap<String, String>>>>;

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) asked: Asked,
    /// Bytes of bodies that were sent.
    pub(crate) sent: Arc<AtomicU64>,
}

pub(crate) fn serve(file: Vec<u8>, behaviour: Behaviour) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let asked = Asked::default();
    let sent = Arc::new(AtomicU64::new(0));
    let state = Arc::new(State {
        file,
        behaviour,
        answers: AtomicU32::new(0),
        breaks: AtomicU32::new(0),
        asked: Arc::clone(&asked),
        sent: Arc::clone(&sent),
    });
    // Ends with the test's process; it holds nothing but memory.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || state.connection(stream));
        }
    });
    Server { url, asked, sent }
}

struct State {
    file: Vec<u8>,
    behaviour: Behaviour,
    answers: AtomicU32,
    breaks: AtomicU32,
    asked: Asked,
    sent: Arc<AtomicU64>,
}

impl State {
    fn connection(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        stream.set_nodelay(true).unwrap();
        loop {
            let mut headers = BTreeMap::new();
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            headers.insert("request".to_owned(), line.trim().to_owned());
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let Some((name, value)) = line.trim().split_once(':') else {
                    break;
                };
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            self.asked.lock().unwrap().push(headers.clone());
            if self.answer(&headers, &mut stream).is_none() {
                return;
            }
        }
    }

    /// None ends the connection.
    fn answer(&self, headers: &BTreeMap<String, String>, stream: &mut TcpStream) -> Option<()> {
        let b = &self.behaviour;
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let mut plain = |status: &str, more: &str| {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{more}\r\n");
            stream.write_all(text.as_bytes()).ok()
        };
        if !headers["request"].starts_with("GET ") {
            return plain("405 Method Not Allowed", "");
        }
        if number < b.unavailable {
            return plain("503 Service Unavailable", "");
        }
        if let Some(to) = &b.redirect {
            return plain("302 Found", &format!("location: {to}\r\n"));
        }
        if b.authorization
            .is_some_and(|a| headers.get("authorization").map(String::as_str) != Some(a))
        {
            return plain("401 Unauthorized", "www-authenticate: Basic\r\n");
        }
        if b.token
            .is_some_and(|t| headers.get("x-token").map(String::as_str) != Some(t))
        {
            return plain("403 Forbidden", "");
        }
        let size = self.file.len();
        let range = headers.get("range").filter(|_| !b.no_ranges).map(|range| {
            let (start, last) = range
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            let end = last.parse().map_or(size, |last: usize| size.min(last + 1));
            (start.parse::<usize>().unwrap(), end)
        });
        let (start, end) = range.unwrap_or((0, size));
        let mut head = match range {
            Some(_) => format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{size}\r\n",
                end - 1
            ),
            None => "HTTP/1.1 200 OK\r\n".to_owned(),
        };
        if b.changes {
            head += &format!("etag: \"{number}\"\r\n");
        }
        if b.no_length {
            head += "connection: close\r\n";
        } else {
            head += &format!("content-length: {}\r\n", end - start + b.lies);
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        let body = &self.file[start..end];
        let breaks = b.breaks_after.filter(|after| *after < body.len());
        let breaks = breaks.filter(|_| {
            let before = self.breaks.fetch_add(1, Ordering::Relaxed);
            b.breaks.is_none_or(|most| before < most)
        });
        let body = &body[..breaks.unwrap_or(body.len())];
        self.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
        stream.write_all(body).ok()?;
        (breaks.is_none() && !b.no_length && b.lies == 0).then_some(())
    }
}
