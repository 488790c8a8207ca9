//! A copy of a sealed chunk, made from another chunkserver's: written beside, under a temporary name, and only whole, flushed and identified
//! does it take the chunk's name. Whatever stops it before leaves nothing that counts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mooseng_ports::disk::{DiskFile, OpenMode};
use mooseng_wire::{ChunkId, Epoch};

use super::{Chunk, Recovered, entries, write_pieces};
use crate::digest::{Digest, Digester};
use crate::directory::Directory;
use crate::error::{ChunkError, is_full, is_ours};
use crate::layout::{BLOCK, FORMAT, Header, RECORD_AT, Record, file_bytes};
use crate::sums::Sums;

/// What the temporary names end in.
pub(crate) const SUFFIX: &str = ".pull";

/// A copy that is being made.
pub struct Import {
    chunk: ChunkId,
    epoch: Epoch,
    length: u64,
    directory: Arc<Directory>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    written: u64,
    tail_crc: u32,
    digester: Digester,
    installed: bool,
}

impl Import {
    pub(crate) fn begin(
        chunk: ChunkId,
        epoch: Epoch,
        length: u64,
        directory: Arc<Directory>,
    ) -> Result<Self, ChunkError> {
        let mut path = directory.chunk_path(chunk).into_os_string();
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        let file = directory
            .disk
            .create_dir_all(&directory.shard_path(chunk))
            .and_then(|()| directory.disk.open(&path, OpenMode::CreateNew))
            .map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => ChunkError::Importing { chunk },
                _ => failed(chunk, &directory, "making a copy's file", &e),
            })?;
        let digester = Digester::new(chunk, length);
        Ok(Self {
            chunk,
            epoch,
            length,
            directory,
            path,
            file,
            written: 0,
            tail_crc: 0,
            digester,
            installed: false,
        })
    }

    /// Of which chunk.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// How far it is.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that are still missing.
    pub fn left(&self) -> u64 {
        self.length - self.written
    }

    /// Adds the next bytes. Nothing of them is durable yet.
    pub fn write(&mut self, bytes: &Bytes) -> Result<(), ChunkError> {
        if bytes.len() as u64 > self.left() {
            return Err(ChunkError::TooLong { chunk: self.chunk, end: self.written + bytes.len() as u64 });
        }
        let (entries, tail_crc) = entries(self.tail_crc, self.written, bytes, &Sums::of(bytes));
        write_pieces(&*self.file, self.written, bytes, &entries)
            .map_err(|e| failed(self.chunk, &self.directory, "writing a copy", &e))?;
        entries.iter().for_each(|crc| self.digester.block(*crc));
        self.tail_crc = tail_crc;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// What is written, once it is all.
    pub(crate) fn digest(&self) -> Result<Digest, ChunkError> {
        if self.left() > 0 {
            return Err(ChunkError::TooShort {
                chunk: self.chunk,
                length: self.written,
                wanted: self.length,
            });
        }
        let tail = (!self.length.is_multiple_of(BLOCK)).then_some(self.tail_crc);
        Ok(self.digester.finish(tail))
    }

    /// Makes its bytes durable. It has no name yet that counts.
    pub(crate) fn finish(&self) -> Result<(), ChunkError> {
        let (record, header) =
            (self.record(), Header { format: FORMAT, chunk: self.chunk, epoch: self.epoch });
        // Both slots take the same record, as with a seal: then a restart takes its bytes for durable, which they are by the rename.
        let finished = self
            .file
            .write_at(&header.encode(), 0)
            .and_then(|()| self.file.write_at(&record.encode(), RECORD_AT[0]))
            .and_then(|()| self.file.write_at(&record.encode(), RECORD_AT[1]))
            .and_then(|()| self.file.set_len(file_bytes(self.length)))
            .and_then(|()| self.file.sync_data());
        finished.map_err(|e| failed(self.chunk, &self.directory, "finishing a copy", &e))
    }

    fn record(&self) -> Record {
        Record {
            sequence: 1,
            chunk: self.chunk,
            length: self.length,
            epoch: self.epoch,
            tail_crc: if self.length.is_multiple_of(BLOCK) { 0 } else { self.tail_crc },
            sealed: true,
        }
    }

    /// Whether it lies in that directory, so that its name takes the place of the chunk's there.
    pub(crate) fn lies_in(&self, directory: &Arc<Directory>) -> bool {
        Arc::ptr_eq(&self.directory, directory)
    }

    /// Gives what is finished the chunk's name, durably, in the place of what is there.
    pub(crate) fn install(mut self) -> Result<Chunk, ChunkError> {
        let record = self.record();
        let (disk, shard) = (&self.directory.disk, self.directory.shard_path(self.chunk));
        let end = self.directory.chunk_path(self.chunk);
        let installed = disk.rename(&self.path, &end).and_then(|()| disk.sync_dir(&shard));
        installed.map_err(|e| failed(self.chunk, &self.directory, "installing a copy", &e))?;
        self.installed = true;
        let whole = Recovered::Whole { record, slot: 0, settled: true };
        let chunk = Chunk::recovered(self.chunk, self.directory.clone(), whole);
        chunk.ok_or(ChunkError::NotFound { chunk: self.chunk })
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if self.installed {
            return;
        }
        // Also after a rename that wasn't flushed: then there is nothing of this name.
        match self.directory.disk.remove(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(chunk = self.chunk.0, path = %self.path.display(), error = %e, "a copy that wasn't finished stays until the next start");
            }
            _ => {}
        }
    }
}

fn failed(chunk: ChunkId, directory: &Directory, what: &str, error: &io::Error) -> ChunkError {
    if is_full(error) {
        return ChunkError::NoSpace { bytes: BLOCK };
    }
    let reason = format!("{what} failed: {error}");
    if is_ours(error) {
        return ChunkError::Lacking { chunk, reason };
    }
    directory.count_failure(&reason);
    ChunkError::DiskFailed { chunk, path: directory.path.clone(), reason }
}
