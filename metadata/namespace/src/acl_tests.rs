//! Lists against the draft's own words, entry by entry.

use super::*;
use proptest::prelude::*;

const DIRECTORY: u32 = FileKind::Directory as u32;
const REGULAR: u32 = FileKind::Regular as u32;

/// An entry as the draft has it.
type Entry = (u16, u32, u32);

fn value(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend((*permissions as u16).to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn entries(acl: &AclRecord) -> Vec<Entry> {
    let value = encode(acl);
    let entry = |e: &[u8]| {
        let half = |i: usize| u16::from_le_bytes([e[i], e[i + 1]]);
        (half(0), u32::from(half(2)), u32::from_le_bytes([e[4], e[5], e[6], e[7]]))
    };
    value[HEADER_BYTES..].chunks(ENTRY_BYTES).map(entry).collect()
}

const MINIMAL: [Entry; 3] = [(OWNER, 6, NOBODY), (GROUP_OF_INODE, 4, NOBODY), (OTHER, 0, NOBODY)];

fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
    Caller { uid, gid, groups: groups.to_vec(), ..Default::default() }
}

#[test]
fn what_isnt_a_list_is_refused() {
    let refused = |entries: &[Entry]| decode(&value(entries)).unwrap_err();
    let with = |entry: Entry| {
        let mut entries = MINIMAL.to_vec();
        entries.push(entry);
        entries.sort_by_key(|e| e.0);
        entries
    };
    assert!(decode(&value(&MINIMAL)).unwrap().is_some());
    assert_eq!(decode(&value(&[])), Ok(None));
    for missing in 0..3 {
        let mut entries = MINIMAL.to_vec();
        entries.remove(missing);
        assert_eq!(refused(&entries), Errno::EINVAL);
    }
    for entry in MINIMAL {
        assert_eq!(refused(&with(entry)), Errno::EINVAL, "twice: {entry:?}");
    }
    assert_eq!(refused(&with((USER, 7, 5))), Errno::EINVAL, "no mask");
    assert_eq!(refused(&with((3, 7, 5))), Errno::EINVAL, "no such tag");
    assert_eq!(refused(&with((0, 7, 5))), Errno::EINVAL, "no such tag");
    assert_eq!(refused(&with((MASK, 8, NOBODY))), Errno::EINVAL, "no such permission");
    let masked = |entries: &[Entry]| {
        let mut all = with((MASK, 7, NOBODY));
        all.extend(entries);
        all.sort_by_key(|e| e.0);
        all
    };
    assert_eq!(refused(&masked(&[(USER, 7, NOBODY)])), Errno::EINVAL);
    assert_eq!(refused(&masked(&[(USER, 7, 5), (USER, 6, 5)])), Errno::EINVAL);
    assert_eq!(refused(&masked(&[(GROUP, 7, 5), (GROUP, 7, 5)])), Errno::EINVAL);
    let acl = decode(&value(&masked(&[(USER, 7, 5), (USER, 6, 3), (GROUP, 1, 5)]))).unwrap().unwrap();
    assert_eq!(acl.users, [AclEntry { id: 3, permissions: 6 }, AclEntry { id: 5, permissions: 7 }]);
    let mut turned = masked(&[(USER, 7, 5)]);
    turned.swap(0, 1);
    assert_eq!(refused(&turned), Errno::EINVAL, "out of order");
    let most: Vec<Entry> = (0..ENTRIES_MAX as u32 - 4).map(|id| (USER, 7, id)).collect();
    assert!(decode(&value(&masked(&most))).unwrap().is_some());
    let more: Vec<Entry> = (0..ENTRIES_MAX as u32 - 3).map(|id| (USER, 7, id)).collect();
    assert_eq!(refused(&masked(&more)), Errno::E2BIG);
    assert_eq!(decode(&[2, 0, 0]), Err(Errno::EINVAL));
    assert_eq!(decode(&[1, 0, 0, 0]), Err(Errno::ENOTSUP));
    assert_eq!(decode(&value(&MINIMAL)[..27]), Err(Errno::EINVAL));
}

#[test]
fn a_list_and_its_mode_are_one() {
    let mut file = InodeRecord { kind: REGULAR, mode: 0o2640, uid: 10, gid: 20, ..Default::default() };
    let named = AclRecord {
        owner: 7,
        group: 5,
        other: 1,
        mask: Some(6),
        users: vec![AclEntry { id: 11, permissions: 3 }],
        groups: vec![],
    };
    set_access(&mut file, Some(named.clone()), &caller(10, 30, &[20]));
    assert_eq!(file.mode, 0o2761, "the mask is the group's class");
    assert_eq!(access(&file), Some(named.clone()));
    // chmod changes the mask, and nothing else of it.
    file.mode = 0o2704;
    assert_eq!(access(&file), Some(AclRecord { owner: 7, mask: Some(0), other: 4, ..named.clone() }));
    set_access(&mut file, Some(named), &caller(10, 30, &[]));
    assert_eq!(file.mode, 0o761, "who isn't of the group loses setgid");
    // One that is a mode isn't kept.
    file.mode |= SETGID;
    let plain = AclRecord { owner: 6, group: 4, other: 0, ..Default::default() };
    set_access(&mut file, Some(plain), &caller(0, 0, &[]));
    assert_eq!((file.mode, file.access_acl.clone()), (0o2640, None));
    // A mask alone is more than a mode.
    let masked = AclRecord { owner: 6, group: 7, other: 0, mask: Some(4), ..Default::default() };
    set_access(&mut file, Some(masked.clone()), &caller(0, 0, &[]));
    assert_eq!((file.mode, access(&file)), (0o2640, Some(masked)));
    set_access(&mut file, None, &caller(10, 30, &[]));
    assert_eq!((file.mode, file.access_acl), (0o2640, None), "the mode stays");
}

#[test]
fn a_directory_hands_its_list_down() {
    let default = AclRecord {
        owner: 7,
        group: 7,
        other: 5,
        mask: Some(7),
        users: vec![AclEntry { id: 11, permissions: 7 }],
        groups: vec![],
    };
    let directory = InodeRecord {
        kind: DIRECTORY,
        mode: 0o755,
        default_acl: Some(Box::new(default.clone())),
        ..Default::default()
    };
    let made = |directory: &InodeRecord, kind: u32, mode: u32| {
        let mut record = InodeRecord { kind, mode, ..Default::default() };
        inherit(directory, &mut record, 0o077);
        record
    };
    let file = made(&directory, REGULAR, 0o664);
    assert_eq!((file.mode, &file.default_acl), (0o664, &None), "the umask counts for nothing");
    assert_eq!(access(&file), Some(AclRecord { owner: 6, mask: Some(6), other: 4, ..default.clone() }));
    let below = made(&directory, DIRECTORY, 0o777);
    assert_eq!(below.mode, 0o775);
    assert_eq!(access(&below), Some(default.clone()));
    assert_eq!(below.default_acl.as_deref(), Some(&default));
    let link = made(&directory, FileKind::Symlink as u32, 0o777);
    assert_eq!((link.mode, link.access_acl), (0o777, None));
    // Where it is only a mode, it is a mode that is handed down.
    let plain = AclRecord { owner: 7, group: 5, other: 0, ..Default::default() };
    let directory = InodeRecord { default_acl: Some(Box::new(plain)), ..directory };
    let file = made(&directory, REGULAR, 0o2666);
    assert_eq!((file.mode, file.access_acl), (0o2640, None));
    let directory = InodeRecord { default_acl: None, ..directory };
    assert_eq!(made(&directory, REGULAR, 0o666).mode, 0o600);
}

/// The draft's section 23.1.5, over single entries.
fn may(entries: &[Entry], who: &Caller, owner: u32, gid: u32, wanted: u32) -> bool {
    let of = |tag: u16| entries.iter().find(|e| e.0 == tag).map(|e| e.1);
    let mask = of(MASK).unwrap_or(7);
    if who.uid == owner {
        return of(OWNER).unwrap() & wanted == wanted;
    }
    if let Some(user) = entries.iter().find(|e| e.0 == USER && e.2 == who.uid) {
        return user.1 & mask & wanted == wanted;
    }
    let matching: Vec<u32> = entries
        .iter()
        .filter(|e| match e.0 {
            GROUP_OF_INODE => in_group(who, gid),
            GROUP => in_group(who, e.2),
            _ => false,
        })
        .map(|e| e.1)
        .collect();
    if !matching.is_empty() {
        return matching.iter().any(|bits| bits & mask & wanted == wanted);
    }
    of(OTHER).unwrap() & wanted == wanted
}

fn named() -> impl Strategy<Value = Vec<AclEntry>> {
    prop::collection::btree_map(0u32..6, 0u32..8, 0..4)
        .prop_map(|map| map.into_iter().map(|(id, permissions)| AclEntry { id, permissions }).collect())
}

fn acl() -> impl Strategy<Value = AclRecord> {
    (0u32..8, 0u32..8, 0u32..8, prop::option::of(0u32..8), named(), named()).prop_map(
        |(owner, group, other, mask, users, groups)| {
            let mask = mask.or((!users.is_empty() || !groups.is_empty()).then_some(5));
            AclRecord { owner, group, other, mask, users, groups }
        },
    )
}

proptest! {
    #[test]
    fn round_trips(acl in acl()) {
        prop_assert_eq!(find_fault(&acl), None);
        prop_assert_eq!(decode(&encode(&acl)), Ok(Some(acl)));
    }

    #[test]
    fn any_bytes_are_a_good_list_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), entries in prop::collection::vec((0u16..40, 0u32..9, 0u32..9), 0..9)) {
        for value in [bytes, value(&entries)] {
            if let Ok(Some(acl)) = decode(&value) {
                prop_assert_eq!(find_fault(&acl), None);
                prop_assert_eq!(decode(&encode(&acl)), Ok(Some(acl)));
            }
        }
    }

    /// With the list in the record, rights are what the draft gives by the entries - after a chmod, too, which is one of the classes.
    #[test]
    fn rights_are_the_drafts(acl in acl(), chmod in prop::option::of(0u32..0o1000), uid in 1u32..6, gid in 0u32..6, groups in prop::collection::vec(0u32..6, 0..3), wanted in 0u32..8) {
        let (owner, of) = (2, 3);
        let mut record = InodeRecord { kind: REGULAR, uid: owner, gid: of, ..Default::default() };
        set_access(&mut record, Some(acl.clone()), &caller(0, 0, &[]));
        let mut words = entries(&acl);
        if let Some(mode) = chmod {
            record.mode = mode;
            let masked = acl.mask.is_some();
            for entry in &mut words {
                match entry.0 {
                    OWNER => entry.1 = mode >> 6,
                    OTHER => entry.1 = mode & 7,
                    MASK => entry.1 = mode >> 3 & 7,
                    GROUP_OF_INODE if !masked => entry.1 = mode >> 3 & 7,
                    _ => {}
                }
            }
        }
        let who = caller(uid, gid, &groups);
        prop_assert_eq!(crate::permission::allows(&record, &who, wanted), may(&words, &who, owner, of, wanted));
        if let Some(whole) = access(&record) {
            prop_assert_eq!(entries(&whole), words);
        }
    }

    /// What is made has no right that the request or the directory's list doesn't give.
    #[test]
    fn what_is_handed_down_is_no_more_than_both_give(default in acl(), mode in 0u32..0o1000) {
        let directory = InodeRecord { kind: DIRECTORY, default_acl: Some(Box::new(default.clone())), ..Default::default() };
        let mut record = InodeRecord { kind: REGULAR, mode, ..Default::default() };
        inherit(&directory, &mut record, 0o777);
        let most = default.owner << 6 | default.mask.unwrap_or(default.group) << 3 | default.other;
        prop_assert_eq!(record.mode, mode & most);
        match access(&record) {
            Some(acl) => prop_assert_eq!((acl.users, acl.groups, acl.group), (default.users, default.groups, default.group)),
            None => prop_assert!(!default.is_extended()),
        }
    }
}
