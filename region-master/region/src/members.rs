//! Changes of a region's masters: which make sense, and what the masters that vote then survive. Pure, for those that make a change and for those that plan one.

use std::collections::{BTreeMap, BTreeSet};

/// A master, as its group knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its zone.
    pub zone: String,
}

/// Why a change of members makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Senseless {
    /// Who is to be added can't be told from others, or not be reached.
    #[error("a member to add needs an id from 1, a name and an address")]
    Incomplete,
    /// Two that are to be added would be one.
    #[error("two masters that are to be added have the id {0}")]
    Twice(u64),
    /// The master at that address goes by another id.
    #[error("the master there has the id {own}, and not {id}")]
    OtherThere {
        /// The id under which it is to be added.
        id: u64,
        /// The one that it has.
        own: u64,
    },
    /// Nobody is taken out who isn't there.
    #[error("there is no master {0} in the group")]
    NoMember(u64),
    /// Added and removed at once.
    #[error("master {0} is to be added and to be removed")]
    Both(u64),
    /// An id belongs to one master for good.
    #[error("there is a master {id} already, {name} at {address}; an id is never given twice")]
    Given {
        /// The id.
        id: u64,
        /// Who has it.
        name: String,
        /// Where that one is.
        address: String,
    },
    /// Two masters would be one.
    #[error("master {other} is {name} at {address} already: remove it first if {id} is to take its place")]
    Taken {
        /// Who is to be added.
        id: u64,
        /// Who has the name or the address.
        other: u64,
        /// Its name.
        name: String,
        /// Its address.
        address: String,
    },
    /// Nobody would be left.
    #[error("a group needs at least one master")]
    NoneLeft,
}

/// Those that are to be added, by their ids.
pub fn to_add(named: impl IntoIterator<Item = (u64, Member)>) -> Result<BTreeMap<u64, Member>, Senseless> {
    let mut add = BTreeMap::new();
    for (id, member) in named {
        if id == 0 || member.name.is_empty() || member.address.is_empty() {
            return Err(Senseless::Incomplete);
        }
        if add.insert(id, member).is_some() {
            return Err(Senseless::Twice(id));
        }
    }
    Ok(add)
}

/// Whether a master that says that `own` is its id can be added under `id`: its log is that of a member with its own one, and calls for another it refuses.
/// 0 where it doesn't say.
pub fn answers_as(id: u64, own: u64) -> Result<(), Senseless> {
    if own == 0 || own == id { Ok(()) } else { Err(Senseless::OtherThere { id, own }) }
}

/// Who votes after a change: refused is one that would give one master two voices, that names somebody who isn't there, or that leaves nobody.
pub fn voters_after(
    known: &BTreeMap<u64, Member>,
    voters: &BTreeSet<u64>,
    add: &BTreeMap<u64, Member>,
    remove: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>, Senseless> {
    // Where something is added, too, it may be done already: the same change, asked for again.
    if let Some(id) = remove.iter().find(|id| add.is_empty() && !known.contains_key(id)) {
        return Err(Senseless::NoMember(*id));
    }
    if let Some(id) = remove.iter().find(|id| add.contains_key(id)) {
        return Err(Senseless::Both(*id));
    }
    for (id, member) in add {
        if let Some(old) = known.get(id).filter(|old| *old != member) {
            let (name, address) = (old.name.clone(), old.address.clone());
            return Err(Senseless::Given { id: *id, name, address });
        }
        let others = known.iter().chain(add).filter(|(other, _)| *other != id && !remove.contains(other));
        for (other, there) in others {
            if there.address == member.address || there.name == member.name {
                let (name, address) = (there.name.clone(), there.address.clone());
                return Err(Senseless::Taken { id: *id, other: *other, name, address });
            }
        }
    }
    let mut after: BTreeSet<u64> = voters.difference(remove).copied().collect();
    after.extend(add.keys());
    if after.is_empty() { Err(Senseless::NoneLeft) } else { Ok(after) }
}

/// How many of these voters may be lost besides those that aren't up, whichever they are; none where a majority isn't up now.
pub fn spare(voters: &BTreeSet<u64>, is_up: impl Fn(u64) -> bool) -> Option<usize> {
    let up = voters.iter().filter(|id| is_up(**id)).count();
    up.checked_sub(voters.len() / 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        Member { name: format!("m{id}"), address: format!("h{id}:1"), zone: "z".into() }
    }

    fn of(ids: &[u64]) -> BTreeMap<u64, Member> {
        ids.iter().map(|id| (*id, member(*id))).collect()
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (known, voters) = (of(&[1, 2, 3]), set(&[1, 2, 3]));
        let after = |add: &BTreeMap<u64, Member>, remove: &[u64]| {
            voters_after(&known, &voters, add, &set(remove)).map_err(|why| why.to_string())
        };
        assert_eq!(after(&of(&[4]), &[2]), Ok(set(&[1, 3, 4])));
        assert_eq!(after(&of(&[3]), &[]), Ok(voters.clone()), "it is one already");
        assert_eq!(after(&of(&[4]), &[9]), Ok(set(&[1, 2, 3, 4])), "done already");
        let none = BTreeMap::new();
        assert_eq!(after(&none, &[9]), Err("there is no master 9 in the group".into()));
        assert_eq!(after(&none, &[1, 2, 3]), Err("a group needs at least one master".into()));
        assert_eq!(after(&of(&[4]), &[4]), Err("master 4 is to be added and to be removed".into()));
        let again = BTreeMap::from([(3, Member { zone: "other".into(), ..member(3) })]);
        assert!(after(&again, &[]).unwrap_err().contains("m3 at h3:1; an id is never given twice"));
        let at_its_address = BTreeMap::from([(4, Member { address: "h2:1".into(), ..member(4) })]);
        assert!(after(&at_its_address, &[]).unwrap_err().contains("master 2 is m2 at h2:1 already"));
        assert_eq!(after(&at_its_address, &[2]), Ok(set(&[1, 3, 4])), "it takes its place");
    }

    #[test]
    fn who_is_to_be_added_has_an_id_of_its_own() {
        assert_eq!(to_add(of(&[4, 5])), Ok(of(&[4, 5])));
        let nameless = Member { name: String::new(), ..member(4) };
        let nowhere = Member { address: String::new(), ..member(4) };
        for wrong in [(0, member(4)), (4, nameless), (4, nowhere)] {
            assert_eq!(to_add([wrong.clone()]), Err(Senseless::Incomplete), "{wrong:?}");
        }
        assert_eq!(to_add([(4, member(4)), (4, member(5))]), Err(Senseless::Twice(4)));
        assert_eq!((answers_as(4, 4), answers_as(4, 0)), (Ok(()), Ok(())));
        let other = answers_as(4, 5).unwrap_err().to_string();
        assert_eq!(other, "the master there has the id 5, and not 4");
    }

    #[test]
    fn who_may_be_lost_depends_on_who_is_up() {
        for (voters, down, left) in [
            (&[1][..], &[][..], Some(0)),
            (&[1, 2], &[], Some(0)),
            (&[1, 2, 3], &[], Some(1)),
            (&[1, 2, 3], &[2], Some(0)),
            (&[1, 2, 3], &[2, 3], None),
            (&[1, 2, 3, 4], &[], Some(1)),
            (&[1, 2, 3, 4, 5], &[], Some(2)),
        ] {
            assert_eq!(spare(&set(voters), |id| !down.contains(&id)), left, "{voters:?} without {down:?}");
        }
    }
}
