//! Damage to one file of a stopped daemon, and whether it is repaired by now.
//!
//! Every chunk has two copies, so one of them may be damaged: never a second one before the first is known to be replaced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::disk::LossyDisk;
use super::plan::Damage;

/// Where a chunkserver's disk has its chunks.
const CHUNKS: &str = "data/chunks";
/// Where a master's disk has its log.
const LOG: &str = "raft";
/// The first bytes of a frame of the log.
const FRAME_MAGIC: u32 = 0x4c57_474d;
/// Bytes before a frame's body, the second four of which count the body's.
const FRAME_HEADER_BYTES: usize = 28;
/// Bytes before a segment's first frame.
const SEGMENT_HEADER_BYTES: usize = 64;

/// A file that was damaged and isn't known to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wound {
    /// The daemon.
    pub name: String,
    /// The file on its disk.
    pub path: String,
    /// What was done to it.
    pub damage: Damage,
    /// The file that is there now; none where it was removed.
    file: Option<u64>,
}

impl Wound {
    /// Whether another file is there, or none where there was one. A removed one may be rebuilt anywhere: whether it is whole again only
    /// `fsck` tells.
    pub fn is_replaced(&self, disk: &LossyDisk) -> bool {
        self.file.is_none() || disk.number(&self.path) != self.file
    }
}

/// Copies of all chunk files as they are now, for [`Damage::Old`].
pub fn remember(disk: &LossyDisk) -> Vec<(String, Vec<u8>)> {
    let read = |path: String| Some((path.clone(), disk.peek(&path).ok()?));
    disk.files(CHUNKS).into_iter().filter_map(read).collect()
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn replace(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(bytes, 0)
}

/// Damages a file of the stopped daemon `name`. Answers what is wounded: nothing where there is nothing to damage.
pub fn inflict(
    damage: Damage,
    name: &str,
    disk: &LossyDisk,
    earlier: &[(String, Vec<u8>)],
    seed: u64,
) -> Result<Vec<Wound>> {
    let mut rng = SmallRng::seed_from_u64(seed);
    if damage == Damage::TornLog {
        tear(disk, &mut rng)?;
        return Ok(Vec::new());
    }
    let wound = |path: String, file| Wound { name: name.to_owned(), path, damage, file };
    let files = disk.files(CHUNKS);
    let Some(path) = files.get(rng.random_range(0..files.len().max(1))).cloned() else {
        return Ok(Vec::new());
    };
    let number = disk.number(&path);
    match damage {
        Damage::Flip => disk.damage(&path, |file| {
            let len = file.metadata()?.len();
            // In a block: of pages that hold checksums the unused parts are read by nobody.
            let pages: Vec<u64> = (1..len.div_ceil(4096)).filter(|page| page % 65 != 0).collect();
            let page = pages.get(rng.random_range(0..pages.len().max(1))).copied().unwrap_or_default();
            let at = (page * 4096 + rng.random_range(0..64)).min(len.saturating_sub(1));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 1 << rng.random_range(0..8)], at)
        })?,
        Damage::Truncate => disk.damage(&path, |file| file.set_len(file.metadata()?.len() / 2))?,
        Damage::Missing => {
            disk.remove(&path)?;
            return Ok(vec![wound(path, None)]);
        }
        Damage::Swapped => {
            let Some(other) = files.iter().find(|f| **f != path).cloned() else { return Ok(Vec::new()) };
            let (one, two) = (disk.peek(&path)?, disk.peek(&other)?);
            disk.damage(&path, |file| replace(file, &two))?;
            disk.damage(&other, |file| replace(file, &one))?;
            let other_number = disk.number(&other);
            return Ok(vec![wound(path, number), wound(other, other_number)]);
        }
        Damage::Old => {
            let changed = earlier.iter().find(|(path, bytes)| {
                disk.peek(path).is_ok_and(|now| now.len() > bytes.len() || now != *bytes)
            });
            let Some((path, bytes)) = changed else { return Ok(Vec::new()) };
            disk.damage(path, |file| replace(file, bytes))?;
            return Ok(vec![wound(path.clone(), disk.number(path))]);
        }
        Damage::TornLog => {}
    }
    Ok(vec![wound(path, number)])
}

/// Where the frames of a segment end. Its last byte that isn't zero won't do: a whole frame may end in zeros.
fn end_of_frames(bytes: &[u8]) -> usize {
    let word = |at: usize| bytes.get(at..at + 4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let mut at = SEGMENT_HEADER_BYTES;
    while word(at) == Some(FRAME_MAGIC)
        && let Some(body) = word(at + 4)
    {
        at = (at + FRAME_HEADER_BYTES + body as usize).next_multiple_of(8);
    }
    at.min(bytes.len())
}

/// Puts the beginning of a frame behind the last one, as a write that the power cut short would.
fn tear(disk: &LossyDisk, rng: &mut SmallRng) -> Result<()> {
    let mut segments: Vec<String> = disk.files(LOG).into_iter().filter(|f| f.ends_with(".wal")).collect();
    segments.sort();
    let last = segments.last().context("there is no log to tear")?;
    let number = last.rsplit('/').next().and_then(|n| u64::from_str_radix(n.strip_suffix(".wal")?, 16).ok());
    let number = number.with_context(|| format!("{last} isn't named as a segment of the log is"))?;
    let junk: Vec<u8> = (0..rng.random_range(1..2_000)).map(|_| rng.random()).collect();
    disk.damage(last, |file| {
        let bytes = read_all(file)?;
        let end = end_of_frames(&bytes);
        let mut torn = Vec::new();
        torn.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        torn.extend_from_slice(&5_000u32.to_le_bytes());
        torn.extend_from_slice(&rng.random::<u32>().to_le_bytes());
        torn.extend_from_slice(&number.to_le_bytes());
        torn.extend_from_slice(&u64::MAX.to_le_bytes());
        torn.extend_from_slice(&junk);
        let room = bytes.len().saturating_sub(end);
        file.write_all_at(&torn[..torn.len().min(room)], end as u64)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A torn frame that began eight bytes too early had torn a flushed one, and its master acknowledged less than before.
    #[test]
    fn a_frame_that_ends_in_zeros_ends_behind_them() {
        let mut segment = vec![0; 4096];
        segment[64..68].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        segment[68..72].copy_from_slice(&60u32.to_le_bytes());
        segment[92..100].fill(7);
        assert_eq!(end_of_frames(&segment), 152);
        assert_eq!(end_of_frames(&[0; 4096]), 64);
    }

    #[test]
    fn a_wound_heals_when_the_file_is_another_one() {
        if !std::path::Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root and /dev/fuse");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = LossyDisk::mount(&dir.path().join("objects"), &dir.path().join("disk")).unwrap();
        let chunks = disk.path().join("data/chunks/00");
        std::fs::create_dir_all(&chunks).unwrap();
        std::fs::write(chunks.join("one"), vec![7; 9000]).unwrap();
        std::fs::write(chunks.join("two"), vec![8; 100]).unwrap();
        for damage in [Damage::Flip, Damage::Truncate, Damage::Swapped] {
            let before = remember(&disk);
            let wounds = inflict(damage, "x", &disk, &[], 1).unwrap();
            assert_ne!(before, remember(&disk), "{damage:?}");
            assert!(wounds.iter().all(|w| !w.is_replaced(&disk)), "{damage:?}");
            for wound in &wounds {
                let path = disk.path().join(&wound.path);
                std::fs::write(chunks.join("new"), b"repaired").unwrap();
                std::fs::rename(chunks.join("new"), path).unwrap();
                assert!(wound.is_replaced(&disk), "{damage:?}");
            }
        }
        let earlier = remember(&disk);
        std::fs::write(chunks.join("one"), b"grown and grown").unwrap();
        assert_eq!(inflict(Damage::Old, "x", &disk, &earlier, 1).unwrap().len(), 1);
        assert_eq!(remember(&disk), earlier);
        assert_eq!(inflict(Damage::Missing, "x", &disk, &[], 1).unwrap().len(), 1);
        assert_eq!(disk.files(CHUNKS).len(), 1);
    }
}
