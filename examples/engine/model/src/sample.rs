//! Choosing a token from logits: a pure function of the parameters, the seed and the token's place in the answer.
//!
//! No generator state is carried from token to token, so a request that goes on in another process, with the same
//! seed and the same output index, gets the token that it would have got here.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::error::ModelError;

/// How to choose tokens, in the words of the OpenAI and vLLM interfaces.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "parameters that callers build by field over a default")]
pub struct SamplingParams {
    /// 0 takes the most likely token; larger values flatten the distribution.
    pub temperature: f32,
    /// Keeps the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Makes the choices repeatable; without it the caller's fallback seed decides.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, seed: None }
    }
}

/// The sampler of one request.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
}

impl Sampler {
    /// Checks the parameters. `fallback_seed` is used if they have no seed; make it random, and hand it on with the
    /// request if the request may continue elsewhere.
    ///
    /// # Errors
    /// [`ModelError::Sampling`] for a temperature that is negative or not finite, or a `top_p` outside `(0, 1]`.
    pub fn new(params: SamplingParams, fallback_seed: u64) -> Result<Self, ModelError> {
        let SamplingParams { temperature, top_p, seed, .. } = params;
        if !(temperature.is_finite() && temperature >= 0.0) {
            let expected = "it has to be 0 or a positive number";
            return Err(ModelError::Sampling { name: "temperature", value: temperature, expected });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            let expected = "it has to be over 0 and at most 1";
            return Err(ModelError::Sampling { name: "top_p", value: top_p, expected });
        }
        Ok(Self { params, seed: seed.unwrap_or(fallback_seed) })
    }

    /// The seed in use.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the token at `output_index` (0 is the first generated token). Ties go to the lower id.
    ///
    /// # Errors
    /// [`ModelError::BadLogits`] if a logit is NaN or +inf, or none is finite.
    pub fn sample(&self, output_index: usize, logits: &[f32]) -> Result<u32, ModelError> {
        let (best, max) = best(logits)?;
        if self.params.temperature == 0.0 {
            return Ok(best);
        }
        let temperature = f64::from(self.params.temperature);
        let mut weighted: Vec<(u32, f64)> = (0u32..)
            .zip(logits)
            .map(|(id, &logit)| (id, ((f64::from(logit) - f64::from(max)) / temperature).exp()))
            .collect();
        self.truncate(&mut weighted);
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let target = self.uniform(output_index) * total;
        let mut sum = 0.0;
        for (id, weight) in weighted {
            sum += weight;
            if sum > target {
                return Ok(id);
            }
        }
        // Only rounding of the very last sum gets here.
        Ok(best)
    }

    /// Applies `top_k`, then `top_p`.
    fn truncate(&self, weighted: &mut Vec<(u32, f64)>) {
        let SamplingParams { top_k, top_p, .. } = self.params;
        let keep_top_k = top_k > 0 && top_k < weighted.len();
        if !keep_top_k && top_p >= 1.0 {
            return;
        }
        weighted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if keep_top_k {
            weighted.truncate(top_k);
        }
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let limit = f64::from(top_p) * total;
        let mut sum = 0.0;
        let kept = weighted.iter().position(|(_, weight)| {
            sum += weight;
            sum >= limit
        });
        weighted.truncate(kept.map_or(weighted.len(), |last| last + 1));
    }

    /// A number in `[0, 1)` with 53 random bits: the first of the stream that belongs to this output index.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
    fn uniform(&self, output_index: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(output_index as u64);
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first of the largest logits, and its value.
fn best(logits: &[f32]) -> Result<(u32, f32), ModelError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() {
            return Err(ModelError::BadLogits { what: "not numbers" });
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    match best.1 {
        f32::NEG_INFINITY => Err(ModelError::BadLogits { what: "all minus infinity, or none" }),
        f32::INFINITY => Err(ModelError::BadLogits { what: "infinite" }),
        _ => Ok(best),
    }
}
