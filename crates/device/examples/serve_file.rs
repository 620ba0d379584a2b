//! Serves plain files over NBD: for measurements, and to try a peer.
//!
//!     serve_file unix:PATH|HOST:PORT [--read-only] NAME=FILE…
//!
//! Ends when standard input is closed.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use dormouse_device::file::FileDevice;
use dormouse_device::nbd::{Export, Exports, Listener, Server, Settings};

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let read_only = args.iter().any(|a| a == "--read-only");
    args.retain(|a| a != "--read-only");
    let (place, files) = args.split_first().ok_or("serve_file PLACE NAME=FILE…")?;
    let export = |arg: &String| -> Result<Export, Box<dyn std::error::Error>> {
        let (name, file) = arg.split_once('=').ok_or("NAME=FILE")?;
        let device = Arc::new(FileDevice::open(Path::new(file), read_only)?);
        Ok(Export { name: name.to_owned(), description: file.to_owned(), device })
    };
    let exports = Exports::new(files.iter().map(export).collect::<Result<_, _>>()?)?;
    let log = Arc::new(|line: &str| eprintln!("{line}"));
    let mut server = Server::new(exports, Settings { log: Some(log), ..Settings::default() });
    server.listen(match place.strip_prefix("unix:") {
        Some(path) => {
            let _ = std::fs::remove_file(path);
            Listener::Unix(UnixListener::bind(path)?)
        }
        None => Listener::Tcp(TcpListener::bind(place)?),
    })?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop();
    Ok(())
}

fn main() -> ExitCode {
    run().map_or_else(
        |error| {
            eprintln!("serve_file: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
