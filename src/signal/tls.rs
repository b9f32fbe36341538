//! TLS to a broker whose client leaves it to us.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::broker;
use crate::backend::vault::settings::ClientCertificate;

/// Trusts these certificates, or the system's, and shows that one. Reads files.
///
/// # Errors
/// One of them cannot be read, or is no PEM.
pub(super) fn connector(
    ca: Option<&Path>,
    client: Option<&ClientCertificate>,
) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let trusted = match ca {
        Some(ca) => certificates(ca)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    // The system's may have some that are none to us.
    roots.add_parsable_certificates(trusted);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(odd)?
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let chain = certificates(&client.certificate)?;
            let key = broker::credentials(&client.key)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
            let key = key.map_err(|error| no_pem(&client.key, &error))?;
            config.with_client_auth_cert(chain, key).map_err(odd)?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|error| no_pem(path, &error))?;
    match all.is_empty() {
        true => Err(no_pem(path, &pem::Error::NoItemsFound)),
        false => Ok(all),
    }
}

fn no_pem(path: &Path, error: &pem::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn odd(error: rustls::Error) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn said(ca: Option<&Path>, client: Option<&ClientCertificate>) -> String {
        match connector(ca, client) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("one of the files is wrong"),
        }
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key, empty] =
            ["certificate.pem", "key.pem", "empty.pem"].map(|name| folder.path().join(name));
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&empty, "").unwrap();
        let client = |certificate: &Path, key: &Path| ClientCertificate {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let good = client(&certificate, &key);
        assert!(connector(Some(&certificate), Some(&good)).is_ok());
        assert!(said(Some(&empty), None).contains("empty.pem"));
        assert!(said(Some(&folder.path().join("gone")), None).contains("gone"));
        let no_key = client(&certificate, &empty);
        assert!(said(Some(&certificate), Some(&no_key)).contains("empty.pem"));
        let swapped = client(&key, &key);
        assert!(said(Some(&certificate), Some(&swapped)).contains("key.pem"));
    }
}
