//! What is asked for again and again: unanswered recalls, and room where sessions are promised nearly all they may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_region::debts::Debts;
use mooseng_region::promises::Recall;

use super::send;
use crate::master::Master;

/// Unanswered recalls are sent again so often: the connection on which they left may have broken.
const REPEAT_EVERY: Duration = Duration::from_millis(300);
/// A session that has owed an answer for so long isn't renewed any more. What a mount can't send it gives up, and answers, once it has tried for a minute.
const OWED_AT_MOST: Duration = Duration::from_secs(90);
/// Facts taken back at a time from a session that is promised nearly all it may be.
const ROOM_MADE: usize = 256;

/// Repeats unanswered recalls, and makes room where sessions are promised nearly all they may be. Whoever owes an answer for too long isn't waited for any longer
/// than its lease.
pub async fn keep(master: Arc<Master>) {
    let mut debts = Debts::new(OWED_AT_MOST);
    loop {
        tokio::select! {
            () = tokio::time::sleep(REPEAT_EVERY) => {}
            () = master.shutdown.cancelled() => return,
        }
        let by_custody = master.desk(|desk| {
            let mut by_custody: BTreeMap<u64, Vec<Recall>> = BTreeMap::new();
            if !desk.is_serving() {
                return by_custody;
            }
            let mut recalls = desk.promises.make_room(ROOM_MADE);
            let mut oldest = Vec::new();
            for id in desk.promises.debtors() {
                let unanswered = desk.promises.unanswered(id);
                // Nobody asks for what is owed of a volume that isn't served.
                if desk.serving_of(id.volume()).is_some() {
                    oldest.extend(unanswered.first().map(|recall| (id, recall.number)));
                }
                recalls.extend(unanswered);
            }
            let overdue = debts.look(master.clock.boot(), oldest);
            for of in desk.sessions.only_these_owe(overdue) {
                tracing::warn!(
                    session = of.session.0,
                    host = of.host,
                    mount = of.mount_path,
                    "a mount doesn't give up what others wait for: its lease isn't renewed"
                );
            }
            // What a volume's sessions owe that isn't served is asked for once it is again.
            for recall in recalls {
                if let Some(custody) = desk.serving_of(recall.session.volume()) {
                    by_custody.entry(custody).or_default().push(recall);
                }
            }
            by_custody
        });
        for (custody, recalls) in by_custody {
            send(&master, custody, &recalls);
        }
    }
}
