//! The transitions of an RC queue pair, and the attributes that each one needs and takes (IBTA volume 1, 11.2.5.2).

use transfer_sys::verbs::sys;

const ALWAYS: u32 = sys::IBV_QP_STATE | sys::IBV_QP_CUR_STATE;

/// The attributes that the transition needs, and those that it takes as well; `None` where there is none.
fn transition(from: u32, to: u32) -> Option<(u32, u32)> {
    let access = sys::IBV_QP_ACCESS_FLAGS;
    let running = access | sys::IBV_QP_MIN_RNR_TIMER | sys::IBV_QP_ALT_PATH | sys::IBV_QP_PATH_MIG_STATE;
    let port = sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | access;
    match (from, to) {
        (_, sys::IBV_QPS_RESET | sys::IBV_QPS_ERR) => Some((0, 0)),
        (sys::IBV_QPS_RESET, sys::IBV_QPS_INIT) => Some((port, 0)),
        (sys::IBV_QPS_INIT, sys::IBV_QPS_INIT) => Some((0, port)),
        (sys::IBV_QPS_INIT, sys::IBV_QPS_RTR) => Some((
            sys::IBV_QP_AV
                | sys::IBV_QP_PATH_MTU
                | sys::IBV_QP_DEST_QPN
                | sys::IBV_QP_RQ_PSN
                | sys::IBV_QP_MAX_DEST_RD_ATOMIC
                | sys::IBV_QP_MIN_RNR_TIMER,
            sys::IBV_QP_ALT_PATH | access | sys::IBV_QP_PKEY_INDEX,
        )),
        (sys::IBV_QPS_RTR, sys::IBV_QPS_RTS) => Some((
            sys::IBV_QP_TIMEOUT
                | sys::IBV_QP_RETRY_CNT
                | sys::IBV_QP_RNR_RETRY
                | sys::IBV_QP_SQ_PSN
                | sys::IBV_QP_MAX_QP_RD_ATOMIC,
            running,
        )),
        (sys::IBV_QPS_RTS, sys::IBV_QPS_RTS) => Some((0, running)),
        _ => None,
    }
}

/// Whether a queue pair in `from` may go to `to` with the attributes of `mask`.
pub(crate) fn is_legal(from: u32, to: u32, mask: u32) -> bool {
    transition(from, to).is_some_and(|(needed, taken)| {
        let given = mask & !ALWAYS;
        given & needed == needed && given & !(needed | taken) == 0
    })
}

/// How long a peer without a receive has to wait, in microseconds, by its code (IBTA volume 1, 9.7.5.2.8).
pub(crate) fn not_ready_us(code: u8) -> u64 {
    const CODES: [u64; 32] = [
        655_360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560, 3840, 5120,
        7680, 10_240, 15_360, 20_480, 30_720, 40_960, 61_440, 81_920, 122_880, 163_840, 245_760, 327_680,
        491_520,
    ];
    CODES[usize::from(code) % CODES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_that_a_transition_needs_is_missed() {
        let (init, rtr, rts) = (sys::IBV_QPS_INIT, sys::IBV_QPS_RTR, sys::IBV_QPS_RTS);
        for (from, to) in [(sys::IBV_QPS_RESET, init), (init, rtr), (rtr, rts)] {
            let (needed, taken) = transition(from, to).unwrap();
            assert!(is_legal(from, to, needed | taken | sys::IBV_QP_STATE));
            for bit in (0..32).map(|bit| 1 << bit).filter(|bit| needed & bit != 0) {
                assert!(
                    !is_legal(from, to, (needed | sys::IBV_QP_STATE) & !bit),
                    "{from} to {to} without {bit:#x}"
                );
            }
            assert!(!is_legal(from, to, needed | sys::IBV_QP_QKEY), "an attribute of another type");
        }
        assert!(!is_legal(sys::IBV_QPS_RESET, rts, u32::MAX) && !is_legal(rts, rtr, u32::MAX));
        assert!(is_legal(rts, sys::IBV_QPS_ERR, sys::IBV_QP_STATE));
    }
}
