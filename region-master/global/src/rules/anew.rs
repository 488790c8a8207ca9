//! A region whose masters lost all of their disks, and were made anew under its name (docs/decisions/0041-regions-made-anew.md).
//!
//! Its masters are founded anew then, and carry another mark. As the home of a volume such a region would show an empty one in the volume's place, and
//! replicas would follow it; as one of a sync set it would be counted on for what it hasn't got. Both are decided where its lease is renewed, which comes
//! before anything else that it may do.

use mooseng_store::{Read, Transaction};

use super::{RuleError, Ruled, changed, put, volumes};
use crate::view::Volume;

/// Whether masters that tell this mark are others than those that told the known one.
pub(super) fn is_anew(known: &[u8], told: &[u8]) -> bool {
    !known.is_empty() && !told.is_empty() && known != told
}

/// What the region had is gone: it is in no sync set any more. Refused as long as it is the home of a volume that another region has, too. Of one that no
/// other has there is nothing to be saved elsewhere: its chunkservers and mounts refuse the new masters by their mark.
pub(super) async fn count_on_no_more(tx: &impl Transaction, name: &str) -> Ruled<()> {
    let volumes = volumes(tx, Read::Conflicting).await?;
    let is_elsewhere = |volume: &Volume| volume.regions.iter().any(|region| region != name);
    if let Some((id, _)) = volumes.iter().find(|(_, of)| of.home == name && is_elsewhere(of)) {
        return Err(RuleError::MadeAnew { region: name.to_owned(), volume: *id });
    }
    let mut any = false;
    for (id, mut volume) in volumes {
        if volume.home != name && volume.sync_set.remove(name) {
            put(tx, id, &volume);
            any = true;
        }
    }
    if any {
        changed(tx).await?;
    }
    Ok(())
}
