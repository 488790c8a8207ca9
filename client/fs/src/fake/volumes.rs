//! Volumes besides the root: made, joined, let go of and deleted by the test.

use bytes::Bytes;
use mooseng_namespace::{names_volumes, volume_of};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FileKind, FsRequest};
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, OpenSession, Renew, Request};
use mooseng_wire::{InodeId, SessionId, VolumeId};
use prost::Message;

use super::{FakeRegion, Node, State, errno, refuse};
use crate::peers::Failure;

/// The volume that a message to a master is about.
pub(super) fn asked(method: Method, body: &Bytes) -> Result<VolumeId, Failure> {
    let malformed = |_| refuse(ErrorCode::InvalidRequest, "");
    let of = |session: u64| SessionId(session).volume();
    Ok(match method {
        Method::OpenSession => {
            let open = OpenSession::decode(body.clone()).map_err(malformed)?;
            let volume = u16::try_from(open.volume).map_err(|_| refuse(ErrorCode::InvalidRequest, ""))?;
            if open.session != 0 && of(open.session) != VolumeId(volume) {
                return Err(refuse(ErrorCode::InvalidRequest, ""));
            }
            VolumeId(volume)
        }
        Method::Renew => of(Renew::decode(body.clone()).map_err(malformed)?.session),
        Method::CloseSession => of(CloseSession::decode(body.clone()).map_err(malformed)?.session),
        Method::FsRead | Method::FsChange => of(Request::decode(body.clone()).map_err(malformed)?.session),
        _ => VolumeId(0),
    })
}

impl FakeRegion {
    /// Makes a volume whose home that master leads, or has it lead there from now on. Answers the volume's root.
    pub fn make_volume(&self, volume: u16, leader: &str) -> u64 {
        let root = InodeId::new(VolumeId(volume), 1).0;
        let attr = Attr {
            inode: root,
            kind: FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            no_acls: true,
            ..Attr::default()
        };
        self.with(|s| {
            s.volumes.insert(VolumeId(volume), leader.to_owned());
            s.nodes.entry(root).or_insert_with(|| Node { attr, ..Node::default() });
        });
        root
    }

    /// The volume is gone, with all that it had.
    pub fn delete_volume(&self, volume: u16) {
        self.with(|s| {
            s.volumes.remove(&VolumeId(volume));
            s.nodes.retain(|inode, _| InodeId(*inode).volume() != VolumeId(volume));
            s.sessions.retain(|session, _| SessionId(*session).volume() != VolumeId(volume));
        });
    }

    /// A directory names that volume from now on; 0: none any more.
    pub fn join(&self, directory: u64, volume: u16) {
        self.with(|s| {
            if let Some(node) = s.nodes.get_mut(&directory) {
                node.attr.joined = volume.into();
            }
        });
    }
}

impl State {
    /// How many sessions a volume has.
    pub fn sessions_of(&self, volume: u16) -> usize {
        self.sessions.keys().filter(|session| SessionId(**session).volume() == VolumeId(volume)).count()
    }

    /// The leases of a volume's sessions run out.
    pub fn lapse_of(&mut self, volume: u16) {
        for (session, state) in &mut self.sessions {
            state.lapsed |= SessionId(*session).volume() == VolumeId(volume);
        }
    }

    fn is_joined(&self, directory: u64) -> bool {
        self.nodes.get(&directory).is_some_and(|node| node.attr.joined != 0)
    }

    /// What is answered before anything is done: of a request about two volumes, about another one than the session's, or about a directory at which one
    /// is joined.
    pub(super) fn of_one_volume(&mut self, op: &Op) -> Option<Reply> {
        let request = FsRequest { op: Some(op.clone()), caller: None };
        if names_volumes(&request) {
            return Some(errno(libc::EXDEV));
        }
        let told = match op {
            Op::Tell(tell) => tell.changes.iter().filter_map(|change| change.request.clone()).collect(),
            Op::Reserve(_) | Op::ReserveInodes(_) | Op::Sync(_) | Op::Pace(_) | Op::TouchAtime(_) => vec![],
            _ => vec![request],
        };
        for one in told {
            if volume_of(&one) != self.volume {
                let volume = self.volume;
                self.violations.push(format!("a session of volume {volume} asks about another: {one:?}"));
                return Some(errno(libc::EINVAL));
            }
        }
        let child = |parent: u64, name: &Bytes| self.child(parent, name);
        let (within, moved) = match op {
            Op::Lookup(o) => (vec![o.parent], vec![]),
            Op::ReadDir(o) => (vec![o.inode], vec![]),
            Op::SetAttr(o) => (vec![o.inode], vec![]),
            Op::Create(o) => (vec![o.parent], vec![]),
            Op::Mknod(o) => (vec![o.parent], vec![]),
            Op::Mkdir(o) => (vec![o.parent], vec![]),
            Op::Symlink(o) => (vec![o.parent], vec![]),
            Op::Link(o) => (vec![o.new_parent], vec![]),
            Op::Unlink(o) => (vec![o.parent], vec![child(o.parent, &o.name)]),
            Op::Rmdir(o) => (vec![o.parent], vec![child(o.parent, &o.name)]),
            Op::Rename(o) => (
                vec![o.parent, o.new_parent],
                vec![child(o.parent, &o.name), child(o.new_parent, &o.new_name)],
            ),
            _ => (vec![], vec![]),
        };
        if within.iter().any(|directory| self.is_joined(*directory)) {
            return Some(errno(libc::EREMOTE));
        }
        let stays = moved.iter().flatten().any(|inode| self.is_joined(*inode));
        stays.then(|| errno(libc::EBUSY))
    }
}
