//! Arithmetic on pairs of elements: BitShift, which tract lacks, and Mod, of which it takes one operand
//! for the other where the first one is the smaller.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, typed};
use super::theirs::{Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("BitShift", bit_shift);
    operators.insert("Mod", |context, node| {
        let keeps_sign = node.get_attr_opt::<i64>("fmod")?.unwrap_or(0) != 0;
        rewired(context, node, Mod { keeps_sign })
    });
}

#[derive(Debug)]
struct BitShift {
    is_left: bool,
}

fn bit_shift(_context: &ParsingContext, node: &NodeProto) -> Built {
    let is_left = match node.get_attr::<&str>("direction")? {
        "LEFT" => true,
        "RIGHT" => false,
        other => bail!("unknown direction {other:?}"),
    };
    built(node, BitShift { is_left })
}

/// Nothing is left of bits that are shifted by their width, or by less than nothing.
trait Shift: Datum + Copy {
    fn shift(self, by: Self, is_left: bool) -> Self;
}

macro_rules! shifts {
    ($($integer:ty),*) => {
        $(impl Shift for $integer {
            fn shift(self, by: Self, is_left: bool) -> Self {
                let by = u32::try_from(by).ok();
                match is_left {
                    true => by.and_then(|by| self.checked_shl(by)).unwrap_or(0),
                    // A signed type's sign is what is left.
                    false => {
                        let rest = (self >> (Self::BITS - 1)) >> 1;
                        by.and_then(|by| self.checked_shr(by)).unwrap_or(rest)
                    }
                }
            }
        })*
    };
}

shifts!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Kernel for BitShift {
    fn name(&self) -> &'static str {
        "BitShift"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (datum, shape) = (left.datum, multi_broadcast(&[&left.shape, &right.shape])?);
        ensure!(datum.is_integer() && datum == right.datum, "expected integers of one type");
        Ok(tvec![Form::new(datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn shift<T: Shift>(left: &Tensor, right: &Tensor, is_left: bool) -> TractResult<Tensor> {
            broadcast(left, right, |left: T, by| Ok(left.shift(by, is_left)))
        }
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let is_left = self.is_left;
        Ok(tvec![match left.datum_type() {
            DatumType::U8 => shift::<u8>(left, right, is_left)?,
            DatumType::U16 => shift::<u16>(left, right, is_left)?,
            DatumType::U32 => shift::<u32>(left, right, is_left)?,
            DatumType::U64 => shift::<u64>(left, right, is_left)?,
            DatumType::I8 => shift::<i8>(left, right, is_left)?,
            DatumType::I16 => shift::<i16>(left, right, is_left)?,
            DatumType::I32 => shift::<i32>(left, right, is_left)?,
            DatumType::I64 => shift::<i64>(left, right, is_left)?,
            other => bail!("a shift of {other:?}"),
        }])
    }
}

#[derive(Debug, Clone)]
struct Mod {
    /// Of the first operand; else the second one's.
    keeps_sign: bool,
}

impl Wiring for Mod {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let datum = model.outlet_fact(inputs[0])?.datum_type;
        // Of sizes, which have symbols.
        if datum == DatumType::TDim || model.outlet_fact(inputs[1])?.datum_type != datum {
            return inner.wire(prefix, model, inputs);
        }
        model.wire_node(prefix, typed(self.clone()), inputs)
    }
}

trait Remainder: Datum + Copy {
    /// `None` where there is none.
    fn remainder(self, by: Self, keeps_sign: bool) -> Option<Self>;
}

macro_rules! remainders {
    ($rest:expr, $($number:ty),*) => {
        $(impl Remainder for $number {
            fn remainder(self, by: Self, keeps_sign: bool) -> Option<Self> {
                let rest: fn(Self, Self) -> Option<Self> = $rest;
                let rest = rest(self, by)?;
                Some(if keeps_sign { rest } else { with_sign_of(rest, by) })
            }
        })*
    };
}

remainders!(|left, by| left.checked_rem(by), u8, u16, u32, u64);
remainders!(|left, by| (by != 0).then(|| left.wrapping_rem(by)), i8, i16, i32, i64);
remainders!(|left, by| Some(left % by), f32, f64);

/// The remainder of a division that rounds down, by that of one that cuts off.
fn with_sign_of<T: Copy + Default + PartialOrd + std::ops::Add<Output = T>>(rest: T, by: T) -> T {
    let zero = T::default();
    if rest != zero && (rest < zero) != (by < zero) { rest + by } else { rest }
}

impl Kernel for Mod {
    fn name(&self) -> &'static str {
        "Mod"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        ensure!(
            left.datum.is_number() && left.datum == right.datum,
            "expected numbers of one type"
        );
        Ok(tvec![Form::new(left.datum, multi_broadcast(&[&left.shape, &right.shape])?)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn rest<T: Remainder>(
            left: &Tensor,
            right: &Tensor,
            keeps_sign: bool,
        ) -> TractResult<Tensor> {
            let rest = |left: T, right: T| {
                left.remainder(right, keeps_sign).context("a number is divided by zero")
            };
            broadcast(left, right, rest)
        }
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let sign = self.keeps_sign;
        Ok(tvec![match left.datum_type() {
            DatumType::U8 => rest::<u8>(left, right, sign)?,
            DatumType::U16 => rest::<u16>(left, right, sign)?,
            DatumType::U32 => rest::<u32>(left, right, sign)?,
            DatumType::U64 => rest::<u64>(left, right, sign)?,
            DatumType::I8 => rest::<i8>(left, right, sign)?,
            DatumType::I16 => rest::<i16>(left, right, sign)?,
            DatumType::I32 => rest::<i32>(left, right, sign)?,
            DatumType::I64 => rest::<i64>(left, right, sign)?,
            DatumType::F64 => rest::<f64>(left, right, sign)?,
            datum => {
                let (left, right) = (left.cast_to::<f32>()?, right.cast_to::<f32>()?);
                rest::<f32>(&left, &right, sign)?.cast_to_dt(datum)?.into_owned()
            }
        }])
    }
}

/// The elements of two tensors, each with its counterpart.
fn broadcast<T: Datum + Copy>(
    left: &Tensor,
    right: &Tensor,
    with: impl Fn(T, T) -> TractResult<T>,
) -> TractResult<Tensor> {
    let shape: TVec<usize> = multi_broadcast(&[left.shape(), right.shape()])?;
    checked_len(&shape)?;
    let (left, right) = (left.to_plain_array_view::<T>()?, right.to_plain_array_view::<T>()?);
    let left = left.broadcast(&*shape).context("shapes do not broadcast")?;
    let right = right.broadcast(&*shape).context("shapes do not broadcast")?;
    let pairs = left.iter().zip(right.iter()).map(|(&left, &right)| with(left, right));
    let values = pairs.collect::<TractResult<Vec<T>>>()?;
    Ok(tract_ndarray::ArrayD::from_shape_vec(&*shape, values)?.into_tensor())
}
