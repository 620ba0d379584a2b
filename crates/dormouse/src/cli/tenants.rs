//! Flags of the commands about clients: roles.

use clap::ValueEnum;
use dormouse_sync::server::Role;

/// `--role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Appends to its vault, and reads it
    Writer,
    /// Reads its vault
    Reader,
    /// Reads its vault, and says what is kept; appends nothing
    Admin,
}

impl From<RoleArg> for Role {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Writer => Self::Writer,
            RoleArg::Reader => Self::Reader,
            RoleArg::Admin => Self::Admin,
        }
    }
}
