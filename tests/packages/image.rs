//! The OCI image: built without a network, unpacked by the digests that it names, and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::daemon::tool;
use crate::common::folder::Folder;
use crate::common::kept::Kept;
use crate::common::machine::needs;
use crate::common::{DEADLINE, Output, eventually, run};
use crate::host::build;

const VALUE: &str = "only for those who may";

/// A blob of a layout, as a descriptor names it, if it is what that says.
#[track_caller]
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    let hash = digest.strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(hash);
    assert_eq!(sha256(&path), hash);
    assert_eq!(descriptor["size"], fs::metadata(&path).unwrap().len());
    path
}

#[track_caller]
fn sha256(path: &Path) -> String {
    let said = run(Command::new(tool("sha256sum")).arg(path), b"").expect_ok();
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

#[track_caller]
fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Unpacks the image as an engine would, and says how it is to be run.
#[track_caller]
fn unpack(layout: &Path, root: &Path) -> Value {
    assert_eq!(
        json(&layout.join("oci-layout"))["imageLayoutVersion"],
        "1.0.0"
    );
    let index = json(&layout.join("index.json"));
    let manifest = json(&blob(layout, &index["manifests"][0]));
    let config = json(&blob(layout, &manifest["config"]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = blob(layout, &layers[0]);
    let open = root.with_extension("tar");
    let mut gunzip = Command::new(tool("gzip"));
    let bytes = run(gunzip.arg("--decompress").arg("--stdout").arg(layer), b"").expect_ok();
    fs::write(&open, bytes).unwrap();
    let known = format!("sha256:{}", sha256(&open));
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([known]));
    fs::create_dir(root).unwrap();
    let mut tar = Command::new(tool("tar"));
    tar.arg("--extract").arg("--file").arg(&open);
    run(tar.arg("--directory").arg(root), b"").expect_ok();
    config["config"].clone()
}

#[test]
fn the_image_is_what_it_says_and_serves() {
    needs!();
    let layout = build("systemd/oci/build");
    let digests = fs::read(layout.join("index.json")).unwrap();
    build("systemd/oci/build");
    let again = fs::read(layout.join("index.json")).unwrap();
    assert_eq!(again, digests, "the same binary is the same image");

    let folder = Folder::new();
    let root = folder.at("root");
    let how = unpack(&layout, &root);
    assert_eq!(how["Entrypoint"], serde_json::json!(["/usr/bin/secretfs"]));
    // What an engine gives it.
    let shell = |script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", script, "sh"]).arg(&root);
        run(&mut command, b"").expect_ok()
    };
    shell("mknod $1/dev/fuse c 10 229; mount --rbind --make-rprivate /proc $1/proc");
    let inside = |words: &[&str], input: &[u8]| -> Output {
        let mut command = Command::new(tool("chroot"));
        command.env_clear().arg(&root).arg("/usr/bin/secretfs");
        run(command.args(words), input)
    };
    inside(&["init"], b"").expect_ok();
    let (chroot, place) = (tool("chroot"), root.display().to_string());
    let words = [chroot.as_str(), &place, "/usr/bin/secretfs", "mount"];
    let kept = Kept::start(&folder, Signal::SIGTERM, None, &words);
    let ready = || inside(&["put", "demo/word"], VALUE.as_bytes()).code() == 0;
    let log = || fs::read_to_string(folder.at("server.log")).unwrap_or_default();
    assert!(eventually(DEADLINE, ready), "{}", log());
    let secret = root.join("secrets/demo/word");
    let read = || fs::read_to_string(&secret).is_ok_and(|read| read == VALUE);
    assert!(eventually(DEADLINE, read), "{}", log());
    inside(&["doctor"], b"").expect_ok();
    drop(kept);
    shell("umount --lazy $1/proc");
}
