//! The check of a whole store, as `mooseng fsck` makes it, over what masters hold: whatever they are in the midst of, nothing in one version of the
//! store contradicts itself.

use mooseng_master::master::Master;
use mooseng_namespace::fsck::{Check, Checked, Kind, Part, compare_totals};

/// Bytes of one page.
const PAGE_BYTES: usize = 1 << 20;

/// Counts everything in a master's applied state. An error names what contradicts itself; none of a master whose disk has failed. Where several regions
/// have the volume, one that has copied it anew keeps locations of chunks that it alone had, or that died meanwhile: `with_places` says whether those count.
pub fn check(master: &Master, with_places: bool) -> Result<Option<Checked>, String> {
    let Ok(mut pin) = master.store.pin() else { return Ok(None) };
    let mut check = Check::new(Part::ALL);
    loop {
        let Ok(page) = pin.page(PAGE_BYTES) else { return Ok(None) };
        if page.is_empty() {
            break;
        }
        // Behind the keys of transactions lies what belongs to the engine.
        let pairs = page.iter().filter(|(key, _)| key.first() != Some(&0xff));
        pairs.for_each(|(key, value)| check.take(key, value));
    }
    let mut outcome = check.finish();
    // Nor are ids given by a counter in the region's store there.
    outcome
        .findings
        .retain(|finding| with_places || !matches!(finding.kind, Kind::ChunkPlace | Kind::IdUngiven));
    outcome.findings.extend(compare_totals(&[outcome.totals]));
    if let Some(first) = outcome.findings.first() {
        return Err(format!(
            "{} of {} is wrong with {:?}: {} ({} findings in all, at version {})",
            first.kind.as_str(),
            master.config.name,
            first.subject,
            first.detail,
            outcome.findings.len(),
            master.store.applied_version().0
        ));
    }
    if !outcome.suspects.is_empty() {
        return Err(format!("names that {:?} know aren't those that entries give them", outcome.suspects));
    }
    Ok(Some(outcome.checked))
}
