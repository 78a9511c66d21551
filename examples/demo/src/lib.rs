//! The main job in one command: prompt, router, prefill, KV hand-off, decode, tokens.
