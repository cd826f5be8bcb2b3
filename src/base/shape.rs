//! Tensor shapes.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Deref;

/// The largest number of dimensions a tensor can have.
pub const MAX_RANK: usize = 6;

/// The dimensions of a contiguous tensor, outermost first; at most [`MAX_RANK`] of them. Images are `[N, H, W, C]`.
///
/// Dereferences to `[usize]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// The shape of a scalar: no dimension, one element.
    pub const SCALAR: Shape = Shape { dims: [1; MAX_RANK], rank: 0 };

    /// Number of elements. Shapes are built through checked constructors, so the product does not overflow.
    pub fn elems(&self) -> usize {
        self.iter().product()
    }

    /// The dimensions of an image batch `[N, H, W, C]`, or an error that names `op`.
    pub fn nhwc(&self, op: &str) -> Result<(usize, usize, usize, usize)> {
        match **self {
            [n, h, w, c] => Ok((n, h, w, c)),
            _ => Err(Error::shape(op, format!("expects an image batch [N, H, W, C], got {self}"))),
        }
    }

    /// The dimensions of a matrix, or an error that names `op`.
    pub fn matrix(&self, op: &str) -> Result<(usize, usize)> {
        match **self {
            [r, c] => Ok((r, c)),
            _ => Err(Error::shape(op, format!("expects a matrix [rows, columns], got {self}"))),
        }
    }

    /// The last dimension (channels, features); 1 for a scalar.
    pub fn last(&self) -> usize {
        self.iter().next_back().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last; 1 for a scalar.
    pub fn rows(&self) -> usize {
        if self.rank == 0 { 1 } else { self[..self.rank as usize - 1].iter().product() }
    }

    /// Builds a shape from a slice.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or a product that does not fit in memory addresses.
    pub fn from_slice(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_RANK {
            return Err(Error::shape(
                "shape",
                format!("{} dimensions are more than {MAX_RANK}: {dims:?}", dims.len()),
            ));
        }
        dims.iter()
            .try_fold(1usize, |p, &d| p.checked_mul(d).filter(|&p| p <= isize::MAX as usize / 8))
            .ok_or_else(|| {
                Error::shape("shape", format!("{dims:?} has more elements than memory can address"))
            })?;
        let mut out = Shape { dims: [1; MAX_RANK], rank: dims.len() as u8 };
        out.dims[..dims.len()].copy_from_slice(dims);
        Ok(out)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(d: [usize; R]) -> Self {
        const { assert!(R <= MAX_RANK, "too many dimensions") };
        let mut out = Shape { dims: [1; MAX_RANK], rank: R as u8 };
        out.dims[..R].copy_from_slice(&d);
        out
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basics() {
        let s = Shape::from([2, 3, 4, 5]);
        assert_eq!((s.elems(), s.last(), s.rows(), s.len()), (120, 5, 24, 4));
        assert_eq!(s.to_string(), "[2, 3, 4, 5]");
        assert_eq!(Shape::SCALAR.elems(), 1);
        assert_eq!(Shape::from_slice(&[2, 3, 4, 5]).unwrap(), s);
        assert!(Shape::from([3]).nhwc("x").unwrap_err().is_shape());
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(Shape::from_slice(&[1; 7]).is_err());
        assert!(Shape::from_slice(&[usize::MAX, 2]).is_err());
        assert!(Shape::from_slice(&[1 << 40, 1 << 40]).is_err());
    }
}
