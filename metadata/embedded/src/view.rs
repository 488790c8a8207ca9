//! The whole state at one version, read page by page, as often as one likes.

use bytes::Bytes;
use mooseng_store::ReadVersion;

use crate::options::Offload;
use crate::snapshot::VERSION_KEY;
use crate::{BaseError, Embedded, Pin};

/// A picture of all pairs at one version. It holds memory and disk until it is dropped, so whoever has one bounds its time.
pub struct View {
    pin: Option<Pin>,
    version: ReadVersion,
    offload: Offload,
}

fn lost() -> BaseError {
    BaseError::Misuse("a page of a view was lost: the process is ending".into())
}

impl Embedded {
    /// A picture of what is applied now, on a leader or a follower.
    pub async fn view(&self) -> Result<View, BaseError> {
        let (embedded, offload) = (self.clone(), self.inner.options.offload.clone());
        let pin = offload.run(move || embedded.pin()).await.unwrap_or_else(|| Err(lost()))?;
        Ok(View { version: pin.version(), pin: Some(pin), offload })
    }
}

impl View {
    /// The version that it shows.
    pub fn version(&self) -> ReadVersion {
        self.version
    }

    /// The next pairs in the order of keys, about `bytes_max` bytes of them; none behind the last. Given up in between, the view is no more.
    pub async fn page(&mut self, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, BaseError> {
        let mut pin = self.pin.take().ok_or_else(lost)?;
        let job = move || {
            let mut page = pin.page(bytes_max);
            if let Ok(pairs) = &mut page
                && pairs.first().is_some_and(|(key, _)| key == VERSION_KEY)
            {
                pairs.remove(0);
                if pairs.is_empty() {
                    page = pin.page(bytes_max);
                }
            }
            (pin, page)
        };
        let (pin, page) = self.offload.run(job).await.ok_or_else(lost)?;
        self.pin = Some(pin);
        page
    }

    /// Begins again with the first pair.
    pub fn rewind(&mut self) {
        if let Some(pin) = &mut self.pin {
            pin.rewind();
        }
    }
}
