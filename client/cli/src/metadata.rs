//! `mooseng metadata`: a region's whole metadata as a file.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mooseng_store::dump::{Header, Totals, verify};
use mooseng_wire::admin::DumpRequest;
use serde_json::json;

use crate::args::{Format, Metadata, MetadataCommand, MetadataDump, MetadataLoad};
use crate::config::ClientFile;
use crate::exit::{Failure, Kind};
use crate::{admin, dev, output};

/// A master that sends nothing for so long is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Does what was asked.
pub fn run(args: Metadata) -> Result<(), Failure> {
    match args.command {
        MetadataCommand::Dump(dump) => write(&dump),
        MetadataCommand::Verify(asked) => show(&asked.file, &checked(&asked.file)?, asked.output.format),
        MetadataCommand::Load(asked) => load(&asked),
    }
}

fn write(args: &MetadataDump) -> Result<(), Failure> {
    let file = ClientFile::load(&args.config)?;
    if args.file.exists() {
        return Err(Failure::usage(format!("{} exists already, and is left as it is.", args.file.display())));
    }
    let part = part_of(&args.file);
    let outcome = admin::block_on(receive(&file, &part)).and_then(|()| {
        let told = checked(&part)?;
        put_in_place(&part, &args.file).map_err(|e| unwritable(&args.file, &e))?;
        Ok(told)
    });
    match outcome {
        Ok(told) => show(&args.file, &told, args.output.format),
        Err(failure) => {
            let _ = std::fs::remove_file(&part);
            Err(failure)
        }
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{} can't be written: {error}.", path.display()))
}

/// The name stands for a whole dump, and outlives a power loss.
fn put_in_place(part: &Path, path: &Path) -> std::io::Result<()> {
    // Never over what somebody else has put there meanwhile.
    std::fs::hard_link(part, path)?;
    std::fs::remove_file(part)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Asks masters one after the other until one dumps: the leader does.
async fn receive(file: &ClientFile, part: &Path) -> Result<(), Failure> {
    let known = admin::status(file).await?.reply.masters;
    let mut addresses = file.masters.clone();
    addresses.sort_by_key(|address| !known.iter().any(|m| m.leader && m.address == *address));
    let mut refusals = Vec::new();
    for address in &addresses {
        match receive_from(file, address, part).await? {
            Ok(()) => return Ok(()),
            Err(status)
                if matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unauthenticated) =>
            {
                let text = format!("{address} refuses: {}.", admin::reason(&status));
                return Err(Failure::new(Kind::Denied, text));
            }
            Err(status) => refusals.push(format!("\n  {address}: {}", admin::reason(&status))),
        }
    }
    Err(Failure::unavailable(format!("No master has dumped the whole store:{}", refusals.concat())))
}

async fn receive_from(
    file: &ClientFile,
    address: &str,
    part: &Path,
) -> Result<Result<(), tonic::Status>, Failure> {
    let mut to = std::fs::File::create(part).map_err(|e| unwritable(part, &e))?;
    let mut client = admin::client(file.network()?, address).await;
    let silent = |_| tonic::Status::unavailable(format!("no word for {} s", SILENCE_MAX.as_secs()));
    let asked = tokio::time::timeout(SILENCE_MAX, client.dump_metadata(DumpRequest {})).await;
    let mut pieces = match asked.map_err(silent).and_then(|answer| answer) {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, pieces.message()).await;
        match next.map_err(silent).and_then(|next| next) {
            Ok(Some(piece)) => to.write_all(&piece.bytes).map_err(|e| unwritable(part, &e))?,
            // Whether that was the end its mark says.
            Ok(None) => break,
            Err(status) => return Ok(Err(status)),
        }
    }
    to.sync_all().map_err(|e| unwritable(part, &e))?;
    Ok(Ok(()))
}

fn checked(path: &Path) -> Result<(Header, Totals), Failure> {
    let file = File::open(path).map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
        Failure::new(kind, format!("{} can't be opened: {e}.", path.display()))
    })?;
    verify(BufReader::new(file)).map_err(|e| Failure::failed(format!("{}: {e}.", path.display())))
}

fn show(path: &Path, (header, totals): &(Header, Totals), format: Format) -> Result<(), Failure> {
    let digest: String = totals.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match format {
        Format::Json => output::json(&json!({
            "version": output::VERSION, "file": path, "cluster": header.cluster, "region": header.region,
            "commit_version": header.version, "term": header.term, "taken_unix_s": header.taken_unix_s,
            "records": totals.pairs, "bytes": totals.bytes, "digest": digest,
        })),
        Format::Table => output::text_line(&format!(
            "{} is whole: region {} of cluster {}, commit version {}, {} records, {}; digest {digest}.",
            path.display(),
            header.region,
            header.cluster,
            header.version,
            totals.pairs,
            output::bytes(totals.bytes)
        )),
    }
}

/// The master's program knows its directory's form.
fn load(args: &MetadataLoad) -> Result<(), Failure> {
    let master = dev::beside("mooseng-master");
    let mut command = Command::new(&master);
    command.arg("--config").arg(&args.master_config).arg("load").arg(&args.file);
    let output = command.output().map_err(|e| Failure::failed(format!("{master} can't be run: {e}.")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if !output.status.success() {
        return Err(Failure::failed(text(&output.stderr)));
    }
    output::text_line(&text(&output.stdout))
}
