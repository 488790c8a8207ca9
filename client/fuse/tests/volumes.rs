//! Volumes in one tree, through a real kernel: crossing, what isn't possible across, and directories that the kernel had before a volume was joined there.
//! They need root and /dev/fuse; without, they say so.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{ClientConfig, FileSystem, Tree};
use mooseng_fuse::{Mount, MountHandle, MountOptions, Operation};
use mooseng_ports::clock::OsClock;

struct Rig {
    runtime: tokio::runtime::Runtime,
    region: Arc<FakeRegion>,
    tree: Tree,
    handle: Option<MountHandle>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
            return None;
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let region = Arc::new(FakeRegion::new());
        let config = ClientConfig {
            masters: region.masters(),
            retry_timeout: Duration::from_secs(10),
            ..ClientConfig::default()
        };
        let fs =
            runtime.block_on(FileSystem::connect_through(config, region.clone(), Arc::new(OsClock))).unwrap();
        let tree = Tree::from(fs);
        let dir = tempfile::tempdir().unwrap();
        let options = MountOptions::default();
        let handle = Mount::mount(tree.clone(), dir.path(), options, runtime.handle().clone()).unwrap();
        Some(Self { runtime, region, tree, handle: Some(handle), dir })
    }

    /// With a directory `v` at which volume 7 is joined, whose home `m2` leads.
    fn joined() -> Option<Self> {
        let rig = Self::new()?;
        fs::create_dir(rig.path("v")).unwrap();
        rig.join();
        Some(rig)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Joins volume 7 at `v`.
    fn join(&self) {
        let directory = self.region.with(|s| s.named(1, b"v")).unwrap();
        self.region.make_volume(7, "m2");
        self.region.join(directory, 7);
    }

    fn try_sh(&self, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(self.dir.path()).env("HOME", "/nonexistent");
        command.env("LC_ALL", "C").output().unwrap()
    }

    fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}\n{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        handle.unmount().unwrap();
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(15), handle.wait()).await });
        if !std::thread::panicking() {
            ended.expect("the mount ends").unwrap();
            self.runtime.block_on(self.tree.close());
            self.region.with(|s| {
                assert_eq!(s.violations, Vec::<String>::new());
                assert_eq!((s.sessions_of(0), s.sessions_of(7)), (0, 0));
            });
        }
    }
}

fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

#[test]
fn a_volume_is_seen_where_it_is_joined() {
    let Some(rig) = Rig::joined() else { return };
    assert_eq!(rig.region.with(|s| s.sessions_of(7)), 0, "nobody has crossed yet");
    rig.sh("ls -la; mkdir v/d; echo hello > v/d/f; ln v/d/f v/g; mv v/d/f v/f; sync -f v");
    assert_eq!(rig.sh("cat v/f v/g; ls v"), "hello\nhello\nd\nf\ng\n");
    let root = fs::metadata(rig.path("v")).unwrap();
    assert_eq!(root.ino(), (7 << 48) | 1, "it is the volume's root");
    assert_eq!(fs::metadata(rig.path("v/f")).unwrap().ino() >> 48, 7);
    assert_eq!(fs::metadata(rig.path("v/..")).unwrap().ino(), 1);
    // `..` of a volume's root is listed as the directory above.
    assert_eq!(
        rig.sh("ls -ai v | head -2"),
        format!("{} .\n1 ..\n", root.ino()).replace("1 ..", "               1 ..")
    );
    rig.sh("cd v; pwd; test \"$(pwd -P)\" = \"$(cd ..; pwd -P)/v\"; stat -f . > /dev/null; df . > /dev/null");
    rig.sh("setfattr -n user.x -v y v/f 2> /dev/null || true; rm -r v/d v/f v/g");
    assert_eq!(rig.sh("ls -A v"), "");
    assert_eq!(rig.region.with(|s| (s.sessions_of(0), s.sessions_of(7))), (1, 1));
}

#[test]
fn nothing_moves_across_but_bytes() {
    let Some(rig) = Rig::joined() else { return };
    rig.sh("echo hello > f; mkdir d; echo deep > d/g");
    let across = fs::rename(rig.path("f"), rig.path("v/f")).unwrap_err();
    assert_eq!(errno(&across), libc::EXDEV);
    assert_eq!(errno(&fs::rename(rig.path("d"), rig.path("v/d")).unwrap_err()), libc::EXDEV);
    assert_eq!(errno(&fs::hard_link(rig.path("f"), rig.path("v/f")).unwrap_err()), libc::EXDEV);
    // So mv copies, and cp does whatever copy_file_range says.
    rig.sh(
        "mv f v/f; mv d v/d; cp v/f back; head -c 3000000 /dev/urandom > big; cp big v/big; cmp big v/big",
    );
    assert_eq!(rig.sh("cat v/f v/d/g back; ls"), "hello\ndeep\nhello\nback\nbig\nv\n");
    let (from, to) =
        (fs::File::open(rig.path("big")).unwrap(), fs::File::create(rig.path("v/copy")).unwrap());
    // SAFETY: two descriptors that are open.
    let copied = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            3_000_000,
            0,
        )
    };
    // The kernel copies through its pages, or says that it isn't possible: never something else.
    let error = std::io::Error::last_os_error();
    assert!(copied > 0 || errno(&error) == libc::EXDEV, "{copied} {error}");
    drop((from, to));
    // The directory stays as it is.
    for error in
        [fs::remove_dir(rig.path("v")).unwrap_err(), fs::rename(rig.path("v"), rig.path("w")).unwrap_err()]
    {
        assert_eq!(errno(&error), libc::EBUSY, "{error}");
    }
    rig.sh("rm -r v/d v/f v/big v/copy");
    assert_eq!(errno(&fs::remove_dir(rig.path("v")).unwrap_err()), libc::EBUSY);
}

/// The kernel holds the directory, and believes its name, when a volume is joined there: a walk along the path crosses all the same. Who works *in* the
/// directory is told that it is stale.
#[test]
fn a_directory_that_the_kernel_had_is_crossed_once_a_volume_is_joined_there() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.path("v")).unwrap();
    // Names are promised, and attributes not: as after their recall.
    rig.region.with(|s| s.names_promised = true);
    let before = fs::metadata(rig.path("v")).unwrap().ino();
    let held = fs::File::open(rig.path("v")).unwrap();
    let lookups = || rig.handle.as_ref().unwrap().operations().figures(Operation::Lookup).answered;
    let asked = lookups();
    fs::metadata(rig.path("v")).unwrap();
    assert_eq!(lookups(), asked, "its name is believed");
    let here = rig.path("v");
    let mut shell = Command::new("sh")
        .args(["-c", "read _; stat . 2>&1; ls . 2>&1; cd \"$0\" && stat -c %i ."])
        .arg(&here)
        .current_dir(&here)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    rig.join();
    let after = fs::metadata(rig.path("v")).unwrap().ino();
    assert!(before >> 48 == 0 && after == (7 << 48) | 1, "{before} {after}");
    rig.sh("echo hello > v/f; ls v");
    assert_eq!(errno(&held.metadata().unwrap_err()), libc::ESTALE);
    let stdin = shell.stdin.take().unwrap();
    std::io::Write::write_all(&mut &stdin, b"go\n").unwrap();
    drop(stdin);
    let said = String::from_utf8_lossy(&shell.wait_with_output().unwrap().stdout).into_owned();
    assert!(said.matches("Stale file handle").count() >= 2, "{said}");
    assert!(said.trim_end().ends_with(&after.to_string()), "{said}");
}

/// The same by other ways into the directory: each walks a path that goes through it.
#[test]
fn each_way_along_a_path_crosses() {
    for way in
        ["ls v", "cat v/f", "touch v/g", "mkdir v/d", "rm v/f", "ln v/f v/h", "chmod 700 v", "mv v/f v/i"]
    {
        let Some(rig) = Rig::new() else { return };
        fs::create_dir(rig.path("v")).unwrap();
        rig.region.with(|s| s.names_promised = true);
        // The volume has a file before anybody of this mount knows it.
        let other = rig.runtime.block_on(async {
            let config = ClientConfig { masters: rig.region.masters(), ..ClientConfig::default() };
            FileSystem::connect_through(config, rig.region.clone(), Arc::new(OsClock)).await.unwrap()
        });
        fs::metadata(rig.path("v")).unwrap();
        rig.join();
        rig.runtime.block_on(async {
            let other = Tree::from(other);
            let caller = mooseng_client::Caller { kernel_checked: true, ..Default::default() };
            let root = other.find(&caller, 1, b"v").await.unwrap().unwrap().attr.inode;
            other.of(root).unwrap().create(&caller, root, b"f", 0o644, libc::O_RDWR).await.unwrap();
            other.close().await;
        });
        rig.sh(way);
    }
}

#[test]
fn what_was_of_a_deleted_volume_is_stale_and_its_name_leads_to_what_is_there_now() {
    let Some(rig) = Rig::joined() else { return };
    rig.sh("echo hello > v/f");
    let (file, root) = (fs::File::open(rig.path("v/f")).unwrap(), fs::File::open(rig.path("v")).unwrap());
    let directory = rig.region.with(|s| s.named(1, b"v")).unwrap();
    rig.region.join(directory, 0);
    rig.region.delete_volume(7);
    for open in [&file, &root] {
        assert_eq!(errno(&open.metadata().unwrap_err()), libc::ESTALE);
    }
    assert_eq!(fs::metadata(rig.path("v")).unwrap().ino(), directory);
    assert_eq!(rig.sh("ls -A v; mkdir v/own; ls v; rmdir v/own"), "own\n");
    drop((file, root));
    rig.region.make_volume(8, "m3");
    rig.region.join(directory, 8);
    assert_eq!(fs::metadata(rig.path("v")).unwrap().ino(), (8 << 48) | 1);
    rig.sh("echo again > v/f; rm v/f");
    rig.region.with(|s| assert_eq!(s.sessions_of(8), 1));
}

/// Nobody has crossed into the volume, and its masters don't answer: the kernel mustn't hold the directory above for as long as somebody waits for it.
#[test]
fn a_volume_that_never_answered_doesnt_keep_the_directory_above_locked() {
    let Some(rig) = Rig::joined() else { return };
    rig.region.fault("m2", Some(Fault::Hung));
    let path = rig.path("v");
    let waits = std::thread::spawn(move || fs::metadata(path).map(drop).map_err(|e| errno(&e)));
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    rig.sh("mkdir d; mv d e; rmdir e; ls");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(waits.join().unwrap(), Err(libc::ETIMEDOUT));
    rig.region.fault("m2", None);
    assert_eq!(fs::metadata(rig.path("v")).unwrap().ino(), (7 << 48) | 1);
}

/// Somebody waits for a volume whose masters don't answer; others go on in the root meanwhile.
#[test]
fn a_volume_that_doesnt_answer_keeps_nobody_else_waiting() {
    let Some(rig) = Rig::joined() else { return };
    rig.sh("echo hello > v/f; echo root > f");
    rig.region.fault("m2", Some(Fault::Hung));
    let path = CString::new(rig.path("v/d").as_os_str().as_bytes()).unwrap();
    let waits = std::thread::spawn(move || {
        // SAFETY: a string that lives over the call.
        let made = unsafe { libc::mkdir(path.as_ptr(), 0o755) };
        (made, std::io::Error::last_os_error().raw_os_error())
    });
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    rig.sh("cat f; echo more >> f; mkdir d; sync -f .");
    fs::File::open(rig.path("f")).unwrap().sync_all().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(waits.join().unwrap(), (-1, Some(libc::ETIMEDOUT)));
    rig.region.fault("m2", None);
    assert_eq!(rig.sh("cat v/f"), "hello\n");
}
