//! The light router: a byte-transparent OpenAI proxy that runs prefill, then decode.
