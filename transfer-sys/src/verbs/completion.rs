//! What comes out of a completion queue.
#![allow(unsafe_code, reason = "the variant of a C union")]

use std::fmt;

use super::sys;

/// A work request that is done, or failed.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Completion(sys::ibv_wc);

impl Default for Completion {
    /// An empty place in an array to poll into.
    fn default() -> Self {
        Self(sys::ibv_wc {
            wr_id: 0,
            status: sys::IBV_WC_GENERAL_ERR,
            opcode: sys::IBV_WC_SEND,
            vendor_err: 0,
            byte_len: 0,
            __bindgen_anon_1: sys::ibv_wc__bindgen_ty_1 { imm_data: 0 },
            qp_num: 0,
            src_qp: 0,
            wc_flags: 0,
            pkey_index: 0,
            slid: 0,
            sl: 0,
            dlid_path_bits: 0,
        })
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("wr_id", &self.wr_id())
            .field("status", &self.status())
            .field("opcode", &self.opcode())
            .field("byte_len", &self.byte_len())
            .field("imm", &self.imm())
            .field("qp_num", &self.qp_num())
            .finish_non_exhaustive()
    }
}

impl Completion {
    /// The number that the work request was posted under.
    #[must_use]
    pub fn wr_id(&self) -> u64 {
        self.0.wr_id
    }

    /// How it went.
    #[must_use]
    pub fn status(&self) -> WcStatus {
        WcStatus::from_raw(self.0.status)
    }

    /// Whether it is done.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.0.status == sys::IBV_WC_SUCCESS
    }

    /// What was done; `None` for a failed one, of which the device does not say.
    #[must_use]
    pub fn opcode(&self) -> Option<WcOpcode> {
        self.is_ok().then(|| WcOpcode::from_raw(self.0.opcode))
    }

    /// Bytes that arrived. Of a READ or a receive; meaningless otherwise.
    #[must_use]
    pub fn byte_len(&self) -> u32 {
        self.0.byte_len
    }

    /// The number that came with the message.
    #[must_use]
    pub fn imm(&self) -> Option<u32> {
        let there = self.is_ok() && self.0.wc_flags & sys::IBV_WC_WITH_IMM != 0;
        // SAFETY: V1 (docs/ARCHITECTURE.md). The flag says so; both variants are numbers.
        there.then(|| u32::from_be(unsafe { self.0.__bindgen_anon_1.imm_data }))
    }

    /// The queue pair.
    #[must_use]
    pub fn qp_num(&self) -> u32 {
        self.0.qp_num
    }

    /// What the device says of a failure, in its own numbers.
    #[must_use]
    pub fn vendor_error(&self) -> u32 {
        self.0.vendor_err
    }
}

/// What a completed work request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WcOpcode {
    /// Sent a message.
    Send,
    /// Wrote, with or without an immediate number.
    Write,
    /// Read.
    Read,
    /// Bound a memory window.
    Bind,
    /// Invalidated a key.
    Invalidate,
    /// Received a message.
    Receive,
    /// Received the immediate number of a write.
    ReceiveWriteImm,
    /// Something else.
    Other(u32),
}

impl WcOpcode {
    fn from_raw(raw: sys::ibv_wc_opcode) -> Self {
        match raw {
            sys::IBV_WC_SEND => Self::Send,
            sys::IBV_WC_RDMA_WRITE => Self::Write,
            sys::IBV_WC_RDMA_READ => Self::Read,
            sys::IBV_WC_BIND_MW => Self::Bind,
            sys::IBV_WC_LOCAL_INV => Self::Invalidate,
            sys::IBV_WC_RECV => Self::Receive,
            sys::IBV_WC_RECV_RDMA_WITH_IMM => Self::ReceiveWriteImm,
            other => Self::Other(other),
        }
    }
}

/// Whether the same work can succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// It is done.
    Needless,
    /// On a new connection: the way failed, or something else on it did, and not this work request.
    OnNewConnection,
    /// Not as it is: the work request itself, or what it names, is wrong.
    Hopeless,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $raw:ident, $retry:ident, $words:literal;)*) => {
        /// How a work request went. After any but [`WcStatus::Success`] the queue pair is in the error state.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum WcStatus {
            $($(#[$doc])* $name,)*
            /// A number that this library does not know.
            Other(u32),
        }

        impl WcStatus {
            fn from_raw(raw: sys::ibv_wc_status) -> Self {
                match raw {
                    $(sys::$raw => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// What that means, for people.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                    Self::Other(_) => "a status that is not known here",
                }
            }

            /// Whether the same work can succeed later.
            #[must_use]
            pub fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)*
                    Self::Other(_) => Retry::Hopeless,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Success = IBV_WC_SUCCESS, Needless, "done";
    /// `LOC_LEN_ERR`
    LocalLength = IBV_WC_LOC_LEN_ERR, Hopeless, "a message is longer than what was posted to receive it";
    /// `LOC_QP_OP_ERR`
    LocalOperation = IBV_WC_LOC_QP_OP_ERR, Hopeless, "the queue pair cannot do what the work request asks for";
    /// `LOC_PROT_ERR`
    LocalProtection = IBV_WC_LOC_PROT_ERR, Hopeless,
        "a local range lies outside of its registration, or the registration does not allow it";
    /// `WR_FLUSH_ERR`
    Flushed = IBV_WC_WR_FLUSH_ERR, OnNewConnection, "the queue pair failed before the work request was begun";
    /// `MW_BIND_ERR`
    Bind = IBV_WC_MW_BIND_ERR, Hopeless, "the memory window cannot be bound like that";
    /// `BAD_RESP_ERR`
    BadResponse = IBV_WC_BAD_RESP_ERR, OnNewConnection, "the peer answered something that makes no sense";
    /// `LOC_ACCESS_ERR`
    LocalAccess = IBV_WC_LOC_ACCESS_ERR, Hopeless, "a message came for memory that does not allow it";
    /// `REM_INV_REQ_ERR`
    RemoteInvalidRequest = IBV_WC_REM_INV_REQ_ERR, Hopeless,
        "the peer refuses the request: its queue pair does not allow it, or has no room for it";
    /// `REM_ACCESS_ERR`
    RemoteAccess = IBV_WC_REM_ACCESS_ERR, Hopeless,
        "the peer's memory cannot be touched there: wrong key, out of bounds, revoked or not allowed";
    /// `REM_OP_ERR`
    RemoteOperation = IBV_WC_REM_OP_ERR, OnNewConnection, "the peer could not finish the request";
    /// `RETRY_EXC_ERR`
    RetryExceeded = IBV_WC_RETRY_EXC_ERR, OnNewConnection,
        "the peer does not answer: it is gone, the way is cut, or the connection data do not fit";
    /// `RNR_RETRY_EXC_ERR`
    ReceiverNotReady = IBV_WC_RNR_RETRY_EXC_ERR, OnNewConnection, "the peer has nothing posted to receive with";
    /// `REM_ABORT_ERR`
    RemoteAborted = IBV_WC_REM_ABORT_ERR, OnNewConnection, "the peer gave the request up";
    /// `FATAL_ERR`
    Fatal = IBV_WC_FATAL_ERR, OnNewConnection, "the device failed";
    /// `RESP_TIMEOUT_ERR`
    ResponseTimeout = IBV_WC_RESP_TIMEOUT_ERR, OnNewConnection, "the peer's answer did not come in time";
    /// `GENERAL_ERR`
    General = IBV_WC_GENERAL_ERR, OnNewConnection, "the device failed without saying how";
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) => write!(f, "status {number}, which is not known here"),
            known => f.write_str(known.words()),
        }
    }
}
