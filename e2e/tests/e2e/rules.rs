//! `[[mounts]]` in the masters' configuration, on real mounts: subtree, read-only, squashing, and who isn't let in.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooseng_e2e::cluster::{DevCluster, checked};

use crate::operations::certs;

/// As in docs/operations.md, and what else the test needs.
const RULES: &str = r#"
[[mounts]]
clients = ["client-1", "host-*"]

[[mounts]]
clients = ["web-*"]
subtree = "/srv/web"

[[mounts]]
clients = ["reader"]
subtree = "/srv/web"
read_only = true

[[mounts]]
clients = ["guest"]
squash = "root"
"#;

/// A rule names whom it lets mount what; the rest is refused.
pub fn what_may_mount_where(cluster: &DevCluster) -> Result<()> {
    let web = cluster.mount().join("srv/web");
    fs::create_dir_all(&web)?;
    fs::write(web.join("page"), "page")?;
    fs::write(cluster.mount().join("srv/secret"), "secret")?;
    fs::set_permissions(cluster.mount().join("srv/secret"), fs::Permissions::from_mode(0o600))?;
    for name in cluster.names("master")? {
        let path = cluster.dir().join("etc").join(format!("{name}.toml"));
        fs::File::options().append(true).open(&path)?.write_all(RULES.as_bytes())?;
        cluster.dev("kill", &name)?;
        cluster.dev("start", &name)?;
        cluster.wait_whole()?;
    }

    let host = Host::new(cluster, "web-1")?;
    host.mounted(|tree| {
        ensure!(names(tree)? == ["page"], "it sees {:?}", names(tree)?);
        fs::write(tree.join("theirs"), "theirs")?;
        ensure!(fs::read_to_string(web.join("theirs"))? == "theirs", "it isn't there for others");
        ensure!(fs::read(tree.join("srv/secret")).is_err(), "it sees more than its subtree");
        Ok(())
    })?;

    Host::new(cluster, "reader")?.mounted(|tree| {
        ensure!(fs::read_to_string(tree.join("page"))? == "page", "other content");
        let error = fs::write(tree.join("page"), "other").err().context("it was written")?;
        ensure!(error.raw_os_error() == Some(libc::EROFS), "{error}");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let line = mounts.lines().find(|l| l.contains(&tree.display().to_string())).context("no mount")?;
        ensure!(line.contains(" ro,"), "the kernel doesn't know that it is read-only: {line}");
        Ok(())
    })?;

    // root of that host is nobody.
    Host::new(cluster, "guest")?.mounted(|tree| {
        let error =
            fs::read(tree.join("srv/secret")).err().context("root of a squashed host reads root's file")?;
        ensure!(error.raw_os_error() == Some(libc::EACCES), "{error}");
        let open = tree.join("srv/open");
        fs::create_dir(cluster.mount().join("srv/open"))?;
        fs::set_permissions(cluster.mount().join("srv/open"), fs::Permissions::from_mode(0o777))?;
        fs::write(open.join("made"), "x")?;
        let owner = fs::metadata(cluster.mount().join("srv/open/made"))?.uid();
        ensure!(owner == 65_534, "what it makes belongs to {owner}");
        Ok(())
    })?;

    let stranger = Host::new(cluster, "stranger")?;
    for args in [&["mount"][..], &["mount", "--foreground"]] {
        let began = Instant::now();
        let output = stranger.mount(args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(4), "{output:?}");
        ensure!(began.elapsed() < Duration::from_secs(5), "it took {:?} to say so", began.elapsed());
        let reason = "the region refuses this host: no rule under `mounts`";
        ensure!(
            said.lines().any(|l| l.to_lowercase().trim_start_matches("mooseng: ").starts_with(reason)),
            "{said}"
        );
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A host with a certificate and a configuration of its own.
struct Host<'a> {
    cluster: &'a DevCluster,
    config: PathBuf,
    tree: PathBuf,
}

impl<'a> Host<'a> {
    fn new(cluster: &'a DevCluster, name: &str) -> Result<Self> {
        let leaf = cluster.scratch().join(name);
        let out = leaf.display().to_string();
        certs(
            cluster,
            &["issue", "--role", "client", "--region", "region-1", "--name", name, "--out", &out],
        )?;
        let own = cluster.dir().join("certs/client-1").display().to_string();
        let config = fs::read_to_string(cluster.client_config()?)?;
        let config = config.replace(&own, &out).replace("\"client-1\"", &format!("{name:?}"));
        let path = cluster.scratch().join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let tree = cluster.scratch().join(format!("mnt-{name}"));
        fs::create_dir(&tree)?;
        Ok(Self { cluster, config: path, tree })
    }

    fn mount(&self, args: &[&str]) -> Result<Output> {
        Ok(self.cluster.mooseng(args).arg("--config").arg(&self.config).arg(&self.tree).output()?)
    }

    /// Does something with its mount.
    fn mounted(&self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let output = self.mount(&["mount"])?;
        ensure!(output.status.success(), "{output:?}");
        let outcome = work(&self.tree);
        checked(self.cluster.mooseng(&["umount"]).arg(&self.tree))?;
        outcome
    }
}
