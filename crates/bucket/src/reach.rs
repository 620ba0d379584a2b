//! What the environment says of a bucket, before anything is asked of it.
//!
//! Owns: endpoint, credentials, certificates, and who resolves the endpoint's name. Invariant:
//! when a [`Reach`] is made no thread runs yet and nothing crosses the network, and afterwards
//! nothing more is read from this machine: a process can go into a jail in between. Therefore
//! credentials that are fetched and renewed over the network are refused.

use std::fmt::Debug;
use std::io;
use std::net::IpAddr;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key, Checksum, S3ConditionalPut};
use object_store::client::{DnsFuture, DnsResolver};
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::error::{Error, Result};
use crate::remote::Url;

/// How long a connection may take to be made, and an answer to come.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(180);

/// Who finds the addresses of a name; asked from several threads, which wait.
pub trait Names: Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// The addresses of this host.
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// [`Names`] as the crate that asks wants it.
#[derive(Debug)]
struct Resolver(Arc<dyn Names>);

impl DnsResolver for Resolver {
    fn resolve(&self, host: &str) -> DnsFuture {
        let (names, host) = (self.0.clone(), host.to_owned());
        Box::pin(async move {
            let asked = tokio::task::spawn_blocking(move || names.resolve(&host));
            Ok(asked.await??)
        })
    }
}

/// Where a bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    fn of(url: &str) -> Option<Self> {
        let (default, rest) = match url.split_once("://")? {
            ("http", rest) => (80, rest),
            ("https", rest) => (443, rest),
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let port = if port.is_empty() { default } else { port.parse().ok()? };
        (!host.is_empty() && !host.contains('@')).then(|| Self { host: host.to_owned(), port })
    }

    /// The name that has to be resolved, if it is one.
    pub fn name(&self) -> Option<&str> {
        self.host.parse::<IpAddr>().is_err().then_some(&*self.host)
    }
}

fn settings(why: impl Into<String>) -> Error {
    Error::Settings { why: why.into() }
}

/// A bucket of S3-compatible storage, of which nothing was asked yet.
#[derive(Debug)]
pub struct Reach {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: String,
    pub(crate) excludes: bool,
}

/// The environment, read once.
#[derive(Debug)]
pub struct Environment {
    builder: AmazonS3Builder,
    endpoint: Endpoint,
    /// Whether it is without TLS.
    plain: bool,
    url: Url,
}

impl Environment {
    /// Of a bucket: endpoint, region and credentials are what the usual variables say.
    pub fn of(url: &Url) -> Result<Self> {
        let builder = AmazonS3Builder::from_env().with_bucket_name(&url.bucket);
        let value = |key| builder.get_config_value(&key);
        if value(Key::AccessKeyId).is_none() || value(Key::SecretAccessKey).is_none() {
            return Err(settings(format!(
                "there are no credentials for {url}: set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, where there is one); those of an \
                 instance or a role, which are fetched over the network, are not used"
            )));
        }
        let given = value(Key::S3Endpoint).or_else(|| value(Key::Endpoint));
        let text = given.unwrap_or_else(|| {
            let region = value(Key::Region).unwrap_or_else(|| "us-east-1".into());
            let own = value(Key::VirtualHostedStyleRequest).as_deref() == Some("true");
            let bucket = if own { format!("{}.", url.bucket) } else { String::new() };
            format!("https://{bucket}s3.{region}.amazonaws.com")
        });
        let endpoint = Endpoint::of(&text).ok_or_else(|| {
            settings(format!("AWS_ENDPOINT_URL is '{text}'; it is such as https://s3.example:3900"))
        })?;
        let plain = text.starts_with("http://");
        Ok(Self { builder, endpoint, plain, url: url.clone() })
    }

    /// Where the bucket is.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Reads certificates. `alone`: nobody else uses the prefix, and the storage need not know
    /// create-if-absent. Without `names` the system resolves names, which needs its files.
    pub fn reach(self, alone: bool, names: Option<Arc<dyn Names>>) -> Result<Reach> {
        let Self { builder, plain, url, .. } = self;
        // Who installs it first does not matter: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let backoff =
            BackoffConfig { init_backoff: Duration::from_millis(50), ..Default::default() };
        let retry = RetryConfig { max_retries: 1, retry_timeout: CONNECT, backoff };
        let mut client = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_timeout(ANSWER)
            .with_allow_http(plain);
        if let Some(names) = names {
            client = client.with_dns_resolver(Arc::new(Resolver(names)));
        }
        let builder = builder
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_client_options(client)
            .with_retry(retry);
        let store = builder.build().map_err(|e| {
            settings(format!(
                "{url} cannot be used: {e}; set AWS_ENDPOINT_URL (unless it is Amazon's), \
                 AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ))
        })?;
        Ok(Reach { store: Arc::new(store), prefix: url.prefix, excludes: !alone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for (url, host, port, name) in [
            ("https://s3.example", "s3.example", 443, true),
            ("http://s3.example:3900/x?y", "s3.example", 3900, true),
            ("http://127.0.0.1:9000", "127.0.0.1", 9000, false),
            ("http://[::1]:9000/", "::1", 9000, false),
            ("https://[::1]", "::1", 443, false),
        ] {
            let endpoint = Endpoint::of(url).unwrap();
            assert_eq!((&*endpoint.host, endpoint.port), (host, port), "{url}");
            assert_eq!(endpoint.name().is_some(), name, "{url}");
        }
        for bad in ["s3.example", "ftp://x", "http://", "http://x:y", "http://u@x", "http://[::1]x"]
        {
            assert_eq!(Endpoint::of(bad), None, "{bad}");
        }
    }
}
