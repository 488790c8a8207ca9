//! `mooseng volume verify`: whether a region has of a volume what its home has, records and bytes.

use mooseng_wire::admin::{ChunkDifference, VerifyDataReply, VerifyDataRequest, VerifyVolumeReply};
use serde_json::{Value, json};

use super::Named;
use crate::admin;
use crate::args::{Format, VolumeVerify};
use crate::config::ClientFile;
use crate::exit::Failure;
use crate::output;

/// Differing copies that are told one by one.
const TOLD_MAX: usize = 100;

/// Compares and prints.
pub fn run(args: &VolumeVerify) -> Result<(), Failure> {
    let named = Named::parse(&args.volume)?;
    let file = ClientFile::load(&args.config)?;
    let volume = named.number(&file)?;
    let records = admin::block_on(admin::verify_volume(&file, volume))?;
    let data = data(&file, volume, args.read)?;
    match args.output.format {
        Format::Json => output::json(&shape(&records, &data, args.read))?,
        Format::Table => output::text_line(&text(&records, &data, args.read))?,
    }
    let amiss = amiss(&records, &data);
    if amiss.is_empty() { Ok(()) } else { Err(Failure::failed(format!("{}.", amiss.join(", ")))) }
}

/// All pages as one.
fn data(file: &ClientFile, volume: u32, read: bool) -> Result<VerifyDataReply, Failure> {
    let mut all = VerifyDataReply::default();
    let mut after = 0;
    loop {
        let asked = VerifyDataRequest { volume, after, read };
        let page = admin::block_on(admin::verify_data(file, asked))?;
        all.chunks += page.chunks;
        all.copies += page.copies;
        all.bytes += page.bytes;
        all.lacking += page.lacking;
        all.unsettled += page.unsettled;
        if !page.why_unsettled.is_empty() {
            all.why_unsettled = page.why_unsettled;
        }
        all.different.extend(page.different);
        if page.next == 0 {
            return Ok(all);
        }
        after = page.next;
    }
}

/// What keeps the two from being equal, or from being known to be.
fn amiss(records: &VerifyVolumeReply, data: &VerifyDataReply) -> Vec<String> {
    let mut amiss = Vec::new();
    let mut say = |n: u64, what: &str| {
        if n > 0 {
            amiss.push(format!("{n} {what}"));
        }
    };
    say(records.different.len() as u64, "ranges of records differ");
    say(data.different.len() as u64, "copies of chunks differ or can't be read");
    say(data.lacking, "chunks aren't whole there yet");
    say(data.unsettled, "chunks couldn't be compared");
    amiss
}

fn shape(records: &VerifyVolumeReply, data: &VerifyDataReply, read: bool) -> Value {
    let different: Vec<Value> = data
        .different
        .iter()
        .map(|of| json!({ "chunk": of.chunk, "region": of.region, "chunkserver": of.chunkserver, "what": of.what }))
        .collect();
    json!({
        "version": output::VERSION, "home": records.home, "region": records.region, "equal": amiss(records, data).is_empty(),
        "ranges": records.ranges, "records": records.records, "different_ranges": records.different.len(),
        "chunks": data.chunks, "copies": data.copies, "bytes": data.bytes, "read": read, "different_copies": different,
        "lacking_chunks": data.lacking, "unsettled_chunks": data.unsettled,
    })
}

fn text(records: &VerifyVolumeReply, data: &VerifyDataReply, read: bool) -> String {
    let VerifyVolumeReply { home, region, ranges, records: count, different } = records;
    let outcome = match (different.is_empty() && data.different.is_empty(), amiss(records, data).is_empty()) {
        (true, true) => format!("{region} has what {home} has."),
        (true, false) => format!("{region} may not have all that {home} has."),
        (false, _) => format!("{region} doesn't have what {home} has."),
    };
    let how = if read { "each byte read" } else { "by the checksums beside their bytes" };
    let mut lines = vec![
        outcome,
        format!(
            "Compared {count} records in {ranges} ranges, each at one place of the volume's log: {} differ.",
            different.len()
        ),
        format!(
            "Compared {} copies of {} chunks of {} bytes, {how}: {} differ or can't be read.",
            data.copies,
            data.chunks,
            data.bytes,
            data.different.len()
        ),
    ];
    let told = data.different.iter().take(TOLD_MAX).map(|of| {
        let ChunkDifference { chunk, region, chunkserver, what } = of;
        format!("  chunk {chunk} on {chunkserver} in {region}: {what}")
    });
    lines.extend(told);
    if data.lacking > 0 {
        lines.push(format!("{} chunks aren't whole in {region} yet.", data.lacking));
    }
    if data.unsettled > 0 {
        lines.push(format!("{} chunks couldn't be compared: {}.", data.unsettled, data.why_unsettled));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_amiss_is_said_and_fails() {
        let equal =
            VerifyVolumeReply { home: "a".into(), region: "b".into(), ..VerifyVolumeReply::default() };
        let data = VerifyDataReply { chunks: 2, copies: 8, bytes: 5, ..VerifyDataReply::default() };
        assert!(text(&equal, &data, true).starts_with("b has what a has.\n"));
        assert_eq!(shape(&equal, &data, true)["equal"], true);

        let lacking = VerifyDataReply { lacking: 1, ..data.clone() };
        let unsettled = VerifyDataReply { unsettled: 1, why_unsettled: "it is gone".into(), ..data.clone() };
        for (data, said) in [
            (lacking, "1 chunks aren't whole in b yet."),
            (unsettled, "1 chunks couldn't be compared: it is gone."),
        ] {
            let text = text(&equal, &data, false);
            assert!(text.contains(said) && text.starts_with("b may not have"), "{text}");
            assert_eq!(shape(&equal, &data, false)["equal"], false);
        }

        let what = "a block doesn't match its checksum".to_owned();
        let one = ChunkDifference { chunk: 7, region: "b".into(), chunkserver: "cs-1".into(), what };
        let differs = VerifyDataReply { different: vec![one], ..data.clone() };
        let text_of = text(&equal, &differs, true);
        assert!(text_of.contains("chunk 7 on cs-1 in b: a block doesn't match"), "{text_of}");
        let ranges = VerifyVolumeReply { different: vec![vec![1].into()], ..equal };
        assert_eq!(amiss(&ranges, &data), ["1 ranges of records differ"]);
        assert!(text(&ranges, &data, true).starts_with("b doesn't have what a has."));
    }
}
