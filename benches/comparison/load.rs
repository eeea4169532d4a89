//! HTTP/1.1 clients that do as little as possible: one that asks a single thing, and the load of many connections.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;

/// A blocking keep-alive connection.
pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream, address })
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
        self.stream.write_all(&request(method, self.address, path, headers, body))
    }

    /// Reads the answer to what was asked.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let mut buffer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            let count = self.stream.read(&mut chunk)?;
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            if let Some((head, length)) = whole(&buffer) {
                let text = String::from_utf8_lossy(buffer.get(..head).unwrap_or_default()).into_owned();
                let status = text.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or_default();
                let body = buffer.get(head..length).unwrap_or_default().to_vec();
                return Ok(Answer { status, head: text, body });
            }
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Answer> {
        self.ask(method, path, headers, body)?;
        self.answer()
    }
}

/// The bytes of a request.
pub(crate) fn request(method: &str, host: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: */*\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    (text + "\r\n" + body).into_bytes()
}

/// The length of the head, and of the whole answer, once all of it is there.
fn whole(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(bytes.get(..head)?).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (bytes.len() >= head + length).then_some((head, head + length))
}

/// Connections that all send the same request, each one at a time.
pub(crate) struct Load {
    poll: OwnedFd,
    connections: Vec<Connection>,
    request: Vec<u8>,
    /// The length of a whole answer: every one is the same but for the digits in it.
    answer: usize,
}

struct Connection {
    stream: TcpStream,
    received: usize,
    /// When the request under way was meant to be sent.
    meant: Option<Instant>,
    /// When the next one is meant to be sent; only for a fixed rate.
    next: Instant,
}

impl Load {
    /// Opens `count` connections to `address` and tries the request on each.
    pub(crate) fn open(address: SocketAddr, count: usize, request: &[u8]) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::new();
        let mut answer = 0;
        for index in 0..count {
            let mut client = Client::connect(address)?;
            client.stream.write_all(request)?;
            let tried = client.answer()?;
            if tried.status != 200 {
                return Err(io::Error::other(format!("answered {}", tried.status)));
            }
            answer = tried.head.len() + tried.body.len();
            client.stream.set_nonblocking(true)?;
            epoll::add(&poll, &client.stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            connections.push(Connection { stream: client.stream, received: 0, meant: None, next: Instant::now() });
        }
        Ok(Self { poll, connections, request: request.to_vec(), answer })
    }

    /// What has come by now. Whoever calls it spins: to wake a client that sleeps takes the server longer than to answer
    /// it, and it sleeps the more often the more time the server takes; that would be measured, not the answers.
    fn look(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(&Default::default()))?;
        Ok(())
    }

    /// Sends the next request as soon as the answer is there, on every connection; returns answers per second.
    pub(crate) fn closed_loop(&mut self, duration: Duration) -> io::Result<f64> {
        let began = Instant::now();
        for connection in &mut self.connections {
            connection.send(&self.request, began)?;
        }
        let (mut done, mut under_way) = (0_u64, self.connections.len());
        let mut events = Vec::with_capacity(self.connections.len());
        let mut running = true;
        let mut took = duration;
        while under_way > 0 {
            self.look(&mut events)?;
            let now = Instant::now();
            if running && now - began >= duration {
                (running, took) = (false, now - began);
            }
            for event in events.drain(..) {
                let Some(connection) = self.connections.get_mut(event.data.u64() as usize) else { continue };
                if connection.receive(self.answer)?.is_none() {
                    continue;
                }
                done += u64::from(running);
                match running {
                    true => connection.send(&self.request, now)?,
                    false => under_way -= 1,
                }
            }
        }
        Ok(done as f64 / took.as_secs_f64())
    }

    /// Sends `rate` requests per second, evenly over the connections, whether or not answers are late; returns each
    /// one's time from when it was meant to be sent until its answer was there, in microseconds, sorted.
    pub(crate) fn fixed_rate(&mut self, rate: f64, duration: Duration) -> io::Result<Vec<f64>> {
        let step = Duration::from_secs_f64(self.connections.len() as f64 / rate);
        let began = Instant::now() + Duration::from_millis(1);
        let end = began + duration;
        let count = self.connections.len();
        for (index, connection) in self.connections.iter_mut().enumerate() {
            connection.next = began + step.mul_f64(index as f64 / count as f64);
        }
        let mut latencies = Vec::with_capacity((rate * duration.as_secs_f64()) as usize + count);
        let mut events = Vec::with_capacity(count);
        loop {
            let mut under_way = 0;
            let now = Instant::now();
            for connection in &mut self.connections {
                if connection.meant.is_none() && now >= connection.next && connection.next < end {
                    let meant = connection.next;
                    connection.next += step;
                    connection.send(&self.request, meant)?;
                }
                under_way += usize::from(connection.meant.is_some() || connection.next < end);
            }
            if under_way == 0 {
                break;
            }
            self.look(&mut events)?;
            for event in events.drain(..) {
                let Some(connection) = self.connections.get_mut(event.data.u64() as usize) else { continue };
                if let Some(meant) = connection.receive(self.answer)? {
                    latencies.push(meant.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }
}

impl Connection {
    fn send(&mut self, request: &[u8], meant: Instant) -> io::Result<()> {
        self.meant = Some(meant);
        // A request is far smaller than a socket's buffer.
        self.stream.write_all(request)
    }

    /// Reads what is there; the moment the request was meant to be sent once its answer is whole.
    fn receive(&mut self, whole: usize) -> io::Result<Option<Instant>> {
        let mut chunk = [0; 16 * 1024];
        let count = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.received == 0 && !chunk.starts_with(b"HTTP/1.1 200 ") {
            return Err(io::Error::other("an answer is not 200"));
        }
        self.received += count;
        if self.received < whole {
            return Ok(None);
        }
        if self.received > whole {
            return Err(io::Error::other("an answer has another length"));
        }
        self.received = 0;
        Ok(self.meant.take())
    }
}
