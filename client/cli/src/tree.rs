//! The one tree that mounts show, and its volumes: which one a path leads into, which one a command means, and which ones it says nothing of.

use bytes::Bytes;
use mooseng_wire::admin::{CrossingReply, VolumeStage};
use serde_json::{Value, json};

use crate::admin;
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::trash::shown;
use crate::volume::{self, Named};

/// Volumes that one path leads through at most.
const CROSSINGS_MAX: usize = 16;

/// Where a path of the tree leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The volume in which it lies.
    pub volume: u32,
    /// The path at which the tree shows that volume; empty for the root volume.
    pub at: Vec<u8>,
    /// The path from the root of that volume.
    pub path: Bytes,
}

impl Place {
    /// A path of the tree, before any volume was asked.
    fn of(path: Vec<u8>) -> Self {
        Self { volume: 0, at: Vec::new(), path: path.into() }
    }

    /// On the other side of where its volume says that another one is joined; itself where none is.
    fn crossed(self, told: &CrossingReply) -> Result<Option<Self>, Failure> {
        if told.joined == 0 {
            return Ok(None);
        }
        let walked = usize::try_from(told.walked).unwrap_or(usize::MAX);
        let Some((before, behind)) = self.path.split_at_checked(walked).filter(|_| walked > 0) else {
            return Err(Failure::failed(
                "The master's answer about where the path leads makes no sense: report it.",
            ));
        };
        let path = if behind.is_empty() { Bytes::from_static(b"/") } else { self.path.slice_ref(behind) };
        Ok(Some(Self { volume: told.joined, at: [self.at.as_slice(), before].concat(), path }))
    }

    /// The volume, for a sentence.
    pub fn name(&self) -> String {
        name(self.volume, &String::from_utf8_lossy(&self.at))
    }
}

fn name(volume: u32, at: &str) -> String {
    match volume {
        0 => "the root volume".to_owned(),
        other => format!("volume {other}, at {}", at.chars().flat_map(shown).collect::<String>()),
    }
}

/// The volume in which a path of the tree lies.
pub async fn find(file: &ClientFile, path: Vec<u8>) -> Result<Place, Failure> {
    let mut place = Place::of(path);
    for _ in 0..CROSSINGS_MAX {
        let told = admin::find_crossing(file, place.volume, place.path.clone()).await?;
        match place.clone().crossed(&told)? {
            Some(next) => place = next,
            None => return Ok(place),
        }
    }
    Err(too_many())
}

/// The volume in which the directory at a path of the tree lies: what is joined at that itself isn't crossed into.
pub async fn above(file: &ClientFile, path: Vec<u8>) -> Result<Place, Failure> {
    let mut place = Place::of(path);
    for _ in 0..CROSSINGS_MAX {
        let told = admin::find_crossing(file, place.volume, place.path.clone()).await?;
        match place.clone().crossed(&told)? {
            Some(next) if next.path.iter().any(|byte| *byte != b'/') => place = next,
            _ => return Ok(place),
        }
    }
    Err(too_many())
}

fn too_many() -> Failure {
    Failure::usage(format!("The path leads through more than {CROSSINGS_MAX} volumes: give a shorter one."))
}

/// The volume that a command means by `--volume`: its number, or the path at which it is joined. Without it, the root volume.
pub async fn named(file: &ClientFile, option: Option<&str>) -> Result<Place, Failure> {
    let root = Place::of(b"/".to_vec());
    match option.map(Named::parse).transpose()? {
        None | Some(Named::Number(0)) => Ok(root),
        Some(Named::Number(volume)) => {
            let told = admin::find_crossing(file, volume, Bytes::from_static(b"/")).await?;
            Ok(Place { volume, at: told.at.to_vec(), ..root })
        }
        Some(Named::Path(path)) => {
            let place = find(file, path.clone().into_bytes()).await?;
            is_root(&path, place)
        }
    }
}

/// Refuses a path at which no volume is joined: a quota or a class would be another one's than it looks.
fn is_root(path: &str, place: Place) -> Result<Place, Failure> {
    if place.path.iter().all(|byte| *byte == b'/') {
        return Ok(place);
    }
    let how = match place.volume {
        0 => "`--volume /`, or nothing".to_owned(),
        _ => format!("`--volume {}`", String::from_utf8_lossy(&place.at)),
    };
    Err(Failure::not_found(format!(
        "No volume is joined at {path}, which lies in {}: name that by {how}. `mooseng volume list` shows which volumes there are.",
        place.name()
    )))
}

/// A volume of which a listing says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    id: u32,
    path: String,
}

impl Other {
    /// Where it is joined, for a sentence.
    pub fn path(&self) -> String {
        self.path.chars().flat_map(shown).collect()
    }
}

/// The volumes besides the one that is shown, as far as a master of this region knows them; of `under`, those alone that are joined below that path. None
/// where there is one region, or nobody tells.
pub async fn others(file: &ClientFile, shown: u32, under: Option<&[u8]>) -> Vec<Other> {
    let known = admin::list_volumes(file).await.map(|reply| reply.volumes).unwrap_or_default();
    let is_there = |v: &&mooseng_wire::admin::Volume| v.id == 0 || v.stage() == VolumeStage::Joined;
    let all = known.iter().filter(is_there).map(|v| Other { id: v.id, path: volume::path(v).to_owned() });
    left_out(all, shown, under)
}

fn left_out(all: impl Iterator<Item = Other>, shown: u32, under: Option<&[u8]>) -> Vec<Other> {
    let is_under = |other: &Other| {
        let Some(under) = under else { return true };
        let under = under.strip_suffix(b"/").unwrap_or(under);
        let rest = other.path.as_bytes().strip_prefix(under);
        other.id != 0 && rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    };
    all.filter(|other| other.id != shown && is_under(other)).collect()
}

/// Says on stderr which volumes aren't shown.
pub fn tell_of(others: &[Other]) {
    if !others.is_empty() {
        eprintln!("{}", sentence(others));
    }
}

fn sentence(others: &[Other]) -> String {
    let text = |other: &Other| match other.id {
        0 => "/".to_owned(),
        id => format!("{} ({id})", other.path()),
    };
    let list: Vec<String> = others.iter().map(text).collect();
    match list.len() {
        1 => format!("Another volume isn't shown: {}. Name it by --volume.", list[0]),
        _ => format!("Other volumes aren't shown: {}. Name one by --volume.", list.join(", ")),
    }
}

/// The same in JSON.
pub fn others_shape(others: &[Other]) -> Value {
    others.iter().map(|other| json!({ "id": other.id, "path": other.path })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(joined: u32, walked: u32) -> CrossingReply {
        CrossingReply { joined, walked, ..CrossingReply::default() }
    }

    #[test]
    fn a_path_goes_on_in_the_volume_that_it_crosses_into() {
        let place = |path: &str| Place::of(path.as_bytes().to_vec());
        for (path, walked, at, rest) in [
            ("/team/a/b", 5, "/team", "/a/b"),
            ("/team", 5, "/team", "/"),
            ("/team/", 5, "/team", "/"),
            ("//x//team//a", 9, "//x//team", "//a"),
        ] {
            let crossed = place(path).crossed(&told(3, walked)).unwrap().unwrap();
            let is = (crossed.volume, &crossed.at[..], &crossed.path[..]);
            assert_eq!(is, (3, at.as_bytes(), rest.as_bytes()), "{path}");
            let again = crossed.crossed(&told(4, 0));
            assert!(again.is_err(), "a volume that leads nowhere isn't gone through for ever");
        }
        assert_eq!(place("/a").crossed(&told(0, 0)).unwrap(), None);
        assert!(place("/a").crossed(&told(3, 9)).is_err());
        let inner = Place { volume: 3, at: b"/team".to_vec(), path: Bytes::from_static(b"/x/y") };
        let crossed = inner.crossed(&told(5, 2)).unwrap().unwrap();
        assert_eq!((crossed.at.as_slice(), &crossed.path[..]), (&b"/team/x"[..], &b"/y"[..]));
    }

    #[test]
    fn a_volume_is_meant_by_the_path_at_which_it_is_joined() {
        let team = Place { volume: 3, at: b"/team".to_vec(), path: Bytes::from_static(b"/") };
        assert_eq!(is_root("/team", team.clone()).unwrap(), team);
        let below = Place { path: Bytes::from_static(b"/sub"), ..team };
        let refused = is_root("/team/sub", below).unwrap_err();
        assert_eq!(refused.exit_code(), 3);
        let text = refused.to_string();
        assert!(text.contains("volume 3, at /team") && text.contains("--volume /team`"), "{text}");
        let text = is_root("/d", Place::of(b"/d".to_vec())).unwrap_err().to_string();
        assert!(text.contains("in the root volume") && text.contains("`--volume /`"), "{text}");
    }

    #[test]
    fn listings_say_which_volumes_they_leave_out() {
        let other = |id, path: &str| Other { id, path: path.to_owned() };
        let all = [other(0, "/"), other(1, "/team"), other(2, "/x/data")];
        let out = |shown, under: Option<&str>| -> Vec<u32> {
            let left = left_out(all.iter().cloned(), shown, under.map(str::as_bytes));
            left.iter().map(|other| other.id).collect()
        };
        assert_eq!((out(0, None), out(2, None)), (vec![1, 2], vec![0, 1]));
        assert_eq!(
            (out(0, Some("/x/")), out(0, Some("/")), out(0, Some("/xx"))),
            (vec![2], vec![1, 2], vec![])
        );
        assert_eq!(out(1, Some("/team/a")), Vec::<u32>::new());
        assert_eq!(sentence(&all[1..2]), "Another volume isn't shown: /team (1). Name it by --volume.");
        assert!(sentence(&all).starts_with("Other volumes aren't shown: /, /team (1), /x/data (2)."));
        assert_eq!(others_shape(&all[1..2])[0], json!({ "id": 1, "path": "/team" }));
    }
}
