//! Kubernetes resource quantities (`100m`, `1.5Gi`, `12e6`): reading, comparing and the canonical
//! form that upstream writes back.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Units of one billionth in one.
const NANO: i128 = 1_000_000_000;
/// Upstream caps magnitudes here (in whole units).
const MAX: i128 = i64::MAX as i128;

/// Text that is no quantity. The wording is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct QuantityError;

/// An amount with the notation it was written in. Compares by amount.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

impl Quantity {
    /// The amount in billionths, exact.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// The amount in whole units, rounded away from zero, as upstream's `Value`.
    pub fn value(self) -> i64 {
        clamp(divide_up(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded away from zero, as upstream's `MilliValue`.
    pub fn milli_value(self) -> i64 {
        clamp(divide_up(self.nanos, NANO / 1000))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Integer division that rounds away from zero.
fn divide_up(value: i128, by: i128) -> i128 {
    let whole = value / by;
    whole + (value % by).signum()
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, digits) = match text.split_at_checked(1) {
            Some(("-", rest)) => (true, rest),
            Some(("+", rest)) => (false, rest),
            _ => (false, text),
        };
        let end = digits
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (format, base, power) = unit(suffix).ok_or(QuantityError)?;
        let magnitude = magnitude(whole, fraction, base, power);
        let nanos = if negative { -magnitude } else { magnitude };
        Ok(Self { nanos, format })
    }
}

/// `whole.fraction * base^power` in billionths: rounded up, capped like upstream.
fn magnitude(whole: &str, fraction: &str, base: i128, power: i32) -> i128 {
    let cap = MAX * NANO;
    let mut nanos: i128 = 0;
    let mut inexact = false;
    let scale = base.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX);
    // What one unit of the leading digits is worth, in billionths.
    for digit in whole.bytes() {
        nanos = nanos
            .saturating_mul(10)
            .saturating_add(i128::from(digit - b'0'));
    }
    let mut places = 0;
    for digit in fraction.bytes() {
        // Past 27 places nothing but "is it zero" can matter.
        if places < 27 && nanos < i128::MAX / 1_000 {
            nanos = nanos * 10 + i128::from(digit - b'0');
            places += 1;
        } else {
            inexact |= digit != b'0';
        }
    }
    let below = 10_i128.pow(places);
    let (up, down) = if power < 0 {
        (NANO, scale)
    } else {
        (NANO.saturating_mul(scale), 1)
    };
    let divisor = below.saturating_mul(down);
    // Divide first where the product would not fit: the remainder then is what rounding loses.
    let product = match nanos.checked_mul(up) {
        Some(product) => divide_up(product, divisor),
        None => (nanos / divisor).saturating_mul(up),
    };
    let rounding = i128::from(inexact && product % NANO != 0);
    product.saturating_add(rounding).min(cap)
}

/// Notation, base and exponent that a suffix stands for.
fn unit(suffix: &str) -> Option<(Format, i128, i32)> {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(at) = DECIMAL.iter().position(|unit| *unit == suffix) {
        return Some((Format::Decimal, 10, 3 * (i32::try_from(at).ok()? - 3)));
    }
    if let Some(at) = BINARY.iter().position(|unit| *unit == suffix) {
        return Some((Format::Binary, 1024, i32::try_from(at).ok()? + 1));
    }
    let power = suffix.strip_prefix(['e', 'E'])?;
    Some((Format::Exponent, 10, power.parse::<i16>().ok()?.into()))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        if self.format == Format::Binary && whole && self.nanos.abs() >= 1024 * NANO {
            let mut value = self.nanos / NANO;
            let mut power = 0;
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let mut value = self.nanos;
        let mut power = -9;
        while value % 1000 == 0 && power < 18 {
            value /= 1000;
            power += 3;
        }
        match self.format {
            Format::Exponent if power == 0 => write!(f, "{value}"),
            Format::Exponent => write!(f, "{value}e{power}"),
            _ => {
                let at = usize::try_from((power + 9) / 3).expect("power is at least -9");
                write!(
                    f,
                    "{value}{}",
                    ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][at]
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>()
            .map_or_else(|_| "error".to_owned(), |q| q.to_string())
    }

    #[test]
    fn quantities_come_back_in_their_canonical_form() {
        for (given, expected) in [
            ("0", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512", "512"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("100k", "100k"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1E", "1E"),
            ("-250m", "-250m"),
            ("+2", "2"),
            ("0.1n", "1n"),
            ("1e-3", "1e-3"),
            ("99999999999999999999", "9223372036854775807"),
            ("", "error"),
            (".", "error"),
            ("1.2.3", "error"),
            ("1 Gi", "error"),
            ("abc", "error"),
            ("1Zi", "error"),
            ("1e", "error"),
            ("--1", "error"),
        ] {
            assert_eq!(canonical(given), expected, "{given}");
        }
    }

    #[test]
    fn what_is_too_large_and_not_exact_is_capped() {
        let digits = "9".repeat(60);
        for text in [format!("{digits}.5"), format!("{digits}.{digits}Ei")] {
            let quantity: Quantity = text.parse().expect("valid");
            assert_eq!(quantity.value(), i64::MAX, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let quantity: Quantity = "1500m".parse().expect("valid");
        assert_eq!((quantity.value(), quantity.milli_value()), (2, 1500));
        let quantity: Quantity = "100u".parse().expect("valid");
        assert_eq!(quantity.milli_value(), 1);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[-+]?[0-9.]{0,60}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,8}") {
            canonical(&text);
        }

        #[test]
        fn the_canonical_form_means_the_same_and_is_stable(
            number in 0_u64..10_000_000,
            suffix in "|m|u|k|M|G|Ki|Mi|Gi|e3|e-2",
        ) {
            let given: Quantity = format!("{number}{suffix}").parse().unwrap();
            let again: Quantity = given.to_string().parse().unwrap();
            prop_assert_eq!(given, again);
            prop_assert_eq!(given.to_string(), again.to_string());
        }
    }
}
