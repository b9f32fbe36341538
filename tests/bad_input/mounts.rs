//! Mountpoints that cannot be used, and machines without FUSE.

use nix::mount::{MsFlags, mount};

use crate::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("no mountpoint", "mount", 1, &["@/secrets", "mkdir -p"]).given(|place| place.remove("secrets")),
        case("a mountpoint that is a file", "mount", 1, &["@/secrets", "not a folder", "`mount`"]).given(|place| {
            place.remove("secrets");
            place.write("secrets", "");
        }),
        case("a mountpoint with something in it", "mount", 1, &["@/secrets", "not empty", "`mount`"])
            .given(|place| place.write("secrets/mine", "")),
        case("a mountpoint that leads in a circle", "mount", 1, &["@/secrets", "symbolic link"]).given(|place| {
            place.remove("secrets");
            place.link("secrets", "secrets");
        }),
        case("a mountpoint that another daemon has", "mount", 1, &["@/secrets", "/another/config.toml unmount"]).given(|place| {
            let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let number = std::os::fd::AsRawFd::as_raw_fd(&device);
            let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
            mount(Some("/another/config.toml"), &place.at("secrets"), Some("fuse.secretfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        }),
        case("no /dev/fuse", "mount", 1, &["/dev/fuse", "modprobe fuse", "--device /dev/fuse"])
            .through("unshare --mount sh -c shift;mount${IFS}--bind${IFS}/dev/null${IFS}/dev/fuse&&exec${IFS}\"$@\" sh sh"),
        case("no right to mount", "mount", 1, &["@/secrets", "CAP_SYS_ADMIN"])
            .through("setpriv --bounding-set -sys_admin --inh-caps -sys_admin"),
        case("no fusermount3", "mount", 1, &["fusermount3", "apt install fuse3"])
            .environment("PATH", "/nowhere")
            .given(|place| {
                for path in place.snapshot().keys() {
                    place.chown(path, crate::scratch::READER);
                }
                place.chown("", crate::scratch::READER);
            })
            .uid(crate::scratch::READER),
        case("a mountpoint that is not the user's", "mount", 1, &["@/secrets", "fusermount3"])
            .given(|place| {
                for path in place.snapshot().keys() {
                    place.chown(path, crate::scratch::READER);
                }
                place.chown("", crate::scratch::READER);
                place.chown("secrets", 0);
            })
            .uid(crate::scratch::READER),
    ]
}
