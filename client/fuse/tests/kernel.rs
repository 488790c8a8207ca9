//! A real mount over a region in memory. Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::waits::{self, What};
use mooseng_client::{ClientConfig, FileSystem};
use mooseng_fuse::{Asked, Mount, MountError, MountHandle, MountOptions, Operation, mounts, unmount};
use mooseng_ports::clock::OsClock;

struct Rig {
    runtime: tokio::runtime::Runtime,
    region: Arc<FakeRegion>,
    fs: FileSystem,
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
        let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
        let fs =
            runtime.block_on(FileSystem::connect_through(config, region.clone(), Arc::new(OsClock))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let handle =
            Mount::mount(fs.clone(), dir.path(), MountOptions::default(), runtime.handle().clone()).unwrap();
        Some(Self { runtime, region, fs, handle: Some(handle), dir })
    }
    fn path(&self) -> &Path {
        self.dir.path()
    }
    fn sh(&self, script: &str) -> String {
        let output = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.path())
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{script}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        handle.unmount().unwrap();
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(10), handle.wait()).await });
        if !std::thread::panicking() {
            ended.expect("the mount ends").unwrap();
            self.region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
        }
    }
}

fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

#[test]
fn files_directories_and_attributes() {
    let Some(rig) = Rig::new() else { return };
    let root = rig.path();
    assert!(mounts().unwrap().iter().any(|m| m.path == root && m.source == "mooseng"));
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), b"hello").unwrap();
    assert_eq!(fs::read(root.join("d/f")).unwrap(), b"hello");
    fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(root.join("d/f")).unwrap().mode() & 0o7777, 0o640);
    symlink("d/f", root.join("s")).unwrap();
    assert_eq!(fs::read_link(root.join("s")).unwrap(), Path::new("d/f"));
    fs::hard_link(root.join("d/f"), root.join("l")).unwrap();
    assert_eq!(fs::metadata(root.join("l")).unwrap().nlink(), 2);
    fs::rename(root.join("l"), root.join("d/m")).unwrap();
    assert_eq!(fs::remove_dir(root.join("d")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    assert_eq!(File::create_new(root.join("d/m")).unwrap_err().raw_os_error(), Some(libc::EEXIST));

    // An unlinked file lives until it is closed.
    let mut open = OpenOptions::new().read(true).write(true).open(root.join("d/m")).unwrap();
    fs::remove_file(root.join("d/m")).unwrap();
    fs::remove_file(root.join("d/f")).unwrap();
    open.seek(SeekFrom::End(0)).unwrap();
    open.write_all(b" again").unwrap();
    let mut all = String::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_string(&mut all).unwrap();
    assert_eq!(all, "hello again");
    open.set_len(5).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 5);
    open.sync_all().unwrap();
    drop(open);
    fs::remove_dir(root.join("d")).unwrap();
}

/// As ext4 shows them: the fraction is added to the seconds.
#[test]
fn times_before_the_epoch_are_shown_as_they_were_set() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.path().join("f");
    let file = File::create(&path).unwrap();
    for (before, shown) in [(1_500, (-2, 500_000_000)), (2_000, (-2, 0)), (250, (-1, 750_000_000))] {
        file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_millis(before)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), shown);
    }
}

#[test]
fn a_directory_of_thousands_is_listed_once_each() {
    let Some(rig) = Rig::new() else { return };
    let root = rig.path();
    for n in 0..2500 {
        File::create(root.join(format!("file-with-a-longer-name-{n}"))).unwrap();
    }
    let mut names: Vec<String> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let before = names.len();
    names.dedup();
    assert_eq!((before, names.len()), (2500, 2500));
    assert!(rig.sh("ls -a | head -2").starts_with(".\n..\n"));
    rig.sh("rm -f file-with-*; test -z \"$(ls)\"");
}

#[test]
fn pages_mappings_and_writes_agree() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.path().join("m");
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&path, &data).unwrap();
    assert_eq!(fs::read(&path).unwrap(), data);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: a fresh shared mapping of an open file, used below within its length only.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the mapping is 8192 bytes long and lives until munmap below.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192) };
    assert_eq!(bytes[..100], data[..100]);
    bytes[0] = 7;
    bytes[5000] = 9;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::msync(map, 8192, libc::MS_SYNC) }, 0);
    let mut seen = [0];
    file.read_exact_at(&mut seen, 5000).unwrap();
    assert_eq!(seen, [9]);
    file.write_all_at(b"Z", 1).unwrap();
    assert_eq!(bytes[1], b'Z');
    // SAFETY: `bytes` isn't used any more.
    unsafe { libc::munmap(map, 8192) };
    drop(file);
    let again = fs::read(&path).unwrap();
    assert_eq!((again[0], again[1], again[5000]), (7, b'Z', 9));
    assert_eq!(again[8192..], data[8192..]);

    // Appends of two descriptors don't overwrite each other.
    let log = rig.path().join("log");
    let mut a = OpenOptions::new().append(true).create(true).open(&log).unwrap();
    let mut b = OpenOptions::new().append(true).open(&log).unwrap();
    for n in 0..50 {
        writeln!(a, "a{n}").unwrap();
        writeln!(b, "b{n}").unwrap();
    }
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 100);
}

#[test]
fn another_client_sees_each_finished_write() {
    let Some(rig) = Rig::new() else { return };
    let second = tempfile::tempdir().unwrap();
    let config = ClientConfig { masters: rig.region.masters(), ..ClientConfig::default() };
    let fs = rig
        .runtime
        .block_on(FileSystem::connect_through(config, rig.region.clone(), Arc::new(OsClock)))
        .unwrap();
    let handle =
        Mount::mount(fs, second.path(), MountOptions::default(), rig.runtime.handle().clone()).unwrap();
    fs::write(rig.path().join("f"), b"one").unwrap();
    let there = File::open(second.path().join("f")).unwrap();
    let mut seen = [0; 3];
    there.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"one");
    let here = OpenOptions::new().write(true).open(rig.path().join("f")).unwrap();
    here.write_all_at(b"two", 0).unwrap();
    // The same handle, whose pages the kernel holds.
    there.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"two");
    // A mapping's pages are nobody's to compare. This region promises nothing, so that they go by themselves.
    // SAFETY: a fresh mapping of an open file.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, there.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: within the mapping, which lives until munmap below.
    let shown = || unsafe { map.cast::<u8>().read_volatile() };
    for word in [b"3hr", b"4ou", b"5iv"] {
        here.write_all_at(word, 0).unwrap();
        let written = Instant::now();
        while shown() != word[0] {
            assert!(written.elapsed() < Duration::from_secs(10), "it shows {} for {}", shown(), word[0]);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // SAFETY: nothing reads it any more.
    unsafe { libc::munmap(map, 4096) };
    drop(there);
    // A program that another test is just starting has what is open here, for a moment.
    unmount(second.path(), true).unwrap();
    rig.runtime.block_on(handle.wait()).unwrap();
}

#[test]
fn programs_work() {
    let Some(rig) = Rig::new() else { return };
    rig.sh("mkdir src; for n in $(seq 300); do echo $n > src/f$n; done; tar cf t.tar src; mkdir out; tar xf t.tar -C out; diff -r src out/src");
    if has("git") {
        rig.sh("git init -q r; cd r; git config user.email a@b; git config user.name n; cp -r ../src .; git add .; git commit -qm x; git fsck --strict; cd ..; git clone -q r c; cd c; git status --porcelain; git log --oneline; diff -r src ../src");
    }
    if has("make") && has("cc") {
        rig.sh("mkdir p; cd p; printf 'int main(){return 0;}\\n' > a.c; printf 'a: a.c\\n\\tcc -o a a.c\\n' > Makefile; make -s; ./a");
    }
    if has("sqlite3") {
        let out = rig.sh("sqlite3 d.db 'create table t(x); begin; insert into t select value from generate_series(1,5000); commit; pragma integrity_check; select count(*) from t;'");
        assert!(out.contains("ok") && out.contains("5000"), "{out}");
    } else if has("python3") {
        let out = rig.sh("python3 -c \"import sqlite3; d=sqlite3.connect('d.db'); d.execute('create table t(x)'); d.executemany('insert into t values(?)', [(n,) for n in range(5000)]); d.commit(); d.execute('pragma journal_mode=wal'); d.execute('insert into t values(1)'); d.commit(); print(d.execute('pragma integrity_check').fetchall(), d.execute('select count(*) from t').fetchall())\"");
        assert!(out.contains("ok") && out.contains("5001"), "{out}");
    }
}

#[test]
fn a_killed_process_is_not_stuck_and_the_mount_recovers() {
    let Some(rig) = Rig::new() else { return };
    for master in rig.region.masters() {
        rig.region.fault(&master, Some(Fault::Hung));
    }
    let mut child = Command::new("mkdir").arg(rig.path().join("d")).stderr(Stdio::null()).spawn().unwrap();
    // It hangs: no answer can come.
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    // Retries go on for 60 s; a process that only dies then is a stuck one.
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    for master in rig.region.masters() {
        rig.region.fault(&master, None);
    }
    fs::create_dir(rig.path().join("e")).unwrap();
    assert!(rig.fs.ready().is_ok());
}

/// What hangs can be seen: whose request it is, about what, and whose answer it waits for.
#[test]
fn a_request_that_hangs_is_seen_and_what_it_waits_for() {
    let Some(rig) = Rig::new() else { return };
    let operations = rig.handle.as_ref().unwrap().operations();
    for master in rig.region.masters() {
        rig.region.fault(&master, Some(Fault::Hung));
    }
    let path = rig.path().join("hangs");
    let mut child = Command::new("mkdir").arg(path).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let of_child = |asked: &Asked| asked.pid == pid;
    let deadline = Instant::now() + Duration::from_secs(10);
    let (seen, waiting) = loop {
        let seen = operations.under_way(64).into_iter().find(of_child);
        let waiting = seen.as_ref().and_then(|seen| waits::of(&seen.trace?));
        if let (Some(seen), Some(waiting)) = (seen, waiting) {
            break (seen, waiting);
        }
        assert!(Instant::now() < deadline, "{:?}", operations.under_way(64));
        std::thread::sleep(Duration::from_millis(2));
    };
    // The kernel may ask first what the root is.
    match seen.operation {
        Operation::GetAttr => assert_eq!(seen.name, None, "{seen:?}"),
        Operation::Lookup | Operation::MakeDirectory => {
            assert_eq!(seen.name.as_deref(), Some(&b"hangs"[..]), "{seen:?}");
        }
        other => panic!("{other:?}: {seen:?}"),
    }
    assert_eq!(seen.inode, rig.fs.root(), "{seen:?}");
    match &waiting.what {
        What::Answer { role, address, .. } => {
            assert_eq!((role.as_str(), address.as_str()), ("master", "m1"), "{waiting:?}");
        }
        other => panic!("it waits for {other:?}"),
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for master in rig.region.masters() {
        rig.region.fault(&master, None);
    }
    fs::create_dir(rig.path().join("e")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while operations.under_way(64).iter().any(of_child) {
        assert!(Instant::now() < deadline, "{:?}", operations.under_way(64));
        std::thread::sleep(Duration::from_millis(20));
    }
    let spread = operations.spread(seen.operation);
    assert!(spread.longest_us >= 1_000 && spread.count() > 0, "{spread:?}");
}

/// Found by review: what lay on the path of a dead mount by then was taken away, whatever it was.
#[test]
fn a_living_mount_isnt_taken_for_a_dead_one() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.path().join("f"), b"kept").unwrap();
    let runtime = rig.runtime.handle().clone();
    let made = Mount::mount_again(rig.fs.clone(), rig.path(), MountOptions::default(), runtime);
    assert!(matches!(made, Err(MountError::NotMounted(_))), "{made:?}");
    assert_eq!(fs::read(rig.path().join("f")).unwrap(), b"kept");
    assert_eq!(mounts().unwrap().iter().filter(|m| m.path == rig.path()).count(), 1);
}

/// Found by the benchmark: fsync began to send only when it was called.
#[test]
fn what_is_synced_after_each_write_is_sent_before_fsync_asks() {
    let Some(rig) = Rig::new() else { return };
    rig.region.with(|s| s.exclusive = true);
    let file = File::create(rig.path().join("f")).unwrap();
    let executed = || rig.region.with(|s| s.executed);
    let begun = Instant::now();
    loop {
        for n in 0..8 {
            file.write_all_at(&[n; 4096], 0).unwrap();
            file.sync_data().unwrap();
        }
        let before = executed();
        file.write_all_at(&[9; 4096], 0).unwrap();
        // Where the machine is busy, a turn may have taken too long to be one. By themselves, written bytes leave only after two seconds.
        let wrote = Instant::now();
        while executed() == before && wrote.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = executed() - before;
        file.sync_data().unwrap();
        assert_eq!(executed(), before + 1, "it is sent once");
        if sent == 1 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "fsync was waited for each time");
    }
}

/// What a mount knows is counted as a hit of the cache that knows it, and what it had to ask for isn't.
#[test]
fn what_caches_know_is_counted() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.path().join("f"), b"hello").unwrap();
    let before = rig.fs.status().caches;
    // This region promises nothing.
    assert_eq!(fs::read(rig.path().join("f")).unwrap(), b"hello");
    let after = rig.fs.status().caches;
    let grown = |cache: &str| {
        let (before, after) = (before[cache], after[cache]);
        (after.hits - before.hits, after.misses - before.misses)
    };
    let (hits, misses) = grown("entries");
    assert!(hits == 0 && misses > 0, "{before:?} {after:?}");
    let (hits, misses) = grown("extents");
    assert!(hits == 0 && misses > 0, "{before:?} {after:?}");
}

/// The main thread and another wait for locks, and a signal comes that the main thread gets: the other must not be told of it, for the kernel
/// would show it error 512.
#[test]
fn a_signal_ends_the_wait_of_the_thread_that_gets_it_alone() {
    let Some(rig) = Rig::new() else { return };
    if !has("python3") {
        eprintln!("SKIPPED: it takes python3");
        return;
    }
    fs::write(rig.path().join("held"), b"").unwrap();
    let holder = File::open(rig.path().join("held")).unwrap();
    // SAFETY: a descriptor that is open.
    assert_eq!(unsafe { libc::flock(holder.as_raw_fd(), libc::LOCK_EX) }, 0);
    let script = "
import fcntl, os, signal, threading, time
class Signalled(Exception): pass
def handle(*_): raise Signalled
signal.signal(signal.SIGUSR1, handle)
said = []
def wait():
    try:
        fcntl.flock(open('held'), fcntl.LOCK_EX)
        said.append('got it')
    except OSError as error:
        said.append('error %d' % error.errno)
threading.Thread(target=wait, daemon=True).start()
def send():
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGUSR1)
threading.Thread(target=send, daemon=True).start()
try:
    fcntl.flock(open('held'), fcntl.LOCK_EX)
    print('main: got it', flush=True)
except Signalled:
    print('main: signalled', flush=True)
except OSError as error:
    print('main: error %d' % error.errno, flush=True)
time.sleep(1)
print('other:', said or 'waits', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
";
    let output = Command::new("python3").args(["-c", script]).current_dir(rig.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "main: signalled\nother: waits\n", "{}", String::from_utf8_lossy(&output.stderr));
    drop(holder);
}

/// What a process, its children and its copies of descriptors are told of locks on one file.
const LOCKS: &str = include_str!("locks.py");

#[test]
fn locks_are_as_on_a_local_filesystem_whoever_gives_them() {
    let Some(rig) = Rig::new() else { return };
    if !has("python3") {
        eprintln!("SKIPPED: it takes python3");
        return;
    }
    let said = |directory: &Path, file: &str| {
        let mut command = Command::new("python3");
        let output = command.args(["-c", LOCKS, file]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let local = tempfile::tempdir().unwrap();
    let expected = said(local.path(), "f");
    assert_eq!(said(rig.path(), "f"), expected, "given by the region");
    assert_eq!(rig.fs.status().locks_alone, 0);
    rig.region.with(|s| s.locks_alone = true);
    // The next leader says so.
    rig.region.elect("m2");
    assert_eq!(said(rig.path(), "g"), expected, "given by the mount");
    assert!(rig.fs.status().locks_alone > 1_000, "{}", rig.fs.status().locks_alone);
    rig.region.with(|s| assert_eq!(s.locks.held(), 0));
}

#[test]
fn xattrs_by_size_and_value() {
    let Some(rig) = Rig::new() else { return };
    let path = std::ffi::CString::new(rig.path().join("x").to_str().unwrap()).unwrap();
    File::create(rig.path().join("x")).unwrap();
    let name = c"user.colour";
    // SAFETY: pointers and lengths are those of the buffers beside them.
    unsafe {
        assert_eq!(
            libc::setxattr(path.as_ptr(), name.as_ptr(), b"green".as_ptr().cast(), 5, libc::XATTR_CREATE),
            0
        );
        assert_eq!(
            libc::setxattr(path.as_ptr(), name.as_ptr(), b"red".as_ptr().cast(), 3, libc::XATTR_CREATE),
            -1
        );
        assert_eq!(libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0), 5);
        let mut small = [0u8; 2];
        assert_eq!(libc::getxattr(path.as_ptr(), name.as_ptr(), small.as_mut_ptr().cast(), 2), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ERANGE));
        let mut list = [0u8; 64];
        assert_eq!(libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), 64), 12);
        assert_eq!(&list[..12], b"user.colour\0");
        assert_eq!(libc::removexattr(path.as_ptr(), name.as_ptr()), 0);
        assert_eq!(libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0), -1);
    }
}

#[test]
fn mounting_on_what_isnt_fit_is_refused_in_a_sentence() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.path().join("f"), b"").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for (path, word) in [(file.path(), "isn't a directory"), (Path::new("/nonexistent/x"), "doesn't exist")] {
        let error = Mount::mount(rig.fs.clone(), path, MountOptions::default(), rig.runtime.handle().clone())
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// The kernel hands lists through, keeps them, and leaves the umask to whoever makes a file.
#[test]
fn lists_and_the_umask() {
    let Some(rig) = Rig::new() else { return };
    rig.sh("umask 027; touch f; mkdir d; test \"$(stat -c %a f d | tr '\\n' ' ')\" = '640 750 '");
    let path = std::ffi::CString::new(rig.path().join("f").to_str().unwrap()).unwrap();
    let set = |name: &std::ffi::CStr, value: &[u8]| {
        // SAFETY: valid for the call.
        let done =
            unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        if done == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
    };
    let get = || {
        let mut value = [0_u8; 128];
        let (name, room) = (c"system.posix_acl_access".as_ptr(), value.len());
        // SAFETY: valid for the call.
        let length = unsafe { libc::getxattr(path.as_ptr(), name, value.as_mut_ptr().cast(), room) };
        usize::try_from(length).ok().map(|length| value[..length].to_vec())
    };
    assert_eq!(get(), None);
    let mut list = vec![2, 0, 0, 0];
    for (tag, bits, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().iter().chain(&bits.to_le_bytes()).chain(&id.to_le_bytes()));
    }
    assert_eq!(set(c"system.posix_acl_access", &list), 0);
    assert_eq!(get(), Some(list.clone()));
    assert_eq!(set(c"system.posix_acl_access", b"nonsense"), libc::EOPNOTSUPP);
    assert_eq!(set(c"system.posix_acl_default", &list), libc::EACCES, "it is a file");
    assert_eq!(set(c"system.sockprotoname", b"x"), libc::EOPNOTSUPP);
    assert_eq!(get(), Some(list));
}
