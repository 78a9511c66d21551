//! Sealed records of control and data connections, with somebody on the way who repeats, swaps, cuts, changes and mirrors them.

use transfer_core::fuzzing::Sealed;
use transfer_proto::proto::preamble::Kind;

use crate::handshake::sealed_pair;
use crate::steps::Steps;

/// Bytes that are sealed and come before it is enough: what is kept of them here must not be taken for what a length in
/// the input made somebody allocate.
const ENOUGH: usize = 512 << 10;

/// What one side has sealed, and what has come of it at the other.
#[derive(Default)]
struct Stream {
    /// Each record, with what was sealed in it.
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// All records, one behind the other.
    sent: Vec<u8>,
    /// How much of that was passed on as it is.
    passed: usize,
    come: Vec<u8>,
    got: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// Seals a message, in as many records as it takes.
    fn seal(&mut self, sealer: &mut Sealed, mut plain: &[u8]) {
        while !plain.is_empty() {
            let mut record = vec![];
            let taken = sealer.seal(plain, &mut record);
            assert!(taken > 0 && record.len() > taken, "it is not sealed");
            self.sent.extend_from_slice(&record);
            self.records.push((record, plain[..taken].to_vec()));
            plain = &plain[taken..];
        }
    }

    /// Bytes come. What was sealed in the records that came whole and in order is there, and nothing else ever.
    fn come(&mut self, opener: &mut Sealed, bytes: &[u8]) {
        let opened = opener.open(bytes, &mut self.got);
        self.come.extend_from_slice(bytes);
        let same = self.come.iter().zip(&self.sent).take_while(|(come, sent)| come == sent).count();
        let (mut end, mut plain) = (0, vec![]);
        for (record, sealed) in &self.records {
            end += record.len();
            if end > same {
                break;
            }
            plain.extend_from_slice(sealed);
        }
        assert!(self.got == plain, "{} bytes came of {}", self.got.len(), plain.len());
        assert!(opened || same < self.come.len(), "it was as it was sent");
        assert!(!(opened && self.ended), "it goes on after something that did not open");
        self.ended |= !opened;
    }

    /// So many bytes as they were sent.
    fn pass(&mut self, len: usize) -> Vec<u8> {
        let from = self.passed;
        self.passed = self.sent.len().min(from.saturating_add(len));
        self.sent[from..self.passed].to_vec()
    }

    fn record(&self, at: usize) -> Vec<u8> {
        let at = at % self.records.len().max(1);
        self.records.get(at).map(|(record, _)| record.clone()).unwrap_or_default()
    }
}

/// The first byte says what for. Both directions stay apart. Each step is a byte, some with numbers behind it.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let kind = if steps.byte() % 2 == 0 { Kind::Control } else { Kind::Data };
    let (here, there) = sealed_pair(kind);
    let mut ends = [here, there];
    let mut streams = [Stream::default(), Stream::default()];
    while let Some(step) = steps.next_step() {
        if streams.iter().any(|stream| stream.sent.len() + stream.come.len() > ENOUGH) {
            return;
        }
        let from = usize::from(step & 1);
        let at = usize::from(step >> 4);
        let bytes = match step >> 1 & 7 {
            0 | 1 => {
                // Longer than a record, at times.
                let len = usize::from(steps.wide()) % 40_000 * 2;
                let message: Vec<u8> = (0..len).map(|at| (at ^ len).to_le_bytes()[0]).collect();
                streams[from].seal(&mut ends[from], &message);
                continue;
            }
            2 => streams[from].pass(usize::MAX),
            3 => streams[from].pass(steps.wide().into()),
            4 => streams[from].record(at),
            5 => {
                let (mut record, place, flip) =
                    (streams[from].record(at), usize::from(steps.wide()), steps.byte());
                let place = place % record.len().max(1);
                record.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= flip);
                record
            }
            6 => {
                let mut record = streams[from].record(at);
                record.truncate(usize::from(steps.wide()) % record.len().max(1));
                record
            }
            _ if at % 2 == 0 => streams[1 - from].record(at / 2),
            _ => {
                let len = usize::from(steps.byte());
                steps.bytes(len).to_vec()
            }
        };
        streams[from].come(&mut ends[1 - from], &bytes);
    }
}
