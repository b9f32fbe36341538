//! What a cache leaves for long, as bytes: one line of JSON that says what there is, then the values, end to end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::{LeftList, LeftRecord, Legacy};
use crate::secret::{Kind, MAX_VALUE, Sealed, SealedMemory, SecretBytes};

/// The number of this form.
const FORMAT: u32 = 1;

#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    format: u32,
    servers: BTreeMap<String, String>,
    records: Vec<Entry>,
    lists: Vec<LeftList>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    #[serde(flatten)]
    record: LeftRecord,
    /// The bytes of its value.
    length: usize,
}

/// Why bytes are not what a cache left. Quotes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They are of another form.
    #[error("is of another release of secretfs")]
    Format,
    /// They are of none.
    #[error("is not what a daemon wrote")]
    Shape,
}

impl Legacy {
    /// Writes records and lists. Leases are nothing to be kept for long.
    ///
    /// # Errors
    /// What `to` fails with.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let entry = |(record, value): &(LeftRecord, Arc<Sealed>)| Entry {
            record: record.clone(),
            length: value.len(),
        };
        let head = Head {
            format: FORMAT,
            servers: self.servers.clone(),
            records: self.records.iter().map(entry).collect(),
            lists: self.lists.clone(),
        };
        serde_json::to_writer(&mut *to, &head)?;
        to.write_all(b"\n")?;
        for (_, value) in &self.records {
            let value = value.open().map_err(io::Error::other)?;
            to.write_all(value.expose())?;
        }
        Ok(())
    }

    /// Reads what was written, and seals the values in `memory`, as far as they have room there.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn parse(bytes: &SecretBytes, memory: &Arc<SealedMemory>) -> Result<Self, Malformed> {
        let bytes = bytes.expose();
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (head, values) = bytes
            .split_at_checked(end.ok_or(Malformed::Shape)?)
            .ok_or(Malformed::Shape)?;
        #[derive(serde::Deserialize)]
        struct Form {
            format: u32,
        }
        let form: Form = serde_json::from_slice(head).map_err(|_| Malformed::Shape)?;
        if form.format != FORMAT {
            return Err(Malformed::Format);
        }
        let head: Head = serde_json::from_slice(head).map_err(|_| Malformed::Shape)?;
        let mut rest = values.get(1..).unwrap_or_default();
        let mut records = Vec::with_capacity(head.records.len());
        for Entry { record, length } in head.records {
            let (value, after) = rest
                .split_at_checked(length)
                .filter(|_| length <= MAX_VALUE)
                .ok_or(Malformed::Shape)?;
            rest = after;
            if let Ok(value) = memory.seal(Kind::Value, value) {
                records.push((record, Arc::new(value)));
            }
        }
        match rest {
            [] => Ok(Self {
                servers: head.servers,
                records,
                leases: Vec::new(),
                lists: head.lists,
            }),
            _ => Err(Malformed::Shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::Reference;
    use crate::cache::legacy::LeftPlace;
    use crate::clock::Clock;

    fn record(path: &str, value: &[u8]) -> (LeftRecord, Arc<Sealed>) {
        let place: Reference = "vault:secret/a?x=1@3".parse().unwrap();
        let now = Clock::manual().timestamp();
        let left = LeftRecord {
            place: LeftPlace::of(&place),
            version: place.version.unwrap(),
            modified: now,
            description: Some("for\npeople".to_owned()),
            fetched: now,
            shown_by: vec![path.parse().unwrap()],
            lease: None,
            old: false,
        };
        let memory = SealedMemory::new().unwrap();
        (left, Arc::new(memory.seal(Kind::Value, value).unwrap()))
    }

    fn written(legacy: &Legacy) -> Vec<u8> {
        let mut bytes = Vec::new();
        legacy.write(&mut bytes).unwrap();
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Legacy, Malformed> {
        let memory = SealedMemory::new().unwrap();
        Legacy::parse(&SecretBytes::new(bytes.to_vec()), &memory)
    }

    #[test]
    fn a_cut_or_longer_document_is_none() {
        let whole = written(&Legacy {
            records: vec![record("a/x", b"one"), record("a/y", b"")],
            ..Legacy::default()
        });
        assert!(parsed(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(parsed(&whole[..end]).is_err(), "{end}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert_eq!(parsed(&longer).unwrap_err(), Malformed::Shape);
        let newer = String::from_utf8(whole)
            .unwrap()
            .replace("\"format\":1", "\"format\":2");
        assert_eq!(parsed(newer.as_bytes()).unwrap_err(), Malformed::Format);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec(any::<Vec<u8>>(), 0..5)) {
            let records = values.iter().enumerate();
            let records = records.map(|(n, value)| record(&format!("s/x{n}"), value));
            let bytes = written(&Legacy { records: records.collect(), ..Legacy::default() });
            let read = parsed(&bytes).unwrap();
            let same = read.records.iter().map(|(_, value)| value.open().unwrap().expose().to_vec());
            prop_assert_eq!(same.collect::<Vec<_>>(), values);
            prop_assert_eq!(written(&read), bytes);
        }
    }
}
