//! The two row operations that candle does not do in a shape-independent order, as candle custom ops.

use candle_core::cpu_backend::CpuStorage;
use candle_core::{CustomOp2, DType, Layout, Result, Shape, Tensor};

use crate::kernel::{Rows, dot_rows, matmul, padded};

/// `x` times the transpose of `weight`, plus `bias`; every row of `x` on its own.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) const fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = x.apply_op2_no_bwd(&self.weight, &RowProduct)?;
        match &self.bias {
            None => Ok(out),
            Some(bias) => out.broadcast_add(bias),
        }
    }
}

/// Scales each row to unit root mean square, then by `weight`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn new(weight: &Tensor, eps: f32) -> Result<Self> {
        Ok(Self { weight: weight.to_dtype(DType::F32)?, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(&self.weight, &RowNorm { eps: self.eps })
    }
}

struct RowProduct;

impl CustomOp2 for RowProduct {
    fn name(&self) -> &'static str {
        "row-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, width), (n, w_width)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        if width != w_width {
            candle_core::bail!("rows of {width} times rows of {w_width}");
        }
        let x = contiguous(x, xl)?;
        let Some((start, end)) = wl.contiguous_offsets() else {
            candle_core::bail!("weights have to be contiguous")
        };
        let out = matmul(x, Rows::of(w, start, end)?, m, n, width);
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

struct RowNorm {
    eps: f32,
}

impl CustomOp2 for RowNorm {
    fn name(&self) -> &'static str {
        "row-norm"
    }

    #[expect(clippy::cast_precision_loss, reason = "a row has far fewer than 2^24 elements")]
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, width) = xl.shape().dims2()?;
        let (x, w) = (contiguous(x, xl)?, contiguous(w, wl)?);
        let mut out = Vec::with_capacity(m * width);
        let mut row = vec![0.0; padded(width)];
        for values in x.chunks_exact(width) {
            row[..width].copy_from_slice(values);
            let mut square = [0.0];
            dot_rows(&row, &row, row.len(), &mut square);
            let scale = 1.0 / (square[0] / width as f32 + self.eps).sqrt();
            out.extend(values.iter().zip(w).map(|(x, w)| x * scale * w));
        }
        Ok((CpuStorage::F32(out), (m, width).into()))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("activations have to be contiguous"),
    }
}
