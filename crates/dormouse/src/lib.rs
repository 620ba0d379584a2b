//! The parts of the `dormouse` program, as a library so that tests can use them.
//!
//! Owns: command line, configuration, sockets, threads, files, what people see.
//! Invariant: bad input ends with a message that names the thing and the way out
//! ([`exit`]), never with a panic. Leaves to others: the format, all cryptography,
//! the store and the protocol (the other crates).

#![deny(clippy::print_stdout, clippy::print_stderr)]

// Nobody gets a program with bugs on purpose.
const _: () = assert!(!dormouse_format::seeded::ON, "the program is built with seeded-bugs");

pub mod access;
pub mod attach;
pub mod audit;
pub mod bucket;
pub mod chosen;
pub mod cli;
pub mod collect;
pub mod commands;
pub mod connect;
pub mod create;
pub mod daemon;
pub mod demo;
pub mod dest;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod exit;
pub mod export;
pub mod files;
pub mod fork;
#[doc(hidden)]
pub mod fuzzing;
pub mod home;
pub mod invite;
pub mod jail;
pub mod join;
pub mod journal;
pub mod keep;
pub mod kit;
pub mod leaves;
pub mod link;
pub mod list;
pub mod live;
pub mod log;
pub mod mirror;
pub mod netdisk;
pub mod out;
pub mod pace;
pub mod patience;
pub mod rebuild;
pub mod remote;
pub mod replicate;
pub mod report;
pub mod restore;
pub mod scrub;
pub mod serve;
pub mod source;
pub mod state_files;
pub mod store_dir;
pub mod text;
pub mod tls;
pub mod unix_socket;
mod unread;
pub mod volume_name;
pub mod when;
mod which_disk;
pub mod writer_file;
pub mod writing;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

/// Runs the program: one command, one exit code ([`exit::Class`]).
pub fn main() -> ExitCode {
    let done = match cli::Cli::try_parse() {
        Ok(cli) => commands::run(cli),
        // Help and version: a terminal gets them from clap itself, in colour.
        Err(help) if !help.use_stderr() && !std::io::stdout().is_terminal() => {
            out::write(help.render().to_string().as_bytes())
        }
        Err(error) => error.exit(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who closed the pipe knows.
        Err(error) if error.is::<out::Closed>() => ExitCode::from(out::CLOSED),
        Err(error) => {
            out::note!("{}", exit::text_of(&error));
            ExitCode::from(exit::class_of(&error) as u8)
        }
    }
}
