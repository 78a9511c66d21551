//! A Llama-class model on CPU whose results do not depend on how requests are batched.
//!
//! This is the pure half of the reference engine: it turns tokens and a paged KV cache into logits. It has no clock,
//! no network and no scheduler; the half that serves requests decides what to compute when, and where the cache's
//! bytes live ([`BlockStore`]).
//!
//! ```
//! use engine_model::{Chunk, Dtype, KvCache, Model, ModelSpec, Sampler, SamplingParams, Tokenizer, make_model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! make_model(dir.path(), &ModelSpec { layers: 1, ..ModelSpec::default() })?;
//! let (model, tokenizer) = (Model::load(dir.path(), None)?, Tokenizer::load(dir.path())?);
//! let cache = KvCache::in_memory(model.config().kv_layout(16, 8, Dtype::Bf16))?;
//! let tokens = tokenizer.encode("The river is", true)?;
//! let chunk = Chunk { tokens: &tokens, start: 0, blocks: &[5], want_logits: true };
//! let logits = model.forward(&[chunk], &cache)?.pop().flatten().ok_or("no logits")?;
//! let next = Sampler::new(SamplingParams::default(), 7)?.sample(0, &logits)?;
//! assert!(!tokenizer.decode(&[next])?.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! **The promise.** The logits of a token are the same bits whatever else is in the step, however its prompt was cut
//! into chunks, whichever process computed the earlier part, and whatever the block size. Three things make it true:
//! every dot product sums in one fixed order (`kernel`), attention walks the positions in order (`attention`), and
//! keys and values are always read back from the cache, rounded to its type (`cache`). [`Sampler`] carries it on to
//! tokens. Different machines may differ in the last bit of `exp`, `sin` and `cos`, which come from the C library.
//!
//! **Threads.** [`Model`] is immutable and shared; a step spreads over rayon's global pool. Two steps may run at once
//! if they write different blocks. **Hostile input.** Model directories are untrusted: every failure is a
//! [`ModelError`] that names the file and field or tensor, and nothing is allocated that no file backs.

mod attention;
mod cache;
mod chat;
mod config;
mod error;
mod files;
mod kernel;
mod make;
mod model;
mod ops;
mod rope;
mod sample;
mod tokenizer;
mod weights;

pub use cache::{BlockStore, KvCache, KvLayout, MemoryStore, Plane};
pub use chat::Message;
pub use config::{Dtype, ModelConfig, RopeScaling};
pub use error::ModelError;
pub use make::{ModelSpec, make_model};
pub use model::{Chunk, Model};
pub use sample::{Sampler, SamplingParams};
pub use tokenizer::{Detokenizer, Tokenizer};
