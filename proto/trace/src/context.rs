//! The trace context of a call (W3C), in 25 bytes on framed streams and as the header `traceparent` in gRPC.

use bytes::Bytes;

use crate::recorder;

/// Bytes of a trace context: trace id, parent span id, flags.
pub const TRACE_BYTES: usize = 25;
/// The flag of a trace whose spans are recorded.
const SAMPLED: u8 = 1;

tokio::task_local! {
    /// The W3C trace context of the call that this task works on; it travels with every call made from it.
    pub static TRACE: Bytes;
}

/// The trace context that calls made here carry: empty outside a trace.
pub fn current() -> Bytes {
    TRACE.try_with(Bytes::clone).unwrap_or_default()
}

pub(crate) fn pack(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Bytes {
    let mut bytes = [0u8; TRACE_BYTES];
    bytes[..16].copy_from_slice(&trace);
    bytes[16..24].copy_from_slice(&span);
    bytes[24] = if sampled { SAMPLED } else { 0 };
    Bytes::copy_from_slice(&bytes)
}

/// Trace id and span id; none unless `context` is a whole one.
pub(crate) fn ids(context: &[u8]) -> Option<([u8; 16], [u8; 8])> {
    let context: &[u8; TRACE_BYTES] = context.try_into().ok()?;
    let (trace, rest) = context.split_first_chunk::<16>()?;
    Some((*trace, *rest.first_chunk::<8>()?))
}

fn fresh_id() -> [u8; 16] {
    rand::random::<u128>().max(1).to_be_bytes()
}

pub(crate) fn fresh_span() -> [u8; 8] {
    rand::random::<u64>().max(1).to_be_bytes()
}

/// A context that starts a trace of which nothing is recorded: its id stands in logs.
pub fn fresh() -> Bytes {
    pack(fresh_id(), fresh_span(), false)
}

/// A context that starts an operation's trace, sampled if this process records and its turn has come.
pub(crate) fn begin() -> ([u8; 16], bool) {
    let id = fresh_id();
    (id, recorder::takes(&id))
}

/// A context that starts the trace of an administrative request, which is always sampled. Who sends it records nothing: whoever answers it has
/// the root span, and therefore it names no parent.
pub fn requested() -> Bytes {
    pack(fresh_id(), [0; 8], true)
}

/// Whether the spans of a trace are to be recorded.
pub fn is_sampled(context: &[u8]) -> bool {
    context.len() == TRACE_BYTES && context[TRACE_BYTES - 1] & SAMPLED != 0
}

/// The trace id alone, in hexadecimal digits, as it stands in logs; empty outside a trace.
pub fn id(trace: &[u8]) -> String {
    trace.get(..16).map(|id| id.iter().map(|b| format!("{b:02x}")).collect()).unwrap_or_default()
}

/// Runs `work` within the trace that this task works on, or else within a fresh one.
pub async fn begun<T>(work: impl Future<Output = T>) -> T {
    let now = current();
    TRACE.scope(if now.is_empty() { fresh() } else { now }, work).await
}

/// `work`, to be run by another task, within the trace that this task works on.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    TRACE.scope(current(), work)
}

/// The header's text; none unless `trace` is a whole context.
pub fn to_header(trace: &[u8]) -> Option<String> {
    let (id, rest) = trace.split_at_checked(16)?;
    let (span, flags) = rest.split_at_checked(8)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    (flags.len() == 1).then(|| format!("00-{}-{}-{}", hex(id), hex(span), hex(flags)))
}

/// The context in a header's text; none if it isn't one.
pub fn from_header(text: &str) -> Option<Bytes> {
    let mut parts = text.split('-');
    let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version == "ff" || version.len() != 2 || id.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let digits = format!("{id}{span}{flags}");
    let digit = |b: u8| (b as char).to_digit(16);
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect();
    bytes.map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trace_goes_on_in_a_task_that_carries_it() {
        begun(async {
            let carrying = tokio::spawn(carried(async { current() }));
            let other = tokio::spawn(async { current() });
            assert_eq!(carrying.await.unwrap(), current());
            assert_eq!(other.await.unwrap(), Bytes::new());
        })
        .await;
    }

    #[test]
    fn headers_round_trip_and_others_are_left_out() {
        for trace in [fresh(), requested()] {
            assert_eq!(from_header(&to_header(&trace).unwrap()).unwrap(), trace);
        }
        for bad in ["", "00", "00-xx-yy-zz", "00-é-b7ad6b7169203331-01"] {
            assert_eq!(from_header(bad), None, "{bad}");
        }
        assert_eq!(to_header(b""), None);
        assert_eq!(to_header(&[0; 30]), None);
    }

    #[test]
    fn only_a_whole_context_with_the_flag_is_sampled() {
        assert!(is_sampled(&requested()));
        assert!(!is_sampled(&fresh()));
        for length in [0, 1, 16, 24, 26] {
            assert!(!is_sampled(&vec![0xff; length]), "{length}");
            assert_eq!(ids(&vec![0xff; length]), None);
        }
        // What the flags of a later version of the standard say besides is nothing to us.
        assert!(is_sampled(&[0xff; TRACE_BYTES]));
        assert!(!is_sampled(&[0xfe; TRACE_BYTES]));
    }
}
