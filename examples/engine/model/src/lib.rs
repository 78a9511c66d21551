//! A Llama-class model on CPU whose results do not depend on how requests are batched.
