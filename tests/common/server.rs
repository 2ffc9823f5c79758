//! `hotset serve` as a child, and a small client.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::program::command;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

/// A server on a port of its own, killed with the test.
pub struct Server {
    child: Child,
    /// Host and port.
    pub address: String,
}

impl Server {
    /// With the bundled model and these options.
    pub fn start(args: &[&str]) -> Self {
        let mut command = command(env!("CARGO_BIN_EXE_hotset"));
        command.args(["serve", MODEL, "--port", "0", "--threads", "1", "--warm", "off"]).args(args);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let address = loop {
            let line = lines.next().expect("the server says where it listens");
            if let Some((_, address)) = line.split_once("listening on http://") {
                break address.to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        Self { child, address }
    }

    /// (status, body)
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.request("POST", path, body, "")
    }

    /// (status, body)
    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "", "")
    }

    /// (status, body); `headers` end in CR LF each.
    pub fn request(&self, method: &str, path: &str, body: &str, headers: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        let reply = raw(&self.address, &[head.as_bytes(), body.as_bytes()].concat());
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {reply:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body =
            if head.to_lowercase().contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
        (status, body)
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks it to end, which it does cleanly.
    pub fn stop(mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes back for these bytes until the connection ends.
pub fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    // Long enough for an unoptimised build on a busy machine.
    stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
    // A server that has read enough closes before all is written.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        reply.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&reply).into_owned()
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}
