//! How old what is read of a file may be, as an extended attribute. It isn't listed, and can't be set.

use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FsRequest, GetAttr};

use crate::error::FsError;
use crate::read::unexpected;
use crate::region::Region;

/// Its name.
pub(crate) const ATTRIBUTE: &[u8] = b"mooseng.staleness";

/// Its value, in seconds: 0 where the volume's home answers, and ENODATA where the replica doesn't know yet. What is promised counts for nothing: who
/// would answer a read is asked anew.
pub(crate) async fn of(region: &Region, caller: &Caller, inode: u64) -> Result<Bytes, FsError> {
    let op = Op::GetAttr(GetAttr { inode });
    let request = FsRequest { caller: Some(caller.clone()), op: Some(op.clone()) };
    let session = &region.session;
    let near = async {
        session.journal.enter(&op).await;
        session.near.read_aged(&*session.peers, &session.config.masters, &request).await
    };
    let (reply, age) = match tokio::time::timeout(region.patience(), near).await {
        Ok(Some(aged)) => aged,
        Ok(None) => (region.read_at_home(caller, op).await?, Some(Duration::ZERO)),
        Err(_) => {
            let why = "changes that come first aren't told yet";
            return Err(region.unanswered_error("getattr", region.patience(), why));
        }
    };
    match (reply, age) {
        (Reply::Entry(_), Some(age)) => Ok(format!("{:.3}", age.as_secs_f64()).into()),
        (Reply::Entry(_), None) => Err(FsError::Answered(libc::ENODATA)),
        (other, _) => Err(unexpected("getattr", &other)),
    }
}
