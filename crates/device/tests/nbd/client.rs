//! A peer that says whatever a test wants, and the server it talks to.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_device::BlockDevice;
use dormouse_device::memory::MemoryDevice;
use dormouse_device::nbd::protocol::{
    CHUNK_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_MAGIC, chunk, info,
    option, reply,
};
use dormouse_device::nbd::{Export, Exports, Limits, Listener, Server, Settings};

/// A server on a socket of its own.
pub struct Running {
    pub server: Option<Server>,
    pub socket: PathBuf,
    pub log: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

/// Serves these disks.
pub fn serve(disks: &[(&str, Arc<dyn BlockDevice>)], limits: Limits) -> Running {
    let export = |(name, device): &(&str, Arc<dyn BlockDevice>)| Export {
        name: (*name).to_owned(),
        description: format!("about {name}"),
        device: Arc::clone(device),
    };
    let exports = Exports::new(disks.iter().map(export).collect()).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&log);
    let tell = Arc::new(move |line: &str| to.lock().unwrap().push(line.to_owned()));
    let mut server = Server::new(exports, Settings { limits, tls: None, log: Some(tell) });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    server.listen(Listener::Unix(UnixListener::bind(&socket).unwrap())).unwrap();
    Running { server: Some(server), socket, log, _dir: dir }
}

/// A disk in memory: each byte follows from its place, the second quarter is zero.
pub fn memory(size: usize) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(content(size), false))
}

pub fn content(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size).map(|at| (at / 512 % 251 + 1) as u8).collect();
    bytes[size / 4..size / 2].fill(0);
    bytes
}

impl Running {
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// Everything still works for others.
    pub fn is_well(&self) {
        let mut client = self.connect();
        client.go("disk", true);
        assert_eq!(client.read(0, 512), Ok(vec![1; 512]));
    }

    pub fn logged(&self, text: &str) {
        for _ in 0..500 {
            if self.log.lock().unwrap().iter().any(|l| l.contains(text)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("'{text}' is not among {:?}", self.log.lock().unwrap());
    }
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    cookie: u64,
}

/// What a read comes back as, before it is put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    Status(u32, Vec<(u32, u32)>),
    Error(u32, Option<u64>),
    None,
}

impl Client {
    /// Says hello, the new way.
    pub fn connect(socket: &std::path::Path) -> Self {
        let mut client = Self::raw(socket);
        let mut hello = [0; 18];
        client.stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"NBDMAGICIHAVEOPT\0\x03");
        client.send(&3u32.to_be_bytes());
        client
    }

    pub fn raw(socket: &std::path::Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, structured: false, cookie: 0 }
    }

    /// Sends; that nobody takes it is seen when reading.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// The server has hung up, without a word more.
    pub fn is_closed(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("still there: {other:?}"),
        }
    }

    pub fn option(&mut self, kind: u32, data: &[u8]) {
        let len = data.len() as u32;
        let head = [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &len.to_be_bytes()];
        self.send(&[&head.concat(), data].concat());
    }

    /// One reply to an option.
    pub fn option_reply(&mut self, to: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64(), OPTION_REPLY_MAGIC);
        assert_eq!(self.u32(), to);
        let (kind, len) = (self.u32(), self.u32());
        (kind, self.take(len as usize))
    }

    /// All replies up to the last.
    pub fn option_replies(&mut self, to: u32) -> Vec<(u32, Vec<u8>)> {
        let mut all = vec![self.option_reply(to)];
        while !matches!(all.last().unwrap().0, reply::ACK | 0x8000_0000..) {
            all.push(self.option_reply(to));
        }
        all
    }

    pub fn name_data(name: &[u8]) -> Vec<u8> {
        [&(name.len() as u32).to_be_bytes()[..], name, &[0, 0]].concat()
    }

    pub fn query_data(name: &[u8], queries: &[&str]) -> Vec<u8> {
        let mut data = [&(name.len() as u32).to_be_bytes()[..], name].concat();
        data.extend((queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend((query.len() as u32).to_be_bytes());
            data.extend(query.as_bytes());
        }
        data
    }

    /// Chooses a disk: its size and flags.
    pub fn go(&mut self, name: &str, structured: bool) -> (u64, u16) {
        if structured {
            self.option(option::STRUCTURED_REPLY, &[]);
            assert_eq!(self.option_replies(option::STRUCTURED_REPLY), [(reply::ACK, vec![])]);
            self.structured = true;
        }
        self.option(option::GO, &Self::name_data(name.as_bytes()));
        let replies = self.option_replies(option::GO);
        assert_eq!(replies.last().unwrap().0, reply::ACK, "{replies:?}");
        let told = replies.iter().find(|r| r.1.starts_with(&info::EXPORT.to_be_bytes())).unwrap();
        let size = u64::from_be_bytes(told.1[2..10].try_into().unwrap());
        (size, u16::from_be_bytes(told.1[10..12].try_into().unwrap()))
    }

    pub fn contexts(&mut self, name: &str, queries: &[&str]) -> Vec<(u32, String)> {
        self.option(option::SET_META_CONTEXT, &Self::query_data(name.as_bytes(), queries));
        let replies = self.option_replies(option::SET_META_CONTEXT);
        let context = |(kind, data): &(u32, Vec<u8>)| {
            assert_eq!(*kind, reply::META_CONTEXT);
            let id = u32::from_be_bytes(data[..4].try_into().unwrap());
            (id, String::from_utf8(data[4..].to_vec()).unwrap())
        };
        assert_eq!(replies.last().unwrap().0, reply::ACK);
        replies[..replies.len() - 1].iter().map(context).collect()
    }

    /// Sends a request; its cookie.
    pub fn ask(&mut self, kind: u16, flags: u16, at: u64, len: u32, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(payload);
        self.send(&request);
        self.cookie
    }

    /// One part of a reply: the cookie, the part, and whether it is the last. `data` says how
    /// many bytes follow a simple reply that says that all is well.
    pub fn part(&mut self, data: usize) -> (u64, Chunk, bool) {
        match self.u32() {
            SIMPLE_MAGIC => {
                let (error, cookie) = (self.u32(), self.u64());
                let part = match error {
                    0 if data > 0 => Chunk::Data(0, self.take(data)),
                    0 => Chunk::None,
                    error => Chunk::Error(error, None),
                };
                (cookie, part, true)
            }
            CHUNK_MAGIC => {
                let (flags, kind, cookie, len) = (self.u16(), self.u16(), self.u64(), self.u32());
                let part = self.chunk(kind, len as usize);
                (cookie, part, flags & chunk::DONE != 0)
            }
            magic => panic!("{magic:#x} begins no reply"),
        }
    }

    fn chunk(&mut self, kind: u16, len: usize) -> Chunk {
        match kind {
            chunk::NONE => Chunk::None,
            chunk::OFFSET_DATA => Chunk::Data(self.u64(), self.take(len - 8)),
            chunk::OFFSET_HOLE => Chunk::Hole(self.u64(), self.u32()),
            chunk::BLOCK_STATUS => {
                let id = self.u32();
                Chunk::Status(id, (0..(len - 4) / 8).map(|_| (self.u32(), self.u32())).collect())
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                let (error, text) = (self.u32(), self.u16());
                self.take(text.into());
                Chunk::Error(error, (kind == chunk::ERROR_OFFSET).then(|| self.u64()))
            }
            kind => panic!("a chunk of kind {kind}"),
        }
    }

    /// The whole reply to the only request under way.
    pub fn reply(&mut self, data: usize) -> Vec<Chunk> {
        let mut parts = Vec::new();
        loop {
            let (cookie, part, last) = self.part(data);
            assert_eq!(cookie, self.cookie);
            parts.push(part);
            if last {
                return parts;
            }
        }
    }

    /// Carries out a request without data; the error number.
    pub fn does(&mut self, kind: u16, flags: u16, at: u64, len: u32) -> u32 {
        self.ask(kind, flags, at, len, &[]);
        self.verdict()
    }

    pub fn writes(&mut self, flags: u16, at: u64, payload: &[u8]) -> u32 {
        self.ask(1, flags, at, payload.len() as u32, payload);
        self.verdict()
    }

    pub fn verdict(&mut self) -> u32 {
        match self.reply(0).pop().unwrap() {
            Chunk::None => 0,
            Chunk::Error(error, _) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Reads, and puts the parts together: every byte comes exactly once.
    pub fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>, (u32, Option<u64>)> {
        self.ask(0, 0, at, len, &[]);
        let parts = self.reply(len as usize);
        let mut bytes: Vec<Option<u8>> = vec![None; len as usize];
        let mut put = |from: u64, data: &[u8]| {
            for (to, byte) in bytes[from as usize..][..data.len()].iter_mut().zip(data) {
                assert!(to.replace(*byte).is_none(), "a byte came twice");
            }
        };
        for part in parts {
            match part {
                Chunk::Data(from, data) if self.structured => put(from - at, &data),
                Chunk::Data(_, data) => put(0, &data),
                Chunk::Hole(from, len) => put(from - at, &vec![0; len as usize]),
                Chunk::Error(error, at) => return Err((error, at)),
                Chunk::None => {}
                Chunk::Status(..) => panic!("a status"),
            }
        }
        Ok(bytes.into_iter().map(|b| b.expect("a byte did not come")).collect())
    }
}
