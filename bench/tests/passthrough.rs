//! The yardstick passes on what it is told. Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use mooseng_bench::mounts;

struct Rig {
    dir: tempfile::TempDir,
    served: Child,
}

impl Rig {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: a real mount needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "mount"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let served = serve(dir.path());
        Some(Self { dir, served })
    }
    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }
    fn mount(&self) -> PathBuf {
        self.dir.path().join("mount")
    }
    fn remount(&mut self) {
        mounts::unmount(&self.mount()).unwrap();
        assert!(self.served.wait().unwrap().success());
        self.served = serve(self.dir.path());
    }
    fn sh(&self, dir: &Path, script: &str) -> String {
        let output = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        mounts::detach(&self.mount());
        let _ = self.served.kill();
        let _ = self.served.wait();
    }
}

fn serve(dir: &Path) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_mooseng-passthrough"))
        .args([dir.join("source"), dir.join("mount")])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while mounts::device_of(&dir.join("mount")).unwrap().is_none() {
        assert!(Instant::now() < deadline, "not mounted in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

const WORK: &str = r#"
    mkdir -p a/b; for i in $(seq 1 700); do echo "content $i" > a/b/f$i; done
    head -c 3000000 /dev/urandom > big; cp big copy; cmp big copy
    echo more >> a/b/f1; mv a/b/f2 a/renamed; rm a/b/f3; ln a/b/f4 a/linked; ln -s b/f5 a/symlink
    chmod 640 a/b/f6; chown 7:8 a/b/f6; touch -d '2001-02-03 04:05:06.789' a/b/f7; truncate -s 5 a/b/f8
    mkfifo a/fifo; mkdir a/gone; rmdir a/gone
    dd if=/dev/zero of=synced bs=4k count=3 conv=fsync 2>/dev/null; sync a
    test "$(cat a/symlink)" = 'content 5'; test ! -e a/b/f3; test ! -e absent; echo now > absent; test -e absent
"#;
const SHOW: &str =
    r#"find . -printf '%p %y %m %U:%G %s %n %l %T@\n' | sort; find . -type f | sort | xargs md5sum"#;

#[test]
fn what_is_done_through_the_mount_is_done_to_the_directory() {
    let Some(mut rig) = Rig::new() else { return };
    rig.sh(&rig.mount(), WORK);
    let (shown, kept) = (rig.sh(&rig.mount(), SHOW), rig.sh(&rig.source(), SHOW));
    assert!(kept.contains("./a/b/f6 f 640 7:8"), "{kept}");
    // A directory's times as of its own last change; the kernel of a mount doesn't ask again for a day, so they are compared afresh.
    assert_eq!(shown.lines().count(), kept.lines().count());
    rig.remount();
    assert_eq!(rig.sh(&rig.mount(), SHOW), kept);
}

#[test]
fn real_programs_run_on_it() {
    let Some(rig) = Rig::new() else { return };
    rig.sh(
        &rig.mount(),
        "git init -q r; cd r; git config user.email t@t; git config user.name t; seq 1000 > f; git add f; git commit -qm c; git fsck;
         sqlite3 db 'create table t(x); insert into t values(1); insert into t values(2);'; test \"$(sqlite3 db 'select sum(x) from t')\" = 3;
         tar cf ../t.tar . && mkdir ../x && tar xf ../t.tar -C ../x && diff -r . ../x",
    );
    // A file that is open stays when its last name goes.
    let path = rig.mount().join("unlinked");
    fs::write(&path, "kept").unwrap();
    let file = fs::File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(std::io::read_to_string(&file).unwrap(), "kept");
    assert_eq!(file.metadata().unwrap().size(), 4);
}
