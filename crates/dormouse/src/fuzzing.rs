//! What only the fuzzer sees: readers and writers of files that are this crate's own. Thin.

use std::path::Path;

use anyhow::Result;
use zeroize::Zeroizing;

use crate::access::Known;
use crate::writer_file::WriterFile;
use crate::{kit, store_dir};

/// The check of one line of a recovery kit.
pub fn kit_check(name: &str, index: usize, part: &str) -> String {
    kit::check(name, index, part)
}

/// Reads a writer's file.
pub fn writer_file(text: &str) -> Option<WriterFile> {
    WriterFile::parse(text)
}

/// A writer's file as text.
pub fn writer_file_text(file: &WriterFile) -> Result<Zeroizing<String>> {
    file.text()
}

/// Reads the server's file of a client.
pub fn client_file(name: &str, text: &str) -> Option<Known> {
    Known::read(name, text)
}

/// The server's file of a client, as text.
pub fn client_file_text(client: &Known) -> Result<String> {
    client.text()
}

/// Checks the header file of a store.
pub fn store_header(text: &str) -> Result<()> {
    store_dir::check_header(Path::new("store"), text).map(drop)
}
