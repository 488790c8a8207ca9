//! Where the one tree shows a volume, for what administrators are told of it, and which volume one of its paths leads into.
//!
//! Mounts show one tree. What a volume knows are paths from its own root: at the directory where it is joined another volume goes on.

use bytes::Bytes;
use mooseng_namespace::joins;
use mooseng_wire::admin::{CrossingReply, CrossingRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{InodeId, VolumeId};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::errors::record_failed;
use crate::fsck::paths;
use crate::geo::{self, ROOT_VOLUME, Whereabouts};
use crate::master::Master;
use crate::records::transact;

/// A volume that an administrator asks about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which.
    pub volume: VolumeId,
    /// Where the tree shows it; empty for the root volume.
    pub at: Bytes,
}

impl Asked {
    /// Of a volume that is at home here.
    pub async fn about(master: &Master, volume: VolumeId) -> Self {
        Self { volume, at: at(master, volume).await }
    }

    /// A path of the volume, as the tree shows it.
    pub fn shown(&self, path: &[u8]) -> Bytes {
        below(&self.at, path)
    }

    /// The same, for a sentence.
    pub fn told(&self, path: &[u8]) -> String {
        String::from_utf8_lossy(&self.shown(path)).into_owned()
    }

    /// The volume, for a sentence.
    pub fn name(&self) -> String {
        match self.volume {
            ROOT_VOLUME => "the root volume".to_owned(),
            other => format!("volume {other}, at {}", String::from_utf8_lossy(&self.at)),
        }
    }
}

/// What lies at a path of a volume, as the tree shows it, which shows the volume's root at `at`. What isn't a whole path stays what it is: nothing, or one
/// of which only the end is known.
pub fn below(at: &[u8], path: &[u8]) -> Bytes {
    match path {
        path if at.is_empty() || path.first() != Some(&b'/') => Bytes::copy_from_slice(path),
        b"/" => Bytes::copy_from_slice(at),
        path => [at, path].concat().into(),
    }
}

/// Where the tree shows a volume now, as far as it is known here; empty for the root volume. Where this region doesn't have a volume above, it is the path
/// that the directory there had when the volume below it was made.
pub async fn at(master: &Master, volume: VolumeId) -> Bytes {
    way_up(master, volume).await.0
}

/// How much of a volume's way up to the root is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All of it, as the tree is now.
    Known,
    /// This region doesn't have all the volumes above.
    Elsewhere,
    /// Not at present: what this region has of one above isn't whole, or can't be read.
    Unclear,
}

/// Where the tree shows a volume, and whether it does so now.
pub async fn way_up(master: &Master, mut volume: VolumeId) -> (Bytes, Way) {
    let view = master.geo.view();
    let mut shown = Vec::new();
    // A volume is only made in one that there is: the way up ends at the root.
    while let Some(join) = view.as_ref().and_then(|view| view.volumes.get(&volume)?.join.as_ref()) {
        let (directory, above) = (join.place.directory, join.place.parent());
        let known = match geo::place_of(master, above) {
            Whereabouts::Nowhere => Err(Way::Elsewhere),
            _ => match paths::path(&paths::reading(master), directory).await {
                Ok(Some(path)) => Ok(path),
                Ok(None) | Err(_) => Err(Way::Unclear),
            },
        };
        let within = match known {
            Ok(path) => path,
            Err(way) => {
                shown.splice(..0, join.place.path.bytes());
                return (shown.into(), way);
            }
        };
        shown.splice(..0, within);
        volume = above;
    }
    // A volume of which nothing was agreed on here yet is nowhere.
    (shown.into(), if volume == ROOT_VOLUME { Way::Known } else { Way::Unclear })
}

/// A volume by the number that an administrator gave: it has to be there, and at home here. Who asks elsewhere is told where its home is.
pub async fn asked(master: &Master, number: u32, deadline: Instant) -> Result<Asked, Status> {
    let Ok(volume) = u16::try_from(number).map(VolumeId) else {
        return Err(refusal(geo::no_volume(number)));
    };
    geo::there_is(master, volume, deadline).await.map_err(refusal)?;
    geo::at_home(master, volume).map_err(refusal)?;
    Ok(Asked::about(master, volume).await)
}

pub(crate) fn refusal(error: CallError) -> Status {
    let code = match error.code() {
        ErrorCode::NoVolume => Code::NotFound,
        ErrorCode::NotHome => Code::FailedPrecondition,
        _ => Code::Unavailable,
    };
    let details = error.encode_to_vec().into();
    Status::with_details(code, error.message, details)
}

/// How far a path leads within a volume.
pub async fn crossing(
    master: &Master,
    asked: &Asked,
    request: CrossingRequest,
) -> Result<CrossingReply, Status> {
    let custody = master.serving_of(asked.volume).map_err(refusal)?;
    let (volume, path) = (asked.volume, request.path);
    let found = transact(&master.store, |tx| {
        let path = path.clone();
        async move {
            let found = joins::crossing(&tx, volume, &path).await?;
            Ok((tx, found))
        }
    });
    let found = found.await.map_err(|e| refusal(record_failed(&e)))?;
    master.may_answer(custody).map_err(refusal)?;
    let (joined, walked) = found.map_or((0, 0), |(other, walked)| (u32::from(other.0), walked));
    let walked = u32::try_from(walked).map_err(|_| Status::invalid_argument("the path is too long"))?;
    Ok(CrossingReply { joined, walked, at: asked.at.clone() })
}

/// The volume of which an id is, as it is asked about.
pub fn of_inode(inode: u64) -> u32 {
    InodeId(inode).volume().0.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_volume_are_shown_below_where_it_is_joined() {
        for (at, path, shown) in [
            ("", "/", "/"),
            ("", "/a", "/a"),
            ("/team", "/", "/team"),
            ("/team", "/a/b", "/team/a/b"),
            ("/team", "", ""),
            ("/team", ".../a", ".../a"),
        ] {
            assert_eq!(below(at.as_bytes(), path.as_bytes()), shown, "{path} at {at:?}");
        }
        let team = Asked { volume: VolumeId(3), at: "/team".into() };
        assert_eq!((team.told(b"/a").as_str(), team.name().as_str()), ("/team/a", "volume 3, at /team"));
    }
}
