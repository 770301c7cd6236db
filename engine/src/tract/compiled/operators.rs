//! The operators that a compiled plan can hold: those that small and common networks are left with
//! once ours are in. A graph with any other is loaded the plain way.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{Gather, MultiBroadcastTo, Slice, TypedConcat};
use tract_onnx::tract_hir::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_hir::tract_core::ops::cast::Cast;
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_hir::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::tract_core::ops::logic::{
    And, CompEq, CompGT, CompGTE, CompLT, CompLTE, CompNE, Iff, Not, Or,
};
use tract_onnx::tract_hir::tract_core::ops::math::{
    Abs, Add, Ceil, Cos, Div, Erf, Exp, Floor, Ln, Max, Min, Mul, Neg, Pow, Recip, Round,
    RoundHalfToEven, Rsqrt, Sign, Sin, Sqrt, Square, Sub, SubF, Tanh,
};
use tract_onnx::tract_hir::tract_core::ops::nn::{
    GeluExact, HardSwish, LeakyRelu, Reduce, Reducer, RmsNorm, Sigmoid, Silu, Softmax, SoftmaxKind,
};

use super::parts::{Reader, Stored, Writer, stored_struct};
use crate::narrow::{Narrow, Rounding, Towards};
use crate::tract::fuse::{
    After, Barrier, DeformedWindows, FusedBinary, FusedConv, FusedPool, FusedProduct, FusedRows,
    FusedTable, GatheredBlocks, Quantize, Reduction,
};
use crate::tract::operators::rounded::Rounded;

/// Writes an operator as its number and what it holds, and reads it by that.
macro_rules! held {
    ($($number:literal => $kind:ident),* $(,)?) => {
        /// `None`: it is not one that can be held.
        pub(super) fn put<'a>(op: &'a dyn TypedOp, to: &mut Writer<'a>) -> Option<()> {
            $(if let Some(op) = op.downcast_ref::<$kind>() {
                to.small.push($number);
                return op.put(to);
            })*
            None
        }

        pub(super) fn take(from: &mut Reader<'_>) -> Option<Box<dyn TypedOp>> {
            match u8::take(from)? {
                $($number => Some(Box::new($kind::take(from)?)),)*
                _ => None,
            }
        }
    };
}

held! {
    1 => Const, 2 => Cast, 3 => AxisOp, 4 => Reduce, 5 => Slice, 6 => Gather,
    7 => MultiBroadcastTo, 8 => TypedConcat, 9 => TypedBinOp, 10 => ElementWiseOp,
    11 => RmsNorm, 12 => Softmax, 13 => Iff,
    20 => Barrier, 21 => FusedConv, 22 => FusedPool, 23 => FusedProduct, 24 => FusedRows,
    25 => FusedTable, 26 => FusedBinary, 27 => Quantize, 28 => GatheredBlocks, 29 => DeformedWindows,
    30 => Reduction, 31 => After,
}

stored_struct!(Cast { to });
stored_struct!(Slice { axis, start, end });
stored_struct!(Gather { axis, output_type });
stored_struct!(MultiBroadcastTo { shape });
stored_struct!(TypedConcat { axis });
stored_struct!(Reduce { axes, reducer });
stored_struct!(RmsNorm { axis, eps });

/// Operators without parameters.
macro_rules! stored_unit {
    ($($kind:ident),*) => {$(
        impl Stored for $kind {
            fn put<'a>(&'a self, _: &mut Writer<'a>) -> Option<()> {
                Some(())
            }

            fn take(_: &mut Reader<'_>) -> Option<Self> {
                Some($kind {})
            }
        }
    )*};
}
stored_unit!(Iff, Barrier, After);

/// Functions without parameters, by name.
macro_rules! named {
    ($of:ident, $put:ident, $take:ident: $($kind:ident),* $(,)?) => {
        fn $put(op: &dyn $of) -> Option<&'static str> {
            $(if op.is::<$kind>() {
                return Some(stringify!($kind));
            })*
            None
        }

        fn $take(name: &str) -> Option<Box<dyn $of>> {
            $(if name == stringify!($kind) {
                return Some(Box::new($kind {}));
            })*
            None
        }
    };
}

named!(
    BinMiniOp, binary_name, binary: Add, Sub, SubF, Mul, Div, Min, Max, Pow, And, Or, CompEq,
    CompNE, CompLT, CompLTE, CompGT, CompGTE,
);
named!(
    ElementWiseMiniOp, function_name, function: Abs, Exp, Ln, Square, Sqrt, Recip, Rsqrt, Ceil,
    Floor, Round, RoundHalfToEven, Cos, Sin, Tanh, Erf, Neg, Sign, Not, Sigmoid, HardSwish, Silu,
    GeluExact,
);

impl Stored for TypedBinOp {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.text(binary_name(&*self.0)?);
        self.1.put(to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self(binary(&String::take(from)?)?, Stored::take(from)?))
    }
}

impl Stored for ElementWiseOp {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        if let Some(leaky) = self.0.downcast_ref::<LeakyRelu>() {
            to.text("LeakyRelu");
            leaky.alpha.put(to)?;
        } else if let Some(Rounded(rounding)) = self.0.downcast_ref::<Rounded>() {
            to.text("Rounded");
            rounding.put(to)?;
        } else {
            to.text(function_name(&*self.0)?);
        }
        self.1.put(to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let name = String::take(from)?;
        let op: Box<dyn ElementWiseMiniOp> = match &*name {
            "LeakyRelu" => Box::new(LeakyRelu { alpha: f32::take(from)? }),
            "Rounded" => Box::new(Rounded(Rounding::take(from)?)),
            name => function(name)?,
        };
        Some(Self(op, Stored::take(from)?))
    }
}

stored_struct!(Rounding { to, saturates, towards });

impl Stored for Narrow {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.number() as usize);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Narrow::of(i64::take(from)?)
    }
}

impl Stored for Towards {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.variant(*self as u8, &())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Towards::ALL.get(usize::from(u8::take(from)?)).copied()
    }
}

impl Stored for Const {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.exotic_fact().is_none().then(|| self.val().put(to))?
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Const::new(Arc::take(from)?).ok()
    }
}

impl Stored for AxisOp {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(match self {
            AxisOp::Add(_) => 0,
            AxisOp::Rm(_) => 1,
            AxisOp::Move(..) => 2,
            AxisOp::Reshape(..) => 3,
        });
        match self {
            AxisOp::Add(axis) | AxisOp::Rm(axis) => axis.put(to),
            AxisOp::Move(from, onto) => [from, onto].into_iter().try_for_each(|axis| axis.put(to)),
            AxisOp::Reshape(axis, from, into) => {
                axis.put(to)?;
                from.put(to)?;
                into.put(to)
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => AxisOp::Add(usize::take(from)?),
            1 => AxisOp::Rm(usize::take(from)?),
            2 => AxisOp::Move(usize::take(from)?, usize::take(from)?),
            3 => AxisOp::Reshape(usize::take(from)?, TVec::take(from)?, TVec::take(from)?),
            _ => return None,
        })
    }
}

/// Reducers by their number in a compiled plan.
const REDUCERS: [Reducer; 11] = [
    Reducer::ArgMax(false),
    Reducer::ArgMax(true),
    Reducer::ArgMin(false),
    Reducer::ArgMin(true),
    Reducer::Max,
    Reducer::Min,
    Reducer::Prod,
    Reducer::Sum,
    Reducer::MeanOfSquares,
    Reducer::All,
    Reducer::Any,
];

impl Stored for Reducer {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        let number = REDUCERS.iter().position(|known| known == self)?;
        to.small.push(u8::try_from(number).ok()?);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        REDUCERS.get(usize::from(u8::take(from)?)).copied()
    }
}

impl Stored for Softmax {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        let is_plain = self.quant_output_dt.is_none() && self.kind == SoftmaxKind::default();
        is_plain.then(|| self.axes.put(to))?
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let axes = TVec::take(from)?;
        Some(Self { axes, quant_output_dt: None, kind: SoftmaxKind::default() })
    }
}
