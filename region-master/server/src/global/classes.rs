//! What the leader of the global group answers about storage classes: [`rules::leave_class`] says in which steps they go.

use std::collections::BTreeMap;
use std::future::Future;

use mooseng_embedded::EmbeddedTransaction;
use mooseng_global::rules::{self, ClassError, RuleError};
use mooseng_schema::storage_class::{Change, Label, StorageClassRecord};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::{Changed, CreateClass, DeleteClass, LeaveClass, SetClass, StayClass};
use mooseng_wire::{Epoch, VolumeId};

use super::Global;
use super::serve::{refused, transact, volume_id};

/// A refusal, as callers are told.
pub(super) fn code(error: &ClassError) -> ErrorCode {
    match error {
        ClassError::NotThere(_) => ErrorCode::NotFound,
        // Whoever asked goes by what was so before.
        ClassError::Stayed(_) | ClassError::Unconfirmed { .. } => ErrorCode::StaleEpoch,
        ClassError::Exists(_)
        | ClassError::Unfit(_)
        | ClassError::Leaving(_)
        | ClassError::TooMany
        | ClassError::NoIds => ErrorCode::InvalidRequest,
    }
}

fn labels(labels: BTreeMap<String, String>) -> Vec<Label> {
    labels.into_iter().map(|(key, value)| Label { key, value }).collect()
}

impl Global {
    pub(super) async fn create_class(&self, asked: CreateClass) -> Result<Changed, CallError> {
        let CreateClass { name, copies, min_copies, labels: labelled, set_ns } = asked;
        let labels = labels(labelled);
        let class = &StorageClassRecord { name, copies, min_copies, labels, set_ns, leaving: false };
        self.class_of(|tx| async move {
            let made = rules::create_class(&tx, class).await?;
            Ok((tx, made))
        })
        .await
    }

    pub(super) async fn set_class(&self, asked: SetClass) -> Result<Changed, CallError> {
        let SetClass { name, copies, min_copies, labels: labelled, set_ns } = asked;
        let change = &Change { copies, min_copies, labels: labelled.map(|set| labels(set.labels)) };
        let name = &name;
        self.class_of(|tx| async move {
            let set = rules::set_class(&tx, name, change, set_ns).await?;
            Ok((tx, set))
        })
        .await
    }

    pub(super) async fn leave_class(&self, asked: LeaveClass) -> Result<Changed, CallError> {
        let name = &asked.name;
        self.class_of(|tx| async move {
            let left = rules::leave_class(&tx, name).await?;
            Ok((tx, left))
        })
        .await
    }

    pub(super) async fn stay_class(&self, asked: StayClass) -> Result<Changed, CallError> {
        self.version_of(|tx| async move {
            let version = rules::stay_class(&tx, asked.class, asked.since).await?;
            Ok((tx, version))
        })
        .await
    }

    pub(super) async fn delete_class(&self, asked: DeleteClass) -> Result<Changed, CallError> {
        let confirmed = asked.confirmed.iter().map(|of| Ok((volume_id(of.volume)?, Epoch(of.epoch))));
        let confirmed = &confirmed.collect::<Result<BTreeMap<VolumeId, Epoch>, CallError>>()?;
        let (class, since) = (asked.class, asked.since);
        self.version_of(|tx| async move {
            let version = rules::delete_class(&tx, class, since, confirmed).await?;
            Ok((tx, version))
        })
        .await
    }

    async fn class_of<F, Fut>(&self, body: F) -> Result<Changed, CallError>
    where
        F: FnMut(EmbeddedTransaction) -> Fut,
        Fut: Future<Output = Result<(EmbeddedTransaction, (u32, u64)), RuleError>>,
    {
        let (class, version) = transact(&self.store, body).await.map_err(|e| refused(self, e))?;
        Ok(Changed { version, class: Some(class), ..Changed::default() })
    }
}
