//! The state folder: what must outlive a restart. Never a value.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use crate::backend::store::write_whole;
use crate::run::RunError;
use crate::secret::SecretBytes;
use crate::sys::Uid;

/// A number that grows at each start, so that generations do, too.
pub(super) fn next_epoch(state: &Path) -> Result<u32, RunError> {
    let path = state.join("epoch");
    let fails = |why: io::Error| RunError::File {
        path: path.clone(),
        why,
    };
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().map_err(|_| {
            fails(io::Error::other("does not hold a number: remove it, and generations are counted from the start again"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(fails(error)),
    };
    let next = last.wrapping_add(1);
    write_whole(&path, format!("{next}\n").as_bytes(), true)?;
    Ok(next)
}

/// What root makes for a command without a daemon has to be the server's afterwards, whose folder it is.
fn give_to_the_server(path: &Path, state: &Path) -> io::Result<()> {
    if Uid::effective() != Uid::ROOT {
        return Ok(());
    }
    let owner = fs::metadata(state)?;
    // The server may have put a link there meanwhile.
    lchown(path, Some(owner.uid()), Some(owner.gid()))
}

/// The key of the audit log's chain, where there is no store to keep it.
pub(super) fn audit_key(state: &Path) -> Result<SecretBytes, RunError> {
    const LENGTH: usize = 32;
    let path = state.join("audit.key");
    let fails = |why: io::Error| RunError::File {
        path: path.clone(),
        why,
    };
    match fs::File::open(&path) {
        Ok(mut file) => {
            let key = SecretBytes::read_from(&mut file, LENGTH).map_err(fails)?;
            if key.len() == LENGTH {
                return Ok(key);
            }
            Err(fails(io::Error::other(
                "is damaged: move it away together with the audit log that it belongs to",
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = zeroize::Zeroizing::new([0; LENGTH]);
            aws_lc_rs::rand::fill(key.as_mut_slice())
                .map_err(|_| fails(io::Error::other("no randomness")))?;
            write_whole(&path, key.as_slice(), false)?;
            give_to_the_server(&path, state).map_err(fails)?;
            Ok(SecretBytes::new(key.to_vec()))
        }
        Err(error) => Err(fails(error)),
    }
}
