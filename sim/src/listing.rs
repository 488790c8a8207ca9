//! Listings of the directories that clients work in. Pages come one after the other, and names may change between them: of a name that doesn't change meanwhile
//! a listing must tell what it is, of one that does what it was at some instant. So a listing is judged as a look at each of the names, all of them within its time.

use std::ops::Range;

use mooseng_client::{Caller, FileSystem, FsError};
use mooseng_wire::fs::DirEntry;

use crate::history::{Call, Reply};

/// Entries that a page has at most: all of them, or a few.
pub const PAGES: [u32; 2] = [1_000, 2];

/// A directory's entries, from pages of so many.
pub async fn all(
    fs: &FileSystem,
    caller: &Caller,
    directory: u64,
    most: u32,
) -> Result<Vec<DirEntry>, FsError> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let page = fs.readdir(caller, directory, cookie, most).await?;
        let last = page.entries.last().map(|entry| entry.cookie);
        found.extend(page.entries);
        match last {
            Some(last) if !page.end => cookie = last,
            _ => return Ok(found),
        }
    }
}

/// What a listing says of these names, which are letters from `a` on.
pub fn looks(entries: &[DirEntry], names: Range<u8>) -> Vec<(Call, Reply)> {
    let mut looks = Vec::new();
    for name in names {
        let of_name = |entry: &&DirEntry| entry.name[..] == [b'a' + name];
        let shown = entries.iter().filter(of_name).map(|entry| Reply::Inode(entry.inode));
        let before = looks.len();
        looks.extend(shown.map(|reply| (Call::Lookup(name), reply)));
        if looks.len() == before {
            looks.push((Call::Lookup(name), Reply::Absent));
        }
    }
    looks
}

/// A name that a listing has twice for the same file.
pub fn twice(entries: &[DirEntry]) -> Option<&DirEntry> {
    let is_again = |at: &usize| {
        let entry = &entries[*at];
        entries[..*at].iter().any(|other| other.name == entry.name && other.inode == entry.inode)
    };
    (0..entries.len()).find(is_again).map(|at| &entries[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Operation, check};

    fn entry(name: &'static str, inode: u64) -> DirEntry {
        DirEntry { name: name.into(), inode, ..DirEntry::default() }
    }

    fn op((called, returned): (u64, u64), (call, reply): (Call, Reply)) -> Operation {
        Operation { client: 0, called, returned: Some(returned), call, reply: Some(reply), elsewhere: false }
    }

    #[test]
    fn a_listing_is_a_look_at_each_name() {
        let entries = [entry("c", 9), entry("a", 7), entry("own0", 8)];
        let is = |name, reply| (Call::Lookup(name), reply);
        let expected = [is(0, Reply::Inode(7)), is(1, Reply::Absent), is(2, Reply::Inode(9))];
        assert_eq!(looks(&entries, 0..3), expected);
        assert_eq!(twice(&entries), None);
        assert_eq!(twice(&[entry("a", 7), entry("a", 8)]), None, "it was made anew between two pages");
        assert_eq!(twice(&[entry("a", 7), entry("b", 7), entry("a", 7)]), Some(&entry("a", 7)));
    }

    #[test]
    fn a_listing_shows_what_is_there_all_the_time_and_may_show_what_comes_meanwhile() {
        let made =
            [op((0, 1), (Call::Create(0), Reply::Inode(7))), op((4, 7), (Call::Rename(0, 1), Reply::Done))];
        let listed = |entries: &[DirEntry], at: (u64, u64)| {
            let looks = looks(entries, 0..3).into_iter().map(|look| op(at, look));
            check(&made.iter().cloned().chain(looks).collect::<Vec<_>>())
        };
        listed(&[entry("a", 7)], (2, 3)).unwrap();
        assert!(listed(&[], (2, 3)).is_err(), "it was there");
        assert!(listed(&[entry("a", 7), entry("c", 9)], (2, 3)).is_err(), "nobody made that");
        // Beside the rename it is seen before, behind, both times or not at all.
        for entries in [vec![], vec![entry("a", 7)], vec![entry("b", 7)], vec![entry("a", 7), entry("b", 7)]]
        {
            listed(&entries, (3, 6)).unwrap();
        }
        listed(&[entry("b", 7)], (8, 9)).unwrap();
        assert!(listed(&[entry("a", 7)], (8, 9)).is_err(), "it is over");
    }
}
