//! A whole store in a file, or on its way: for backups, and to move it between engines.
//!
//! ```text
//!  magic "MNGDUMP\0" | format u32 | length u32 | header | crc32
//!  then blocks:        1 u8 | number u64 | length u32 | pairs | crc32 of all that
//!  and at the end:     2 u8 | blocks u64 | pairs u64 | bytes u64 | blake3 of all pairs | crc32 of all that
//! ```
//! Numbers are little-endian. A pair is key and value, each behind its length (u32); keys ascend, from block to block as well. Nothing follows
//! the end. Without the end, a file is half a dump and of no use: [`Reader`] says so.

use std::io::{self, Read, Write};

use bytes::Bytes;

const MAGIC: &[u8; 8] = b"MNGDUMP\0";
/// The newest format that this program knows.
pub const FORMAT: u32 = 1;
const BLOCK: u8 = 1;
const END: u8 = 2;
/// Most bytes of a header.
const HEADER_BYTES_MAX: usize = 4096;
/// Most bytes of pairs in a block: [`Writer::block`] takes no more.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;

/// What a dump is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster's name.
    pub cluster: String,
    /// The region's name.
    pub region: String,
    /// The region's founding mark; empty where it has none.
    pub founding: Vec<u8>,
    /// The commit version.
    pub version: u64,
    /// The term of the master that gave it.
    pub term: u64,
    /// When, in seconds since the Unix epoch.
    pub taken_unix_s: u64,
}

/// What the end says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks.
    pub blocks: u64,
    /// Pairs.
    pub pairs: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// A hash of all pairs: the same for the same content, however it is cut into blocks.
    pub digest: [u8; 32],
}

/// Why a dump can't be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The file fails.
    #[error("the dump can't be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this isn't a dump of a region's metadata")]
    NotADump,
    /// A later program wrote it.
    #[error("the dump has format {found}, this program knows up to {FORMAT}; upgrade it")]
    NewerFormat {
        /// Its format.
        found: u32,
    },
    /// It ends too early.
    #[error(
        "the dump is cut off behind block {blocks}: it has no end mark, and is of no use; take another one"
    )]
    CutOff {
        /// Whole blocks.
        blocks: u64,
    },
    /// Bytes changed.
    #[error("the dump is damaged in {place}: {reason}; take another one")]
    Damaged {
        /// Where.
        place: String,
        /// What doesn't fit.
        reason: &'static str,
    },
}

struct Tally {
    totals: Totals,
    hasher: blake3::Hasher,
    last: Option<Bytes>,
}

impl Tally {
    fn new() -> Self {
        Self { totals: Totals::default(), hasher: blake3::Hasher::new(), last: None }
    }

    /// Counts a pair. False if its key doesn't follow the one before.
    fn take(&mut self, key: &Bytes, value: &[u8]) -> bool {
        if self.last.as_ref().is_some_and(|last| last >= key) {
            return false;
        }
        for part in [&key[..], value] {
            self.hasher.update(&(part.len() as u64).to_le_bytes());
            self.hasher.update(part);
        }
        self.totals.pairs += 1;
        self.totals.bytes += (key.len() + value.len()) as u64;
        self.last = Some(key.clone());
        true
    }

    fn totals(&self) -> Totals {
        Totals { digest: self.hasher.finalize().into(), ..self.totals }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Encodes a dump piece by piece; where the pieces go is its caller's.
pub struct Encoder(Tally);

impl Encoder {
    /// Begins: the first piece.
    pub fn begin(header: &Header) -> (Self, Vec<u8>) {
        let mut body = Vec::new();
        for word in [&header.cluster[..], &header.region] {
            put_bytes(&mut body, word.as_bytes());
        }
        put_bytes(&mut body, &header.founding);
        for number in [header.version, header.term, header.taken_unix_s] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        put_bytes(&mut bytes, &body);
        (Self(Tally::new()), seal(bytes))
    }

    /// A block of pairs, whose keys ascend and follow those of the block before.
    ///
    /// # Panics
    /// If they don't: a dump that can't be read mustn't be made.
    pub fn block(&mut self, pairs: &[(Bytes, Bytes)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in pairs {
            assert!(self.0.take(key, value), "the keys of a dump ascend");
            put_bytes(&mut body, key);
            put_bytes(&mut body, value);
        }
        let mut bytes = vec![BLOCK];
        bytes.extend_from_slice(&self.0.totals.blocks.to_le_bytes());
        put_bytes(&mut bytes, &body);
        self.0.totals.blocks += 1;
        seal(bytes)
    }

    /// The last piece, and what it says.
    pub fn end(self) -> (Vec<u8>, Totals) {
        let totals = self.0.totals();
        let mut bytes = vec![END];
        for number in [totals.blocks, totals.pairs, totals.bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&totals.digest);
        (seal(bytes), totals)
    }
}

/// Writes a dump.
pub struct Writer<W> {
    to: W,
    encoder: Encoder,
}

impl<W: Write> Writer<W> {
    /// Begins.
    pub fn begin(mut to: W, header: &Header) -> io::Result<Self> {
        let (encoder, bytes) = Encoder::begin(header);
        to.write_all(&bytes)?;
        Ok(Self { to, encoder })
    }

    /// See [`Encoder::block`].
    pub fn block(&mut self, pairs: &[(Bytes, Bytes)]) -> io::Result<()> {
        self.to.write_all(&self.encoder.block(pairs))
    }

    /// Ends it. What lies behind `W` isn't flushed.
    pub fn end(mut self) -> io::Result<Totals> {
        let (bytes, totals) = self.encoder.end();
        self.to.write_all(&bytes)?;
        Ok(totals)
    }
}

/// Reads a dump, and checks all of it on the way.
pub struct Reader<R> {
    from: R,
    /// What it is of.
    pub header: Header,
    tally: Tally,
    end: Option<Totals>,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn begin(mut from: R) -> Result<Self, DumpError> {
        let mut head = [0; 16];
        from.read_exact(&mut head).map_err(|_| DumpError::NotADump)?;
        if &head[..8] != MAGIC {
            return Err(DumpError::NotADump);
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if number(8) > FORMAT {
            return Err(DumpError::NewerFormat { found: number(8) });
        }
        let damaged = |reason| DumpError::Damaged { place: "its header".into(), reason };
        let length = number(12) as usize;
        if length > HEADER_BYTES_MAX {
            return Err(damaged("it is longer than a header"));
        }
        let mut body = vec![0; length + 4];
        from.read_exact(&mut body).map_err(|_| DumpError::CutOff { blocks: 0 })?;
        let crc = body.split_off(length);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head);
        hasher.update(&body);
        if hasher.finalize().to_le_bytes() != crc[..] {
            return Err(damaged("its checksum doesn't fit"));
        }
        let header = header_of(&body).ok_or_else(|| damaged("it says something else"))?;
        Ok(Self { from, header, tally: Tally::new(), end: None })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DumpError> {
        let blocks = self.tally.totals.blocks;
        self.from.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => DumpError::CutOff { blocks },
            _ => DumpError::Io(e),
        })
    }

    fn damaged(&self, reason: &'static str) -> DumpError {
        DumpError::Damaged { place: format!("block {}", self.tally.totals.blocks), reason }
    }

    /// The pairs of the next block; none behind the last, once the end was read and agrees with them.
    pub fn block(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, DumpError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut tag = [0];
        self.fill(&mut tag)?;
        match tag[0] {
            BLOCK => self.pairs().map(Some),
            END => {
                self.read_end()?;
                Ok(None)
            }
            _ => Err(self.damaged("it is neither a block nor the end")),
        }
    }

    fn pairs(&mut self) -> Result<Vec<(Bytes, Bytes)>, DumpError> {
        let mut head = [0; 12];
        self.fill(&mut head)?;
        let (number, length) = head.split_at(8);
        let length = length.try_into().map_or(usize::MAX, |l: [u8; 4]| u32::from_le_bytes(l) as usize);
        // One pair may be larger than a block is meant to be.
        if length > BLOCK_BYTES_MAX + (1 << 20) {
            return Err(self.damaged("it is longer than a block"));
        }
        let mut body = vec![0; length + 4];
        self.fill(&mut body)?;
        let crc = body.split_off(length);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[BLOCK]);
        hasher.update(&head);
        hasher.update(&body);
        if hasher.finalize().to_le_bytes() != crc[..] {
            return Err(self.damaged("its checksum doesn't fit"));
        }
        if number != self.tally.totals.blocks.to_le_bytes() {
            return Err(self.damaged("it is another block than the next one"));
        }
        let mut rest = Bytes::from(body);
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            let (Some(key), Some(value)) = (take_bytes(&mut rest), take_bytes(&mut rest)) else {
                return Err(self.damaged("its pairs are cut off"));
            };
            if !self.tally.take(&key, &value) {
                return Err(self.damaged("its keys don't ascend"));
            }
            pairs.push((key, value));
        }
        self.tally.totals.blocks += 1;
        Ok(pairs)
    }

    fn read_end(&mut self) -> Result<(), DumpError> {
        let mut bytes = [0; 24 + 32 + 4];
        self.fill(&mut bytes)?;
        let damaged = |reason| DumpError::Damaged { place: "its end".into(), reason };
        let (body, crc) = bytes.split_at(24 + 32);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[END]);
        hasher.update(body);
        if hasher.finalize().to_le_bytes() != crc[..] {
            return Err(damaged("its checksum doesn't fit"));
        }
        let totals = self.tally.totals();
        let mut expected = Vec::new();
        for number in [totals.blocks, totals.pairs, totals.bytes] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(&totals.digest);
        if body != expected {
            return Err(damaged("it counts other pairs than there are"));
        }
        if self.from.read(&mut [0])? != 0 {
            return Err(damaged("something follows it"));
        }
        self.end = Some(totals);
        Ok(())
    }

    /// What the end said; none before it was read.
    pub fn totals(&self) -> Option<Totals> {
        self.end
    }
}

/// Reads all of a dump, and says what it holds.
pub fn verify(from: impl Read) -> Result<(Header, Totals), DumpError> {
    let mut reader = Reader::begin(from)?;
    while reader.block()?.is_some() {}
    let totals = reader.totals().ok_or(DumpError::CutOff { blocks: 0 })?;
    Ok((reader.header, totals))
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let length = rest.get(..4)?.try_into().ok().map(u32::from_le_bytes)? as usize;
    if rest.len() - 4 < length {
        return None;
    }
    let _length = rest.split_to(4);
    Some(rest.split_to(length))
}

fn header_of(body: &[u8]) -> Option<Header> {
    let mut rest = Bytes::copy_from_slice(body);
    let word = |rest: &mut Bytes| String::from_utf8(take_bytes(rest)?.to_vec()).ok();
    let (cluster, region) = (word(&mut rest)?, word(&mut rest)?);
    let founding = take_bytes(&mut rest)?.to_vec();
    let number = |at: usize| rest.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (version, term, taken_unix_s) = (number(0)?, number(8)?, number(16)?);
    (rest.len() == 24).then_some(Header { cluster, region, founding, version, term, taken_unix_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            cluster: "c".into(),
            region: "eu-1".into(),
            founding: vec![7; 16],
            version: 9,
            term: 3,
            taken_unix_s: 1_800_000_000,
        }
    }

    fn pairs(n: u32) -> Vec<(Bytes, Bytes)> {
        let pair = |i: u32| (i.to_be_bytes().to_vec().into(), vec![i as u8; i as usize % 50].into());
        (0..n).map(pair).collect()
    }

    fn dump(cut: usize) -> (Vec<u8>, Totals) {
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, &header()).unwrap();
        for block in pairs(100).chunks(cut) {
            writer.block(block).unwrap();
        }
        let totals = writer.end().unwrap();
        (bytes, totals)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, written) = dump(7);
        let mut reader = Reader::begin(&bytes[..]).unwrap();
        assert_eq!(reader.header, header());
        let mut read = Vec::new();
        while let Some(block) = reader.block().unwrap() {
            read.extend(block);
        }
        assert_eq!(read, pairs(100));
        assert_eq!(reader.totals(), Some(written));
        // However it is cut.
        assert_eq!(dump(100).1.digest, written.digest);
        assert_eq!(verify(&dump(31).0[..]).unwrap().1.digest, written.digest);
        // Nothing at all is a dump, too.
        let mut empty = Vec::new();
        assert_eq!(Writer::begin(&mut empty, &Header::default()).unwrap().end().unwrap().pairs, 0);
        assert_eq!(verify(&empty[..]).unwrap().1.pairs, 0);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let (bytes, _) = dump(20);
        for length in 0..bytes.len() {
            assert!(verify(&bytes[..length]).is_err(), "cut at {length}");
        }
        for at in 0..bytes.len() {
            for bit in [0, 7] {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(verify(&damaged[..]).is_err(), "bit {bit} of byte {at}");
            }
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(verify(&longer[..]).unwrap_err().to_string().contains("something follows"));
    }

    #[test]
    fn blocks_that_are_missing_or_swapped_are_noticed() {
        let (bytes, _) = dump(50);
        let begin = Encoder::begin(&header()).1.len();
        // Two blocks and the end: the end has a fixed length.
        let end = bytes.len() - 61;
        let body = &bytes[begin..end];
        let one = 1 + 8 + 4 + u32::from_le_bytes(body[9..13].try_into().unwrap()) as usize + 4;
        let (a, b) = body.split_at(one);
        for blocks in [vec![a], vec![b], vec![b, a], vec![a, a, b]] {
            let other = [&bytes[..begin], &blocks.concat(), &bytes[end..]].concat();
            assert!(verify(&other[..]).is_err());
        }
        assert!(verify(&[&bytes[..begin], a, b, &bytes[end..]].concat()[..]).is_ok());
    }

    #[test]
    fn other_files_and_later_formats_are_told_apart() {
        assert!(matches!(verify(&b"a text file that is long enough"[..]), Err(DumpError::NotADump)));
        let (mut bytes, _) = dump(50);
        bytes[8] = 2;
        assert!(matches!(verify(&bytes[..]), Err(DumpError::NewerFormat { found: 2 })));
    }
}
