//! The one kernel that everything heavy goes through: dot products of rows, always summed in the same order.
//!
//! A library matrix product picks its blocking by shape, so the same row gets different low bits in a batch of 1 and
//! in a batch of 1500. Here element `k` of a dot product always goes to accumulator `k % 16`, products are rounded
//! before they are added (no fused multiply-add), and the 16 accumulators are folded in one fixed tree. The number
//! of rows computed together, the width of the machine's vectors and the number of threads only decide *when* a dot
//! product is computed, never *how*. The price is some speed against a tuned library; rounding twice costs nothing on
//! machines with separate multiply and add pipes.

use std::borrow::Cow;

use candle_core::cpu_backend::CpuStorage;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Accumulators of a dot product; rows are padded with zeros to a multiple of it.
pub(crate) const LANES: usize = 16;

/// Rows of the second operand that one task converts and multiplies: small enough for the second-level cache.
const PANEL: usize = 32;

/// Length of a row of `len` elements with its padding.
pub(crate) const fn padded(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

/// Rows of numbers, one after the other, each `width` long.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Two bytes each.
    Bf16(&'a [bf16]),
    /// Four bytes each.
    F32(&'a [f32]),
}

impl<'a> Rows<'a> {
    /// The numbers of a candle storage between two offsets.
    pub(crate) fn of(storage: &'a CpuStorage, start: usize, end: usize) -> candle_core::Result<Self> {
        match storage {
            CpuStorage::BF16(data) => Ok(Self::Bf16(&data[start..end])),
            CpuStorage::F32(data) => Ok(Self::F32(&data[start..end])),
            _ => candle_core::bail!("weights have to be bf16 or f32"),
        }
    }

    /// The rows `first..first + count` in `f32`, padded; borrowed if they already are so.
    fn padded(self, first: usize, count: usize, width: usize) -> Cow<'a, [f32]> {
        let range = first * width..(first + count) * width;
        let stride = padded(width);
        match self {
            Self::F32(data) if stride == width => Cow::Borrowed(&data[range]),
            Self::F32(data) => {
                let mut out = vec![0.0; count * stride];
                for (to, from) in out.chunks_exact_mut(stride).zip(data[range].chunks_exact(width)) {
                    to[..width].copy_from_slice(from);
                }
                Cow::Owned(out)
            }
            Self::Bf16(data) => {
                let mut out = vec![0.0; count * stride];
                for (to, from) in out.chunks_exact_mut(stride).zip(data[range].chunks_exact(width)) {
                    for (t, f) in to.iter_mut().zip(from) {
                        *t = f32::from_bits(u32::from(f.to_bits()) << 16);
                    }
                }
                Cow::Owned(out)
            }
        }
    }
}

/// `out[m][n] = x[m] · w[n]` for `x` of `m` rows and `w` of `n` rows, both `width` long. Parallel over `n`.
///
/// Cost: allocates the result and, for `bf16` weights, one converted panel per task.
pub(crate) fn matmul(x: &[f32], w: Rows<'_>, m: usize, n: usize, width: usize) -> Vec<f32> {
    let x = Rows::F32(x).padded(0, m, width);
    let stride = padded(width);
    let panels: Vec<Vec<f32>> = (0..n.div_ceil(PANEL))
        .into_par_iter()
        .map(|panel| {
            let first = panel * PANEL;
            let count = PANEL.min(n - first);
            let mut tile = vec![0.0; m * count];
            dot_rows(&x, &w.padded(first, count, width), stride, &mut tile);
            tile
        })
        .collect();
    let mut out = vec![0.0; m * n];
    for (panel, tile) in panels.iter().enumerate() {
        let first = panel * PANEL;
        let count = PANEL.min(n - first);
        for (row, from) in out.chunks_exact_mut(n).zip(tile.chunks_exact(count)) {
            row[first..first + count].copy_from_slice(from);
        }
    }
    out
}

/// `out[m][n] = x[m] · w[n]` on this thread; rows are `stride` long, a multiple of [`LANES`].
pub(crate) fn dot_rows(x: &[f32], w: &[f32], stride: usize, out: &mut [f32]) {
    Arch::new().dispatch(DotRows { x, w, stride, out });
}

/// `out[d] += scale * row[d]`, rounded after each operation.
pub(crate) fn add_scaled(out: &mut [f32], scale: &[f32], rows: &[f32], stride: usize) {
    Arch::new().dispatch(AddScaled { out, scale, rows, stride });
}

struct DotRows<'a> {
    x: &'a [f32],
    w: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

impl WithSimd for DotRows<'_> {
    type Output = ();

    // Rows per tile are chosen so that the accumulators stay in registers; they do not influence results.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.tiles::<S, 1, 4, 4>(simd),
            8 => self.tiles::<S, 2, 2, 2>(simd),
            4 => self.tiles::<S, 4, 2, 2>(simd),
            _ => self.tiles::<S, 16, 1, 1>(simd),
        }
    }
}

impl DotRows<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const VECTORS: usize, const MR: usize, const NR: usize>(self, simd: S) {
        let Self { x, w, stride, out } = self;
        let (m, n) = (x.len() / stride, w.len() / stride);
        let mut i = 0;
        while i < m {
            let rows = if i + MR <= m { MR } else { 1 };
            let out = &mut out[i * n..];
            for j in (0..n).step_by(NR) {
                // A last, narrower tile repeats its last column; the copies are not stored.
                let w: [&[S::f32s]; NR] = std::array::from_fn(|c| row::<S>(w, stride, (j + c).min(n - 1)));
                if rows == MR {
                    let x: [&[S::f32s]; MR] = std::array::from_fn(|r| row::<S>(x, stride, i + r));
                    store(out, n, j, &tile::<S, VECTORS, MR, NR>(simd, x, w));
                } else {
                    store(out, n, j, &tile::<S, VECTORS, 1, NR>(simd, [row::<S>(x, stride, i)], w));
                }
            }
            i += rows;
        }
    }
}

#[inline(always)]
fn row<S: Simd>(rows: &[f32], stride: usize, index: usize) -> &[S::f32s] {
    S::as_simd_f32s(&rows[index * stride..(index + 1) * stride]).0
}

#[inline(always)]
fn store<const MR: usize, const NR: usize>(out: &mut [f32], n: usize, j: usize, tile: &[[f32; NR]; MR]) {
    for (row, values) in out.chunks_mut(n).zip(tile) {
        for (to, from) in row[j..].iter_mut().zip(values) {
            *to = *from;
        }
    }
}

/// `MR` × `NR` dot products at once; each accumulator is `VECTORS` vectors, [`LANES`] numbers.
#[inline(always)]
fn tile<S: Simd, const VECTORS: usize, const MR: usize, const NR: usize>(
    simd: S,
    x: [&[S::f32s]; MR],
    w: [&[S::f32s]; NR],
) -> [[f32; NR]; MR] {
    let mut sums = [[[simd.splat_f32s(0.0); VECTORS]; NR]; MR];
    let steps = x[0].len() / VECTORS;
    let x = x.map(|row| &row.as_chunks::<VECTORS>().0[..steps]);
    let w = w.map(|row| &row.as_chunks::<VECTORS>().0[..steps]);
    for k in 0..steps {
        for r in 0..MR {
            for c in 0..NR {
                for v in 0..VECTORS {
                    let product = simd.mul_f32s(x[r][k][v], w[c][k][v]);
                    sums[r][c][v] = simd.add_f32s(sums[r][c][v], product);
                }
            }
        }
    }
    sums.map(|row| row.map(|lanes| fold(pulp::bytemuck::cast_slice(&lanes))))
}

/// The fixed tree: halves onto halves.
#[inline(always)]
fn fold(lanes: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    sums.copy_from_slice(lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

struct AddScaled<'a> {
    out: &'a mut [f32],
    scale: &'a [f32],
    rows: &'a [f32],
    stride: usize,
}

impl WithSimd for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (out, _) = S::as_mut_simd_f32s(self.out);
        for (scale, row) in self.scale.iter().zip(self.rows.chunks_exact(self.stride)) {
            let (row, _) = S::as_simd_f32s(row);
            let scale = simd.splat_f32s(*scale);
            for (to, from) in out.iter_mut().zip(row) {
                *to = simd.add_f32s(*to, simd.mul_f32s(scale, *from));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of the summing order, in plain code.
    fn dot(x: &[f32], w: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        for (k, (a, b)) in x.iter().zip(w).enumerate() {
            lanes[k % LANES] += a * b;
        }
        fold(&lanes)
    }

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits((state >> 9) | 0x3f80_0000) - 1.5
        })
        .take(len)
        .collect()
    }

    #[test]
    fn every_shape_sums_in_the_defined_order() {
        for (m, n, width) in [(1, 1, 1), (1, 5, 16), (3, 33, 17), (4, 4, 48), (5, 7, 100), (9, 65, 31)] {
            let (x, w) = (numbers(m * width, 1), numbers(n * width, 2));
            let out = matmul(&x, Rows::F32(&w), m, n, width);
            for (row, x) in out.chunks_exact(n).zip(x.chunks_exact(width)) {
                for (got, w) in row.iter().zip(w.chunks_exact(width)) {
                    assert_eq!(got.to_bits(), dot(x, w).to_bits(), "{m} {n} {width}");
                }
            }
        }
    }

    #[test]
    fn the_scalar_path_gives_the_bits_of_the_vector_path() {
        let (x, w) = (numbers(6 * 64, 3), numbers(7 * 64, 4));
        let (mut scalar, mut vector) = (vec![0.0; 42], vec![0.0; 42]);
        DotRows { x: &x, w: &w, stride: 64, out: &mut scalar }.with_simd(pulp::Scalar);
        dot_rows(&x, &w, 64, &mut vector);
        assert_eq!(scalar.map_bits(), vector.map_bits());
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl Bits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|x| x.to_bits()).collect()
        }
    }
}
