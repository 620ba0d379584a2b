//! Flags of a store in object storage.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Of `serve`, where the store is `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Object storage")]
pub struct BucketArgs {
    /// For s3://BUCKET/PREFIX: where clients, keys and what is not put yet lie
    ///
    /// Endpoint, region and credentials: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// What is acknowledged: what the disk of this machine has, or what the bucket has
    #[arg(long, value_enum, default_value = "local")]
    pub durable: DurableArg,
    /// Bytes that may be acknowledged and not in the bucket; then clients wait [default: 8GiB]
    #[arg(long, value_name = "SIZE")]
    pub backlog: Option<String>,
    /// Bytes that are kept on this machine though the bucket has them [default: 16GiB]
    #[arg(long, value_name = "SIZE")]
    pub cache: Option<String>,
    /// Keep the server's key in the bucket, sealed to this age recipient
    #[arg(long, value_name = "age1…")]
    pub key_to: Option<String>,
    /// No other server will ever use this prefix: for a storage that cannot exclude others
    ///
    /// Without it, a storage without an atomic create-if-absent (`If-None-Match: *`) is refused.
    #[arg(long)]
    pub only_server: bool,
    /// Take the bucket from another server, which then writes nothing more
    #[arg(long)]
    pub takeover: bool,
}

/// `--durable`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DurableArg {
    /// The disk of this machine
    #[default]
    Local,
    /// The bucket
    Remote,
}

/// Of `rebuild`.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The store's directory, or s3://BUCKET/PREFIX
    pub store: PathBuf,
    /// Make a new server key if there is none: every client must then join again
    #[arg(long)]
    pub new_key: bool,
    /// Of a store in object storage whose machine is lost.
    #[command(flatten)]
    pub lost: LostArgs,
}

/// Of `rebuild`, where the store is `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Object storage")]
pub struct LostArgs {
    /// For s3://BUCKET/PREFIX: a new directory for the state
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The server that had the bucket is gone for good, or is to write nothing more
    #[arg(long)]
    pub takeover: bool,
    /// As for `serve`
    #[arg(long)]
    pub only_server: bool,
    /// A copy of the lost server.key
    #[arg(long, value_name = "FILE", conflicts_with_all = ["identity", "new_key"])]
    pub server_key: Option<PathBuf>,
    /// The age identity that opens the key in the bucket
    #[arg(long, value_name = "FILE", conflicts_with = "new_key")]
    pub identity: Option<PathBuf>,
    /// Bytes that are kept on this machine though the bucket has them [default: 16GiB]
    #[arg(long, value_name = "SIZE")]
    pub cache: Option<String>,
}
