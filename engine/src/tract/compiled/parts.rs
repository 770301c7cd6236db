//! How values are written into a compiled plan and read again. Small ones follow each other;
//! large ones lie aligned in a part of their own, and are borrowed from there.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use tract_onnx::prelude::*;

/// What large values begin at a multiple of: a line of the cache, as kernels read them.
pub(super) const ALIGNMENT: usize = 64;

/// Tensors of fewer bytes are small.
const LARGE: usize = 4096;

/// Something that a compiled plan can hold.
pub(in crate::tract) trait Stored: Sized {
    /// Writes it; `None` where this one cannot be held.
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()>;

    /// Reads what [`Stored::put`] wrote; `None` where that is not what stands there.
    fn take(from: &mut Reader<'_>) -> Option<Self>;
}

/// Collects what is written.
#[derive(Default)]
pub(in crate::tract) struct Writer<'a> {
    pub(super) small: Vec<u8>,
    /// In the order of their offsets, which are multiples of the alignment.
    pub(super) large: Vec<&'a [u8]>,
    pub(super) end: usize,
    /// Offsets of large values by where they lie: what is shared is written once.
    known: HashMap<(*const u8, usize), usize>,
}

/// What is left to read.
pub(in crate::tract) struct Reader<'a> {
    pub(super) small: &'a [u8],
    pub(super) large: &'a Bytes,
    /// Names of sizes that are free.
    pub(super) symbols: &'a SymbolScope,
}

impl<'a> Writer<'a> {
    pub(in crate::tract) fn large(&mut self, bytes: &'a [u8]) -> Option<()> {
        let place = (bytes.as_ptr(), bytes.len());
        let offset = match self.known.get(&place) {
            Some(&offset) => offset,
            None => {
                let offset = self.end;
                self.large.push(bytes);
                self.end = offset.checked_add(bytes.len())?.checked_next_multiple_of(ALIGNMENT)?;
                self.known.insert(place, offset);
                offset
            }
        };
        self.number(offset);
        self.number(bytes.len());
        Some(())
    }

    /// One of several kinds, by its number.
    pub(in crate::tract) fn variant<T: Stored>(&mut self, number: u8, value: &'a T) -> Option<()> {
        self.small.push(number);
        value.put(self)
    }

    pub(in crate::tract) fn text(&mut self, text: &str) {
        self.number(text.len());
        self.small.extend_from_slice(text.as_bytes());
    }

    pub(in crate::tract) fn number(&mut self, number: usize) {
        self.small.extend_from_slice(&(number as u64).to_le_bytes());
    }
}

impl Stored for () {
    fn put<'a>(&'a self, _: &mut Writer<'a>) -> Option<()> {
        Some(())
    }

    fn take(_: &mut Reader<'_>) -> Option<Self> {
        Some(())
    }
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.small.split_at_checked(length)?;
        self.small = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(in crate::tract) fn large(&mut self) -> Option<Bytes> {
        let (offset, length) = (usize::take(self)?, usize::take(self)?);
        let end = offset.checked_add(length).filter(|&end| end <= self.large.len())?;
        Some(self.large.slice(offset..end))
    }

    /// How many of something follow: each takes a byte or more.
    fn count(&mut self) -> Option<usize> {
        usize::take(self).filter(|&count| count <= self.small.len())
    }
}

macro_rules! stored_numbers {
    ($($number:ty),*) => {$(
        impl Stored for $number {
            fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
                to.small.extend_from_slice(&self.to_le_bytes());
                Some(())
            }

            fn take(from: &mut Reader<'_>) -> Option<Self> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}
stored_numbers!(u8, u32, i64, u64, f32);

impl Stored for usize {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(*self);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        usize::try_from(u64::take(from)?).ok()
    }
}

impl Stored for bool {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(u8::from(*self));
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        match u8::take(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Stored for String {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.text(self);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let length = from.count()?;
        String::from_utf8(from.bytes(length)?.to_vec()).ok()
    }
}

impl<T: Stored> Stored for Option<T> {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(u8::from(self.is_some()));
        self.iter().try_for_each(|value| value.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        match bool::take(from)? {
            true => T::take(from).map(Some),
            false => Some(None),
        }
    }
}

impl<T: Stored, const N: usize> Stored for [T; N] {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.iter().try_for_each(|value| value.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let values: Option<Vec<T>> = (0..N).map(|_| T::take(from)).collect();
        values?.try_into().ok()
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.len());
        self.iter().try_for_each(|value| value.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        (0..from.count()?).map(|_| T::take(from)).collect()
    }
}

impl<T: Stored> Stored for TVec<T> {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.len());
        self.iter().try_for_each(|value| value.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        (0..from.count()?).map(|_| T::take(from)).collect()
    }
}

impl<A: Stored, B: Stored> Stored for (A, B) {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.0.put(to)?;
        self.1.put(to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some((A::take(from)?, B::take(from)?))
    }
}

impl<T: Stored> Stored for Arc<T> {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        (**self).put(to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        T::take(from).map(Arc::new)
    }
}

impl Stored for Arc<[f32]> {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.len());
        self.iter().try_for_each(|value| value.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Vec::take(from).map(Into::into)
    }
}

/// Fields one after the other.
macro_rules! stored_struct {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl crate::tract::compiled::Stored for $name {
            fn put<'a>(&'a self, to: &mut crate::tract::compiled::Writer<'a>) -> Option<()> {
                $(crate::tract::compiled::Stored::put(&self.$field, to)?;)*
                Some(())
            }

            fn take(from: &mut crate::tract::compiled::Reader<'_>) -> Option<Self> {
                Some(Self { $($field: crate::tract::compiled::Stored::take(from)?),* })
            }
        }
    };
}
pub(in crate::tract) use stored_struct;

impl Stored for Tensor {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        if self.is_exotic() {
            return None;
        }
        let (datum, shape) = (self.datum_type(), TVec::from(self.shape()));
        to.small.push(number_of(datum)?);
        to.number(shape.len());
        shape.iter().for_each(|&size| to.number(size));
        if datum == DatumType::TDim {
            let dims = self.try_as_plain_ram().ok()?;
            let dims = dims.as_slice::<TDim>().ok()?;
            return dims.iter().try_for_each(|dim| dim.put(to));
        }
        let bytes = self.as_plain_ram_storage()?.as_bytes();
        let is_large = bytes.len() >= LARGE;
        to.small.push(u8::from(is_large));
        if is_large {
            return to.large(bytes);
        }
        to.number(bytes.len());
        to.small.extend_from_slice(bytes);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let datum = DatumType::take(from)?;
        let shape = TVec::<usize>::take(from)?;
        let volume = shape.iter().try_fold(1usize, |size, &next| size.checked_mul(next))?;
        if datum == DatumType::TDim {
            let dims: Option<Vec<TDim>> = (0..volume).map(|_| TDim::take(from)).collect();
            let dims = tract_ndarray::ArrayD::from_shape_vec(&shape[..], dims?);
            return dims.ok().map(IntoTensor::into_tensor);
        }
        let large;
        let bytes = match bool::take(from)? {
            true => {
                large = from.large()?;
                &large[..]
            }
            false => {
                let length = from.count()?;
                from.bytes(length)?
            }
        };
        let fits = volume.checked_mul(datum.size_of()) == Some(bytes.len());
        let is_whole = datum != DatumType::Bool || bytes.iter().all(|&byte| byte <= 1);
        // SAFETY: the length fits, and every bit pattern is a value of these number types; booleans
        // are 0 or 1.
        (fits && is_whole).then(|| unsafe { Tensor::from_raw_dt(datum, &shape, bytes).ok() })?
    }
}

/// Datatypes by their number in a compiled plan.
const DATUMS: [DatumType; 13] = [
    DatumType::Bool,
    DatumType::U8,
    DatumType::U16,
    DatumType::U32,
    DatumType::U64,
    DatumType::I8,
    DatumType::I16,
    DatumType::I32,
    DatumType::I64,
    DatumType::F16,
    DatumType::F32,
    DatumType::F64,
    DatumType::TDim,
];

/// By position, as the formats of numbers are.
fn number_of(datum: DatumType) -> Option<u8> {
    DATUMS.iter().position(|known| *known == datum).and_then(|at| u8::try_from(at).ok())
}

impl Stored for DatumType {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(number_of(*self)?);
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        DATUMS.get(usize::from(u8::take(from)?)).copied()
    }
}
