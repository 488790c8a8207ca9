//! `mooseng mount` and `umount`.
//!
//! A mount in the background is a second process: this one starts it, waits on its stdout for one line that says whether the mount
//! works, and reports that. No process forks after it has threads.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mooseng_client::FileSystem;
use mooseng_fuse::{Mount as FuseMount, MountHandle, MountOptions};
use mooseng_ports::clock::OsClock;
use mooseng_transport::observe::{self, LogConfig, LogFormat, Metrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::Mount;
use crate::config::{self, ClientFile};
use crate::exit::{Failure, Kind};
use crate::process::Started;
use crate::runtime::{self, MountRecord};

mod metrics;

/// How long users of a mount that is taken down may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the process in the background may take to mount or to say why not.
const BACKGROUND: Duration = Duration::from_secs(60);

/// What the flags, the environment and the file say together.
struct Request {
    config_path: PathBuf,
    file: ClientFile,
    path: PathBuf,
    options: Options,
}

/// The options behind `-o`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    read_only: bool,
    allow_other: bool,
    no_atime: bool,
    retry_timeout_s: Option<u64>,
}

/// Mounts: in the foreground, or in the background once it works.
pub fn mount(args: Mount) -> Result<(), Failure> {
    if let Some(log) = args.daemon_child.clone() {
        return background_half(&args, &log);
    }
    let request = Request::new(&args)?;
    clear_dead_mount(&request.path)?;
    if args.foreground {
        return serve(request, |path| {
            eprintln!("Mounted on {}; Ctrl-C unmounts.", path.display());
        });
    }
    launch(&args, &request)
}

impl Request {
    fn new(args: &Mount) -> Result<Self, Failure> {
        let found = args.config.clone().or_else(config::installed);
        let found = found.ok_or_else(|| {
            Failure::usage("No configuration was named: give --config FILE, or set MOOSENG_CONFIG.")
        })?;
        let config_path = config::absolute(&found)?;
        let mut file = ClientFile::load(&config_path)?;
        let options = Options::parse(&args.options)?;
        if !args.masters.is_empty() {
            file.masters.clone_from(&args.masters);
        }
        if let Some(seconds) = args.retry_timeout_s.or(options.retry_timeout_s) {
            file.retry_timeout_s = seconds.max(1);
        }
        Ok(Self { config_path, file, path: config::absolute(&args.path)?, options })
    }
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut options = Self::default();
        for word in words.iter().filter(|w| !w.is_empty()) {
            match word.split_once('=').unwrap_or((word, "")) {
                ("ro", _) => options.read_only = true,
                // What a mount does anyway; written in fstab and by habit. Every read is at home in this release, so `session` and
                // `strong` are one, and every write is durable when it returns, which is what `sync` asks for.
                (
                    "rw" | "sync" | "defaults" | "session" | "strong" | "nosuid" | "nodev" | "auto"
                    | "noauto" | "_netdev",
                    _,
                ) => {}
                ("allow_other", _) => options.allow_other = true,
                ("noatime", _) => options.no_atime = true,
                ("relatime", _) => options.no_atime = false,
                ("retry_timeout", seconds) => {
                    let seconds = seconds
                        .parse()
                        .map_err(|_| Failure::usage(format!("-o {word}: seconds are expected.")))?;
                    options.retry_timeout_s = Some(seconds);
                }
                ("bounded", _) => {
                    return Err(Failure::not_built(
                        "reading from another region's replica (`-o bounded=TIME`)",
                    ));
                }
                (unknown, _) => {
                    let known = [
                        "ro",
                        "rw",
                        "allow_other",
                        "noatime",
                        "relatime",
                        "retry_timeout",
                        "strong",
                        "session",
                    ];
                    let hint = crate::suggest::nearest(unknown, known);
                    let hint = hint.map(|k| format!(" Did you mean {k}?")).unwrap_or_default();
                    return Err(Failure::usage(format!("There is no mount option {unknown:?}.{hint}")));
                }
            }
        }
        Ok(options)
    }
}

/// Starts the process in the background and waits for its word.
fn launch(args: &Mount, request: &Request) -> Result<(), Failure> {
    let log_dir = match &request.file.log_dir {
        Some(dir) => dir.clone(),
        None => runtime::dir(),
    };
    let fail = |what: &str, e: std::io::Error| Failure::failed(format!("{what}: {e}."));
    if request.file.log_dir.is_none() {
        runtime::make_dir(&log_dir).map_err(|e| fail("The runtime directory can't be made", e))?;
    } else {
        std::fs::create_dir_all(&log_dir).map_err(|e| fail("log_dir can't be made", e))?;
    }
    let log_path = log_dir.join(format!("mount-{}.log", runtime::escape(&request.path)));
    let log = std::fs::File::options().create(true).append(true).open(&log_path);
    let log = log.map_err(|e| fail(&format!("The log {} can't be opened", log_path.display()), e))?;
    let mut command = Command::new(crate::dev::own_binary());
    command
        .arg("mount")
        .arg("--config")
        .arg(&request.config_path)
        .arg(&request.path)
        .arg("--daemon-child")
        .arg(&log_path);
    command.arg("--retry-timeout-s").arg(request.file.retry_timeout_s.to_string());
    command.arg("--masters").arg(request.file.masters.join(","));
    if !args.options.is_empty() {
        command.arg("-o").arg(args.options.join(","));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    let mut child = command.spawn().map_err(|e| fail("The mount's process can't be started", e))?;
    let word = wait_for_word(&mut child);
    match word.split_once(' ').unwrap_or((word.as_str(), "")) {
        ("ok", _) => {
            // Through the kernel, as an application would.
            let looked = std::fs::metadata(&request.path);
            looked.map_err(|e| {
                fail(&format!("{} is mounted, but doesn't answer", request.path.display()), e)
            })?;
            eprintln!(
                "Mounted on {} (pid {}); log {}.",
                request.path.display(),
                child.id(),
                log_path.display()
            );
            Ok(())
        }
        ("failed", rest) => {
            let _ = child.wait();
            let (code, text) = rest.split_once(' ').unwrap_or(("1", rest));
            let kinds = [Kind::Usage, Kind::NotFound, Kind::Denied, Kind::Unavailable, Kind::OutcomeUnknown];
            let kind = kinds
                .into_iter()
                .find(|k| Failure::new(*k, "").exit_code().to_string() == code)
                .unwrap_or(Kind::Failed);
            Err(Failure::new(kind, text.trim_end()))
        }
        _ => {
            let _ = child.kill();
            let _ = child.wait();
            Err(Failure::failed(format!(
                "The mount's process ended without a word; its log {} may say why.",
                log_path.display()
            )))
        }
    }
}

/// What the process in the background writes before it closes its stdout; nothing if it takes too long.
fn wait_for_word(child: &mut std::process::Child) -> String {
    let Some(mut pipe) = child.stdout.take() else { return String::new() };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut word = String::new();
        let _ = pipe.by_ref().take(64 << 10).read_to_string(&mut word);
        let _ = sender.send(word);
    });
    receiver.recv_timeout(BACKGROUND).unwrap_or_default().trim_end().to_owned()
}

/// The process in the background.
fn background_half(args: &Mount, log: &Path) -> Result<(), Failure> {
    // Before there is any thread: a session of its own, so that the terminal's signals stay away.
    nix::unistd::setsid()
        .map_err(|e| Failure::failed(format!("A session of its own can't be made: {e}.")))?;
    tracing::debug!(log = %log.display(), "in the background");
    let outcome = Request::new(args).and_then(|request| {
        serve(request, |_| {
            let _ = std::io::stdout().write_all(b"ok\n");
            close_stdout();
        })
    });
    if let Err(failure) = &outcome {
        let _ = writeln!(std::io::stdout(), "failed {} {failure}", failure.exit_code());
    }
    outcome
}

/// Ends the pipe that the parent waits on.
fn close_stdout() {
    let _ = std::io::stdout().flush();
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

/// Mounts and serves until it is unmounted or told to end. `mounted` is called once it works.
fn serve(request: Request, mounted: impl FnOnce(&Path)) -> Result<(), Failure> {
    let format = if request.file.log_json && !std::io::stderr().is_terminal() {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let log = LogConfig { format, filter: std::env::var("MOOSENG_LOG").ok(), ..LogConfig::default() };
    observe::init_logging(&log).map_err(|e| Failure::failed(format!("{e}.")))?;
    let tokio = mooseng_transport::daemon_runtime();
    let tokio = tokio.map_err(|e| Failure::failed(format!("The runtime can't be started: {e}.")))?;
    let outcome = tokio.block_on(run(request, mounted, tokio.handle().clone()));
    tokio.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(
    request: Request,
    mounted: impl FnOnce(&Path),
    tokio: tokio::runtime::Handle,
) -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::failed(format!("Signals can't be listened to: {e}.")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut client = request.file.client_config(&request.path);
    client.atime = !request.options.no_atime && !request.options.read_only;
    let fs = tokio::select! {
        fs = FileSystem::connect(client, request.file.network()?, Arc::new(OsClock)) => fs?,
        _ = terminate.recv() => return Err(Failure::failed("Told to end before the mount worked.")),
        _ = interrupt.recv() => return Err(Failure::failed("Told to end before the mount worked.")),
    };
    let shutdown = CancellationToken::new();
    let http = serve_health(&request.file, &fs, &shutdown).await?;
    let handle = mount_fuse(&request, fs.clone(), tokio).await?;
    let Some(process) = Started::myself() else {
        return Err(Failure::failed("This process isn't in /proc."));
    };
    let record = MountRecord {
        version: 1,
        path: handle.path().to_owned(),
        config: request.config_path.clone(),
        region: request.file.region.clone(),
        process,
        http,
    };
    if let Err(error) = runtime::write(&record) {
        tracing::warn!(%error, "the mount's record can't be written: `mooseng info` will need --config");
    }
    tracing::info!(path = %record.path.display(), region = record.region, "mounted");
    mounted(&record.path);
    let ended = tokio::select! {
        ended = handle.wait() => ended,
        _ = terminate.recv() => leave(&handle).await,
        _ = interrupt.recv() => leave(&handle).await,
    };
    fs.close().await;
    shutdown.cancel();
    runtime::remove(&record.path, process);
    tracing::info!(path = %record.path.display(), "unmounted");
    ended.map_err(|e| Failure::failed(format!("{e}.")))
}

async fn mount_fuse(
    request: &Request,
    fs: FileSystem,
    tokio: tokio::runtime::Handle,
) -> Result<MountHandle, Failure> {
    let options = MountOptions {
        source: format!("{}/{}", request.file.cluster, request.file.region),
        // Others only where whoever mounts may allow it: root, or a user whom fuse.conf lets.
        allow_other: request.options.allow_other || rustix::process::geteuid().is_root(),
        // What the region refuses anyway the kernel refuses earlier.
        read_only: request.options.read_only || fs.is_read_only(),
        ..MountOptions::default()
    };
    let path = request.path.clone();
    let made = tokio::task::spawn_blocking(move || FuseMount::mount(fs, &path, options, tokio)).await;
    made.map_err(|e| Failure::failed(format!("The mount failed inside: {e}.")))?
        .map_err(|e| Failure::failed(format!("{e}.")))
}

async fn serve_health(
    file: &ClientFile,
    fs: &FileSystem,
    shutdown: &CancellationToken,
) -> Result<Option<String>, Failure> {
    let Some(address) = &file.http_listen else { return Ok(None) };
    let metrics = Metrics::default();
    metrics::register(&metrics, fs.clone());
    let fs = fs.clone();
    let local = observe::serve_http(address, metrics, Arc::new(move || fs.ready()), shutdown.clone()).await;
    let local = local.map_err(|e| {
        Failure::failed(format!("Metrics and health can't be served on http_listen = {address:?}: {e}."))
    })?;
    Ok(Some(local.to_string()))
}

/// Takes the mount off the tree, gives its users a moment, and ends it.
async fn leave(handle: &MountHandle) -> Result<(), mooseng_fuse::MountError> {
    tracing::info!("told to end");
    handle.unmount()?;
    match tokio::time::timeout(LEAVE, handle.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::info!("somebody still uses the mount: it ends under them");
            handle.abort()?;
            match tokio::time::timeout(LEAVE, handle.wait()).await {
                Ok(ended) => ended,
                Err(_) => Ok(()),
            }
        }
    }
}

/// A killed process leaves its mount behind, and every access to it fails: that is taken away before another is made.
fn clear_dead_mount(path: &Path) -> Result<(), Failure> {
    let served = runtime::live().iter().any(|r| r.path == path);
    let dead = || std::fs::metadata(path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN));
    if !served && runtime::is_mounted(path) && dead() {
        eprintln!("The mount on {} has lost its process and is taken away.", path.display());
        detach(path)?;
    }
    Ok(())
}

/// Takes every mount of ours off that path, whoever uses it.
pub fn detach(path: &Path) -> Result<(), Failure> {
    while runtime::is_mounted(path) {
        mooseng_fuse::unmount(path, true).map_err(|e| Failure::failed(format!("{e}.")))?;
    }
    Ok(())
}

/// `mooseng umount`: returns once the process that served it is gone.
pub fn umount(path: &Path, lazy: bool) -> Result<(), Failure> {
    let path = config::absolute(path)?;
    let process = runtime::live().into_iter().find(|r| r.path == path).map(|r| r.process);
    mooseng_fuse::unmount(&path, lazy).map_err(|e| {
        let kind =
            if matches!(e, mooseng_fuse::MountError::NotMounted(_)) { Kind::NotFound } else { Kind::Failed };
        Failure::new(kind, format!("{e}."))
    })?;
    match process {
        Some(process) if !lazy && !process.wait_gone(Duration::from_secs(15)) => {
            Err(Failure::failed(format!(
                "{} is unmounted, but its process {} hasn't ended: the region may not answer.",
                path.display(),
                process.pid
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failure> {
        Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_understood() {
        let options = parse("ro,noatime,retry_timeout=5,rw").unwrap();
        assert_eq!(
            options,
            Options { read_only: true, no_atime: true, retry_timeout_s: Some(5), allow_other: false }
        );
        assert!(parse("readonly").unwrap_err().exit_code() == 2);
        assert!(parse("noatme").unwrap_err().to_string().contains("noatime"));
        let not_built = parse("bounded=5s").unwrap_err();
        assert_eq!(not_built.exit_code(), 1);
        assert!(not_built.to_string().starts_with("NotBuilt"));
    }

    #[test]
    fn what_is_not_mounted_can_not_be_unmounted() {
        assert_eq!(umount(Path::new("/nonexistent/mount"), false).unwrap_err().exit_code(), 3);
    }
}
