//! Setting counters right, on the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::fsck::{self, Finding};
use mooseng_wire::VolumeId;
use mooseng_wire::call::{CallError, ErrorCode};
use tokio::time::Instant;

use crate::master::Master;
use crate::own::{self, Repeat};

/// What is said of a finding that was repaired.
pub(super) const REPAIRED: &str = "repaired";
/// A session that is gone delays a change by its lease.
const BEYOND_LEASE: Duration = Duration::from_secs(5);

/// Sets it right where that is beyond doubt, in the custody epoch in which its volume is served, and says what became of it. An error where nothing more may be done before everything was counted anew.
pub(super) async fn repair(
    master: &Arc<Master>,
    custody: &BTreeMap<VolumeId, u64>,
    finding: &Finding,
) -> Result<String, CallError> {
    let Some(fix) = finding.fix else { return Ok("not repaired: what is right isn't known".into()) };
    let served = finding.subject.volume().and_then(|volume| custody.get_key_value(&volume));
    let Some((&volume, &term)) = served else {
        return Ok("not repaired: its volume isn't at home here".into());
    };
    let deadline = Instant::now() + master.config.session_lease() + BEYOND_LEASE;
    let done = own::change(master, volume, term, Repeat::Never, deadline, |tx, touched| {
        Box::pin(async move { fsck::repair(tx, &fix, touched).await })
    })
    .await;
    match done {
        Ok(true) => {
            tracing::warn!(kind = finding.kind.as_str(), subject = ?finding.subject, ?fix, "a counter was set right");
            Ok(REPAIRED.to_owned())
        }
        Ok(false) => Ok("not needed any more".into()),
        Err(error) if error.code() == ErrorCode::DeadlineExceeded => Err(error),
        Err(error) => Ok(format!("not repaired: {}", error.message)),
    }
}
