//! The malformed files that readers of this format disagree about, and the format's own library as a judge.

use super::*;
use proptest::prelude::*;

/// A file of this header and this much data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn parse(file: &[u8]) -> Result<Vec<Tensor>, TensorError> {
    let file_len = u64::try_from(file.len()).unwrap();
    let len = usize::try_from(header_len(file, file_len)?).unwrap();
    parse_header(&file[8..8 + len], file_len)
}

const GOOD: &str = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;

#[test]
fn good_files_are_read() {
    let tensors = parse(&file(GOOD, 4)).unwrap();
    assert_eq!(tensors.len(), 1);
    assert_eq!((tensors[0].name.as_str(), tensors[0].len), ("a", 4));
    assert_eq!(tensors[0].begin, u64::try_from(8 + GOOD.len()).unwrap());
    for (header, data) in [
        ("{}", 0),
        ("{}      ", 0),
        (r#"{"__metadata__":{"format":"pt"},"":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4),
        (
            r#"{"z":{"dtype":"F4","shape":[2,0],"data_offsets":[0,0]},"a":{"dtype":"F4","shape":[6],"data_offsets":[0,3]}}"#,
            3,
        ),
    ] {
        let file = file(header, data);
        assert!(parse(&file).is_ok(), "{header}: {:?}", parse(&file));
        assert!(safetensors::SafeTensors::deserialize(&file).is_ok(), "{header}");
    }
}

#[test]
fn malformed_files_are_refused() {
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    let cases = [
        "{".to_owned(),
        "[]".to_owned(),
        "\u{feff}{}".to_owned(),
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},}"#.to_owned(),
        format!("{GOOD}\0"),
        one(r#"{"shape":[4],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[4]}"#),
        one(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}"#),
        one(r#"{"dtype":"U8","shape":null,"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"u8","shape":[4],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,18446744073709551616]}"#),
        one(r#"{"dtype":"U8","shape":[3],"data_offsets":[1,4]}"#),
        one(r#"{"dtype":"U8","shape":[3],"data_offsets":[0,3]}"#),
        one(r#"{"dtype":"U8","shape":[5],"data_offsets":[0,5]}"#),
        one(r#"{"dtype":"U16","shape":[4],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[4],"data_offsets":[4,0]}"#),
        one(r#"{"dtype":"F4","shape":[7],"data_offsets":[0,4]}"#),
        one(r#"{"dtype":"U8","shape":[2,18446744073709551614],"data_offsets":[0,4]}"#),
        r#"{"__metadata__":{"a":1}}"#.to_owned(),
        // Accepted by the library, in two possible readings:
        one(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":1}"#),
        one(r#"["U8",[4],[0,4]]"#),
        one(r#"{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        format!(r#"{{"__metadata__":null,{}"#, &GOOD[1..]),
        format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{}"#, &GOOD[1..]),
        format!(r#"{{"\u0061":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},{}"#, &GOOD[1..]),
        one(r#"{"dtype":"U8","shape":[0,18446744073709551615,2],"data_offsets":[0,0]}"#),
    ];
    for header in cases {
        let result = parse(&file(&header, 4));
        assert!(result.is_err(), "accepted {header}: {result:?}");
    }
    let overlap = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert!(parse(&file(overlap, 4)).is_err());
    let deep = format!("{}{}", "{\"a\":".repeat(200), "}".repeat(200));
    assert!(parse(&file(&deep, 0)).is_err());
}

#[test]
fn lengths_that_lie_are_refused() {
    assert_eq!(parse(b""), Err(TensorError::HeaderCut));
    assert_eq!(parse(&[0; 7]), Err(TensorError::HeaderCut));
    assert!(matches!(parse(&[0; 8]), Err(TensorError::Header(_))));
    assert_eq!(parse(&1000_u64.to_le_bytes()), Err(TensorError::HeaderCut));
    assert_eq!(parse(&100_000_001_u64.to_le_bytes()), Err(TensorError::HeaderTooLong(100_000_001)));
    assert!(matches!(parse(&[0x3c, 0, 0, 0, 0, 0xff, 0xff, 0xff]), Err(TensorError::HeaderTooLong(_))));
    assert!(matches!(parse(&file(GOOD, 5)), Err(TensorError::Length { .. })));
    assert!(matches!(parse(&file(GOOD, 2)), Err(TensorError::Length { .. })));
}

proptest! {
    #[test]
    fn what_we_accept_the_library_accepts(
        dims in proptest::collection::vec(proptest::collection::vec(0_u64..5, 0..4), 0..5),
        at in any::<prop::sample::Index>(), to in any::<u8>(), flip in any::<bool>(),
    ) {
        let mut offset = 0;
        let entries: Vec<_> = dims.iter().enumerate().map(|(i, shape)| {
            let begin = offset;
            offset += shape.iter().product::<u64>() * 2;
            format!(r#""t{i}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{begin},{offset}]}}"#)
        }).collect();
        let mut bytes = file(&format!("{{{}}}", entries.join(",")), usize::try_from(offset).unwrap());
        if flip {
            let at = at.index(bytes.len());
            bytes[at] = to;
        } else {
            prop_assert_eq!(parse(&bytes).unwrap().len(), dims.len());
        }
        if let Ok(tensors) = parse(&bytes) {
            let judge = safetensors::SafeTensors::deserialize(&bytes);
            prop_assert!(judge.is_ok(), "{:?}", judge.err());
            prop_assert_eq!(judge.unwrap().len(), tensors.len());
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(parse(&bytes));
    }
}
