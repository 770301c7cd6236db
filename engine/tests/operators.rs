//! Operators of our own against ONNX Runtime's answers, those of BF16 and narrower datatypes against onnx's
//! reference's, and hostile attributes against the refusals they must meet. `fixtures/make_*.py` write the cases.

#![expect(clippy::unwrap_used, reason = "a case that cannot be read fails the test")]

#[path = "support/plans.rs"]
mod plans;

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use half::bf16;
use tract_onnx::pb::{AttributeProto, TensorProto, tensor_proto::DataType};
use tract_onnx::prelude::Framework;
use wisp_engine::tensor::{Datatype, Value, bytes_elements, push_bytes_element};
use wisp_engine::{EngineKind, Graph};

/// How far an output may be from ONNX Runtime's, of its own size or of one, unless a case says
/// otherwise; quantised ones by steps.
const TOLERANCE: f64 = 2e-5;

#[test]
fn operators_answer_as_onnx_runtime_does() {
    let wrong: Vec<String> = cases().iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn compiled_plans_answer_the_same() {
    let mut held = 0;
    for case in cases() {
        let onnx = &case.attribute("model").unwrap().s;
        let Some(plan) = plans::compiled(onnx, &case.name) else { continue };
        let run = |graph: &Graph| graph.run(&mut case.values("inputs"), &|| false);
        let loaded = Graph::load(onnx, EngineKind::Tract).unwrap();
        let file = Bytes::from(onnx.clone());
        let file = move || Ok(file.clone());
        let woken = Graph::wake(&plans::mapped(&plan), &case.name, file).unwrap();
        assert_eq!(loaded.contract(), woken.contract(), "{}", case.name);
        let bits = |values: Vec<Value<'static>>| {
            values.into_iter().map(|value| (value.datatype, value.shape, value.data))
        };
        let [loaded, woken] = [&loaded, &woken].map(|graph| run(graph).unwrap());
        assert!(bits(loaded).eq(bits(woken)), "{}", case.name);
        held += 1;
    }
    assert!(held > 60, "{held} of the cases have a compiled plan");
}

struct Case {
    name: String,
    attributes: Vec<AttributeProto>,
}

impl Case {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    fn values(&self, name: &str) -> Vec<Value<'static>> {
        let tensors = self.attribute(name).map(|attribute| attribute.tensors.iter().map(value_of));
        tensors.into_iter().flatten().collect()
    }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/operators");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    assert!(!files.is_empty());
    files.iter().map(|file| read_case(file)).collect()
}

fn read_case(file: &Path) -> Case {
    let bytes = fs::read(file).unwrap();
    let proto = tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]).unwrap();
    let node = proto.graph.unwrap().node.remove(0);
    let name = file.file_stem().unwrap().to_string_lossy().into_owned();
    Case { name, attributes: node.attribute }
}

fn check(case: &Case) -> Result<(), String> {
    let name = &case.name;
    let graph = Graph::load(&case.attribute("model").unwrap().s, EngineKind::Tract);
    if let Some(refusal) = case.attribute("refusal") {
        let wanted = String::from_utf8_lossy(&refusal.s);
        return match graph {
            Ok(_) => Err(format!("{name}: loaded, not refused with {wanted:?}")),
            Err(error) if error.to_string().contains(&*wanted) => Ok(()),
            Err(error) => Err(format!("{name}: {error}, not {wanted:?}")),
        };
    }
    let graph = graph.map_err(|error| format!("{name}: {error}"))?;
    let mut inputs = case.values("inputs");
    let came = graph.run(&mut inputs, &|| false).map_err(|error| format!("{name}: {error:?}"))?;
    let wanted = case.values("outputs");
    let tolerance = case.attribute("tolerance").map_or(TOLERANCE, |it| it.f.into());
    for (index, (wanted, came)) in wanted.iter().zip(&came).enumerate() {
        compare(wanted, came, tolerance)
            .map_err(|reason| format!("{name}: output {index}: {reason}"))?;
    }
    if wanted.len() == came.len() { Ok(()) } else { Err(format!("{name}: {} outputs", came.len())) }
}

fn compare(wanted: &Value<'_>, came: &Value<'_>, tolerance: f64) -> Result<(), String> {
    if (wanted.datatype, &wanted.shape) != (came.datatype, &came.shape) {
        return Err(format!(
            "wanted {} {:?}, got {} {:?}",
            wanted.datatype, wanted.shape, came.datatype, came.shape
        ));
    }
    let (Some(wanted), Some(came)) = (floats(wanted), floats(came)) else {
        let are_near = |(wanted, came): (Vec<f64>, Vec<f64>)| {
            wanted.iter().zip(&came).all(|(wanted, came)| (wanted - came).abs() <= tolerance)
        };
        let is_near = steps(wanted).zip(steps(came)).map(are_near);
        return match is_near.unwrap_or(wanted.data == came.data) {
            true => Ok(()),
            false => Err(format!("wanted {}, got {}", shown(wanted), shown(came))),
        };
    };
    let near = |wanted: f64, came: f64| {
        wanted == came
            || (wanted.is_nan() && came.is_nan())
            || wanted.is_finite() && (wanted - came).abs() <= tolerance * wanted.abs().max(1.0)
    };
    match wanted.iter().zip(&came).all(|(&wanted, &came)| near(wanted, came)) {
        true => Ok(()),
        false => Err(format!("wanted {wanted:?}, got {came:?}")),
    }
}

/// What floats may be quantised to.
fn steps(value: &Value<'_>) -> Option<Vec<f64>> {
    let (pairs, _) = value.data.as_chunks::<2>();
    Some(match value.datatype {
        Datatype::Uint8 => value.data.iter().map(|&byte| byte.into()).collect(),
        Datatype::Int8 => value.data.iter().map(|&byte| byte.cast_signed().into()).collect(),
        Datatype::Uint16 => pairs.iter().map(|&pair| u16::from_le_bytes(pair).into()).collect(),
        Datatype::Int16 => pairs.iter().map(|&pair| i16::from_le_bytes(pair).into()).collect(),
        _ => return None,
    })
}

fn floats(value: &Value<'_>) -> Option<Vec<f64>> {
    let data = &value.data;
    match value.datatype {
        Datatype::Fp32 => {
            let (chunks, _) = data.as_chunks::<4>();
            Some(chunks.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect())
        }
        Datatype::Fp64 => {
            let (chunks, _) = data.as_chunks::<8>();
            Some(chunks.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
        }
        // FP16 is to be the same bit for bit, as ONNX Runtime makes it of FP32, too.
        Datatype::Bf16 => {
            let (pairs, _) = data.as_chunks::<2>();
            Some(pairs.iter().map(|&pair| bf16::from_le_bytes(pair).into()).collect())
        }
        _ => None,
    }
}

fn shown(value: &Value<'_>) -> String {
    match value.datatype {
        Datatype::Int64 => {
            let (chunks, _) = value.data.as_chunks::<8>();
            format!("{:?}", chunks.iter().map(|&b| i64::from_le_bytes(b)).collect::<Vec<_>>())
        }
        Datatype::Bytes => {
            let strings = bytes_elements(&value.data);
            let strings = strings.map(|b| String::from_utf8_lossy(b.unwrap()).into_owned());
            format!("{:?}", strings.collect::<Vec<_>>())
        }
        _ => format!("{:?}", value.data),
    }
}

fn value_of(tensor: &TensorProto) -> Value<'static> {
    let datatype = match DataType::try_from(tensor.data_type).unwrap() {
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Bfloat16 => Datatype::Bf16,
        DataType::Int64 => Datatype::Int64,
        DataType::Int32 => Datatype::Int32,
        DataType::Int16 => Datatype::Int16,
        DataType::Int8 => Datatype::Int8,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Bool => Datatype::Bool,
        DataType::String => Datatype::Bytes,
        other => panic!("a case with {other:?}"),
    };
    let mut data = tensor.raw_data.clone();
    for string in &tensor.string_data {
        push_bytes_element(&mut data, string).unwrap();
    }
    let shape = tensor.dims.iter().map(|&size| size as usize).collect();
    Value { datatype, shape, data: Cow::Owned(data) }
}
