//! A guest's serial console, through the real `berth console`.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

#[derive(Default)]
struct Screen {
    text: String,
    ended: bool,
}

/// An open console: everything that it printed so far, and the keyboard.
pub struct Console {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<(Mutex<Screen>, Condvar)>,
    /// Where the next [`Console::expect`] begins to look.
    seen: usize,
}

impl Console {
    /// Starts `command` (a `berth console …`) and reads its output from now on.
    pub fn open(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("console")?;
        let keyboard = child.stdin.take().context("console without stdin")?;
        let mut output = child.stdout.take().context("console without stdout")?;
        let screen = Arc::new((Mutex::new(Screen::default()), Condvar::new()));
        let shared = screen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            loop {
                let count = output.read(&mut chunk).unwrap_or(0);
                let (lock, changed) = &*shared;
                let mut screen = lock.lock().expect("no holder panics");
                match count {
                    0 => screen.ended = true,
                    _ => screen
                        .text
                        .push_str(&String::from_utf8_lossy(&chunk[..count])),
                }
                changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            keyboard,
            screen,
            seen: 0,
        })
    }

    /// Waits until `text` is printed after what was expected before; gives everything up to its end.
    pub fn expect(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        let (lock, changed) = &*self.screen;
        let mut screen = lock.lock().expect("no holder panics");
        loop {
            if let Some(at) = screen.text[self.seen..].find(text) {
                let end = self.seen + at + text.len();
                let passed = screen.text[self.seen..end].to_owned();
                self.seen = end;
                return Ok(passed);
            }
            let now = Instant::now();
            if screen.ended || now >= deadline {
                let why = if screen.ended {
                    "the console ended"
                } else {
                    "the time is over"
                };
                bail!(
                    "console: no {text:?}, {why}; it showed:\n{}",
                    &screen.text[self.seen..]
                );
            }
            screen = changed
                .wait_timeout(screen, deadline - now)
                .expect("no holder panics")
                .0;
        }
    }

    /// Types `text` and Enter.
    pub fn send_line(&mut self, text: &str) -> anyhow::Result<()> {
        self.keyboard
            .write_all(format!("{text}\n").as_bytes())
            .context("console input")?;
        self.keyboard.flush().context("console input")
    }

    /// Logs in at the small guest's prompt.
    pub fn log_in(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.send_line("")?;
        self.expect("login: ", limit)?;
        self.send_line("root")?;
        self.expect("# ", limit)?;
        Ok(())
    }

    /// Runs a command in a shell that waits at its prompt, and gives what it printed.
    pub fn shell(&mut self, command: &str, limit: Duration) -> anyhow::Result<String> {
        // The marker is spelt with a quote so that the echo of the command line is not taken for its end.
        self.send_line(&format!("{command}; echo END'OF'COMMAND=$?"))?;
        self.expect("\n", limit)?;
        let printed = self.expect("ENDOFCOMMAND=", limit)?;
        let status = self.expect("\n", limit)?;
        self.expect("# ", limit)?;
        let printed = printed.trim_end_matches("ENDOFCOMMAND=").replace('\r', "");
        if status.trim() != "0" {
            bail!(
                "in the guest, `{command}` exited with {}: {printed}",
                status.trim()
            );
        }
        Ok(printed)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
