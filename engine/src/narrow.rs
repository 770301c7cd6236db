//! Numbers of 16 bits and fewer, which are computed with as wider ones: what their bits stand for, and
//! which of them a wider number becomes. What a graph does with them is not said here.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tract_onnx::pb::{TensorProto, tensor_proto::DataType};

/// ONNX's datatypes of such numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Narrow {
    Fp16,
    Bf16,
    E4m3fn,
    E4m3fnuz,
    E5m2,
    E5m2fnuz,
    E8m0,
    E2m1,
    Int4,
    Uint4,
    Int2,
    Uint2,
}

/// What sets them apart.
struct Traits {
    /// ONNX's, of which tract's messages name some only.
    number: i32,
    name: &'static str,
    bits: u32,
    kind: Kind,
}

enum Kind {
    /// Of 16 bits.
    Half,
    Small(Small),
    /// An exponent and nothing else: powers of two.
    Power,
    Whole {
        is_signed: bool,
    },
}

/// A sign, an exponent and a fraction, as in IEEE 754 but for the specials.
#[derive(Clone, Copy)]
struct Small {
    fraction: u32,
    bias: i32,
    most: f32,
    specials: Specials,
}

/// Which bits stand for no number.
#[derive(Clone, Copy, PartialEq)]
enum Specials {
    /// The largest exponent, for infinities, too.
    Ieee,
    /// All ones behind the sign.
    AllOnes,
    /// Those of a negative zero, which there is not.
    MinusZero,
    None,
}

impl Narrow {
    const ALL: [Self; 12] = [
        Self::Fp16,
        Self::Bf16,
        Self::E4m3fn,
        Self::E4m3fnuz,
        Self::E5m2,
        Self::E5m2fnuz,
        Self::E8m0,
        Self::E2m1,
        Self::Int4,
        Self::Uint4,
        Self::Int2,
        Self::Uint2,
    ];

    fn traits(self) -> Traits {
        let small =
            |fraction, bias, most, specials| Kind::Small(Small { fraction, bias, most, specials });
        let (number, name, bits, kind) = match self {
            Self::Fp16 => (10, "FLOAT16", 16, Kind::Half),
            Self::Bf16 => (16, "BFLOAT16", 16, Kind::Half),
            Self::E4m3fn => (17, "FLOAT8E4M3FN", 8, small(3, 7, 448.0, Specials::AllOnes)),
            Self::E4m3fnuz => (18, "FLOAT8E4M3FNUZ", 8, small(3, 8, 240.0, Specials::MinusZero)),
            Self::E5m2 => (19, "FLOAT8E5M2", 8, small(2, 15, 57344.0, Specials::Ieee)),
            Self::E5m2fnuz => (20, "FLOAT8E5M2FNUZ", 8, small(2, 16, 57344.0, Specials::MinusZero)),
            Self::Uint4 => (21, "UINT4", 4, Kind::Whole { is_signed: false }),
            Self::Int4 => (22, "INT4", 4, Kind::Whole { is_signed: true }),
            Self::E2m1 => (23, "FLOAT4E2M1", 4, small(1, 1, 6.0, Specials::None)),
            Self::E8m0 => (24, "FLOAT8E8M0", 8, Kind::Power),
            Self::Uint2 => (25, "UINT2", 2, Kind::Whole { is_signed: false }),
            Self::Int2 => (26, "INT2", 2, Kind::Whole { is_signed: true }),
        };
        Traits { number, name, bits, kind }
    }

    /// By ONNX's number of a datatype.
    pub(crate) fn of(datatype: impl Into<i64>) -> Option<Self> {
        let datatype = datatype.into();
        Self::ALL.into_iter().find(|narrow| i64::from(narrow.number()) == datatype)
    }

    pub(crate) fn number(self) -> i32 {
        self.traits().number
    }

    /// ONNX's, too.
    pub(crate) fn name(self) -> &'static str {
        self.traits().name
    }

    pub(crate) fn bits(self) -> usize {
        self.traits().bits as usize
    }

    pub(crate) fn is_half(self) -> bool {
        matches!(self.traits().kind, Kind::Half)
    }

    pub(crate) fn is_whole(self) -> bool {
        matches!(self.traits().kind, Kind::Whole { .. })
    }

    /// What holds all of its numbers. Also without a sign they are not UINT8, as to some operators that
    /// is what packed ones lie in.
    pub(crate) fn wide(self) -> DataType {
        if self.is_whole() { DataType::Int8 } else { DataType::Float }
    }

    /// The least and the most of whole numbers.
    pub(crate) fn limits(self) -> Option<(f32, f32)> {
        let Traits { bits, kind, .. } = self.traits();
        let count = (1u32 << bits) as f32;
        match kind {
            Kind::Whole { is_signed: true } => Some((-count / 2.0, count / 2.0 - 1.0)),
            Kind::Whole { is_signed: false } => Some((0.0, count - 1.0)),
            _ => None,
        }
    }

    /// The number that bits stand for.
    fn decoded(self, code: u16) -> f32 {
        let Traits { bits, kind, .. } = self.traits();
        match kind {
            Kind::Half if self == Self::Fp16 => f16::from_bits(code).into(),
            Kind::Half => bf16::from_bits(code).into(),
            Kind::Small(small) => small.decoded(code.into(), bits),
            Kind::Power if code == 0xff => f32::NAN,
            Kind::Power => power_of_two(i32::from(code) - 127),
            Kind::Whole { .. } => self.wrapped(code.into()).into(),
        }
    }

    /// What is made of so many numbers, which lie in bytes one after the other, the first at a byte's
    /// lowest bits.
    pub(crate) fn read<T>(self, bytes: &[u8], count: usize, of: impl Fn(f32) -> T) -> Vec<T> {
        let bits = self.bits();
        if bits == 16 {
            let (pairs, _) = bytes.as_chunks::<2>();
            let codes = pairs.iter().map(|&pair| u16::from_le_bytes(pair));
            return codes.take(count).map(|code| of(self.decoded(code))).collect();
        }
        let numbers: Vec<f32> = (0..1 << bits).map(|code| self.decoded(code)).collect();
        let mask = numbers.len() - 1;
        let places = |byte: u8| (0..8usize).step_by(bits).map(move |by| usize::from(byte) >> by);
        let codes = bytes.iter().flat_map(|&byte| places(byte)).take(count);
        codes.map(|code| of(numbers[code & mask])).collect()
    }

    /// As [`Self::read`], of a tensor of that datatype, whose data are as long as it says.
    pub(crate) fn read_tensor<T>(self, tensor: &TensorProto, of: impl Fn(f32) -> T) -> Vec<T> {
        let sizes = tensor.dims.iter().map(|&size| usize::try_from(size).unwrap_or_default());
        let count = sizes.fold(1usize, usize::saturating_mul);
        let listed = tensor.int32_data.iter();
        let bytes: Cow<'_, [u8]> = match tensor.raw_data.is_empty() {
            false => Cow::Borrowed(&tensor.raw_data),
            true if self.bits() == 16 => listed.flat_map(|&it| (it as u16).to_le_bytes()).collect(),
            true => listed.map(|&it| it as u8).collect(),
        };
        self.read(&bytes, count, of)
    }

    /// The lowest bits of a whole number.
    pub(crate) fn wrapped(self, number: i64) -> i8 {
        let Traits { bits, kind, .. } = self.traits();
        let left = number << (64 - bits);
        match kind {
            Kind::Whole { is_signed: true } => (left >> (64 - bits)) as i8,
            _ => (left.cast_unsigned() >> (64 - bits)) as i8,
        }
    }

    /// The same of the nearest whole number, of two as near the one farther from zero: as ONNX Runtime does,
    /// where onnx's reference cuts off digits. What is no number is zero.
    pub(crate) fn wrapped_nearest(self, number: f64) -> i8 {
        let count = f64::from(1u32 << self.bits());
        self.wrapped(number.round().rem_euclid(count) as i64)
    }
}

/// The number without a sign at a place in bytes that hold numbers of two, four or eight bits, the first at a
/// byte's lowest.
pub(crate) fn packed_at(bytes: &[u8], bits: usize, index: usize) -> u8 {
    let of_byte = 8 / bits;
    bytes[index / of_byte] >> (index % of_byte * bits) & (u8::MAX >> (8 - bits))
}

/// How a number is made one of those that a datatype of floats holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rounding {
    pub(crate) to: Narrow,
    /// Whether what is beyond the largest becomes it, where there is something else.
    pub(crate) saturates: bool,
    pub(crate) towards: Towards,
}

/// Of powers of two: all others are rounded to the nearest, of two as near to the even one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Towards {
    Up,
    Down,
    /// Of two as near to the larger one.
    Nearest,
}

impl Towards {
    pub(crate) const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Nearest];

    /// By ONNX's `round_mode`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "up" => Self::Up,
            "down" => Self::Down,
            "nearest" => Self::Nearest,
            _ => return None,
        })
    }
}

impl Rounding {
    /// By the tables of ONNX's Cast. Where onnx's reference is not as those say (negative numbers and
    /// infinity to powers of two), this is as ONNX Runtime is, and the other way round (what is just beyond
    /// the largest and does not saturate).
    pub(crate) fn round(self, numbers: &mut [f32]) {
        match self.to.traits().kind {
            Kind::Half if self.to == Narrow::Fp16 => round_through(&mut [f16::ZERO; 256], numbers),
            Kind::Half => round_through(&mut [bf16::ZERO; 256], numbers),
            Kind::Small(small) => {
                numbers.iter_mut().for_each(|it| *it = small.nearest(*it, self.saturates));
            }
            Kind::Power => numbers.iter_mut().for_each(|it| *it = self.power(*it)),
            // Whole numbers are not made of floats in place.
            Kind::Whole { .. } => {}
        }
    }

    fn power(self, number: f32) -> f32 {
        let (least, most) = (power_of_two(-127), power_of_two(127));
        let is_beyond = !(least..=most).contains(&number);
        if number.is_nan() || is_beyond && !self.saturates {
            return f32::NAN;
        }
        let number = number.clamp(least, most);
        let down = power_of_two(exponent_of(number));
        let goes_up = match self.towards {
            Towards::Up => number > down,
            Towards::Down => false,
            Towards::Nearest => number >= 1.5 * down,
        };
        if goes_up { 2.0 * down } else { down }
    }
}

fn round_through<H>(halves: &mut [H], numbers: &mut [f32])
where
    [H]: HalfFloatSliceExt,
{
    for numbers in numbers.chunks_mut(halves.len()) {
        let halves = &mut halves[..numbers.len()];
        halves.convert_from_f32_slice(numbers);
        halves.convert_to_f32_slice(numbers);
    }
}

impl Small {
    fn decoded(self, code: u32, bits: u32) -> f32 {
        let sign = 1 << (bits - 1);
        let magnitude = code & (sign - 1);
        let one = 1 << self.fraction;
        let (exponent, fraction) = (magnitude >> self.fraction, magnitude & (one - 1));
        let largest = (sign - 1) >> self.fraction;
        let number = match self.specials {
            Specials::Ieee if exponent == largest && fraction == 0 => f32::INFINITY,
            Specials::Ieee if exponent == largest => f32::NAN,
            Specials::AllOnes if magnitude == sign - 1 => f32::NAN,
            Specials::MinusZero if code == sign => f32::NAN,
            _ => {
                // Those of the least exponent have no one before the point.
                let digits = if exponent == 0 { fraction } else { fraction + one };
                let exponent = exponent.max(1).cast_signed() - self.bias;
                digits as f32 * power_of_two(exponent - self.fraction.cast_signed())
            }
        };
        if code & sign == 0 { number } else { -number }
    }

    fn nearest(self, number: f32, saturates: bool) -> f32 {
        if number.is_nan() {
            return if self.specials == Specials::None { 0.0 } else { number };
        }
        let exponent = exponent_of(number).max(1 - self.bias);
        let step = power_of_two(exponent - self.fraction.cast_signed());
        let rounded = (number / step).round_ties_even() * step;
        let saturated = rounded.clamp(-self.most, self.most);
        let nearest = match self.specials {
            _ if rounded == saturated || saturates => saturated,
            Specials::None => saturated,
            Specials::Ieee => f32::INFINITY.copysign(number),
            Specials::AllOnes | Specials::MinusZero => f32::NAN,
        };
        // The sum of both zeros is the positive one.
        if self.specials == Specials::MinusZero { nearest + 0.0 } else { nearest }
    }
}

/// From -127, which is less than what has a one before the point, to 127.
fn power_of_two(exponent: i32) -> f32 {
    match exponent {
        ..=-127 => f32::MIN_POSITIVE / 2.0,
        _ => f32::from_bits((exponent + 127).cast_unsigned() << 23),
    }
}

/// Of the largest power of two in a number: 128 of infinity, -127 of zero and what is next to it.
fn exponent_of(number: f32) -> i32 {
    (number.to_bits() >> 23 & 0xff).cast_signed() - 127
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(to: Narrow, saturates: bool, number: f32) -> f32 {
        let mut numbers = [number];
        Rounding { to, saturates, towards: Towards::Nearest }.round(&mut numbers);
        numbers[0]
    }

    #[test]
    fn what_is_held_stays_as_it_is() {
        for narrow in Narrow::ALL.into_iter().filter(|narrow| !narrow.is_whole()) {
            for code in 0..=u16::MAX >> (16 - narrow.bits()) {
                let number = narrow.decoded(code);
                let came = rounded(narrow, false, number);
                let same = came.to_bits() == number.to_bits() || came.is_nan() && number.is_nan();
                assert!(same, "{narrow:?} {code:#x}: {number} became {came}");
            }
        }
    }

    /// Between two that follow each other, the nearer one, and the even one of two as near.
    #[test]
    fn what_is_between_is_rounded_to_the_nearest() {
        for narrow in
            [Narrow::E4m3fn, Narrow::E4m3fnuz, Narrow::E5m2, Narrow::E5m2fnuz, Narrow::E2m1]
        {
            let most = match narrow.traits().kind {
                Kind::Small(small) => small.most,
                _ => unreachable!("a small one"),
            };
            for code in 0..=0xff {
                let (low, high) = (narrow.decoded(code), narrow.decoded(code + 1));
                if low.is_nan() || low >= most {
                    break;
                }
                let middle = (low + high) / 2.0;
                let even = if code % 2 == 0 { low } else { high };
                for sign in [1.0, -1.0] {
                    let came = |number: f32| sign * rounded(narrow, true, sign * number);
                    assert_eq!(came(middle), even, "{narrow:?} {middle}");
                    assert_eq!(came(middle.next_down()), low, "{narrow:?} {middle}");
                    assert_eq!(came(middle.next_up()), high, "{narrow:?} {middle}");
                }
            }
            assert_eq!(rounded(narrow, true, f32::MAX), most);
            assert_eq!(rounded(narrow, true, f32::NEG_INFINITY), -most);
        }
    }

    #[test]
    fn bits_are_read_from_the_lowest() {
        let read = |narrow: Narrow, bytes: &[u8], count| narrow.read(bytes, count, |it| it);
        assert_eq!(read(Narrow::Int4, &[0x8f, 0xf7], 3), [-1.0, -8.0, 7.0]);
        assert_eq!(read(Narrow::Uint4, &[0x8f], 2), [15.0, 8.0]);
        assert_eq!(read(Narrow::Int2, &[0b01_10_11_00, 2], 5), [0.0, -1.0, -2.0, 1.0, -2.0]);
        assert_eq!(read(Narrow::Uint2, &[0b01_10_11_00], 4), [0.0, 3.0, 2.0, 1.0]);
        assert_eq!(read(Narrow::E2m1, &[0xf1], 2), [0.5, -6.0]);
        assert_eq!(read(Narrow::Bf16, &[0x80, 0x3f], 1), [1.0]);
        assert_eq!(read(Narrow::Fp16, &[], 0), [0.0; 0]);
    }

    #[test]
    fn whole_numbers_keep_their_lowest_bits() {
        assert_eq!([200, -9, (1 << 33) + 5].map(|it| Narrow::Int4.wrapped(it)), [-8, 7, 5]);
        assert_eq!([200, -9, 3].map(|it| Narrow::Uint2.wrapped(it)), [0, 3, 3]);
        let nearest = [-8.5, 7.5, -0.5, 2.5, 3e9, f64::NAN, f64::INFINITY, 1e300];
        let wanted = [7, -8, -1, 3, 0, 0, 0, 0];
        assert_eq!(nearest.map(|it| Narrow::Int4.wrapped_nearest(it)), wanted);
    }
}
