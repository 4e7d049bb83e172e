//! A terminal for a program: a pseudo-terminal, and what a person would see on it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, ends};

/// The screen, and a bell for each change.
type Shown = Arc<(Mutex<vt100::Parser>, Condvar)>;

/// A program that runs on a terminal of its own; killed on drop.
pub struct Terminal {
    child: Child,
    keyboard: File,
    // Kept open, to give the terminal another size.
    slave: OwnedFd,
    shown: Shown,
    /// Every byte that the program has written.
    written: Arc<Mutex<Vec<u8>>>,
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

impl Terminal {
    /// Starts the program on a terminal of this size. Its standard error is the terminal, too.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Terminal {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        // A session of its own, whose terminal this is: the kernel tells it of another size.
        let mut apart = Command::new("setsid");
        apart.arg("--ctty").arg(command.get_program()).args(command.get_args());
        apart.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => apart.env(variable, value),
                None => apart.env_remove(variable),
            };
        }
        let child = apart.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let shown: Shown =
            Arc::new((Mutex::new(vt100::Parser::new(cells(rows), cells(columns), 0)), Condvar::new()));
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut output = File::from(pty.master.try_clone().unwrap());
        let (screen, bytes) = (shown.clone(), written.clone());
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            // Ends when the last program on the terminal has ended, and we have let go of it.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                bytes.lock().unwrap().extend(&buffer[..length]);
                screen.0.lock().unwrap().process(&buffer[..length]);
                screen.1.notify_all();
            }
        });
        Terminal { child, keyboard: File::from(pty.master), slave: pty.slave, shown, written }
    }

    /// Types these bytes.
    pub fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.shown.0.lock().unwrap().set_size(cells(rows), cells(columns));
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        assert!(stty.stdin(self.slave.try_clone().unwrap()).status().unwrap().success());
    }

    /// Waits until what a person sees is as wanted; returns that.
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut parser = self.shown.0.lock().unwrap();
        loop {
            let text = parser.screen().contents();
            if wanted(&text) {
                return text;
            }
            let left = deadline.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("never on the screen: {what}\n{text}"));
            parser = self.shown.1.wait_timeout(parser, left).unwrap().0;
        }
    }

    /// Waits until a text is on the screen.
    pub fn until_shown(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    /// Whether the program has the whole screen to itself, and whether the cursor is hidden.
    pub fn taken(&self) -> (bool, bool) {
        let parser = self.shown.0.lock().unwrap();
        (parser.screen().alternate_screen(), parser.screen().hide_cursor())
    }

    /// Waits until the program has given the terminal back, or has taken it.
    pub fn until_taken(&self, is_taken: bool) {
        let what = if is_taken { "the terminal is taken" } else { "the terminal is given back" };
        let deadline = Instant::now() + DEADLINE;
        while self.taken() != (is_taken, is_taken) {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.until("", |_| true));
            thread::sleep(super::LOOK);
        }
    }

    /// Whether lines are edited and keys are echoed, as before a program has taken the terminal.
    pub fn is_cooked(&self) -> bool {
        let stty = Command::new("stty").arg("-a").stdin(self.slave.try_clone().unwrap()).output().unwrap();
        let settings = String::from_utf8(stty.stdout).unwrap();
        let has = |word: &str| settings.split([' ', ';', '\n']).any(|setting| setting == word);
        has("icanon") && has("echo")
    }

    /// Every byte that the program has written.
    pub fn written(&self) -> Vec<u8> {
        self.written.lock().unwrap().clone()
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the program's end.
    pub fn ends(&mut self) -> ExitStatus {
        let status = ends(&mut self.child);
        status.unwrap_or_else(|| panic!("does not end\n{}", self.until("", |_| true)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
