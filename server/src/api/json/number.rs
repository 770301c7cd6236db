//! Decimal numbers of JSON text into the bytes of typed elements, exactly: floats are rounded
//! once and correctly, integers never become floats. Nothing here knows tensors or errors.

use std::hint::select_unpredictable;

use crate::tensor::Datatype;

/// Reads as many `number,` of a list as go fast from `at`, where a value is due, appends their bytes, and
/// returns where the next value is due. It stops, and never errs, at what it does not take: the
/// last number of a list, long ones, exponents, wrong ones.
pub(super) type Run = fn(text: &[u8], at: usize, data: &mut Vec<u8>) -> usize;

/// The run for a datatype; `None` where numbers are not its elements.
pub(super) fn run_of(datatype: Datatype) -> Option<Run> {
    Some(match datatype {
        Datatype::Uint8 => run::<u8, 1>,
        Datatype::Uint16 => run::<u16, 2>,
        Datatype::Uint32 => run::<u32, 4>,
        Datatype::Uint64 => run::<u64, 8>,
        Datatype::Int8 => run::<i8, 1>,
        Datatype::Int16 => run::<i16, 2>,
        Datatype::Int32 => run::<i32, 4>,
        Datatype::Int64 => run::<i64, 8>,
        Datatype::Fp32 => run::<f32, 4>,
        Datatype::Fp64 => run::<f64, 8>,
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => return None,
    })
}

/// Appends the number that `token` is, or returns false where it is none of `datatype`. The
/// token keeps to JSON's grammar.
pub(super) fn push(datatype: Datatype, token: &str, data: &mut Vec<u8>) -> bool {
    /// Signed even for unsigned ones, as `-0` is no less an integer.
    fn integer<T: TryFrom<i64> + TryFrom<u64>>(token: &str) -> Option<T> {
        match token.parse::<i64>() {
            Ok(value) => T::try_from(value).ok(),
            Err(_) => T::try_from(token.parse::<u64>().ok()?).ok(),
        }
    }
    macro_rules! push {
        ($value:expr) => {
            $value.map(|value| data.extend_from_slice(&value.to_le_bytes())).is_some()
        };
    }
    match datatype {
        Datatype::Uint8 => push!(integer::<u8>(token)),
        Datatype::Uint16 => push!(integer::<u16>(token)),
        Datatype::Uint32 => push!(integer::<u32>(token)),
        Datatype::Uint64 => push!(integer::<u64>(token)),
        Datatype::Int8 => push!(integer::<i8>(token)),
        Datatype::Int16 => push!(integer::<i16>(token)),
        Datatype::Int32 => push!(integer::<i32>(token)),
        Datatype::Int64 => push!(integer::<i64>(token)),
        Datatype::Fp32 => push!(token.parse::<f32>().ok().filter(|value| value.is_finite())),
        Datatype::Fp64 => push!(token.parse::<f64>().ok().filter(|value| value.is_finite())),
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => false,
    }
}

/// A type that takes most short decimals without `str::parse`.
trait Element<const SIZE: usize> {
    /// `None` where that takes more care, or is not of this type.
    fn from_short(decimal: &Decimal) -> Option<[u8; SIZE]>;
}

/// `digits` / 10^`scale`, of at most 18 digits.
struct Decimal {
    negative: bool,
    digits: u64,
    scale: usize,
}

/// Every one of them is an f64.
const POWERS_OF_TEN: [f64; 19] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18,
];

impl Element<4> for f32 {
    /// By way of an f64 quotient, which digits and division leave less than 2 units in the last
    /// place from the decimal (each is off by half a unit, relative to a mantissa of 1 to 2). A
    /// second rounding goes wrong only if a midpoint between two f32s lies as close, and those
    /// have one pattern in the bits that f32 lacks. (Subnormals have others, but 1e-18 is none.)
    #[inline(always)]
    fn from_short(decimal: &Decimal) -> Option<[u8; 4]> {
        const MIDPOINT: u64 = 1 << 28;
        const MARGIN: u64 = 4;
        // Signed, as 18 digits fit and the conversion is one instruction.
        let wide = decimal.digits as i64 as f64 / *POWERS_OF_TEN.get(decimal.scale)?;
        let lost = wide.to_bits() & (2 * MIDPOINT - 1);
        let is_near_midpoint = lost.wrapping_sub(MIDPOINT - MARGIN) <= 2 * MARGIN;
        if is_near_midpoint {
            return None;
        }
        let sign = u32::from(decimal.negative) << 31;
        Some(((wide as f32).to_bits() | sign).to_le_bytes())
    }
}

impl Element<8> for f64 {
    /// Clinger's fast path: both operands are exact, so the quotient is rounded once.
    #[inline(always)]
    fn from_short(decimal: &Decimal) -> Option<[u8; 8]> {
        if decimal.digits >= 1 << f64::MANTISSA_DIGITS {
            return None;
        }
        let value = decimal.digits as i64 as f64 / *POWERS_OF_TEN.get(decimal.scale)?;
        let sign = u64::from(decimal.negative) << 63;
        Some((value.to_bits() | sign).to_le_bytes())
    }
}

macro_rules! integers {
    ($($type:ty, $size:literal;)*) => {$(
        impl Element<$size> for $type {
            #[inline(always)]
            fn from_short(decimal: &Decimal) -> Option<[u8; $size]> {
                // 18 digits fit.
                let magnitude = decimal.digits as i64;
                let value = if decimal.negative { -magnitude } else { magnitude };
                let value = <$type>::try_from(value).ok().filter(|_| decimal.scale == 0);
                value.map(<$type>::to_le_bytes)
            }
        }
    )*};
}

integers! { u8, 1; u16, 2; u32, 4; u64, 8; i8, 1; i16, 2; i32, 4; i64, 8; }

/// Passes over what a [`Run`] reads.
pub(super) fn pass(text: &[u8], at: usize) -> usize {
    struct Nothing;
    impl Element<0> for Nothing {
        fn from_short(_: &Decimal) -> Option<[u8; 0]> {
            Some([])
        }
    }
    run::<Nothing, 0>(text, at, &mut Vec::new())
}

fn run<T: Element<SIZE>, const SIZE: usize>(
    text: &[u8],
    mut at: usize,
    data: &mut Vec<u8>,
) -> usize {
    while let Some(window) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        let Some((decimal, length)) = short_decimal(window) else { break };
        if window.get(length) != Some(&b',') {
            break;
        }
        let Some(bytes) = T::from_short(&decimal) else { break };
        data.extend_from_slice(&bytes);
        at += length + 1;
        while text.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')) {
            at += 1;
        }
    }
    at
}

/// What [`short_decimal`] looks at: a sign, 7 digits, a point, 3 × 8 digits.
const WINDOW: usize = 33;

/// The number that the window begins with, and its length: up to 7 digits, and a fraction of up
/// to 18, 18 in all. Anything else is `None`; what follows is for the caller to check.
///
/// Lengths of random numbers cannot be predicted, so there is no branch on them; and where the
/// number ends, which the next one waits for, is known before what it is.
#[inline(always)]
fn short_decimal(window: &[u8; WINDOW]) -> Option<(Decimal, usize)> {
    let negative = window[0] == b'-';
    let start = usize::from(negative);
    let (head, others) = digits_at(window, 0)?;
    let (_, later_others) = digits_at(window, 8)?;
    if others & 0x80 != 0 && !negative {
        return None;
    }
    // The bytes that are no digits, but for the sign: the point, and what ends the number.
    let others = others & !0x80;
    if others == 0 {
        return None;
    }
    let behind = others & others.wrapping_sub(1);
    let point = others.trailing_zeros() as usize / 8;
    let end = select_unpredictable(
        behind != 0,
        behind.trailing_zeros() as usize / 8,
        8 + later_others.trailing_zeros() as usize / 8,
    );
    let whole_length = point - start;
    if !(1..8).contains(&whole_length) || (whole_length > 1 && window[start] == b'0') {
        return None;
    }
    let whole = head >> (8 * start);
    // One digit is what normalised values have, and images' bytes seldom.
    let whole = if whole_length == 1 { whole & 0xf } else { number(whole, whole_length) };
    if window[point] != b'.' {
        return Some((Decimal { negative, digits: whole, scale: 0 }, point));
    }
    let scale = end - point - 1;
    let (fraction, _) = digits_at(window, point + 1)?;
    let (fraction, scale) = match scale {
        0 => return None,
        // An f32's shortest decimal has 9 at most, if it is above 0.1.
        1..10 => {
            let first = number(fraction, scale.min(8));
            let ninth = u64::from(window[point + 9] & 0xf);
            (select_unpredictable(scale == 9, 10 * first + ninth, first), scale)
        }
        _ => long_fraction(window, point + 1, number(fraction, 8))?,
    };
    if whole_length + scale > 18 && whole != 0 {
        return None;
    }
    let digits = whole * POWERS.get(scale)? + fraction;
    Some((Decimal { negative, digits, scale }, point + 1 + scale))
}

/// More than 9 digits at `at`, of which 8 are `first`, and how many they are.
#[inline(never)]
fn long_fraction(window: &[u8; WINDOW], at: usize, first: u64) -> Option<(u64, usize)> {
    let (second, others) = digits_at(window, at + 8)?;
    let length = others.trailing_zeros() as usize / 8;
    let fraction = first * POWERS[length] + number(second, length);
    if length < 8 {
        return Some((fraction, 8 + length));
    }
    let (third, others) = digits_at(window, at + 16)?;
    match others.trailing_zeros() as usize / 8 {
        0 => Some((fraction, 16)),
        length @ 1..3 => Some((fraction * POWERS[length] + number(third, length), 16 + length)),
        _ => None,
    }
}

/// Powers of ten.
const POWERS: [u64; 19] = {
    let mut powers = [1; 19];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = 10 * powers[exponent - 1];
        exponent += 1;
    }
    powers
};

/// The 8 bytes at `at` as digits' values, the first lowest, and the top bit of each byte that is
/// none.
#[inline(always)]
fn digits_at(window: &[u8; WINDOW], at: usize) -> Option<(u64, u64)> {
    const fn every(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    let bytes = window.get(at..)?.first_chunk::<8>()?;
    let values = u64::from_le_bytes(*bytes) ^ every(b'0');
    // A byte that is not ASCII may carry into the next, but then it ends the number itself.
    let others = (values.wrapping_add(every(0x80 - 10)) | values) & every(0x80);
    Some((values, others))
}

/// The number that the first `length` digits are, 1 to 8, all at once
/// (<https://lemire.me/blog/2022/01/21/swar-explained-parsing-eight-digits/>).
#[inline(always)]
fn number(values: u64, length: usize) -> u64 {
    const LOW: u64 = 0x0000_00ff_0000_00ff;
    // Zeros in front: a shift by 64 - 8 × length.
    let values = values.wrapping_shl((8 * length as u32).wrapping_neg());
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let first = (pairs & LOW).wrapping_mul(100 + (1_000_000 << 32));
    let second = ((pairs >> 16) & LOW).wrapping_mul(1 + (10_000 << 32));
    first.wrapping_add(second) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a number as the fast run reads it, and as the slow way does.
    fn both(datatype: Datatype, token: &str) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let (mut fast, mut slow) = (Vec::new(), Vec::new());
        let text = format!("{token},{}", " ".repeat(WINDOW));
        let run = run_of(datatype).expect("a datatype of numbers");
        let is_fast = run(text.as_bytes(), 0, &mut fast) > 0;
        let is_right = push(datatype, token, &mut slow);
        (is_fast.then_some(fast), is_right.then_some(slow))
    }

    /// What goes fast is what the slow way makes of it. Returns whether it did.
    fn check(datatype: Datatype, token: &str) -> bool {
        let (fast, slow) = both(datatype, token);
        assert!(fast.is_none() || fast == slow, "{datatype} {token}: {fast:?}, expected {slow:?}");
        fast.is_some()
    }

    fn random(seed: &mut u64) -> u64 {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed ^ *seed >> 29
    }

    #[test]
    fn floats_are_rounded_once() {
        let mut seed = 7;
        let mut fast = 0;
        for _ in 0..20_000 {
            let bits = random(&mut seed);
            let value = f32::from_bits(bits as u32);
            if value.is_finite() {
                check(Datatype::Fp32, &format!("{value:?}"));
                check(Datatype::Fp32, &format!("{value}"));
            }
            let unit = (bits >> 40) as f32 / (1 << 24) as f32;
            for value in [unit, unit * 5.0 - 2.5] {
                fast += usize::from(check(Datatype::Fp32, &format!("{value:?}")));
                check(Datatype::Fp32, &format!("{:?}", f64::from(value)));
                check(Datatype::Fp64, &format!("{:?}", f64::from(value)));
                // Between two floats, and a little off.
                let midpoint = (f64::from(value) + f64::from(value.next_up())) / 2.0;
                for token in
                    [format!("{midpoint}"), format!("{midpoint:.17}"), format!("{midpoint:.16}")]
                {
                    check(Datatype::Fp32, &token);
                }
            }
            let decimal = format!("{}.{}", bits % 1000, random(&mut seed) >> (bits % 60));
            check(Datatype::Fp32, &decimal);
            check(Datatype::Fp64, &decimal);
        }
        assert!(fast > 39_900, "clients' decimals go fast: {fast} of 40000");
        // Beside midpoints that an f64 cannot tell them from.
        for token in ["1.00000005960464477", "1.00000005960464478", "8388608.5", "8388609.5"] {
            check(Datatype::Fp32, token);
        }
    }

    #[test]
    fn numbers_of_every_length_are_read_right() {
        let digits = "123456789012345678901234567890";
        for (whole, fraction) in (1..=20).flat_map(|whole| (0..=25).map(move |rest| (whole, rest)))
        {
            for sign in ["", "-"] {
                let point = if fraction > 0 { "." } else { "" };
                let token = format!("{sign}{}{point}{}", &digits[..whole], &digits[..fraction]);
                let small = format!("{sign}0.{}1", "0".repeat(fraction));
                for datatype in [Datatype::Fp32, Datatype::Fp64, Datatype::Int64, Datatype::Uint64]
                {
                    check(datatype, &token);
                    check(datatype, &small);
                }
            }
        }
    }

    #[test]
    fn integers_are_exact_and_in_range() {
        let pushed = |datatype, token: &str| {
            let mut data = Vec::new();
            push(datatype, token, &mut data).then_some(data)
        };
        for value in [0, 1, -1, i64::MAX, i64::MIN, 9_007_199_254_740_993] {
            let expected = value.to_le_bytes().to_vec();
            assert_eq!(pushed(Datatype::Int64, &value.to_string()), Some(expected));
        }
        assert_eq!(pushed(Datatype::Uint64, "18446744073709551615"), Some(vec![255; 8]));
        assert_eq!(pushed(Datatype::Uint8, "-0"), Some(vec![0]));
        for (datatype, token) in [
            (Datatype::Uint64, "18446744073709551616"),
            (Datatype::Uint64, "-1"),
            (Datatype::Int64, "9223372036854775808"),
            (Datatype::Int32, "1.0"),
            (Datatype::Int32, "1e3"),
            (Datatype::Fp32, "3.4028236e38"),
            (Datatype::Fp64, "1e309"),
            (Datatype::Bool, "1"),
        ] {
            assert_eq!(pushed(datatype, token), None, "{datatype} {token}");
        }
        use Datatype::{Int8, Int16, Int32, Uint8, Uint16, Uint32};
        for value in -70_000..70_000 {
            for datatype in [Int8, Int16, Int32, Uint8, Uint16, Uint32] {
                let (fast, slow) = both(datatype, &value.to_string());
                assert_eq!(fast, slow, "{datatype} {value}");
            }
        }
    }

    #[test]
    fn what_is_no_json_number_never_goes_fast() {
        for token in [
            "",
            "-",
            "+1",
            ".5",
            "1.",
            "-.5",
            "01",
            "-01",
            "00.5",
            "1.e3",
            "1e",
            "1e5",
            "--1",
            "1.2.3",
            "0x1",
            "NaN",
            "-Infinity",
            "1ä",
            "1.ä",
            "ÿ1",
            "- 1",
            "1 1",
            "\"1\"",
            "[1",
            "1]",
            "-1234567",
            "-1234567.",
            "12345678.",
            "-12345678.5",
        ] {
            let text = format!("{token},{}", "1,".repeat(WINDOW));
            let mut data = Vec::new();
            let at = run::<f32, 4>(text.as_bytes(), 0, &mut data);
            assert_eq!((at, data.len()), (0, 0), "{token}");
        }
    }
}
