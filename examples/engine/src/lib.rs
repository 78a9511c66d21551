//! A reference engine: paged KV in transfer-core regions, prefill and decode roles, vLLM's HTTP fields.
