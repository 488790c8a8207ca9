//! `mooseng mount` and `umount`.
//!
//! A mount in the background is a second process: this one starts it, waits on its stdout for one line that says whether the mount
//! works, and reports that. That process, or this one in the foreground, is a supervisor ([`supervisor`]): a third process serves the mount, and
//! is started again when it dies. No process forks after it has threads.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mooseng_client::{FileSystem, Tree};
use mooseng_fuse::{Mount as FuseMount, MountHandle, MountOptions};
use mooseng_otlp::{Otlp, OtlpConfig, Who};
use mooseng_ports::clock::OsClock;
use mooseng_transport::observe::{self, LogConfig, LogFormat, Metrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Mount, Worker};
use crate::config::{self, ClientFile};
use crate::exit::{Failure, Kind};
use crate::process::Started;
use crate::runtime::{self, MountRecord};
use crate::{logs, output};

pub mod helper;
mod live;
mod metrics;
mod options;
mod supervisor;
mod word;

use options::{Options, Unknown};
use supervisor::Supervisor;
use word::{Serving, Word};

/// How long users of a mount that is taken down may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the process in the background may take to mount or to say why not.
const BACKGROUND: Duration = supervisor::START.saturating_add(Duration::from_secs(5));

/// What the flags, the environment and the file say together.
struct Request {
    config_path: PathBuf,
    file: ClientFile,
    path: PathBuf,
    options: Options,
    /// What the table of mounts shows.
    source: String,
    /// A dead mount of ours is there, to be replaced: its session and incarnation.
    again: Option<(u64, u64)>,
}

/// Mounts: in the foreground, or in the background once it works.
pub fn mount(args: Mount) -> Result<(), Failure> {
    if args.worker.is_some() {
        return worker(&args);
    }
    if let Some(log) = args.daemon_child.clone() {
        return background_half(&args, &log);
    }
    let request = Request::new(&args)?;
    make_way(&request.path)?;
    if !args.foreground {
        return launch(&args, &request);
    }
    let path = request.path.clone();
    let mounted = move |_| eprintln!("Mounted on {}; Ctrl-C unmounts.", path.display());
    if args.unsupervised { serve(request, mounted) } else { supervise(&args, request, mounted) }
}

/// What a mount would be refused for before anybody is asked: `mount -f`.
pub fn check(args: &Mount) -> Result<(), Failure> {
    let request = Request::new(args)?;
    match std::fs::metadata(&request.path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::usage(format!("{} isn't a directory.", request.path.display()))),
        Err(e) => Err(Failure::not_found(format!("{} can't be mounted on: {e}.", request.path.display()))),
    }
}

/// The path as the kernel's table of mounts has it, without symlinks, also where a dead mount is at its end.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = std::fs::canonicalize(path) {
        return real;
    }
    let parent = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn numbers(text: &str) -> Option<(u64, u64)> {
    let (session, incarnation) = text.split_once(':')?;
    Some((session.parse().ok()?, incarnation.parse().ok()?))
}

impl Request {
    fn new(args: &Mount) -> Result<Self, Failure> {
        let found = args.config.clone().or_else(config::installed);
        let found = found.ok_or_else(|| {
            Failure::usage("No configuration was named: give --config FILE, or set MOOSENG_CONFIG.")
        })?;
        let config_path = config::absolute(&found)?;
        let mut file = ClientFile::load(&config_path)?;
        // Before anything is mounted.
        file.otlp
            .as_ref()
            .map_or(Ok(()), OtlpConfig::check_files)
            .map_err(|e| Failure::usage(format!("{e}.")))?;
        let unknown = if args.sloppy { Unknown::Ignore } else { Unknown::Refuse };
        let options = Options::parse(&args.options, unknown)?;
        if !args.masters.is_empty() {
            file.masters.clone_from(&args.masters);
        }
        if let Some(seconds) = args.retry_timeout_s.or(options.retry_timeout_s) {
            file.retry_timeout_s = seconds;
        }
        let path = real(&config::absolute(&args.path)?);
        let source = args.source.clone().unwrap_or_else(|| format!("{}/{}", file.cluster, file.region));
        let again = args.worker.filter(|worker| *worker == Worker::Again);
        let again = again.map(|_| args.after.as_deref().and_then(numbers).unwrap_or_default());
        Ok(Self { config_path, file, path, options, source, again })
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
    let log = logs::open(&log_path)
        .map_err(|e| fail(&format!("The log {} can't be opened", log_path.display()), e))?;
    let mut command = same_mount(args, request);
    command.arg("--daemon-child").arg(&log_path);
    if args.unsupervised {
        command.arg("--unsupervised");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    let mut child = command.spawn().map_err(|e| fail("The mount's process can't be started", e))?;
    match wait_for_word(&mut child) {
        Word::Mounted(Serving { pid, .. }) => {
            // Through the kernel, as an application would.
            let looked = std::fs::metadata(&request.path);
            looked.map_err(|e| {
                fail(&format!("{} is mounted, but doesn't answer", request.path.display()), e)
            })?;
            eprintln!("Mounted on {} (pid {pid}); log {}.", request.path.display(), log_path.display());
            Ok(())
        }
        Word::Failed(failure) => {
            let _ = child.wait();
            Err(failure)
        }
        Word::None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(Failure::failed(format!(
                "The mount's process ended without a word; its log {} may say why.",
                log_path.display()
            )))
        }
    }
}

/// This program with what makes another process mount the same.
fn same_mount(args: &Mount, request: &Request) -> Command {
    let mut command = Command::new(crate::dev::own_binary());
    command.arg("mount").arg("--config").arg(&request.config_path).arg(&request.path);
    command.arg("--retry-timeout-s").arg(request.file.retry_timeout_s.to_string());
    command.arg("--masters").arg(request.file.masters.join(","));
    command.arg("--source").arg(&request.source);
    if !args.options.is_empty() {
        command.arg("-o").arg(args.options.join(","));
    }
    if args.sloppy {
        command.arg("--sloppy");
    }
    command
}

/// What the process in the background says; nothing if it takes too long.
fn wait_for_word(child: &mut std::process::Child) -> Word {
    let Some(mut pipe) = child.stdout.take() else { return Word::None };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(Word::hear(&mut pipe)));
    receiver.recv_timeout(BACKGROUND).unwrap_or(Word::None)
}

/// The process in the background.
fn background_half(args: &Mount, log: &Path) -> Result<(), Failure> {
    // Before there is any thread: a session of its own, so that the terminal's signals stay away.
    nix::unistd::setsid()
        .map_err(|e| Failure::failed(format!("A session of its own can't be made: {e}.")))?;
    tracing::debug!(log = %log.display(), "in the background");
    saying(|| {
        let request = Request::new(args)?;
        let mounted = |serving| Word::Mounted(serving).tell();
        if args.unsupervised { serve(request, mounted) } else { supervise(args, request, mounted) }
    })
}

/// The process that serves a supervised mount.
fn worker(args: &Mount) -> Result<(), Failure> {
    saying(|| serve(Request::new(args)?, |serving| Word::Mounted(serving).tell()))
}

/// Somebody waits for a word: if it is no good one, it is the failure.
fn saying(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    work().map_err(|failure| {
        let again = Failure::new(failure.kind(), failure.to_string());
        Word::Failed(failure).tell();
        again
    })
}

/// Starts the process that serves, and starts it again when it dies.
fn supervise(args: &Mount, request: Request, mounted: impl FnOnce(Serving)) -> Result<(), Failure> {
    log_to_stderr(&request.file)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio = tokio.map_err(|e| Failure::failed(format!("The runtime can't be started: {e}.")))?;
    tokio.block_on(async {
        let supervisor = Supervisor::new(request.path.clone(), args.daemon_child.clone())?;
        let worker = |dead: Option<Serving>| {
            let mut command = same_mount(args, &request);
            match dead {
                None => command.args(["--worker", "first"]),
                Some(dead) => command
                    .args(["--worker", "again", "--after"])
                    .arg(format!("{}:{}", dead.session, dead.incarnation)),
            };
            command
        };
        supervisor.keep(worker, mounted).await
    })
}

fn log_to_stderr(file: &ClientFile) -> Result<(), Failure> {
    let json = file.log_json && !std::io::stderr().is_terminal();
    let format = if json { LogFormat::Json } else { LogFormat::Text };
    let log = LogConfig { format, filter: std::env::var("MOOSENG_LOG").ok(), ..LogConfig::default() };
    observe::init_logging(&log).map_err(|e| Failure::failed(format!("{e}.")))
}

/// Mounts and serves until it is unmounted or told to end. `mounted` is called with this process's id once it works.
fn serve(request: Request, mounted: impl FnOnce(Serving)) -> Result<(), Failure> {
    log_to_stderr(&request.file)?;
    let tokio = mooseng_transport::daemon_runtime();
    let tokio = tokio.map_err(|e| Failure::failed(format!("The runtime can't be started: {e}.")))?;
    let outcome = tokio.block_on(run(request, mounted, tokio.handle().clone()));
    tokio.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(
    request: Request,
    mounted: impl FnOnce(Serving),
    tokio: tokio::runtime::Handle,
) -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::failed(format!("Signals can't be listened to: {e}.")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut client = request.file.client_config(&request.path);
    client.atime = !request.options.no_atime && !request.options.read_only;
    client.strong = request.options.strong;
    client.sync = request.options.sync;
    client.dirsync = request.options.dirsync;
    let fs = tokio::select! {
        fs = FileSystem::connect(client, request.file.network()?, Arc::new(OsClock)) => fs?,
        _ = terminate.recv() => return Err(Failure::failed("Told to end before the mount worked.")),
        _ = interrupt.recv() => return Err(Failure::failed("Told to end before the mount worked.")),
    };
    let shutdown = CancellationToken::new();
    let metrics = Metrics::default();
    // Other volumes are entered where a lookup crosses into them, under the same settings.
    let tree = Tree::from(fs.clone());
    metrics::register(&metrics, tree.clone());
    let http = serve_health(&request.file, &fs, &metrics, &shutdown).await?;
    let otlp = start_otlp(&request, &metrics)?;
    if let Some((session, incarnation)) = request.again {
        // Its process is gone: what it was promised, and its locks, keep nobody waiting.
        fs.end_session_of_dead(session, incarnation).await;
    }
    // In the place of a dead mount as late as can be: until now what is below the path said that it isn't connected, and nobody wrote to the directory under it.
    let Some(handle) = mount_fuse(&request, tree.clone(), tokio).await? else {
        tracing::info!(path = %request.path.display(), "the dead mount was taken away, and isn't made again");
        tree.close().await;
        return Ok(());
    };
    metrics::register_operations(&metrics, handle.operations());
    let Some(process) = Started::myself() else {
        return Err(Failure::failed("This process isn't in /proc."));
    };
    if let Err(error) = live::serve(handle.operations(), process, shutdown.clone()) {
        tracing::warn!(%error, "what is under way can't be told: `mooseng top` and `mooseng profile` will show counts alone");
    }
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
    supervisor::tell_manager("READY=1");
    let status = fs.status();
    mounted(Serving { pid: std::process::id(), session: status.session, incarnation: status.incarnation });
    let ended = tokio::select! {
        ended = handle.wait() => ended,
        _ = terminate.recv() => leave(&handle).await,
        _ = interrupt.recv() => leave(&handle).await,
    };
    tree.close().await;
    if let Some(otlp) = otlp {
        otlp.stop().await;
    }
    shutdown.cancel();
    runtime::remove(&record.path, process);
    tracing::info!(path = %record.path.display(), "unmounted");
    ended.map_err(|e| Failure::failed(format!("{e}.")))
}

/// Mounts. None where it was to be in the place of a dead mount that is there no more: somebody else took it away, and meant it.
async fn mount_fuse(
    request: &Request,
    tree: Tree,
    tokio: tokio::runtime::Handle,
) -> Result<Option<MountHandle>, Failure> {
    let options = MountOptions {
        source: request.source.clone(),
        // Others only where whoever mounts may allow it: root, or a user whom fuse.conf lets.
        allow_other: request.options.allow_other || rustix::process::geteuid().is_root(),
        // What the region refuses anyway the kernel refuses earlier.
        read_only: request.options.read_only || tree.root().is_read_only(),
        suid: request.options.suid,
        dev: request.options.dev,
        exec: !request.options.no_exec,
        ..MountOptions::default()
    };
    let (path, again) = (request.path.clone(), request.again.is_some());
    let made = tokio::task::spawn_blocking(move || match again {
        false => FuseMount::mount(tree, &path, options, tokio).map(Some),
        true if !supervisor::is_dead_now(&path) => Ok(None),
        true => match FuseMount::mount_again(tree, &path, options, tokio) {
            Err(mooseng_fuse::MountError::NotMounted(_)) => Ok(None),
            made => made.map(Some),
        },
    });
    let made = made.await.map_err(|e| Failure::failed(format!("The mount failed inside: {e}.")))?;
    made.map_err(|e| Failure::failed(format!("{e}.")))
}

fn start_otlp(request: &Request, metrics: &Metrics) -> Result<Option<Otlp>, Failure> {
    let file = &request.file;
    let Some(config) = &file.otlp else { return Ok(None) };
    let who = Who {
        service: "mooseng-mount",
        // A host may have several.
        instance: format!("{}:{}", file.name, request.path.display()),
        cluster: file.cluster.clone(),
        region: file.region.clone(),
    };
    Otlp::start(config, &who, metrics).map(Some).map_err(|e| Failure::usage(format!("{e}.")))
}

async fn serve_health(
    file: &ClientFile,
    fs: &FileSystem,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<Option<String>, Failure> {
    let Some(address) = &file.http_listen else { return Ok(None) };
    let fs = fs.clone();
    let local =
        observe::serve_http(address, metrics.clone(), Arc::new(move || fs.ready()), shutdown.clone()).await;
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

/// A killed process leaves its mount behind, and every access to it fails: that is taken away before another is made. One that lives stays, and no other is made above
/// it: that would hide it from commands, and from umount, without ending it.
fn make_way(path: &Path) -> Result<(), Failure> {
    let serving = runtime::live().into_iter().find(|r| r.path == path);
    if serving.is_none() && supervisor::is_dead_now(path) {
        eprintln!("The mount on {} has lost its process and is taken away.", path.display());
        return detach(path);
    }
    is_free(path, runtime::is_mounted(path), serving.as_ref())
}

/// Refuses a path on which a mount of ours lives.
fn is_free(path: &Path, is_mounted: bool, serving: Option<&MountRecord>) -> Result<(), Failure> {
    if !is_mounted {
        return Ok(());
    }
    let config = serving.map(|r| format!(" (configuration {})", r.config.display())).unwrap_or_default();
    Err(Failure::failed(format!(
        "A MooseNG filesystem is mounted on {} already{config}: `mooseng umount {}` it first.",
        path.display(),
        output::shell_quote(path)
    )))
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

    #[test]
    fn a_mount_is_known_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", base.join("link")).unwrap();
        assert_eq!(real(&base.join("link/b")), base.join("a/b"));
        assert_eq!(real(&base.join("link/gone")), base.join("a/gone"));
        assert_eq!(real(Path::new("/nonexistent/x/y")), Path::new("/nonexistent/x/y"));
    }

    #[test]
    fn nothing_is_mounted_above_a_living_mount() {
        let path = Path::new("/mnt/a b");
        let record = MountRecord {
            version: 1,
            path: path.to_owned(),
            config: "/etc/mooseng/c.toml".into(),
            region: "r".into(),
            process: Started::myself().unwrap(),
            http: None,
        };
        let failure = is_free(path, true, Some(&record)).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        let said = failure.to_string();
        assert!(said.contains("(configuration /etc/mooseng/c.toml)"), "{said}");
        assert!(said.contains("`mooseng umount '/mnt/a b'`"), "{said}");
        assert!(is_free(path, true, None).is_err(), "its record is lost, or in another directory");
        // What a process left on record that was just unmounted keeps nobody out.
        is_free(path, false, Some(&record)).unwrap();
        is_free(path, false, None).unwrap();
    }

    #[test]
    fn what_is_not_mounted_can_not_be_unmounted() {
        assert_eq!(umount(Path::new("/nonexistent/mount"), false).unwrap_err().exit_code(), 3);
    }
}
