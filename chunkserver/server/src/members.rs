//! Connections to other chunkservers, the next members of chains and the sources of copies: one long-lived link to each address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_chunk::chain::NextFailure;
use mooseng_transport::{CallFailure, Link, LinkOptions, Network, call_error};
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, Appended, ChunkStat, Read, ReadDone, StatChunk};
use mooseng_wire::method::Method;
use prost::Message;

/// Most links kept; the one that was used longest ago is closed for a new one.
const LINKS_MAX: usize = 256;

#[derive(Default)]
struct Pool {
    links: BTreeMap<String, (u64, Link)>,
    uses: u64,
}

/// The chunkservers that chains lead to.
pub struct Members {
    network: Arc<dyn Network>,
    shares_memory: bool,
    pool: Mutex<Pool>,
}

impl Members {
    /// Nobody is connected yet. With `shares_memory` what goes to those of this host goes through memory that they share with us.
    pub fn new(network: Arc<dyn Network>, shares_memory: bool) -> Self {
        Self { network, shares_memory, pool: Mutex::default() }
    }

    fn link(&self, address: &str) -> Link {
        let pool = &mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.uses += 1;
        if let Some((used, link)) = pool.links.get_mut(address) {
            *used = pool.uses;
            return link.clone();
        }
        if pool.links.len() >= LINKS_MAX {
            let oldest =
                pool.links.iter().min_by_key(|(_, (used, _))| *used).map(|(address, _)| address.clone());
            if let Some((_, link)) = oldest.and_then(|address| pool.links.remove(&address)) {
                link.close();
            }
        }
        let options = LinkOptions { shares_memory: self.shares_memory, ..LinkOptions::default() };
        let link = Link::new(self.network.clone(), address.to_owned(), Role::Chunkserver, options);
        pool.links.insert(address.to_owned(), (pool.uses, link.clone()));
        link
    }

    /// Sends an append to the member at `address`.
    pub async fn append(
        &self,
        address: &str,
        append: &Append,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Appended, NextFailure> {
        let silent = |reason: String| NextFailure::Silent(format!("{reason} (at {address})"));
        match self.link(address).call(Method::ChunkAppend, append.encode_to_vec().into(), bulk, timeout).await
        {
            Ok(answer) => {
                Appended::decode(answer.body).map_err(|e| silent(format!("its answer can't be decoded: {e}")))
            }
            Err(CallFailure::Remote(error)) => Err(NextFailure::Answered(error)),
            Err(CallFailure::Timeout(_)) => {
                Err(silent(format!("no answer within {} ms", timeout.as_millis())))
            }
            Err(CallFailure::Lost(_)) => Err(silent("the connection broke before its answer".into())),
            Err(CallFailure::Connect(e)) => Err(silent(format!("it can't be reached: {e}"))),
        }
    }

    /// Reads from the chunkserver at `address`, and compares what arrives with its checksum.
    pub async fn read(&self, address: &str, read: &Read, timeout: Duration) -> Result<Bytes, CallError> {
        let link = self.link(address);
        let called = link.call(Method::ChunkRead, read.encode_to_vec().into(), Bytes::new(), timeout).await;
        let answer = called.map_err(|failure| match failure {
            CallFailure::Remote(e) => call_error(e.code(), format!("{address} answers: {}", e.message)),
            other => call_error(ErrorCode::Unavailable, format!("{address} isn't reached: {other}")),
        })?;
        let bytes = answer.bulk;
        let crc = ReadDone::decode(answer.body).map(|done| done.crc);
        if crc != Ok(mooseng_chunk::checksum(&bytes)) || bytes.len() != read.length as usize {
            let message = format!("{address} answered with bytes that don't match their checksum");
            return Err(call_error(ErrorCode::Corrupt, message));
        }
        Ok(bytes)
    }

    /// Asks the chunkserver at `address` what it has of a chunk.
    pub async fn stat(
        &self,
        address: &str,
        stat: &StatChunk,
        timeout: Duration,
    ) -> Result<ChunkStat, CallError> {
        self.link(address).request(Method::ChunkStat, stat, timeout).await.map_err(|failure| match failure {
            CallFailure::Remote(e) => call_error(e.code(), format!("{address} answers: {}", e.message)),
            other => call_error(ErrorCode::Unavailable, format!("{address} isn't reached: {other}")),
        })
    }

    /// Closes all links.
    pub fn close(&self) {
        let pool = &mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, (_, link)) in std::mem::take(&mut pool.links) {
            link.close();
        }
    }
}
