//! `kv_transfer_params`: what the client or the router carries from the prefill engine to the decode engine, with
//! vLLM's field names.

use super::claim::ID_LEN_MAX;
use crate::sched::BlockId;
use serde::{Deserialize, Serialize};

/// The most blocks that one hand-off may name.
const BLOCKS_MAX: usize = 1 << 20;
/// The longest name of an engine or a host, in bytes.
const NAME_LEN_MAX: usize = 255;

/// `kv_transfer_params` as it comes in. Fields that this engine does not know are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Incoming {
    do_remote_decode: Option<bool>,
    do_remote_prefill: Option<bool>,
    remote_block_ids: Option<BlockIds>,
    remote_engine_id: Option<String>,
    remote_request_id: Option<String>,
    remote_host: Option<String>,
    remote_port: Option<u16>,
    remote_num_tokens: Option<usize>,
    tp_size: Option<u32>,
}

/// Block ids come as one list per KV group, or, from older engines, as one list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum BlockIds {
    Flat(Vec<BlockId>),
    Groups(Vec<Vec<BlockId>>),
}

/// What a request wants of the KV hand-off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HandOff {
    /// Nothing: prefill and decode here.
    None,
    /// Prefill here and keep the blocks for another engine.
    Give,
    /// Take the blocks from another engine and decode here.
    Take(Source),
}

/// Where the keys and values of a prompt lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub(crate) engine_id: String,
    pub(crate) request_id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) blocks: Vec<BlockId>,
    /// `None`: the issuer did not say, so the prompt decides.
    pub(crate) num_tokens: Option<usize>,
}

/// Why `kv_transfer_params` make no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ParamsError {
    #[error("kv_transfer_params: do_remote_decode and do_remote_prefill cannot both be true")]
    Both,
    #[error("kv_transfer_params.{0} is missing: pass the object on as the prefill engine returned it")]
    Missing(&'static str),
    #[error("kv_transfer_params.{field} is {value}: {reason}")]
    Invalid { field: &'static str, value: String, reason: &'static str },
}

impl Incoming {
    /// Checks the fields against each other.
    pub(crate) fn check(self) -> Result<HandOff, ParamsError> {
        match (self.do_remote_decode.unwrap_or(false), self.do_remote_prefill.unwrap_or(false)) {
            (true, true) => Err(ParamsError::Both),
            (true, false) => Ok(HandOff::Give),
            (false, false) => Ok(HandOff::None),
            (false, true) => self.source().map(HandOff::Take),
        }
    }

    fn source(self) -> Result<Source, ParamsError> {
        if let Some(tp_size) = self.tp_size.filter(|&size| size != 1) {
            return invalid(
                "tp_size",
                tp_size.to_string(),
                "this engine takes blocks of unsharded engines only",
            );
        }
        let blocks = match self.remote_block_ids.ok_or(ParamsError::Missing("remote_block_ids"))? {
            BlockIds::Flat(blocks) => blocks,
            BlockIds::Groups(groups) => match <[Vec<BlockId>; 1]>::try_from(groups) {
                Ok([blocks]) => blocks,
                Err(groups) => {
                    let count = format!("{} groups", groups.len());
                    return invalid("remote_block_ids", count, "this model has one KV group");
                }
            },
        };
        if blocks.len() > BLOCKS_MAX {
            return invalid(
                "remote_block_ids",
                format!("{} ids", blocks.len()),
                "that is more than any prompt has",
            );
        }
        let request_id = self.remote_request_id.ok_or(ParamsError::Missing("remote_request_id"))?;
        if request_id.len() > ID_LEN_MAX {
            return invalid(
                "remote_request_id",
                format!("{} bytes", request_id.len()),
                "at most 512 are allowed",
            );
        }
        let name = |field, value: Option<String>| match value {
            None => Err(ParamsError::Missing(field)),
            Some(value) if value.len() > NAME_LEN_MAX => {
                invalid(field, format!("{} bytes", value.len()), "at most 255 are allowed")
            }
            Some(value) => Ok(value),
        };
        Ok(Source {
            engine_id: name("remote_engine_id", self.remote_engine_id)?,
            request_id,
            host: name("remote_host", self.remote_host)?,
            port: self.remote_port.ok_or(ParamsError::Missing("remote_port"))?,
            blocks,
            num_tokens: self.remote_num_tokens,
        })
    }
}

fn invalid<T>(field: &'static str, value: String, reason: &'static str) -> Result<T, ParamsError> {
    Err(ParamsError::Invalid { field, value, reason })
}

/// `kv_transfer_params` as they go out of a prefill engine.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Outgoing {
    do_remote_prefill: bool,
    do_remote_decode: bool,
    remote_block_ids: Vec<Vec<BlockId>>,
    remote_engine_id: String,
    remote_request_id: String,
    remote_host: String,
    remote_port: u16,
    tp_size: u32,
    dcp_size: u32,
    pp_size: u32,
    remote_num_tokens: usize,
    /// Those of them that the prefill engine found in its cache.
    remote_prefill_cached_tokens: usize,
    /// Unix time in seconds.
    remote_blocks_expiry_time: f64,
    transfer_mode: &'static str,
}

impl Outgoing {
    /// The params with which another engine finds `source`: the blocks of `num_tokens`, of which `cached_tokens` were
    /// in the cache before.
    pub(crate) fn new(source: Source, num_tokens: usize, cached_tokens: usize, expiry_time: f64) -> Self {
        Self {
            do_remote_prefill: true,
            do_remote_decode: false,
            remote_block_ids: vec![source.blocks],
            remote_engine_id: source.engine_id,
            remote_request_id: source.request_id,
            remote_host: source.host,
            remote_port: source.port,
            tp_size: 1,
            dcp_size: 1,
            pp_size: 1,
            remote_num_tokens: num_tokens,
            remote_prefill_cached_tokens: cached_tokens,
            remote_blocks_expiry_time: expiry_time,
            transfer_mode: "read",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<HandOff, ParamsError> {
        serde_json::from_str::<Incoming>(json).unwrap().check()
    }

    fn source() -> Source {
        Source {
            engine_id: "e".into(),
            request_id: "r".into(),
            host: "127.0.0.1".into(),
            port: 5,
            blocks: vec![3, 1],
            num_tokens: Some(20),
        }
    }

    #[test]
    fn what_one_engine_issues_another_understands() {
        let json = serde_json::to_string(&Outgoing::new(source(), 20, 16, 1.5)).unwrap();
        assert_eq!(check(&json), Ok(HandOff::Take(source())));
    }

    #[test]
    fn the_request_of_a_router_to_the_prefill_side_is_understood() {
        let json = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,
            "remote_block_ids":null,"remote_host":null,"remote_port":null,"something_new":[1]}"#;
        assert_eq!(check(json), Ok(HandOff::Give));
        assert_eq!(check("{}"), Ok(HandOff::None));
    }

    #[test]
    fn incomplete_and_contradicting_params_are_refused_by_name() {
        assert_eq!(check(r#"{"do_remote_decode":true,"do_remote_prefill":true}"#), Err(ParamsError::Both));
        let missing = check(r#"{"do_remote_prefill":true,"remote_block_ids":[1]}"#).unwrap_err();
        assert_eq!(missing, ParamsError::Missing("remote_request_id"));
        for json in [
            r#"{"do_remote_prefill":true,"tp_size":2}"#,
            r#"{"do_remote_prefill":true,"remote_block_ids":[[1],[2]]}"#,
        ] {
            assert!(matches!(check(json), Err(ParamsError::Invalid { .. })), "{json}");
        }
    }
}
