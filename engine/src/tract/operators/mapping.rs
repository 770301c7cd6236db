//! Operators of ai.onnx.ml that look values up in a list: LabelEncoder, CategoryMapper and
//! OneHotEncoder. Those on maps, which are no tensors, are refused.

use std::hash::Hash;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

use super::attributes::{floats, integers, strings};
use super::kernel::{Built, Form, Kernel, NUMBERS, built, expect_datum, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("LabelEncoder", label_encoder);
    operators.insert("CategoryMapper", category_mapper);
    operators.insert("OneHotEncoder", one_hot_encoder);
    operators.insert("ZipMap", |_, _| {
        bail!("its output is no tensor: convert the model with `zipmap=False`")
    });
    operators.insert("DictVectorizer", |_, _| bail!("its input is no tensor"));
    operators.insert("CastMap", |_, _| bail!("its input is no tensor"));
}

/// Where each of a list of values first stands.
#[derive(Debug)]
enum Keys {
    Strings(HashMap<String, usize>),
    Integers(HashMap<i64, usize>),
    Floats(HashMap<u64, usize>),
}

fn places<K: Hash + Eq>(keys: impl Iterator<Item = K>) -> HashMap<K, usize> {
    let mut places = HashMap::new();
    for (place, key) in keys.enumerate() {
        places.entry(key).or_insert(place);
    }
    places
}

/// One pattern for NaNs, and one for zeros.
fn float_key(value: f64) -> u64 {
    if value.is_nan() { f64::NAN.to_bits() } else { (value + 0.0).to_bits() }
}

impl Keys {
    fn of(list: &Tensor) -> TractResult<Self> {
        let datum = list.datum_type();
        if datum == DatumType::String {
            let list = list.try_as_plain_ram()?;
            return Ok(Self::Strings(places(list.as_slice::<String>()?.iter().cloned())));
        }
        ensure!(datum.is_number(), "keys of {datum:?}");
        if datum.is_float() {
            let list = list.cast_to::<f64>()?;
            let list = list.try_as_plain_ram()?;
            let keys = list.as_slice::<f64>()?.iter().map(|&key| float_key(key));
            return Ok(Self::Floats(places(keys)));
        }
        let list = list.cast_to::<i64>()?;
        let list = list.try_as_plain_ram()?;
        Ok(Self::Integers(places(list.as_slice::<i64>()?.iter().copied())))
    }

    fn len(&self) -> usize {
        match self {
            Self::Strings(places) => places.len(),
            Self::Integers(places) => places.len(),
            Self::Floats(places) => places.len(),
        }
    }

    fn find(&self, input: &Tensor) -> TractResult<Vec<Option<usize>>> {
        Ok(match self {
            Self::Strings(places) => {
                let input = input.try_as_plain_ram()?;
                let input = input.as_slice::<String>()?.iter();
                input.map(|key| places.get(key).copied()).collect()
            }
            Self::Integers(places) => {
                let input = input.cast_to::<i64>()?;
                let input = input.try_as_plain_ram()?;
                let input = input.as_slice::<i64>()?.iter();
                input.map(|key| places.get(key).copied()).collect()
            }
            Self::Floats(places) => {
                let input = input.cast_to::<f64>()?;
                let input = input.try_as_plain_ram()?;
                let input = input.as_slice::<f64>()?.iter();
                input.map(|&key| places.get(&float_key(key)).copied()).collect()
            }
        })
    }
}

/// From values of one type to values of another.
#[derive(Debug)]
struct Mapping {
    from: DatumType,
    keys: Keys,
    values: Tensor,
    /// One element of the values' type.
    default: Tensor,
}

impl Mapping {
    fn new(from: &Tensor, values: Tensor, default: &Tensor) -> TractResult<Self> {
        let (keys, count) = (from.len(), values.len());
        ensure!(keys == count, "{keys} keys for {count} values");
        ensure!(default.len() == 1, "a default of {} elements", default.len());
        let (wanted, came) = (values.datum_type(), default.datum_type());
        ensure!(wanted == came, "a default of {came:?} for values of {wanted:?}");
        let (from_datum, keys) = (from.datum_type(), Keys::of(from)?);
        Ok(Self { from: from_datum, keys, values, default: default.clone() })
    }
}

/// Looks each value up; what is not there becomes the default.
#[derive(Debug)]
struct Encoder {
    name: &'static str,
    /// One, or one for each direction.
    mappings: Vec<Mapping>,
}

fn label_encoder(context: &ParsingContext, node: &NodeProto) -> Built {
    let classes = strings(node, "classes_strings")?;
    if !classes.is_empty() {
        let indices: Vec<i64> = (0..).take(classes.len()).collect();
        return two_ways(node, "LabelEncoder", tensor1(&indices), tensor1(&classes));
    }
    let keys = list(context, node, "keys")?;
    let values = list(context, node, "values")?;
    let default = match node.get_attr_opt::<&TensorProto>("default_tensor")? {
        Some(tensor) => context.load_tensor(tensor)?,
        None => default_of(node, values.datum_type())?,
    };
    let mapping = Mapping::new(&keys, values, &default)?;
    built(node, Encoder { name: "LabelEncoder", mappings: vec![mapping] })
}

fn category_mapper(_context: &ParsingContext, node: &NodeProto) -> Built {
    let (integers, strings) = (integers(node, "cats_int64s")?, strings(node, "cats_strings")?);
    two_ways(node, "CategoryMapper", tensor1(integers), tensor1(&strings))
}

/// Strings to integers or integers to strings, as the input asks for.
fn two_ways(node: &NodeProto, name: &'static str, integers: Tensor, strings: Tensor) -> Built {
    let (integer, string) =
        (default_of(node, DatumType::I64)?, default_of(node, DatumType::String)?);
    let mappings = vec![
        Mapping::new(&strings, integers.clone(), &integer)?,
        Mapping::new(&integers, strings, &string)?,
    ];
    built(node, Encoder { name, mappings })
}

/// The keys or the values, in whichever attribute they stand.
fn list(context: &ParsingContext, node: &NodeProto, what: &str) -> TractResult<Tensor> {
    let name = |kind: &str| format!("{what}_{kind}");
    if let Some(tensor) = node.get_attr_opt::<&TensorProto>(&name("tensor"))? {
        return context.load_tensor(tensor);
    }
    let strings = strings(node, &name("strings"))?;
    if !strings.is_empty() {
        return Ok(tensor1(&strings));
    }
    let integers = integers(node, &name("int64s"))?;
    if !integers.is_empty() {
        return Ok(tensor1(integers));
    }
    let floats = floats(node, &name("floats"))?;
    ensure!(!floats.is_empty(), "no {what}");
    Ok(tensor1(floats))
}

fn default_of(node: &NodeProto, datum: DatumType) -> TractResult<Tensor> {
    Ok(match datum {
        DatumType::String => {
            let default = node.get_attr_opt::<String>("default_string")?;
            tensor0(default.unwrap_or_else(|| "_Unused".to_owned()))
        }
        DatumType::I64 => tensor0(node.get_attr_opt::<i64>("default_int64")?.unwrap_or(-1)),
        DatumType::F32 => tensor0(node.get_attr_opt::<f32>("default_float")?.unwrap_or(-0.0)),
        DatumType::F64 => tensor0(-0.0f64),
        DatumType::I32 => tensor0(-1i32),
        DatumType::I16 => tensor0(-1i16),
        other => bail!("values of {other:?}"),
    })
}

impl Encoder {
    fn mapping(&self, from: DatumType) -> TractResult<&Mapping> {
        let mapping = self.mappings.iter().find(|mapping| mapping.from == from);
        mapping.with_context(|| {
            let wanted: Vec<_> = self.mappings.iter().map(|mapping| mapping.from).collect();
            format!("expected an input of {wanted:?}, got {from:?}")
        })
    }
}

impl Kernel for Encoder {
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        let mapping = self.mapping(input.datum)?;
        Ok(tvec![Form::new(mapping.values.datum_type(), input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn pick<T: Datum>(
            mapping: &Mapping,
            found: &[Option<usize>],
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let (values, default) =
                (mapping.values.try_as_plain_ram()?, mapping.default.try_as_plain_ram()?);
            let (values, default) = (values.as_slice::<T>()?, &default.as_slice::<T>()?[0]);
            let picked = found.iter().map(|place| match place {
                Some(place) => values[*place].clone(),
                None => default.clone(),
            });
            let picked = tract_ndarray::ArrayD::from_shape_vec(shape, picked.collect())?;
            Ok(picked.into_tensor())
        }
        let input = one(inputs)?;
        let mapping = self.mapping(input.datum_type())?;
        let found = mapping.keys.find(input)?;
        let datum = mapping.values.datum_type();
        Ok(tvec![dispatch_datum!(pick(datum)(mapping, &found, input.shape()))?])
    }
}

/// A new last axis with a one where the category stands.
#[derive(Debug)]
struct OneHotEncoder {
    keys: Keys,
    /// A category that is not known is all zeros, and no error.
    allows_unknown: bool,
}

fn one_hot_encoder(_context: &ParsingContext, node: &NodeProto) -> Built {
    let strings = strings(node, "cats_strings")?;
    let integers = integers(node, "cats_int64s")?;
    let (list, count) = match strings.is_empty() {
        true => (tensor1(integers), integers.len()),
        false => (tensor1(&strings), strings.len()),
    };
    let keys = Keys::of(&list)?;
    ensure!(count > 0 && keys.len() == count, "no categories, or one of them twice");
    let allows_unknown = node.get_attr_opt::<i64>("zeros")?.unwrap_or(1) != 0;
    built(node, OneHotEncoder { keys, allows_unknown })
}

impl Kernel for OneHotEncoder {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        match self.keys {
            Keys::Strings(_) => expect_datum(input, &[DatumType::String])?,
            _ => expect_datum(input, &NUMBERS)?,
        }
        let shape = input.shape.iter().cloned().chain([self.keys.len().to_dim()]);
        Ok(tvec![Form::new(DatumType::F32, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let found = self.keys.find(input)?;
        ensure!(self.allows_unknown || !found.contains(&None), "an unknown category");
        let shape: TVec<usize> = input.shape().iter().copied().chain([self.keys.len()]).collect();
        let mut output = Tensor::zero::<f32>(&shape)?;
        let mut plain = output.try_as_plain_ram_mut()?;
        let rows = plain.as_slice_mut::<f32>()?.chunks_exact_mut(self.keys.len());
        for (row, place) in rows.zip(found) {
            if let Some(place) = place {
                row[place] = 1.0;
            }
        }
        Ok(tvec![output])
    }
}
