//! A Llama-class model on CPU whose results do not depend on how requests are batched.
mod attention;
mod cache;
mod config;
mod error;
mod files;
mod kernel;
mod model;
mod ops;
mod rope;
mod weights;

pub use cache::{BlockStore, KvCache, KvLayout, MemoryStore, Plane};
pub use config::{Dtype, ModelConfig, RopeScaling};
pub use error::ModelError;
pub use model::{Chunk, Model};
