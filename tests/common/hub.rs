//! A hub on this machine that speaks as much of the protocol as `hotset pull` needs, and misbehaves where a test asks.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use sha2::{Digest, Sha256};

/// A file on it.
#[derive(Clone)]
pub struct HubFile {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trouble {
    /// Each answer ends after so many bytes.
    pub cut_after: Option<usize>,
    /// Files are told another hash than they have.
    pub wrong_hash: bool,
    /// Ranges are ignored: every answer begins at the first byte.
    pub no_ranges: bool,
    /// Bodies of files are cut for good once so many bytes have gone out in all.
    pub dead_after: Option<u64>,
}

pub struct HubServer {
    pub endpoint: String,
    /// Bytes of files that went out.
    pub sent: Arc<AtomicU64>,
    pub trouble: Arc<Mutex<Trouble>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves `owner/model` until the test ends. With `token`, only to who has it.
pub fn serve(files: Vec<HubFile>, token: Option<&'static str>) -> HubServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = HubServer {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        sent: Arc::default(),
        trouble: Arc::default(),
    };
    let (sent, trouble) = (server.sent.clone(), server.trouble.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (files, sent, trouble) = (files.clone(), sent.clone(), *trouble.lock().unwrap());
            // A client that left is its own business.
            thread::spawn(move || drop(answer(&stream.unwrap(), &files, token, &sent, trouble)));
        }
    });
    server
}

fn answer(
    stream: &TcpStream,
    files: &[HubFile],
    token: Option<&str>,
    sent: &AtomicU64,
    trouble: Trouble,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<String> = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
    let header = |key: &str| {
        headers.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(key).then(|| value.to_owned())
        })
    };
    let authorization = header("authorization");
    let mut out = stream;
    let plain = |mut out: &TcpStream, status: &str, body: &str| {
        write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    if token.is_some_and(|token| authorization != Some(format!("Bearer {token}"))) {
        return plain(out, "401 Unauthorized", "{}");
    }
    if path.starts_with("/api/models/owner/model/revision/main") {
        let siblings: Vec<_> = files
            .iter()
            .map(|file| {
                let hash = if trouble.wrong_hash { "0".repeat(64) } else { sha256(&file.bytes) };
                serde_json::json!({"rfilename": file.name, "size": file.bytes.len(), "blobId": "b0",
                    "lfs": {"sha256": hash, "size": file.bytes.len()}})
            })
            .collect();
        return plain(out, "200 OK", &serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    let file = files.iter().find(|file| path == format!("/owner/model/resolve/{COMMIT}/{}", file.name));
    let Some(file) = file else { return plain(out, "404 Not Found", "{}") };
    let range = header("range").filter(|_| !trouble.no_ranges);
    let (mut from, mut to) = (0, file.bytes.len());
    if let Some(range) = &range {
        let (a, b) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (from, to) = (a.parse().unwrap(), b.parse::<usize>().map_or(to, |b| (b + 1).min(to)));
    }
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", to - from)?;
    let mut n = (to - from).min(trouble.cut_after.unwrap_or(usize::MAX));
    if let Some(dead_after) = trouble.dead_after {
        n = n.min(dead_after.saturating_sub(sent.load(Ordering::SeqCst)) as usize);
    }
    out.write_all(&file.bytes[from..from + n])?;
    sent.fetch_add(n as u64, Ordering::SeqCst);
    Ok(())
}
