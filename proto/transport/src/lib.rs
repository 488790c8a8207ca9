//! Transport.
use std::sync::Arc;
use std::time::Duration;
use async_trait::async_trait;
use bytes::Bytes;
use mooseng_wire::{Identity, Role, call::{CallError, ErrorCode}, method::{Lane, Method}};

/// Generated gRPC services over `mooseng_wire::admin`.
#[allow(missing_docs, reason = "generated: the .proto file is the documentation")]
pub mod grpc { tonic::include_proto!("mooseng.admin.v1"); }
