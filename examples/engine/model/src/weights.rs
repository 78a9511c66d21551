//! Safetensors files as hostile input: every length is checked against the file before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::config::Dtype;
use crate::error::ModelError;
use crate::files::{CONFIG_BYTES_MAX, join_inside, open, parse_json, read_optional};

/// Largest header of a safetensors file; the published limit of the format.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Most files that an index may name.
const SHARDS_MAX: usize = 4096;

/// The tensors of a model directory, opened but not read.
pub(crate) struct Weights {
    dtype: DType,
    shards: Vec<Shard>,
    /// Which shard has each tensor.
    places: BTreeMap<String, usize>,
    /// The file that lists the tensors, to name when one is missing.
    listing: PathBuf,
}

struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data_start: u64,
    /// Parsed, which means that the tensors' byte ranges match their shapes, lie side by side and do not overlap.
    tensors: Metadata,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    pub(crate) fn open(dir: &Path, dtype: Dtype) -> Result<Self, ModelError> {
        let listing = dir.join("model.safetensors.index.json");
        let dtype = match dtype {
            Dtype::Bf16 => DType::BF16,
            Dtype::F32 => DType::F32,
        };
        let Some(bytes) = read_optional(&listing, CONFIG_BYTES_MAX)? else {
            let shard = Shard::open(dir.join("model.safetensors"))?;
            let places = shard.tensors.tensors().into_keys().map(|name| (name, 0)).collect();
            return Ok(Self { dtype, listing: shard.path.clone(), shards: vec![shard], places });
        };
        let index: Index = parse_json(&listing, &bytes)?;
        let mut files = BTreeMap::new();
        let mut shards = Vec::new();
        let mut places = BTreeMap::new();
        for (tensor, name) in index.weight_map {
            let place = match files.get(&name) {
                Some(&place) => place,
                None if shards.len() == SHARDS_MAX => {
                    let reason = format!("it names more than {SHARDS_MAX} files");
                    return Err(ModelError::Malformed { path: listing, reason });
                }
                None => {
                    shards.push(Shard::open(join_inside(dir, &listing, &name)?)?);
                    files.insert(name, shards.len() - 1);
                    shards.len() - 1
                }
            };
            places.insert(tensor, place);
        }
        Ok(Self { dtype, shards, places, listing })
    }

    /// Whether a tensor is listed.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Reads a tensor of exactly this shape and converts it to the storage type.
    pub(crate) fn load(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let Some(&place) = self.places.get(name) else {
            return Err(ModelError::Tensor {
                path: self.listing.clone(),
                tensor: name.to_owned(),
                reason: "it is missing".to_owned(),
            });
        };
        let tensor = self.shards[place].load(name, shape)?;
        Ok(tensor.to_dtype(self.dtype)?)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.clone(), source };
        let mut file = open(&path)?;
        let file_len = file.metadata().map_err(io)?.len();
        let malformed = |reason: String| ModelError::Malformed { path: path.clone(), reason };
        if file_len < 8 {
            return Err(malformed(format!("{file_len} bytes are too few for a safetensors file")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let header_len = u64::from_le_bytes(length);
        if header_len > HEADER_BYTES_MAX || header_len > file_len - 8 {
            return Err(malformed(format!("a header of {header_len} bytes in a file of {file_len}")));
        }
        let mut header = Vec::new();
        (&file).take(header_len).read_to_end(&mut header).map_err(io)?;
        let tensors: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(format!("bad header: {error}")))?;
        let data_start = 8 + header_len;
        let data_len = file_len - data_start;
        if tensors.data_len() as u64 != data_len {
            let listed = tensors.data_len();
            return Err(malformed(format!(
                "truncated: the header lists {listed} bytes, {data_len} are there"
            )));
        }
        Ok(Self { path, file, data_start, tensors })
    }

    fn load(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let wrong =
            |reason: String| ModelError::Tensor { path: self.path.clone(), tensor: name.to_owned(), reason };
        let info = self
            .tensors
            .info(name)
            .ok_or_else(|| wrong("the index places it here, but it is missing".to_owned()))?;
        let dtype = checked_type(info, shape).map_err(wrong)?;
        let (start, end) = info.data_offsets;
        let io = |source| ModelError::Io { path: self.path.clone(), source };
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(io)?;
        let mut data = vec![0; end - start];
        self.file.read_exact(&mut data).map_err(io)?;
        Ok(Tensor::from_raw_buffer(&data, dtype, shape, &Device::Cpu)?)
    }
}

/// The tensor's type, if that is a known one and the shape is the expected one.
fn checked_type(info: &TensorInfo, shape: &[usize]) -> Result<DType, String> {
    if info.shape != shape {
        return Err(format!("its shape is {:?}, the configuration implies {shape:?}", info.shape));
    }
    match info.dtype {
        safetensors::Dtype::BF16 => Ok(DType::BF16),
        safetensors::Dtype::F16 => Ok(DType::F16),
        safetensors::Dtype::F32 => Ok(DType::F32),
        other => Err(format!("its type is {other:?}; BF16, F16 and F32 are known")),
    }
}
