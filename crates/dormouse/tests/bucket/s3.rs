//! A real S3 server on loopback: `s3s-fs`, in this process.
//!
//! Its create-if-absent looks first and writes then, so two at once may both succeed: a server of
//! ours refuses it. With `excludes` PUTs go to it one at a time, and it is as good as a real one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::service::{Service, service_fn};
use hyper::{Method, Request, body::Incoming};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;

pub const KEY: &str = "a-test-key";
pub const SECRET: &str = "a-test-secret";
pub const BUCKET: &str = "backup";

struct Shared {
    service: S3Service,
    excludes: Option<Mutex<()>>,
    /// Of 1,000 requests so many are done, and not answered.
    unanswered: AtomicU64,
    requests: AtomicU64,
}

pub struct S3 {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    dir: tempfile::TempDir,
    _runtime: Runtime,
}

impl S3 {
    pub fn start(excludes: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let files = s3s_fs::FileSystem::new(dir.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let shared = Arc::new(Shared {
            service: builder.build(),
            excludes: excludes.then(|| Mutex::new(())),
            unanswered: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(accept(listener, shared.clone()));
        Self { address, shared, dir, _runtime: runtime }
    }

    /// Of 1,000 requests so many get no answer, though they were done.
    pub fn leave_unanswered(&self, of_thousand: u64) {
        self.shared.unanswered.store(of_thousand, Ordering::Relaxed);
    }

    /// Names of all objects, and their bytes.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let root = self.dir.path().join(BUCKET);
        let all = crate::common::snapshot(&root).into_iter();
        let name = |p: &std::path::Path| p.strip_prefix(&root).unwrap().display().to_string();
        all.map(|(path, bytes)| (name(&path), bytes)).collect()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(shared.clone(), request));
            let io = TokioIo::new(socket);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<hyper::Response<s3s::Body>, std::io::Error> {
    let puts = request.method() == Method::PUT;
    let _one = match &shared.excludes {
        Some(mutex) if puts => Some(mutex.lock().await),
        _ => None,
    };
    let response = Service::call(&shared.service, request).await;
    let n = shared.requests.fetch_add(1, Ordering::Relaxed);
    // Spread evenly, without two in a row.
    if n * 619 % 1000 < shared.unanswered.load(Ordering::Relaxed) {
        return Err(std::io::Error::other("left unanswered"));
    }
    response.map_err(|e| std::io::Error::other(format!("{e:?}")))
}
