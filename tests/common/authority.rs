//! A certificate authority of a test's, for servers on loopback and their clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use secretfs::clock::Clock;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

#[derive(Debug)]
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

/// Whom a certificate is for.
enum For<'a> {
    Server,
    Client(&'a str),
}

impl Authority {
    /// Makes one, whose certificate is in `ca.pem` in this folder.
    #[track_caller]
    pub(crate) fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("the tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = folder.to_owned();
        fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// Where its certificate is.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The files of a certificate and a key of a server at 127.0.0.1.
    #[track_caller]
    pub(crate) fn server(&self) -> (PathBuf, PathBuf) {
        self.files("server", For::Server)
    }

    /// The same of a client's.
    #[track_caller]
    pub(crate) fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        self.files(&format!("client-{name}"), For::Client(name))
    }

    /// A server's certificate and key, for a server within the test program.
    #[track_caller]
    pub(crate) fn served(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (certificate, key) = self.issue(For::Server);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (certificate.der().clone(), key)
    }

    /// The same, for these names alone, and from so many days from now until so many days from now.
    #[track_caller]
    pub(crate) fn served_as(
        &self,
        names: &[&str],
        days: [i64; 2],
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = named("a server of the tests");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = SystemTime::from(Clock::default().timestamp());
        let day = |days: i64| {
            let by = Duration::from_secs(days.unsigned_abs() * 86_400);
            if days < 0 { now - by } else { now + by }
        };
        [params.not_before, params.not_after] = days.map(|days| day(days).into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (certificate.der().clone(), key)
    }

    fn files(&self, name: &str, whom: For<'_>) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(whom);
        let paths = ["pem", "key"].map(|end| self.folder.join(format!("{name}.{end}")));
        let [to_certificate, to_key] = paths;
        fs::write(&to_certificate, certificate.pem()).unwrap();
        fs::write(&to_key, key.serialize_pem()).unwrap();
        (to_certificate, to_key)
    }

    fn issue(&self, whom: For<'_>) -> (rcgen::Certificate, KeyPair) {
        let (name, others, usage) = match whom {
            For::Server => (
                "a server of the tests",
                vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            For::Client(name) => (
                name,
                vec![name.to_owned()],
                ExtendedKeyUsagePurpose::ClientAuth,
            ),
        };
        let mut params = CertificateParams::new(others).unwrap();
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}
