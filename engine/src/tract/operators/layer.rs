//! What a recurrent layer's attributes and inputs say of its sizes, and whether that fits together.

use tract_onnx::tract_hir::internal::*;

use super::kernel::{Form, Kernel};

/// What its attributes say of a layer's sizes.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) gates: usize,
    pub(super) directions: usize,
    pub(super) hidden: Option<i64>,
    pub(super) batch_first: bool,
}

/// Inputs that have sizes in common. Those of each sequence's length are not among them.
pub(super) const NAMES: [&str; 7] = ["X", "W", "R", "B", "initial_h", "initial_c", "P"];

/// Of those inputs, where they are given.
pub(super) type Shapes = [Option<TVec<TDim>>; NAMES.len()];

impl Layer {
    /// Whether they are known to fit together.
    ///
    /// # Errors
    /// They are known not to.
    pub(super) fn fits(&self, shapes: &Shapes) -> TractResult<bool> {
        let [Some(x), Some(w), Some(r), ..] = shapes else { bail!("no sequence or no weights") };
        let ([_, _, came], [_, _, size], [_, _, hidden]) = (&**x, &**w, &**r) else {
            bail!("a sequence of rank {}, weights of {} and {}", x.len(), w.len(), r.len());
        };
        if let (Some(stated), Ok(hidden)) = (self.hidden, hidden.to_i64()) {
            ensure!(
                stated == hidden,
                "R is for {hidden} values of a state, hidden_size is {stated}"
            );
        }
        let directions = self.directions.to_dim();
        let batch = x[usize::from(!self.batch_first)].clone();
        let rows = hidden.clone() * self.gates.to_dim();
        let mut state = tvec![directions.clone(), batch, hidden.clone()];
        if self.batch_first {
            state.swap(0, 1);
        }
        let mut sequence = x.clone();
        sequence[2] = size.clone();
        let expected: [TVec<TDim>; NAMES.len()] = [
            sequence,
            tvec![directions.clone(), rows.clone(), size.clone()],
            tvec![directions.clone(), rows.clone(), hidden.clone()],
            tvec![directions.clone(), rows * 2.to_dim()],
            state.clone(),
            state,
            tvec![directions, hidden.clone() * 3.to_dim()],
        ];
        // One stands for a free size, when a graph is planned for the first time.
        let is_guess = [came, size].contains(&&1.to_dim());
        let mut are_known = true;
        for ((name, shape), expected) in NAMES.iter().zip(shapes).zip(&expected) {
            let Some(shape) = shape else { continue };
            let may_be = |(size, expected): (&TDim, &TDim)| {
                let known = (size.to_usize(), expected.to_usize());
                size == expected || !matches!(known, (Ok(_), Ok(_)))
            };
            let may_fit = shape.len() == expected.len() && shape.iter().zip(expected).all(may_be);
            let is_guess = is_guess && *name == "X";
            ensure!(may_fit || is_guess, "{name} has the shape {shape:?}, expected {expected:?}");
            are_known &= shape == expected;
        }
        Ok(are_known)
    }
}

/// The first input, where it and the rest fit together.
#[derive(Debug)]
pub(super) struct Fitting {
    pub(super) layer: Layer,
    pub(super) given: [bool; NAMES.len()],
}

impl Fitting {
    fn fits(&self, inputs: impl Iterator<Item = TVec<TDim>>) -> TractResult<bool> {
        let mut shapes = Shapes::default();
        let given = shapes.iter_mut().zip(self.given).filter(|(_, is_given)| *is_given);
        for ((shape, _), input) in given.zip(inputs) {
            *shape = Some(input);
        }
        self.layer.fits(&shapes)
    }
}

impl Kernel for Fitting {
    fn name(&self) -> &'static str {
        "Fitting"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        self.fits(inputs.iter().map(|input| input.shape.clone()))?;
        let [x, w, ..] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let mut shape = x.shape.clone();
        shape[2] = w.shape[2].clone();
        Ok(tvec![Form::new(x.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let sizes = |input: &TValue| -> TVec<TDim> {
            input.shape().iter().map(|size| size.to_dim()).collect()
        };
        let fits = self.fits(inputs.iter().map(sizes))?;
        ensure!(fits, "a sequence of other values than the weights are for");
        Ok(tvec![(*inputs[0]).clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(x: [i64; 3], w: [i64; 3], r: [i64; 3], h: Option<[i64; 3]>) -> Shapes {
        let shape =
            |sizes: [i64; 3]| -> TVec<TDim> { sizes.iter().map(|size| size.to_dim()).collect() };
        let [x, w, r] = [x, w, r].map(|sizes| Some(shape(sizes)));
        [x, w, r, None, h.map(shape), None, None]
    }

    #[test]
    fn sizes_that_fit_and_that_do_not() {
        let layer = Layer { gates: 3, directions: 2, hidden: Some(4), batch_first: false };
        let (x, w, r, h) = ([5, 2, 7], [2, 12, 7], [2, 12, 4], Some([2, 2, 4]));
        assert!(layer.fits(&shapes(x, w, r, h)).unwrap());
        assert!(layer.fits(&shapes(x, w, r, None)).unwrap());
        for (x, w, r, h) in [
            ([5, 2, 6], w, r, h),
            (x, [1, 12, 7], [1, 12, 4], None),
            (x, [2, 13, 7], r, h),
            (x, w, [2, 12, 5], None),
            (x, [2, 15, 7], [2, 15, 5], None),
            (x, w, r, Some([2, 5, 4])),
        ] {
            assert!(layer.fits(&shapes(x, w, r, h)).is_err(), "{x:?} {w:?} {r:?} {h:?}");
        }
        let first = Layer { batch_first: true, ..layer.clone() };
        assert!(first.fits(&shapes([2, 5, 7], w, r, h)).unwrap());
        // What a size that is not known is planned with says nothing yet.
        assert!(!layer.fits(&shapes([1, 1, 1], w, r, Some([2, 1, 4]))).unwrap());
        let mut free = shapes(x, w, r, h);
        let symbols = SymbolScope::default();
        if let [Some(x), ..] = &mut free {
            x[2] = symbols.sym("n").to_dim();
        }
        assert!(!layer.fits(&free).unwrap());
    }
}
