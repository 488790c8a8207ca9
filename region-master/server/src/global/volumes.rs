//! What the leader of the global group answers about volumes that are made and deleted: [`rules::create_volume`] says in which order that is done.

use mooseng_global::rules::{self, Making};
use mooseng_global::{Durability, Place};
use mooseng_store::Store;
use mooseng_wire::InodeId;
use mooseng_wire::call::CallError;
use mooseng_wire::global::{Changed, CreateVolume};

use super::Global;
use super::serve::{refused, transact, volume_id};

impl Global {
    /// Makes a volume that isn't joined yet, or finds out whether it could.
    pub(super) async fn create_volume(
        &self,
        asked: CreateVolume,
        commit: bool,
    ) -> Result<Changed, CallError> {
        let making = &Making {
            place: Place { directory: InodeId(asked.directory), path: asked.path },
            home: asked.home,
            durability: if asked.geo { Durability::Geo } else { Durability::Region },
            regions: asked.regions.into_iter().collect(),
        };
        if !commit {
            // A transaction that isn't committed changes nothing; nor is its number taken.
            let tx = self.store.begin();
            rules::create_volume(&tx, making).await.map_err(|e| refused(self, e))?;
            return Ok(self.unchanged());
        }
        let made = transact(&self.store, |tx| async move {
            let made = rules::create_volume(&tx, making).await?;
            Ok((tx, made))
        });
        let (id, version) = made.await.map_err(|e| refused(self, e))?;
        Ok(Changed { version, volume: Some(id.0.into()), ..Changed::default() })
    }

    pub(super) async fn join_volume(&self, caller: &str, volume: u32) -> Result<Changed, CallError> {
        let id = volume_id(volume)?;
        self.version_of(|tx| async move {
            let version = rules::join_volume(&tx, id, caller).await?;
            Ok((tx, version))
        })
        .await
    }

    /// Begins to delete a volume, or finds out whether it could.
    pub(super) async fn leave_volume(&self, volume: u32, commit: bool) -> Result<Changed, CallError> {
        let id = volume_id(volume)?;
        if !commit {
            let tx = self.store.begin();
            rules::leave_volume(&tx, id).await.map_err(|e| refused(self, e))?;
            return Ok(self.unchanged());
        }
        self.version_of(|tx| async move {
            let version = rules::leave_volume(&tx, id).await?;
            Ok((tx, version))
        })
        .await
    }

    pub(super) async fn delete_volume(&self, caller: &str, volume: u32) -> Result<Changed, CallError> {
        let id = volume_id(volume)?;
        self.version_of(|tx| async move {
            let version = rules::delete_volume(&tx, id, caller).await?;
            Ok((tx, version))
        })
        .await
    }

    fn unchanged(&self) -> Changed {
        Changed { version: self.view().version, ..Changed::default() }
    }
}
