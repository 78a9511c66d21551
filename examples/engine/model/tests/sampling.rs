//! Sampling is a pure function with the promised distribution.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use engine_model::{ModelError, Sampler, SamplingParams};
use proptest::prelude::*;

const LOGITS: [f32; 5] = [0.0, 2.0, f32::NEG_INFINITY, 1.0, -3.0];

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, 42).unwrap()
}

fn frequencies(params: SamplingParams) -> Vec<f64> {
    const DRAWS: usize = 20_000;
    let mut counts = vec![0.0; LOGITS.len()];
    for index in 0..DRAWS {
        let id = sampler(params).sample(index, &LOGITS).unwrap();
        counts[id as usize] += 1.0 / DRAWS as f64;
    }
    counts
}

fn softmax(temperature: f64, kept: &[usize]) -> Vec<f64> {
    let weight =
        |id: usize| if kept.contains(&id) { (f64::from(LOGITS[id]) / temperature).exp() } else { 0.0 };
    let total: f64 = (0..LOGITS.len()).map(weight).sum();
    (0..LOGITS.len()).map(|id| weight(id) / total).collect()
}

fn assert_close(params: SamplingParams, expected: &[f64]) {
    for (id, (got, expected)) in frequencies(params).iter().zip(expected).enumerate() {
        assert!((got - expected).abs() < 0.02, "token {id}: {got} instead of {expected} with {params:?}");
        assert!(*expected > 0.0 || *got == 0.0, "token {id} must never be chosen with {params:?}");
    }
}

#[test]
fn frequencies_follow_the_parameters() {
    let params = SamplingParams::default();
    assert_close(params, &softmax(1.0, &[0, 1, 3, 4]));
    assert_close(SamplingParams { temperature: 2.0, ..params }, &softmax(2.0, &[0, 1, 3, 4]));
    assert_close(SamplingParams { top_k: 2, ..params }, &softmax(1.0, &[1, 3]));
    // Probabilities are 0.66, 0.24, 0.09 and 0.004: two of them reach 0.8, one reaches 0.6.
    assert_close(SamplingParams { top_p: 0.8, ..params }, &softmax(1.0, &[1, 3]));
    assert_close(SamplingParams { top_p: 0.6, ..params }, &softmax(1.0, &[1]));
    assert_close(SamplingParams { top_p: 0.99, top_k: 3, ..params }, &softmax(1.0, &[0, 1, 3]));
}

#[test]
fn temperature_zero_takes_the_first_of_the_best() {
    let greedy = sampler(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    assert_eq!(greedy.sample(0, &LOGITS).unwrap(), 1);
    assert_eq!(greedy.sample(9, &[1.0, 7.0, 7.0]).unwrap(), 1);
}

#[test]
fn a_seed_of_the_request_wins_over_the_fallback() {
    let params = SamplingParams { seed: Some(5), ..SamplingParams::default() };
    let draws = |sampler: Sampler| (0..64).map(|i| sampler.sample(i, &LOGITS).unwrap()).collect::<Vec<_>>();
    let (a, b) = (Sampler::new(params, 1).unwrap(), Sampler::new(params, 2).unwrap());
    assert_eq!(draws(a), draws(b));
    assert_eq!(a.seed(), 5);
    let unseeded = SamplingParams { seed: None, ..params };
    let (c, d) = (Sampler::new(unseeded, 1).unwrap(), Sampler::new(unseeded, 2).unwrap());
    assert_ne!(draws(c), draws(d));
    assert_ne!(draws(c), vec![draws(c)[0]; 64], "the place in the answer matters");
}

proptest! {
    #[test]
    fn the_order_of_questions_does_not_matter(
        logits in prop::collection::vec(-20.0f32..20.0, 1..50),
        temperature in 0.0f32..3.0,
        top_p in 0.01f32..1.0,
        top_k in 0usize..10,
        seed in any::<u64>(),
    ) {
        let sampler = sampler(SamplingParams { temperature, top_p, top_k, seed: Some(seed) });
        let forward: Vec<u32> = (0..8).map(|i| sampler.sample(i, &logits).unwrap()).collect();
        let mut backward: Vec<u32> = (0..8).rev().map(|i| sampler.sample(i, &logits).unwrap()).collect();
        backward.reverse();
        prop_assert_eq!(&forward, &backward);
        prop_assert!(forward.iter().all(|&id| (id as usize) < logits.len()));
    }
}

#[test]
fn bad_logits_and_parameters_are_typed_errors() {
    let warm = sampler(SamplingParams::default());
    for logits in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
        assert!(matches!(warm.sample(0, logits), Err(ModelError::BadLogits { .. })), "{logits:?}");
    }
    let default = SamplingParams::default();
    let wrong = [
        SamplingParams { temperature: -0.1, ..default },
        SamplingParams { temperature: f32::NAN, ..default },
        SamplingParams { temperature: f32::INFINITY, ..default },
        SamplingParams { top_p: 0.0, ..default },
        SamplingParams { top_p: 1.1, ..default },
        SamplingParams { top_p: f32::NAN, ..default },
    ];
    for params in wrong {
        let error = Sampler::new(params, 0).unwrap_err();
        assert!(matches!(error, ModelError::Sampling { .. }) && error.is_request_error(), "{params:?}");
    }
    let tiny = sampler(SamplingParams { temperature: f32::MIN_POSITIVE, ..default });
    assert_eq!(tiny.sample(3, &LOGITS).unwrap(), 1);
}
