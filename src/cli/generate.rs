//! `put --generate SPEC`: values that nobody has to think up, or sees.

use std::net::IpAddr;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// What a password is made of: 72 characters, none of which a shell, a URL's query, a YAML or a .env file takes for
/// something else inside a word.
const PASSWORD: &[u8; 72] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~+=:,@%";

/// The length of passwords (characters), and of `hex` and `base64` (random bytes), where none is given.
const DEFAULT_LENGTH: usize = 32;

/// How long these may be.
const LENGTHS: std::ops::RangeInclusive<usize> = 8..=1024;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// `password:32`: that many letters, digits and symbols, each drawn from the whole alphabet: not every kind need
    /// occur.
    Password(usize),
    /// `hex:32`: that many random bytes.
    Hex(usize),
    /// `base64:32`: that many random bytes.
    Base64(usize),
    /// `uuid`: a random one.
    Uuid,
    /// `ed25519`: a private key, PKCS#8 PEM.
    Ed25519,
    /// `ecdsa-p256`: a private key, PKCS#8 PEM.
    EcdsaP256,
    /// `rsa:3072`: a private key, PKCS#8 PEM.
    Rsa(RsaSize),
    /// `certificate:CN,SAN…`: a self-signed certificate for ECDSA P-256 and behind it its key, both PEM. Valid for a
    /// year from the day before.
    Certificate(Vec<String>),
}

/// The size of an RSA key in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaSize {
    /// 2048
    Bits2048,
    /// 3072, the default.
    Bits3072,
    /// 4096
    Bits4096,
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        let length = || match rest.map(str::parse) {
            None => Ok(DEFAULT_LENGTH),
            Some(Ok(length)) if LENGTHS.contains(&length) => Ok(length),
            Some(Ok(_) | Err(_)) => Err(SpecError::Length),
        };
        let alone = |spec| match rest {
            None => Ok(spec),
            Some(_) => Err(SpecError::Alone),
        };
        match kind {
            "password" => length().map(Self::Password),
            "hex" => length().map(Self::Hex),
            "base64" => length().map(Self::Base64),
            "uuid" => alone(Self::Uuid),
            "ed25519" => alone(Self::Ed25519),
            "ecdsa-p256" => alone(Self::EcdsaP256),
            "rsa" => match rest {
                Some("2048") => Ok(Self::Rsa(RsaSize::Bits2048)),
                None | Some("3072") => Ok(Self::Rsa(RsaSize::Bits3072)),
                Some("4096") => Ok(Self::Rsa(RsaSize::Bits4096)),
                Some(_) => Err(SpecError::Rsa),
            },
            "certificate" => {
                let names: Vec<String> = rest
                    .unwrap_or_default()
                    .split(',')
                    .map(str::to_owned)
                    .collect();
                match names.iter().all(|name| is_host(name)) {
                    true => Ok(Self::Certificate(names)),
                    false => Err(SpecError::Certificate),
                }
            }
            _ => Err(SpecError::Kind),
        }
    }
}

/// A host name, a wildcard of one, or an IP address; short enough for a common name.
fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !label.is_empty()
            && label.chars().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let bare = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 64 && (IpAddr::from_str(name).is_ok() || bare.split('.').all(label))
}

/// Why a text is not a [`Spec`]. The text itself is not shown: somebody may have typed a password there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// None of the kinds.
    #[error(
        "--generate: unknown kind: use password, hex, base64, uuid, ed25519, ecdsa-p256, rsa or certificate"
    )]
    Kind,
    /// Too short, too long or no number.
    #[error("--generate: the length must be a number from 8 to 1024, as in password:32")]
    Length,
    /// A size that is not offered.
    #[error("--generate: an RSA key has 2048, 3072 or 4096 bits: write rsa:3072")]
    Rsa,
    /// A kind that takes nothing behind it.
    #[error(
        "--generate: uuid, ed25519 and ecdsa-p256 take no length: leave out ':' and what follows"
    )]
    Alone,
    /// Not host names.
    #[error(
        "--generate: write certificate:NAME[,NAME…], each a host name or IP address of at most 64 characters"
    )]
    Certificate,
}

/// The system's source of randomness or the cryptographic library failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("--generate: the cryptographic library failed: nothing was stored; try again")]
pub struct GenerateError;

impl From<Unspecified> for GenerateError {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// Makes a value. `now` is for the certificate's dates. Text has no newline at its end, PEM has one.
///
/// # Errors
/// [`GenerateError`]
pub fn generate(spec: &Spec, now: Timestamp) -> Result<SecretBytes, GenerateError> {
    match spec {
        Spec::Password(length) => password(*length),
        Spec::Hex(bytes) => {
            let random = random(*bytes)?;
            let digit = |nibble: u8| match nibble {
                0..=9 => b'0' + nibble,
                _ => b'a' + nibble - 10,
            };
            let mut text = Vec::with_capacity(2 * random.len());
            text.extend(random.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
            Ok(SecretBytes::new(text))
        }
        Spec::Base64(bytes) => {
            let mut text = Vec::new();
            append_base64(&mut text, &random(*bytes)?)?;
            Ok(SecretBytes::new(text))
        }
        Spec::Uuid => {
            let mut bytes = Zeroizing::new([0; 16]);
            rand::fill(bytes.as_mut_slice())?;
            let uuid = uuid::Builder::from_random_bytes(*bytes).into_uuid();
            let mut text = vec![0; uuid::fmt::Hyphenated::LENGTH];
            uuid.hyphenated().encode_lower(&mut text);
            Ok(SecretBytes::new(text))
        }
        Spec::Ed25519 => private_key(Ed25519KeyPair::generate()?.to_pkcs8v1()?.as_ref()),
        Spec::EcdsaP256 => private_key(p256()?.to_pkcs8v1()?.as_ref()),
        Spec::Rsa(size) => {
            let key = rsa::KeyPair::generate(match size {
                RsaSize::Bits2048 => KeySize::Rsa2048,
                RsaSize::Bits3072 => KeySize::Rsa3072,
                RsaSize::Bits4096 => KeySize::Rsa4096,
            })?;
            let der: Pkcs8V1Der<'_> = key.as_der()?;
            private_key(der.as_ref())
        }
        Spec::Certificate(names) => certificate(names, now),
    }
}

fn random(bytes: usize) -> Result<Zeroizing<Vec<u8>>, GenerateError> {
    let mut random = Zeroizing::new(vec![0; bytes]);
    rand::fill(&mut random)?;
    Ok(random)
}

/// Draws 7 bits at a time and throws away what lies beyond the alphabet: a remainder would favour its beginning.
fn password(length: usize) -> Result<SecretBytes, GenerateError> {
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    while text.len() < length {
        let drawn = random(length)?;
        let characters = drawn
            .iter()
            .filter_map(|byte| PASSWORD.get(usize::from(byte & 0x7f)));
        let missing = length - text.len();
        text.extend(characters.take(missing));
    }
    Ok(SecretBytes::new(std::mem::take(&mut *text)))
}

fn p256() -> Result<EcdsaKeyPair, Unspecified> {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
}

fn private_key(der: &[u8]) -> Result<SecretBytes, GenerateError> {
    let mut text = Vec::with_capacity(pem_length(der));
    append_private_key(&mut text, der)?;
    Ok(SecretBytes::new(text))
}

const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----\n";
const END: &[u8] = b"-----END PRIVATE KEY-----\n";

/// What a PEM line holds: 64 characters of text.
const PEM_LINE: usize = 48;

fn pem_length(der: &[u8]) -> usize {
    BEGIN.len() + END.len() + der.len().div_ceil(PEM_LINE) * 65
}

/// Appends PEM to a vector that has room for it, so that it does not leave a copy behind by growing.
fn append_private_key(text: &mut Vec<u8>, der: &[u8]) -> Result<(), GenerateError> {
    text.extend_from_slice(BEGIN);
    for line in der.chunks(PEM_LINE) {
        append_base64(text, line)?;
        text.push(b'\n');
    }
    text.extend_from_slice(END);
    Ok(())
}

fn append_base64(text: &mut Vec<u8>, bytes: &[u8]) -> Result<(), GenerateError> {
    let start = text.len();
    text.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let room = text.get_mut(start..).unwrap_or_default();
    BASE64
        .encode_slice(bytes, room)
        .map_err(|_| GenerateError)?;
    Ok(())
}

fn certificate(names: &[String], now: Timestamp) -> Result<SecretBytes, GenerateError> {
    let key = p256()?;
    let mut params = CertificateParams::new(names).map_err(|_| GenerateError)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = names.first() {
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let today = now.to_zoned(TimeZone::UTC).date();
    let (year, month, day) = parts(today.saturating_sub(1.day()))?;
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = parts(today.saturating_add(1.year()))?;
    params.not_after = rcgen::date_time_ymd(year, month, day);
    let signer = Signer(&key);
    let certificate = params.self_signed(&signer).map_err(|_| GenerateError)?;
    let certificate = certificate.pem().replace('\r', "");
    let der = key.to_pkcs8v1()?;
    let mut text = Vec::with_capacity(certificate.len() + pem_length(der.as_ref()));
    text.extend_from_slice(certificate.as_bytes());
    append_private_key(&mut text, der.as_ref())?;
    Ok(SecretBytes::new(text))
}

/// Year, month and day as rcgen wants them.
fn parts(date: jiff::civil::Date) -> Result<(i32, u8, u8), GenerateError> {
    let part = |number: i8| u8::try_from(number).map_err(|_| GenerateError);
    Ok((date.year().into(), part(date.month())?, part(date.day())?))
}

/// rcgen's own key type keeps an unwiped copy of the private key; this one only signs with it.
struct Signer<'a>(&'a EcdsaKeyPair);

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&rand::SystemRandom::new(), message);
        Ok(signature
            .map_err(|_| rcgen::Error::RemoteKeyError)?
            .as_ref()
            .to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn make(spec: &str) -> SecretBytes {
        let now = "2026-02-03T04:05:06Z".parse().unwrap();
        generate(&spec.parse().unwrap(), now).unwrap()
    }

    fn text(spec: &str) -> String {
        String::from_utf8(make(spec).expose().to_vec()).unwrap()
    }

    /// What the stock openssl says of the value; tests need it installed.
    fn openssl(arguments: &[&str], input: &SecretBytes) -> String {
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // openssl may end before it has read all, once it has what it was asked for.
        let _ = stdin.write_all(input.expose());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn text_has_the_length_and_alphabet_asked_for() {
        for (spec, length, alphabet) in [
            ("password:8", 8, &PASSWORD[..]),
            ("password", 32, PASSWORD),
            ("password:1024", 1024, PASSWORD),
            ("hex:32", 64, b"0123456789abcdef"),
        ] {
            let (one, other) = (text(spec), text(spec));
            assert_eq!(one.len(), length, "{spec}");
            assert!(one.bytes().all(|byte| alphabet.contains(&byte)), "{spec}");
            assert_ne!(one, other, "{spec}");
        }
        assert_eq!(BASE64.decode(text("base64:33")).unwrap().len(), 33);
        let uuid: uuid::Uuid = text("uuid").parse().unwrap();
        assert_eq!(uuid.get_version_num(), 4);
        assert_ne!(text("uuid"), text("uuid"));
    }

    #[test]
    fn no_character_of_a_password_is_favoured() {
        let mut counts = [0_u32; 256];
        for byte in (0..100).flat_map(|_| text("password:1024").into_bytes()) {
            counts[usize::from(byte)] += 1;
        }
        let expected = 100.0 * 1024.0 / 72.0;
        let chi_square: f64 = PASSWORD
            .iter()
            .map(|byte| (f64::from(counts[usize::from(*byte)]) - expected).powi(2) / expected)
            .sum();
        // 71 degrees of freedom: 160 is passed by chance once in 10^8 runs. A remainder of 128 by 72 gives about 20,000.
        assert!(chi_square < 160.0, "{chi_square}");
    }

    #[test]
    fn openssl_reads_the_keys() {
        for (spec, kind) in [
            ("ed25519", "ED25519 Private-Key"),
            ("ecdsa-p256", "prime256v1"),
            ("rsa:2048", "(2048 bit"),
            ("rsa", "(3072 bit"),
            ("rsa:4096", "(4096 bit"),
        ] {
            let key = make(spec);
            assert!(key.expose().ends_with(b"-----\n"));
            let shown = openssl(&["pkey", "-noout", "-text"], &key);
            assert!(shown.contains(kind), "{spec}: {shown}");
            if spec != "ed25519" {
                openssl(&["pkey", "-noout", "-check"], &key);
            }
        }
    }

    #[test]
    fn openssl_reads_the_certificate_and_its_key() {
        let pem = make("certificate:db.example,*.db.example,10.0.0.7,::1");
        let shown = openssl(&["x509", "-noout", "-text", "-nameopt", "RFC2253"], &pem);
        for expected in [
            "Subject: CN=db.example",
            "Issuer: CN=db.example",
            "DNS:db.example, DNS:*.db.example, IP Address:10.0.0.7, IP Address:0:0:0:0:0:0:0:1",
            "Not Before: Feb  2 00:00:00 2026 GMT",
            "Not After : Feb  3 00:00:00 2027 GMT",
            "CA:FALSE",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
        let of_certificate = openssl(&["x509", "-noout", "-pubkey"], &pem);
        let of_key = openssl(&["pkey", "-pubout"], &pem);
        assert_eq!(of_certificate, of_key);

        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("cert.pem");
        std::fs::write(&file, pem.expose()).unwrap();
        let file = file.to_str().unwrap();
        let arguments = [
            "verify",
            "-no_check_time",
            "-check_ss_sig",
            "-CAfile",
            file,
            file,
        ];
        openssl(&arguments, &pem);
    }

    #[test]
    fn wrong_specs_are_refused_without_quoting_them() {
        for (spec, error) in [
            ("", SpecError::Kind),
            ("canary", SpecError::Kind),
            ("Password:32", SpecError::Kind),
            ("password:canary", SpecError::Length),
            ("password:", SpecError::Length),
            ("password:7", SpecError::Length),
            ("password:1025", SpecError::Length),
            ("hex:-1", SpecError::Length),
            ("base64:99999999999999999999", SpecError::Length),
            ("rsa:1024", SpecError::Rsa),
            ("rsa:canary", SpecError::Rsa),
            ("uuid:4", SpecError::Alone),
            ("ed25519:canary", SpecError::Alone),
            ("certificate", SpecError::Certificate),
            ("certificate:", SpecError::Certificate),
            ("certificate:a,,b", SpecError::Certificate),
            ("certificate:can ary", SpecError::Certificate),
            ("certificate:a\nb", SpecError::Certificate),
            ("certificate:-a", SpecError::Certificate),
            ("certificate:ä", SpecError::Certificate),
        ] {
            let found = spec.parse::<Spec>().unwrap_err();
            assert_eq!(found, error, "{spec:?}");
            let shown = found.to_string();
            assert!(
                !shown.contains("canary") && !shown.contains('\n'),
                "{shown}"
            );
        }
    }
}
