//! Access control lists on real mounts: as on a local disk, between two mounts, and where the region judges by them itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked, shell};
use mooseng_e2e::steps::Steps;

#[test]
fn access_control_lists_are_as_on_a_local_disk() {
    run().unwrap();
}

/// Users and groups of the tests; nobody of them has an account.
const PRELUDE: &str = "as() { who=$1; shift; setpriv --reuid ${who%%:*} --regid ${who#*:} ${GROUPS_OF:---clear-groups} \"$@\"; }
may() { for how in r w x; do as $1 test -$how $2 2>/dev/null && printf $how || printf -- -; done; echo \" $1 $2\"; }
lists() { find . ! -type l | sort | xargs getfacl -np | grep -v '^$'; find . | sort | xargs stat -c '%A %u %g %n'; }
";

fn run() -> Result<()> {
    let cluster = DevCluster::up("acls", &[])?;
    let (mnt, local, other) =
        (cluster.mount(), cluster.scratch().join("local"), cluster.scratch().join("other"));
    fs::create_dir(&local)?;
    fs::create_dir(&other)?;
    checked(cluster.mooseng(&["mount", "--config"]).arg(cluster.client_config()?).arg(&other))?;
    // Others must get as far as there.
    checked(std::process::Command::new("chmod").args(["-R", "a+rx"]).arg(cluster.scratch()))?;
    let mut steps = Steps::default();
    let local_has = shell(&local, "touch probe && setfacl -m u:7:r probe && rm probe").is_ok();
    for (what, line) in SAME {
        steps.run(what, || match local_has {
            true => same(&mnt, &local, line),
            false => {
                println!("    SKIPPED: the local disk has no access control lists");
                Ok(())
            }
        });
    }
    steps.run("a change of one mount counts at the other at once, also for what its kernel keeps", || {
        seen_at_once(&mnt, &other)
    });
    steps.run("fsck finds nothing", || cluster.fsck());
    checked(cluster.mooseng(&["umount"]).arg(&other))?;
    steps.finish()?;
    cluster.finish(super::PEERS_COME_AND_GO)
}

/// Lines that must say the same on the mount and on the local disk.
const SAME: &[(&str, &str)] = &[
    (
        "who may what",
        "mkdir d; for i in 1 2 3 4; do echo $i > d/$i; chmod 640 d/$i; done; chown -R 10:20 d; chmod 755 d
         setfacl -m u:11:rw d/1; setfacl -m g:30:rwx,u:12:- d/2; setfacl -m g:30:rw,m::r d/3; setfacl -m u:11:rwx,o::r d/4; chmod 604 d/4
         for f in d/1 d/2 d/3; do for who in 10:9 11:9 12:20 12:30 13:20 13:30 13:9; do may $who $f; done; done
         for who in 10:9 13:9; do may $who d/4; done
         GROUPS_OF='--groups 30,40' may 14:9 d/2; as 11:9 sh -c 'echo by 11 >> d/1'; ! as 13:9 sh -c 'echo by 13 >> d/1' 2>/dev/null; cat d/1; lists",
    ),
    (
        "a mode and its list are one",
        "touch f g; setfacl -m u:11:rwx,g:30:rx f; stat -c %a f; chmod 640 f; getfacl -nc f; chmod g+x f; getfacl -nc f
         setfacl -m m::rwx f; stat -c %a f; setfacl -b f; getfacl -nc f; stat -c '%a %A' f
         setfacl -m u:11:rwx g; setfacl -x u:11 g; getfacl -nc g; setfacl -x m g; getfacl -nc g; ls -l g | cut -c1-11; getfattr -m - g",
    ),
    (
        "what is handed down, whatever the umask",
        "umask 077; mkdir d plain; setfacl -d -m u:11:rwx,g:30:rx d; setfacl -d -m u::rwx,g::rx,o::- plain; mkdir -m 700 d/private
         touch d/f plain/f; mkdir d/e d/e/e plain/e; mkfifo d/p; ln -s f d/l; install -m 755 /bin/true d/e/bin; touch d/e/e/f; cp /bin/true d/e/true; lists
         setfacl -k d; touch d/after; mkdir d/after2; getfacl -nc d d/after d/after2; setfacl -k d/p; ! setfacl -d -m u:1:r d/f 2>&1; ! setfacl -m u:1:r d/nothing 2>&1",
    ),
    (
        "who may set a list, and what becomes of setgid",
        "mkdir d; touch d/f; chown -R 10:20 d; chmod 2775 d d/f; ! as 11:20 setfacl -m u:11:rwx d/f 2>&1; as 10:20 setfacl -m u:11:rwx d/f; stat -c %a d/f
         as 10:9 setfacl -m u:12:r d/f; stat -c %a d/f; chmod g+s d/f; GROUPS_OF='--groups 20,9' as 10:9 setfacl -m u:13:r d/f; stat -c %a d/f
         as 10:9 setfacl -m u:12:rx d; stat -c %a d; chmod 755 d/f
         GROUPS_OF='--groups 20,9' as 10:9 chmod g+s d/f; stat -c %a d/f; as 10:9 chmod g+s d/f; stat -c %a d/f",
    ),
    (
        "rename, link, exchange, copies and archives keep them",
        "mkdir d to; echo x > d/f; setfacl -m u:11:rw,g:30:r d/f; setfacl -m u:11:rwx,d:u:12:rwx d; mkdir d/sub; echo y > d/sub/g
         ln d/f d/hard; mv d/f d/moved; lists
         cp -a d to/cp; tar --acls --numeric-owner -cf - d | tar --acls --numeric-owner -xf - -C to; rsync -aA d/ to/rsync/; lists
         tar --acls -cf a.tar d; mkdir x; tar --acls -xf a.tar -C x; (cd x; lists); getfacl -nRp d > all; setfacl -Rb -k d; lists; setfacl --restore=all; lists",
    ),
    (
        "long lists, and what isn't one",
        "touch f; setfacl -m $(seq -s, -f 'u:%g:rw' 1000 1200) f; getfacl -nc f | md5sum; setfacl -m u:1100:- f; getfacl -nc f | grep 1100; stat -c %a f
         e() { printf '%02x00%02x00%s' $1 $2 ${3:-ffffffff}; }
         put() { setfattr -n system.posix_acl_${2:-access} -v 0x$1 f 2>&1 && echo done || true; }
         head=02000000; least=$(e 1 6)$(e 4 4)$(e 32 0)
         for value in 02 01000000 $head $head$least $head$(e 1 6) $head$(e 1 9)$(e 4 4)$(e 32 0) $head$(e 1 6)$(e 2 7 0b000000)$(e 4 4)$(e 32 0) \
           $head${least}00 $head$least$(e 16 7); do put $value; done
         put $head$least default
         getfacl -nc f",
    ),
];

fn same(mnt: &Path, local: &Path, line: &str) -> Result<()> {
    let said = [mnt, local].map(|root| {
        let place = root.join("same");
        fs::create_dir(&place)?;
        let said = shell(&place, &format!("{PRELUDE}{line}"));
        fs::remove_dir_all(&place)?;
        said
    });
    let [is, expected] = said;
    let (is, expected) = (is?, expected?);
    let differs = is.lines().zip(expected.lines()).find(|(a, b)| a != b);
    ensure!(
        is == expected,
        "the first difference: {differs:?}\non the mount:\n{is}\non the local disk:\n{expected}"
    );
    Ok(())
}

/// A reader without rights of his own goes in and out with the list that another mount sets, time and again.
fn seen_at_once(a: &Path, b: &Path) -> Result<()> {
    shell(
        a,
        "mkdir -m 700 guarded; echo in > guarded/f; chmod 644 guarded/f; ln guarded/f guarded/g; echo x > file; chmod 600 file",
    )?;
    let read = |line: &str| {
        let out = std::process::Command::new("setpriv")
            .args(["--reuid", "4711", "--regid", "4711", "--clear-groups", "sh", "-c", line])
            .current_dir(b)
            .output()
            .context("running setpriv")?;
        Ok::<_, anyhow::Error>(out.status.success())
    };
    for round in 0..100 {
        for (may, line) in [
            (false, "setfacl -b guarded file"),
            (true, "setfacl -m u:4711:rx guarded; setfacl -m u:4711:r file"),
            (false, "chmod 700 guarded; chmod 600 file"),
            (true, "chmod 750 guarded; chmod 640 file"),
            (true, "setfacl -m u:4712:rwx guarded file"),
        ] {
            shell(a, line)?;
            for reading in ["cat guarded/f", "cat guarded/g", "cat file"] {
                let did = read(&format!("{reading} >/dev/null 2>&1"))?;
                ensure!(
                    did == may,
                    "round {round}: after {line:?} {reading:?} {}",
                    if did { "works" } else { "fails" }
                );
            }
        }
        if round % 10 == 0 {
            let lists = [a, b].map(|mount| shell(mount, "getfacl -nc guarded file; stat -c %a guarded file"));
            let [a, b] = lists;
            ensure!(a? == b?, "the mounts show different lists");
        }
    }
    Ok(())
}
