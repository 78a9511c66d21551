//! Rotary position embedding, in the order of halves that Hugging Face checkpoints use.

use candle_core::{D, Device, Result, Tensor};

use crate::config::{ModelConfig, RopeScaling};

/// One frequency per pair of elements.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
}

/// Cosines and sines of one step's positions, `[tokens, 1, head_dim / 2]` each.
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    #[expect(clippy::cast_precision_loss, reason = "head_dim is at most 1024")]
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let frequencies = (0..config.head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / config.head_dim as f32;
                stretch(1.0 / config.rope_theta.powf(exponent), config.rope_scaling)
            })
            .collect();
        Self { frequencies }
    }

    /// Angles are computed per step: a table of every position would let `config.json` ask for gigabytes.
    #[expect(clippy::cast_precision_loss, reason = "positions are at most 2^24, exact in f32")]
    pub(crate) fn angles(&self, positions: &[usize]) -> Result<Angles> {
        let shape = (positions.len(), 1, self.frequencies.len());
        let (sin, cos): (Vec<f32>, Vec<f32>) = positions
            .iter()
            .flat_map(|&position| self.frequencies.iter().map(move |f| (position as f32 * f).sin_cos()))
            .unzip();
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }
}

impl Angles {
    /// Rotates `[tokens, heads, head_dim]`.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[first, second], D::Minus1)
    }
}

fn stretch(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            if wavelength < original_max_position / high_freq_factor {
                frequency
            } else if wavelength > original_max_position / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original_max_position / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
