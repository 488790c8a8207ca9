//! Real programs on a real mount, as they find it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, shell, wait_for};
use mooseng_e2e::steps::Steps;

#[test]
fn real_programs_work() {
    run().unwrap();
}

fn run() -> Result<()> {
    let cluster = DevCluster::up("workloads", &[])?;
    let (mnt, local) = (cluster.mount(), cluster.scratch().join("local"));
    fs::create_dir(&local)?;
    let mut steps = Steps::default();
    steps.run("git clone, fsck, commit", || git(&mnt, &local));
    steps.run("a C project's make", || make(&mnt));
    steps.run("sqlite", || sqlite(&mnt));
    steps.run("tar of 3000 files", || tar(&mnt, &local));
    steps.run("names: symlinks, links, renames, unlinked files", || names(&mnt));
    steps.run("content: sparse, truncated, appended, as on a local disk", || content(&mnt, &local));
    steps.run("extended attributes", || xattrs(&mnt));
    steps.run("big files, read in pieces", || big(&mnt, &local));
    steps.run("chunks on this host are read from their files", || same_host(&cluster));
    steps.run("mooseng info and df", || info(&cluster));
    steps.run("mooseng profile and top", || profile(&cluster));
    steps.run("who waits for a lock is seen by mooseng profile", || under_way(&cluster));
    steps.run("another mount sees every finished write, and is gone after umount", || second_mount(&cluster));
    steps.run("every daemon is restarted under load", || super::rolling::restart_all(&cluster));
    steps.run("down and up again keep everything", || {
        let sum = "find repo project tarred -type f -print0 | sort -z | xargs -0 md5sum | md5sum";
        let before = shell(&mnt, sum)?;
        checked(cluster.mooseng(&["dev", "down", "--dir"]).arg(cluster.dir()))?;
        ensure!(!mnt.join("repo").exists(), "still mounted after down");
        cluster.up_again(&[])?;
        ensure!(shell(&mnt, sum)? == before, "the files differ after a restart");
        Ok(())
    });
    steps.finish()?;
    cluster.finish(&[super::PEERS_COME_AND_GO, super::rolling::SAID].concat())
}

fn profile(cluster: &DevCluster) -> Result<()> {
    let file = cluster.mount().join("profiled");
    let json = |args: &[&str]| -> Result<serde_json::Value> {
        let mut command = cluster.mooseng(args);
        if args[0] == "profile" {
            command.arg(cluster.mount());
        }
        let value: serde_json::Value = serde_json::from_slice(&checked(&mut command)?.stdout)?;
        ensure!(value["version"] == 1, "{value}");
        Ok(value)
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::SeqCst) {
                fs::write(&file, "x")?;
                fs::File::open(&file)?.sync_all()?;
                fs::metadata(&file)?;
            }
            Ok(())
        });
        let looked = json(&["profile", "--for", "1s", "-o", "json"]);
        let top = json(&["top", "--once", "--every", "500ms", "-o", "json"]);
        stop.store(true, Ordering::SeqCst);
        work.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        let looked = looked?;
        let operations = looked["operations"].as_array().cloned().unwrap_or_default();
        for name in ["write", "fsync", "open"] {
            let row = operations.iter().find(|row| row["operation"] == name);
            let answered = row.and_then(|row| row["answered"].as_u64()).unwrap_or(0);
            ensure!(answered > 5, "{name} was answered {answered} times: {looked}");
            let us = |what: &str| row.and_then(|row| row[what].as_u64());
            let (p50, p99, max) = (us("p50_us"), us("p99_us"), us("max_us"));
            ensure!(
                p50.is_some() && p50 <= p99 && p99 <= max,
                "{name} took {p50:?}, {p99:?}, {max:?}: {looked}"
            );
        }
        for cache in ["entries", "attributes", "lists", "access_lists", "extents", "written", "chunks"] {
            let counts = &looked["caches"][cache];
            ensure!(counts["hits"].is_u64() && counts["misses"].is_u64(), "{cache}: {looked}");
        }
        let top = top?;
        ensure!(top["mounts"].as_array().is_some_and(|mounts| !mounts.is_empty()), "{top}");
        Ok(())
    })
}

/// What hangs can be seen: the request, whose it is, its file, and what it waits for.
fn under_way(cluster: &DevCluster) -> Result<()> {
    let path = cluster.mount().join("locked");
    fs::write(&path, "x")?;
    let holder = fs::File::open(&path)?;
    holder.lock()?;
    let waits = std::thread::spawn(move || fs::File::open(path)?.lock());
    let seen = wait_for("the wait for the lock to be seen", Duration::from_secs(60), || {
        let mut command = cluster.mooseng(&["profile", "--for", "200ms", "-o", "json"]);
        let looked = checked(command.arg(cluster.mount()))?.stdout;
        let looked: serde_json::Value = serde_json::from_slice(&looked)?;
        let all = looked["under_way"].as_array().cloned().unwrap_or_default();
        let waiting = all.iter().find(|request| request["operation"] == "setlk");
        let waiting = waiting.with_context(|| format!("no setlk is under way: {looked}"))?;
        let is_ours = waiting["path"].as_str().is_some_and(|path| path.ends_with("/locked"));
        ensure!(is_ours && waiting["pid"].as_u64() > Some(0), "{waiting}");
        ensure!(waiting["waits_for"]["what"] == "lock" && waiting["age_us"].as_u64() > Some(0), "{waiting}");
        Ok(())
    });
    holder.unlock()?;
    waits.join().map_err(|_| anyhow::anyhow!("who waits for the lock panicked"))??;
    seen
}

fn git(mnt: &Path, local: &Path) -> Result<()> {
    shell(
        local,
        r#"git init -q origin && cd origin && git config user.email t@t && git config user.name t
           for i in $(seq 1 60); do mkdir -p d$((i % 7)); head -c $((i * 997)) /dev/urandom > d$((i % 7))/f$i; git add -A; git commit -qm c$i; done"#,
    )?;
    shell(mnt, &format!("git clone -q {} repo", local.join("origin").display()))?;
    let repo = mnt.join("repo");
    shell(
        &repo,
        "git fsck --full --strict && test -z \"$(git status --porcelain)\" && git gc -q && git fsck --full",
    )?;
    shell(
        &repo,
        "git config user.email t@t; git config user.name t; echo x > new; git add new; git commit -qm new; git fsck; git status --porcelain",
    )?;
    shell(mnt, &format!("diff -r --exclude=.git --exclude=new repo {}", local.join("origin").display()))
        .map(drop)
}

fn make(mnt: &Path) -> Result<()> {
    let project = mnt.join("project");
    fs::create_dir(&project)?;
    let count = 25;
    for i in 0..count {
        fs::write(
            project.join(format!("m{i}.c")),
            format!("#include \"all.h\"\nint f{i}(int x) {{ return x + {i}; }}\n"),
        )?;
    }
    let prototypes: String = (0..count).map(|i| format!("int f{i}(int x);\n")).collect();
    fs::write(project.join("all.h"), prototypes)?;
    let calls: String = (0..count).map(|i| format!("x = f{i}(x);")).collect();
    fs::write(
        project.join("main.c"),
        format!(
            "#include <stdio.h>\n#include \"all.h\"\nint main(void) {{ int x = 0; {calls} printf(\"%d\\n\", x); return 0; }}\n"
        ),
    )?;
    let rules = "OBJS = $(patsubst %.c,%.o,$(wildcard *.c))\nprog: $(OBJS)\n\tgcc -o $@ $^\n%.o: %.c all.h\n\tgcc -c -o $@ $<\nclean:\n\trm -f *.o prog\n";
    fs::write(project.join("Makefile"), rules)?;
    let sum: i32 = (0..count).sum();
    ensure!(
        shell(&project, "make -s -j4 && ./prog")?.trim() == sum.to_string(),
        "the program computes something else"
    );
    ensure!(
        shell(&project, "make -q && echo current")?.trim() == "current",
        "make would build again: times are wrong"
    );
    shell(
        &project,
        "touch m3.c && make | grep -c 'gcc -c' | grep -qx 1 && make -s clean && make -s && ./prog",
    )
    .map(drop)
}

fn sqlite(mnt: &Path) -> Result<()> {
    let db = mnt.join("test.db");
    let mut script =
        String::from("PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, b BLOB);\n");
    for i in 0..150 {
        script += &format!(
            "BEGIN; INSERT INTO t(v,b) VALUES('row {i}', randomblob({})); UPDATE t SET v = v || '.' WHERE id % 7 = {}; COMMIT;\n",
            100 + i * 20,
            i % 7
        );
    }
    script += "DELETE FROM t WHERE id % 10 = 0; VACUUM;\n";
    let file = mnt.join("script.sql");
    fs::write(&file, script)?;
    shell(mnt, &format!("sqlite3 {} < {}", db.display(), file.display()))?;
    let answer =
        shell(mnt, &format!("sqlite3 {} 'PRAGMA integrity_check; SELECT count(*) FROM t;'", db.display()))?;
    ensure!(answer.trim() == "ok\n135", "sqlite says {answer:?}");
    let answer = shell(
        mnt,
        "sqlite3 wal.db 'PRAGMA journal_mode=DELETE; CREATE TABLE x(a); INSERT INTO x VALUES(1); SELECT a FROM x;'",
    )?;
    ensure!(answer.trim().ends_with('1'), "sqlite says {answer:?}");
    Ok(())
}

fn tar(mnt: &Path, local: &Path) -> Result<()> {
    let tree = local.join("tree");
    for d in 0..30 {
        let dir = tree.join(format!("d{d}"));
        fs::create_dir_all(&dir)?;
        for f in 0..100 {
            fs::write(dir.join(format!("f{f}")), vec![(d * 7 + f) as u8; (f * 37 + d) % 5000])?;
        }
    }
    fs::create_dir(mnt.join("tarred"))?;
    shell(local, &format!("tar -C tree -cf - . | tar -C {} -xf -", mnt.join("tarred").display()))?;
    shell(local, &format!("diff -r tree {}", mnt.join("tarred").display()))?;
    ensure!(shell(mnt, "find tarred -type f | wc -l")?.trim() == "3000", "files are missing");
    shell(
        local,
        &format!(
            "tar -C {} -cf back.tar . && mkdir back && tar -C back -xf back.tar && diff -r tree back",
            mnt.join("tarred").display()
        ),
    )?;
    shell(mnt, "mkdir copied && cp -a tarred/d1? copied && diff -r tarred/d11 copied/d11 && rm -rf copied && test ! -e copied").map(drop)
}

fn names(mnt: &Path) -> Result<()> {
    let dir = mnt.join("names");
    fs::create_dir(&dir)?;
    let p = |n: &str| dir.join(n);
    fs::write(p("a"), "one")?;
    symlink("a", p("s"))?;
    ensure!(fs::read_link(p("s"))? == Path::new("a") && fs::read_to_string(p("s"))? == "one", "symlink");
    fs::hard_link(p("a"), p("b"))?;
    ensure!(
        fs::metadata(p("a"))?.nlink() == 2 && fs::metadata(p("a"))?.ino() == fs::metadata(p("b"))?.ino(),
        "hard link"
    );
    fs::write(p("b"), "two")?;
    ensure!(fs::read_to_string(p("a"))? == "two", "a hard link shows other content");
    fs::remove_file(p("a"))?;
    ensure!(fs::metadata(p("b"))?.nlink() == 1, "nlink after unlink");
    fs::write(p("c"), "three")?;
    fs::rename(p("b"), p("c"))?;
    ensure!(fs::read_to_string(p("c"))? == "two" && !p("b").exists(), "rename over");
    let open = fs::File::open(p("c"))?;
    fs::remove_file(p("c"))?;
    let mut buffer = [0; 3];
    open.read_exact_at(&mut buffer, 0)?;
    ensure!(&buffer == b"two" && open.metadata()?.nlink() == 0, "an unlinked file that is open");
    fs::create_dir_all(p("x/y/z"))?;
    ensure!(fs::remove_dir(p("x")).is_err(), "rmdir of a directory that isn't empty");
    fs::rename(p("x/y"), p("y"))?;
    ensure!(fs::rename(p("y"), p("y/z/w")).is_err(), "a directory was moved below itself");
    let long = "n".repeat(255);
    fs::write(p(&long), "")?;
    ensure!(fs::write(p(&"n".repeat(256)), "").is_err(), "a name of 256 bytes");
    for i in 0..1500 {
        fs::write(dir.join("y").join(format!("e{i}")), "")?;
    }
    let mut seen: Vec<String> = fs::read_dir(p("y"))?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    seen.sort();
    seen.dedup();
    ensure!(seen.len() == 1501, "readdir shows {} of 1501", seen.len());
    Ok(())
}

/// The same operations on both; both must hold the same afterwards.
fn content(mnt: &Path, local: &Path) -> Result<()> {
    let mut results = Vec::new();
    for root in [mnt, local] {
        let path = root.join("content");
        let file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.write_all_at(b"start", 0)?;
        file.write_all_at(b"far", 1 << 33)?;
        ensure!(file.metadata()?.len() == (1 << 33) + 3, "sparse size");
        ensure!(
            file.metadata()?.blocks() < 1 << 20,
            "a sparse file takes space: {} blocks",
            file.metadata()?.blocks()
        );
        file.set_len(300_000)?;
        for i in 0..60_u64 {
            file.write_all_at(&vec![i as u8 + 1; 4000 + i as usize * 13], i * 7919 % 290_000)?;
        }
        file.set_len(100_000)?;
        file.set_len(150_000)?;
        file.write_all_at(b"over the hole", 120_000)?;
        drop(file);
        use std::io::Write;
        let mut append = fs::File::options().append(true).open(&path)?;
        for i in 0..20 {
            append.write_all(&vec![b'a' + i; 5000])?;
        }
        append.sync_all()?;
        results.push(fs::read(&path)?);
    }
    ensure!(results[0].len() == 250_000, "size {}", results[0].len());
    ensure!(results[0] == results[1], "the content differs from a local file's");
    Ok(())
}

fn xattrs(mnt: &Path) -> Result<()> {
    shell(
        mnt,
        r#"touch xa; setfattr -n user.color -v blue xa; setfattr -n user.empty xa
           test "$(getfattr --only-values -n user.color xa)" = blue
           test "$(getfattr -d xa | grep -c user)" = 2
           setfattr -x user.color xa; ! getfattr -n user.color xa 2>/dev/null"#,
    )
    .map(drop)
}

fn big(mnt: &Path, local: &Path) -> Result<()> {
    shell(local, "head -c 100000000 /dev/urandom > big")?;
    shell(
        mnt,
        &format!(
            "cp {0} big && cmp big {0} && dd if=big of=/dev/null bs=777777 status=none",
            local.join("big").display()
        ),
    )?;
    let (a, b) = (fs::File::open(mnt.join("big"))?, fs::File::open(local.join("big"))?);
    let (mut x, mut y) = (vec![0; 70_000], vec![0; 70_000]);
    for i in 0..50_u64 {
        let offset = i * 1_937_331 % 99_900_000;
        a.read_exact_at(&mut x, offset)?;
        b.read_exact_at(&mut y, offset)?;
        ensure!(x == y, "the bytes at {offset} differ");
    }
    Ok(())
}

/// `big` is read by programs with nothing in the kernel's cache, while `mooseng profile` counts.
fn same_host(cluster: &DevCluster) -> Result<()> {
    let mut profile = cluster.mooseng(&["profile", "--for", "4s", "-o", "json"]);
    profile.arg(cluster.mount());
    let counts = std::thread::spawn(move || checked(&mut profile));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        // The first gives up what the kernel has cached of it.
        shell(
            &cluster.mount(),
            "dd if=big iflag=nocache count=0 status=none; dd if=big of=/dev/null bs=1M status=none",
        )?;
    }
    let counts = counts.join().map_err(|_| anyhow::anyhow!("profile panicked"))??;
    let counts: serde_json::Value = serde_json::from_slice(&counts.stdout)?;
    let counter = |name: &str| counts["counters"][name].as_u64().unwrap_or(0);
    // The last chunk may not be sealed yet, and the first reads may come before what they wait for.
    ensure!(counter("same_host_bytes") > 64 << 20, "too little was read from chunkservers' files: {counts}");
    ensure!(counter("same_host_failures") == 0, "{counts}");
    Ok(())
}

fn info(cluster: &DevCluster) -> Result<()> {
    let big = cluster.mount().join("big");
    let output = checked(cluster.mooseng(&["info", "-o", "json"]).arg(&big))?;
    let info: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(info["version"] == 1 && info["size"] == 100_000_000, "{info}");
    let chunks = info["chunks"].as_array().cloned().unwrap_or_default();
    ensure!(!chunks.is_empty(), "no chunks: {info}");
    for chunk in chunks {
        let zones: std::collections::BTreeSet<&str> =
            chunk["locations"].as_array().into_iter().flatten().filter_map(|l| l["zone"].as_str()).collect();
        ensure!(zones.len() == 2, "a chunk's two copies lie in {zones:?}");
    }
    let missing = cluster.mooseng(&["info"]).arg(cluster.mount().join("nothing-here")).output()?;
    ensure!(missing.status.code() == Some(3), "info of a missing file: {missing:?}");
    let output = checked(cluster.mooseng(&["df", "-o", "json", "--config"]).arg(cluster.client_config()?))?;
    let df: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        df["bytes_usable_free"].as_u64() > Some(0) && df["chunkservers"].as_array().map(Vec::len) == Some(3),
        "{df}"
    );
    Ok(())
}

fn second_mount(cluster: &DevCluster) -> Result<()> {
    let other = cluster.scratch().join("other");
    fs::create_dir(&other)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
    let outcome = (|| {
        for i in 0..30 {
            let text = format!("written {i}");
            fs::write(cluster.mount().join("shared"), &text)?;
            ensure!(fs::read_to_string(other.join("shared"))? == text, "the other mount sees an old version");
            fs::rename(other.join("shared"), other.join("moved"))?;
            ensure!(
                cluster.mount().join("moved").exists() && !cluster.mount().join("shared").exists(),
                "an old name is seen"
            );
        }
        Ok(())
    })();
    checked(cluster.mooseng(&["umount"]).arg(&other))?;
    ensure!(fs::read_dir(&other)?.next().is_none(), "something is left after umount");
    outcome
}
