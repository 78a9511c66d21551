//! Frames of the control connection.

use transfer_proto::codec::DecodeError;
use transfer_proto::proto::control::{Deframer, Frame};

/// The first byte says how the stream is cut. However it is, the same frames come out; and each of them comes back
/// when it is encoded.
pub fn check(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let whole = deframe(stream, stream.len().max(1));
    assert_eq!(deframe(stream, usize::from(*cut).max(1)), whole, "the cut of the stream shows");
    for frame in &whole.0 {
        let mut again = vec![];
        frame.encode(&mut again);
        assert_eq!(deframe(&again, again.len()), (vec![frame.clone()], None));
    }
}

fn deframe(stream: &[u8], step: usize) -> (Vec<Frame>, Option<DecodeError>) {
    let (mut deframer, mut frames) = (Deframer::default(), vec![]);
    for part in stream.chunks(step) {
        deframer.push(part);
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
