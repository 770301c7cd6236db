//! Tensors in and out of ONNX Runtime's own type, and its names of datatypes.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::{ptr, slice};

use ort_sys::{
    ONNXTensorElementDataType as Element, OrtMemType, OrtSession, OrtTensorTypeAndShapeInfo,
    OrtValue,
};
use ort_sys::{OrtAllocatorType, OrtMemoryInfo};

use super::OnnxRuntime;
use super::handle::Handle;
use crate::contract::Inferred;
use crate::tensor::{Datatype, TensorSpec, Value, bytes_elements, push_bytes_element};

/// What ONNX Runtime knows of an output; as the file declares it where it knows nothing.
pub(super) fn infer(
    runtime: &OnnxRuntime,
    session: &Handle<OrtSession>,
    index: usize,
    declared: &TensorSpec,
) -> Result<Inferred, String> {
    let api = runtime.api;
    let mut info = ptr::null_mut();
    // SAFETY: a session that lives and a place for the result; an index past the end is an error.
    let info = unsafe {
        let status = (api.SessionGetOutputTypeInfo)(session.get(), index, &raw mut info);
        runtime.check(status)?;
        Handle::new(info, api.ReleaseTypeInfo)?
    };
    let mut tensor = ptr::null();
    // SAFETY: an info that lives longer than the part of it that is asked for.
    runtime.check(unsafe { (api.CastTypeInfoToTensorInfo)(info.get(), &raw mut tensor) })?;
    if tensor.is_null() {
        return Err(format!("output `{}` is not a tensor, nothing else is served", declared.name));
    }
    // SAFETY: see above.
    let (datatype, shape) = unsafe { describe(runtime, tensor) }?;
    // A shape that is not known looks like a scalar's.
    let shape = if shape.is_empty() { declared.shape.clone() } else { shape };
    Ok(Inferred { datatype, shape })
}

/// The datatype and the sizes of a tensor; -1 where a size is free.
///
/// # Safety
/// The pointer is to an info that lives.
unsafe fn describe(
    runtime: &OnnxRuntime,
    info: *const OrtTensorTypeAndShapeInfo,
) -> Result<(Option<Datatype>, Vec<i64>), String> {
    let api = runtime.api;
    // A plain number: a newer library may know types that are not among `Element`.
    let mut element = 0i32;
    let mut rank = 0;
    // SAFETY: an info that lives, and places for the results; an enum of C is an int.
    unsafe {
        runtime.check((api.GetTensorElementType)(info, (&raw mut element).cast()))?;
        runtime.check((api.GetDimensionsCount)(info, &raw mut rank))?;
    }
    let mut shape = vec![0; rank];
    // SAFETY: see above; the place is as long as is said.
    runtime.check(unsafe { (api.GetDimensions)(info, shape.as_mut_ptr(), rank) })?;
    let known = TYPES.iter().find(|(_, known)| *known as i32 == element);
    Ok((known.map(|(datatype, _)| *datatype), shape))
}

/// A tensor that may refer to the bytes of the value it was made from.
pub(super) struct Input<'a> {
    handle: Handle<OrtValue>,
    /// The bytes, where they had to be moved; not read, but to be kept.
    _moved: Vec<u64>,
    _bytes: PhantomData<&'a [u8]>,
}

impl<'a> Input<'a> {
    pub(super) fn get(&self) -> *const OrtValue {
        self.handle.get()
    }

    pub(super) fn new(runtime: &OnnxRuntime, value: &'a Value<'_>) -> Result<Self, String> {
        let shape: Vec<i64> = value.shape.iter().map(|&size| size as i64).collect();
        let (element, size) = element_of(value.datatype)
            .ok_or_else(|| format!("ONNX Runtime has no {}", value.datatype))?;
        let Some(size) = size else {
            let handle = strings(runtime, &value.data, &shape)?;
            return Ok(Self { handle, _moved: Vec::new(), _bytes: PhantomData });
        };
        let mut moved = Vec::new();
        let mut data = value.data.as_ptr();
        if data.align_offset(size) != 0 {
            let words = value.data.chunks(8).map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            });
            moved = words.collect();
            data = moved.as_ptr().cast();
        }
        let mut made = ptr::null_mut();
        // SAFETY: the bytes are as long as is said, aligned for their type, and outlive the
        // tensor; ONNX Runtime only reads its inputs. Every bit pattern is a value of these
        // number types, and booleans are 0 or 1: so `Session::run` is called.
        let handle = unsafe {
            let memory = memory(runtime)?;
            runtime.check((runtime.api.CreateTensorWithDataAsOrtValue)(
                memory.get(),
                data.cast_mut().cast(),
                value.data.len(),
                shape.as_ptr(),
                shape.len(),
                element,
                &raw mut made,
            ))?;
            Handle::new(made, runtime.api.ReleaseValue)?
        };
        Ok(Self { handle, _moved: moved, _bytes: PhantomData })
    }
}

fn memory(runtime: &OnnxRuntime) -> Result<Handle<OrtMemoryInfo>, String> {
    let mut info = ptr::null_mut();
    let (allocator, kind) = (OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault);
    // SAFETY: a place for the result.
    unsafe {
        runtime.check((runtime.api.CreateCpuMemoryInfo)(allocator, kind, &raw mut info))?;
        Handle::new(info, runtime.api.ReleaseMemoryInfo)
    }
}

/// A tensor of strings has its own memory.
fn strings(runtime: &OnnxRuntime, data: &[u8], shape: &[i64]) -> Result<Handle<OrtValue>, String> {
    let api = runtime.api;
    let element = Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING;
    let (mut allocator, mut made) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: a shape as long as is said and places for the results; the allocator is constant.
    let handle = unsafe {
        runtime.check((api.GetAllocatorWithDefaultOptions)(&raw mut allocator))?;
        let (sizes, rank) = (shape.as_ptr(), shape.len());
        let status = (api.CreateTensorAsOrtValue)(allocator, sizes, rank, element, &raw mut made);
        runtime.check(status)?;
        Handle::new(made, api.ReleaseValue)?
    };
    for (index, string) in bytes_elements(data).enumerate() {
        let string = string?;
        str::from_utf8(string).map_err(|_| "a string is not UTF-8")?;
        let mut buffer = ptr::null_mut();
        // SAFETY: a tensor of strings that lives; an index past its end is an error; the buffer
        // is as long as is asked for.
        unsafe {
            let status = (api.GetResizedStringTensorElementBuffer)(
                handle.get(),
                index,
                string.len(),
                &raw mut buffer,
            );
            runtime.check(status)?;
            ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast(), string.len());
        }
    }
    Ok(handle)
}

/// Copies an output out.
pub(super) fn read(
    runtime: &OnnxRuntime,
    value: &Handle<OrtValue>,
) -> Result<Value<'static>, String> {
    let api = runtime.api;
    let mut is_tensor = 0;
    // SAFETY: a value that lives and a place for the result.
    runtime.check(unsafe { (api.IsTensor)(value.get(), &raw mut is_tensor) })?;
    if is_tensor == 0 {
        return Err("an output is not a tensor".to_owned());
    }
    let mut info = ptr::null_mut();
    // SAFETY: a tensor that lives and a place for the result.
    let (datatype, shape) = unsafe {
        runtime.check((api.GetTensorTypeAndShape)(value.get(), &raw mut info))?;
        let info = Handle::new(info, api.ReleaseTensorTypeAndShapeInfo)?;
        describe(runtime, info.get())?
    };
    let datatype = datatype.ok_or("an output's type is not served")?;
    let shape = shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| "an output has a size below 0")?;
    let mut value_out = Value { datatype, shape, data: Cow::Borrowed(&[]) };
    let count = value_out.elements().ok_or("an output is too large")?;
    value_out.data = Cow::Owned(match datatype.size() {
        None => read_strings(runtime, value, count)?,
        Some(_) if count == 0 => Vec::new(),
        Some(size) => {
            let mut data = ptr::null_mut();
            // SAFETY: a tensor of numbers that lives holds as many bytes as its shape says.
            unsafe {
                runtime.check((api.GetTensorMutableData)(value.get(), &raw mut data))?;
                slice::from_raw_parts(data.cast::<u8>().cast_const(), count * size).to_vec()
            }
        }
    });
    Ok(value_out)
}

fn read_strings(
    runtime: &OnnxRuntime,
    value: &Handle<OrtValue>,
    count: usize,
) -> Result<Vec<u8>, String> {
    let api = runtime.api;
    let mut length = 0;
    // SAFETY: a tensor of strings that lives and a place for the result.
    runtime.check(unsafe { (api.GetStringTensorDataLength)(value.get(), &raw mut length) })?;
    let mut content = vec![0u8; length];
    let mut offsets = vec![0usize; count];
    // SAFETY: the places are as long as is said.
    runtime.check(unsafe {
        let content = content.as_mut_ptr().cast();
        (api.GetStringTensorContent)(value.get(), content, length, offsets.as_mut_ptr(), count)
    })?;
    offsets.push(length);
    let mut data = Vec::with_capacity(length + 4 * count);
    for bounds in offsets.windows(2) {
        let string = content.get(bounds[0]..bounds[1]);
        push_bytes_element(&mut data, string.ok_or("an output's strings do not fit its data")?)?;
    }
    Ok(data)
}

/// The type of that number in ONNX Runtime, and its size in bytes, if it has one.
fn element_of(datatype: Datatype) -> Option<(Element, Option<usize>)> {
    let known = TYPES.iter().find(|(known, _)| *known == datatype);
    known.map(|(_, element)| (*element, datatype.size()))
}

const TYPES: [(Datatype, Element); 14] = [
    (Datatype::Fp32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    (Datatype::Uint8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
    (Datatype::Int8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8),
    (Datatype::Uint16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16),
    (Datatype::Int16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16),
    (Datatype::Int32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
    (Datatype::Int64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    (Datatype::Bytes, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING),
    (Datatype::Bool, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
    (Datatype::Fp16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
    (Datatype::Fp64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
    (Datatype::Uint32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32),
    (Datatype::Uint64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64),
    (Datatype::Bf16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
];
