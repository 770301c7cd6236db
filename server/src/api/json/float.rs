//! 32-bit floats as the shortest decimals that read back as the same float, as serde_json
//! writes them, at half its cost: most of an answer's time is this. Nothing else is written here.

use std::hint::select_unpredictable;

/// A value's longest text here: a sign, 9 digits after 6 zeros with a point, and a comma.
const LONGEST: usize = 18;

/// Values that are written before their bytes are appended.
const BATCH: usize = 64;

/// Appends the little-endian floats of `data`, all finite, with commas in between.
pub(super) fn push_floats(data: &[u8], json: &mut Vec<u8>) {
    // What random values take, about.
    json.reserve(data.len() / 4 * 11);
    let mut buffer = [0; BATCH * LONGEST];
    for batch in data.as_chunks::<4>().0.chunks(BATCH) {
        let mut length = 0;
        for bytes in batch {
            let value = f32::from_le_bytes(*bytes);
            let text = &mut buffer[length..];
            length += match text.first_chunk_mut().and_then(|text| write_fixed(value, text)) {
                Some(written) => written,
                None => write_any(value, text),
            };
        }
        json.extend_from_slice(&buffer[..length]);
    }
    if !data.is_empty() {
        json.pop();
    }
}

/// Very small and very large values.
#[cold]
fn write_any(value: f32, mut text: &mut [u8]) -> usize {
    let room = text.len();
    serde_json::to_writer(&mut text, &value).expect("an f32 is no longer than LONGEST");
    text[0] = b',';
    room - text.len() + 1
}

/// Writes a value of 2^-19 to 2^25, or zero, and a comma; `None` for others.
#[inline(always)]
fn write_fixed(value: f32, text: &mut [u8; LONGEST]) -> Option<usize> {
    const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);
    let Decimal { first, rest, exponent } = match value.to_bits() << 1 {
        0 => Decimal { first: 0, rest: 0, exponent: 0 },
        _ => shortest(value.to_bits())?,
    };
    let first = b'0' | first;
    let significant = 9 - rest.leading_zeros() as usize / 8;
    text[0] = b'-';
    let start = usize::from(value.is_sign_negative());
    let end = if exponent <= 0 {
        let zeros = exponent.unsigned_abs() as usize;
        text[start..][..8].copy_from_slice(b"0.000000");
        *text.get_mut(start + zeros + usize::from(zeros > 0))? = first;
        let rest = (rest | ZEROS).to_le_bytes();
        text.get_mut(start + zeros + 2..)?.first_chunk_mut().map(|text| *text = rest)?;
        // At least one digit behind the point.
        start + (significant + zeros).max(2) + 1
    } else {
        let more = exponent as usize;
        let fraction = rest.checked_shr(8 * more as u32)? | ZEROS;
        text[start] = first;
        text[start + 1..][..8].copy_from_slice(&(rest | ZEROS).to_le_bytes());
        text[start + 1 + more] = b'.';
        text[start + 2 + more..][..8].copy_from_slice(&fraction.to_le_bytes());
        start + significant.max(more + 2) + 1
    };
    *text.get_mut(end)? = b',';
    Some(end + 1)
}

/// Digits, one a byte, of which the first is in front of the point, times 10^`exponent`.
struct Decimal {
    first: u8,
    /// The first of them lowest, zeros behind the last.
    rest: u64,
    exponent: i32,
}

/// The 8 digits of a number, one a byte, the first lowest.
#[inline(always)]
fn bcd(number: u32) -> u64 {
    let number = u64::from(number);
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | (fours - 100 * hundreds) << 16;
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (pairs - 10 * tens) << 8
}

/// The shortest decimal that reads back as the float, of those the closest. `None` for a float
/// out of [`SCALES`]' range.
///
/// With ulp as the distance to the next float, and 10^k as the largest power of ten up to it,
/// the decimals within half an ulp hold one multiple of 10^(k+1) at most. If there is one, that
/// is it; else the closest multiple of 10^k is. (The idea is that of Schubfach by Raffaello
/// Giulietti and yy_double by Yaoyuan Guo; that 64 bits suffice, all floats have shown.)
#[inline(always)]
fn shortest(bits: u32) -> Option<Decimal> {
    let index = (bits >> 23 & 0xff).wrapping_sub(FIRST_EXPONENT) as usize;
    let Scale { ulp, exponent } = *SCALES.get(index)?;
    let mantissa = bits & 0x7f_ffff;
    let scaled = u128::from(mantissa | 1 << 23) * u128::from(ulp);
    let (integer, fraction) = ((scaled >> 64) as u64, scaled as u64);

    // Half an ulp away is near enough only if the mantissa is even, as readers round to even
    // then. A tie is off by less than the slack, as `ulp` by less than 1; nothing else is as close.
    const SLACK: u64 = 1 << 25;
    let slack = SLACK.wrapping_sub(u64::from(mantissa & 1) * 2 * SLACK);
    let near = (ulp / 2).wrapping_add(slack);
    let (is_below, is_above) = (fraction < near, fraction.checked_add(near).is_none());
    // A tie can only be at a quarter, which goes to the even 2, or at three.
    let half = (1 << 59) - u64::from(fraction == 1 << 62);
    let digit = ((fraction >> 4) * 10 + half) >> 60;
    let digit = select_unpredictable(is_below | is_above, 0, digit);

    // Of its 8 digits the first two may be zeros.
    let integer = bcd(integer as u32 + u32::from(is_above));
    let zeros = integer.trailing_zeros() / 8;
    let shown = integer >> (8 * zeros);
    let rest = (shown >> 8) | (digit << (56 - 8 * zeros));
    Some(Decimal { first: shown as u8, rest, exponent: exponent - zeros as i32 })
}

/// What floats of one binary exponent are multiplied with.
#[derive(Clone, Copy)]
struct Scale {
    /// An ulp in units of 10^(k+1) / 2^64, rounded up.
    ulp: u64,
    /// k + 8: the exponent of the first of 9 digits.
    exponent: i32,
}

/// The biased exponent of 2^-19, so that no value has more than 6 zeros in front of its digits.
const FIRST_EXPONENT: u32 = 127 - 19;

/// Up to 2^25, the first power of two that needs its nearer neighbour looked at.
const SCALES: [Scale; 44] = {
    let mut scales = [Scale { ulp: 0, exponent: 0 }; 44];
    let mut index = 0;
    while index < scales.len() {
        scales[index] = scale(FIRST_EXPONENT as i32 + index as i32 - 150);
        index += 1;
    }
    scales
};

/// The scale for an ulp of 2^`q`, which is less than 10.
const fn scale(q: i32) -> Scale {
    // The smallest product with a power of ten that reaches 1; it is exact.
    let mut ulp = 1u128 << (64 + q);
    let mut k = 0;
    while ulp < 1 << 64 {
        ulp *= 10;
        k -= 1;
    }
    Scale { ulp: ulp.div_ceil(10) as u64, exponent: k + 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: f32) -> String {
        let mut json = Vec::new();
        push_floats(&value.to_le_bytes(), &mut json);
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn floats_are_written_as_serde_json_writes_them() {
        let check = |value: f32| {
            for value in [value, -value] {
                assert_eq!(text(value), serde_json::to_string(&value).unwrap());
            }
        };
        // Every exponent and its neighbours, and a step that meets all of them.
        (0..255u32)
            .flat_map(|exponent| [exponent << 23, exponent << 23 | 1, (exponent << 23) + 0x7f_ffff])
            .for_each(|bits| check(f32::from_bits(bits)));
        (0..0x7f80_0000).step_by(10_007).for_each(|bits| check(f32::from_bits(bits)));
        (0..100_000).for_each(|value| check(value as f32));
        (0..100_000).for_each(|value| check(value as f32 / 1000.0));
    }

    #[test]
    fn lists_have_commas_in_between() {
        let values: Vec<f32> = (0..1000).map(|value| value as f32 * 1e-9).collect();
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut json = b"[".to_vec();
        push_floats(&data, &mut json);
        json.push(b']');
        assert_eq!(json, serde_json::to_vec(&values).unwrap());
        json.clear();
        push_floats(&[], &mut json);
        assert!(json.is_empty());
    }
}
