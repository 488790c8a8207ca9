//! Generates the gRPC services of admin.proto over the message types of mooseng-wire.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../wire/proto/admin.proto");
    let descriptors = protox::compile(["admin.proto"], ["../wire/proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".mooseng.admin.v1", "::mooseng_wire::admin")
        .compile_fds(descriptors)?;
    Ok(())
}
