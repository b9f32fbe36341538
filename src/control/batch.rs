//! Many values in one body, for `import`: each a line of JSON, `{"name":"db-password","size":12}`, and its raw bytes.

use serde::{Deserialize, Serialize};

use crate::control::protocol::{Failure, MAX_BATCH, parse};
use crate::secret::{MAX_VALUE, Name, SecretBytes};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    name: Name,
    size: usize,
}

/// One body of all.
///
/// # Errors
/// A [`Failure`] if it would be larger than [`MAX_BATCH`].
pub fn pack(values: &[(Name, SecretBytes)]) -> Result<SecretBytes, Failure> {
    let mut lines = Vec::with_capacity(values.len());
    let mut room = 0_usize;
    for (name, value) in values {
        let member = Member {
            name: name.clone(),
            size: value.len(),
        };
        let line =
            serde_json::to_vec(&member).map_err(|error| Failure::failed(error.to_string()))?;
        room = room
            .saturating_add(line.len())
            .saturating_add(value.len())
            .saturating_add(1);
        lines.push(line);
    }
    if room > MAX_BATCH {
        return Err(Failure::failed(format!(
            "{room} bytes are too many at once, at most {MAX_BATCH}: import them in parts"
        )));
    }
    // Made with its final room: growing would leave copies behind.
    let mut body = Vec::with_capacity(room);
    for (line, (_, value)) in lines.iter().zip(values) {
        body.extend_from_slice(line);
        body.push(b'\n');
        body.extend_from_slice(value.expose());
    }
    Ok(SecretBytes::new(body))
}

/// The values again.
///
/// # Errors
/// A [`Failure`] that quotes nothing, if it is no such body.
pub fn unpack(body: &SecretBytes) -> Result<Vec<(Name, SecretBytes)>, Failure> {
    let wrong = || Failure::usage("the body is not a batch of values");
    let mut values = Vec::new();
    let mut rest = body.expose();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let (line, after) = rest.split_at(end.ok_or_else(wrong)?);
        let member: Member = parse(line)?;
        let after = after.strip_prefix(b"\n").unwrap_or_default();
        if member.size > MAX_VALUE {
            return Err(wrong());
        }
        let (value, after) = after.split_at_checked(member.size).ok_or_else(wrong)?;
        values.push((member.name, SecretBytes::new(value.to_vec())));
        rest = after;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(sizes: &[usize]) -> Vec<(Name, SecretBytes)> {
        let value = |(number, size): (usize, &usize)| {
            let name = format!("n{number}").parse().unwrap();
            (name, SecretBytes::new(vec![b'\n'; *size]))
        };
        sizes.iter().enumerate().map(value).collect()
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        for sizes in [&[][..], &[0], &[3, 0, MAX_VALUE, 1]] {
            let packed = values(sizes);
            let again = unpack(&pack(&packed).unwrap()).unwrap();
            assert_eq!(again.len(), packed.len());
            for ((name, value), (other, expected)) in again.iter().zip(&packed) {
                assert_eq!(
                    (name, value.expose()),
                    (other, expected.expose()),
                    "{sizes:?}"
                );
            }
        }
        assert!(pack(&values(&[MAX_VALUE; 4])).is_err());
    }

    #[test]
    fn what_is_no_batch_is_refused_unquoted() {
        for wrong in [
            "canary",
            "\n",
            "canary\n",
            "{\"name\":\"a\",\"size\":7}\ncanary",
            "{\"name\":\"../canary\",\"size\":0}\n",
            "{\"name\":\"a\",\"size\":-1}\n",
            "{\"name\":\"a\",\"size\":18446744073709551615}\n",
            "{\"name\":\"a\",\"size\":0,\"canary\":1}\n",
        ] {
            let failure = unpack(&SecretBytes::new(wrong.into())).unwrap_err();
            assert!(!failure.message.contains("canary"), "{failure}");
        }
    }
}
