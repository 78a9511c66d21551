//! From two lists to what is really moved: pieces, slices, and the path they take.

mod path;
mod pieces;

pub use path::{Explanation, Facts, Path, PathSet, Policy, Reason, choose};
pub use pieces::{Piece, Pieces, Side};
