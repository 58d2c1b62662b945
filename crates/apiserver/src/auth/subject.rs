//! Subjects of client certificates with several organizations.
//!
//! A user's groups are the O attributes of its certificate, and `rcgen` keeps one attribute of a kind. So a certificate is
//! made by it with a plain subject, and here gets the real one and a new signature. What is encoded is a handful of DER
//! elements (X.690): a tag, a length, the content.

use rcgen::{Issuer, KeyPair, SigningKey as _};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
/// 2.5.4.3 and 2.5.4.10, as DER elements.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
const ORGANIZATION: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x0a];
/// Elements of a `TBSCertificate` before its subject: version, serial number, signature, issuer, validity.
const BEFORE_SUBJECT: usize = 5;

/// The certificate with a subject of these organizations and this common name, signed anew by its issuer. None if
/// `certificate` is no certificate.
pub(super) fn replace(
    certificate: &[u8],
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    groups: &[&str],
) -> Option<Result<Vec<u8>, rcgen::Error>> {
    let (_, outer, _) = read(certificate)?;
    let (_, signed, rest) = read(outer)?;
    let (algorithm, ..) = read(rest)?;

    let mut after = signed;
    for _ in 0..BEFORE_SUBJECT {
        after = read(after)?.2;
    }
    let before = &signed[..signed.len() - after.len()];
    let (_, _, after) = read(after)?;
    let parts = [before, &subject(name, groups), after];
    let signed = element(SEQUENCE, &parts.concat());
    let signature = match issuer.key().sign(&signed) {
        Ok(signature) => signature,
        Err(error) => return Some(Err(error)),
    };
    // A bit string begins with how many bits of its last byte are unused.
    let signature = element(BIT_STRING, &[&[0], signature.as_slice()].concat());
    Some(Ok(element(
        SEQUENCE,
        &[&signed, algorithm, &signature].concat(),
    )))
}

fn subject(name: &str, groups: &[&str]) -> Vec<u8> {
    let attribute = |kind: &[u8], value: &str| {
        let pair = [kind, &element(UTF8_STRING, value.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &pair))
    };
    let mut names: Vec<u8> = groups
        .iter()
        .flat_map(|group| attribute(&ORGANIZATION, group))
        .collect();
    names.extend(attribute(&COMMON_NAME, name));
    element(SEQUENCE, &names)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let digits: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    match content.len() {
        short @ 0..=127 => out.extend(u8::try_from(short)),
        _ => {
            out.extend(u8::try_from(0x80 | digits.len()));
            out.extend(&digits);
        }
    }
    out.extend(content);
    out
}

/// The first element of an input, its content, and what follows it.
fn read(input: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let first = usize::from(*input.get(1)?);
    let (length, header) = if first < 0x80 {
        (first, 2)
    } else {
        let digits = first & 0x7f;
        let bytes = input.get(2..2 + digits)?;
        let length = bytes.iter().try_fold(0_usize, |n, byte| {
            n.checked_mul(256)?.checked_add(usize::from(*byte))
        })?;
        (length, 2 + digits)
    };
    let end = header.checked_add(length)?;
    Some((input.get(..end)?, &input[header..end], &input[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_all_sizes_are_read_again() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; length];
            let mut all = element(SEQUENCE, &content);
            all.push(9);
            let (whole, inner, rest) = read(&all).unwrap();
            assert_eq!(
                (whole.len(), inner, rest),
                (all.len() - 1, &content[..], &[9][..])
            );
        }
        assert_eq!(read(&[SEQUENCE, 5, 1]), None);
        assert_eq!(
            read(&[SEQUENCE, 0x89, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
            None
        );
    }
}
