//! Compiles the .proto files to prost types, without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "fs.proto",
        "session.proto",
        "chunk.proto",
        "raft.proto",
        "global.proto",
        "admin.proto",
        "frame.proto",
        "geo.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
