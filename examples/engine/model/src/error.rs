//! What can go wrong, sorted by what the caller can do about it.

use std::path::PathBuf;

/// Every failure of this crate.
///
/// [`ModelError::is_request_error`] tells a bad request (answer it with a client error, carry on) from a bad
/// model directory or a bad set-up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file of the model directory cannot be read or written: check the path and its permissions.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The directory asks for something that this crate does not do: use another model.
    #[error("{} asks for what this engine does not support: {what}", path.display())]
    Unsupported {
        /// The file that asks.
        path: PathBuf,
        /// What it asks for, and what would be accepted.
        what: String,
    },
    /// A file of the directory is damaged or contradicts itself: fetch it again.
    #[error("{} is not usable: {reason}", path.display())]
    Malformed {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing, has the wrong shape or lies outside its file: fetch that file again.
    #[error("tensor {tensor:?} of {}: {reason}", path.display())]
    Tensor {
        /// The file in which the tensor should be.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory has no chat template: send a plain prompt instead of chat messages.
    #[error("{} has no chat template; use a plain prompt", path.display())]
    NoChatTemplate {
        /// The model directory.
        path: PathBuf,
    },
    /// The chat template rejected the messages or failed on them.
    #[error("the chat template failed: {reason}")]
    Template {
        /// What the template engine said.
        reason: String,
    },
    /// The tokenizer could not encode or decode this input.
    #[error("the tokenizer failed: {reason}")]
    Tokenize {
        /// What the tokenizer said.
        reason: String,
    },
    /// A chunk without tokens.
    #[error("chunk {chunk} has no tokens; a step needs at least one token per chunk")]
    EmptyChunk {
        /// Index of the chunk in the step.
        chunk: usize,
    },
    /// A token id that the model does not know.
    #[error("token {token} in chunk {chunk} is outside the vocabulary of {vocab_size}")]
    TokenOutOfVocab {
        /// Index of the chunk in the step.
        chunk: usize,
        /// The offending id.
        token: u32,
        /// Number of ids that the model knows.
        vocab_size: usize,
    },
    /// A chunk reaches beyond the model's context.
    #[error("chunk {chunk} would end at position {end}, over the context limit of {max}")]
    ContextExceeded {
        /// Index of the chunk in the step.
        chunk: usize,
        /// One past the last position asked for.
        end: usize,
        /// The model's limit.
        max: usize,
    },
    /// A chunk's block list does not cover its positions.
    #[error("chunk {chunk} needs {needed} cache blocks and was given {given}")]
    TooFewBlocks {
        /// Index of the chunk in the step.
        chunk: usize,
        /// Blocks that cover positions `0..start + tokens.len()`.
        needed: usize,
        /// Blocks in the list.
        given: usize,
    },
    /// A block id that the cache does not have.
    #[error("chunk {chunk} names cache block {block}, but the cache has {num_blocks}")]
    BlockOutOfRange {
        /// Index of the chunk in the step.
        chunk: usize,
        /// The offending id.
        block: u32,
        /// Number of blocks in the cache.
        num_blocks: usize,
    },
    /// The cache's layout is unusable, or is not the layout of this model.
    #[error("unusable KV cache: {reason}")]
    Cache {
        /// What does not fit.
        reason: String,
    },
    /// A sampling parameter is out of its range.
    #[error("sampling parameter {name} is {value}; {expected}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f32,
        /// The accepted range.
        expected: &'static str,
    },
    /// Logits from which no token can be chosen (NaN, +inf, none finite, or none at all): the weights are damaged.
    #[error("no token can be chosen: the logits are {what}; the weights are probably damaged")]
    BadLogits {
        /// What was found.
        what: &'static str,
    },
    /// A [`crate::ModelSpec`] that describes no model.
    #[error("model spec: {reason}")]
    Spec {
        /// Which field contradicts what.
        reason: String,
    },
    /// The tensor library failed; this is a defect of this crate, not of the input.
    #[error("tensor computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the request is to blame, so that the same model may well answer the next one.
    #[must_use]
    pub const fn is_request_error(&self) -> bool {
        matches!(
            self,
            Self::NoChatTemplate { .. }
                | Self::Template { .. }
                | Self::Tokenize { .. }
                | Self::EmptyChunk { .. }
                | Self::TokenOutOfVocab { .. }
                | Self::ContextExceeded { .. }
                | Self::Sampling { .. }
        )
    }
}
