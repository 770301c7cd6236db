//! Sizes in a compiled plan: numbers, and expressions of those that are free.

use tract_onnx::prelude::*;

use super::parts::{Reader, Stored, Writer};

impl Stored for TDim {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(match self {
            TDim::Val(_) => 0,
            TDim::Sym(_) => 1,
            TDim::Add(_) => 2,
            TDim::Mul(_) => 3,
            TDim::MulInt(..) => 4,
            TDim::Div(..) => 5,
            TDim::Broadcast(_) => 6,
            TDim::Min(_) => 7,
            TDim::Max(_) => 8,
            TDim::Ge(..) => 9,
            TDim::Eq(..) => 10,
        });
        match self {
            TDim::Val(value) => value.put(to),
            TDim::Sym(symbol) => {
                to.text(&symbol.to_string());
                Some(())
            }
            TDim::Add(terms)
            | TDim::Mul(terms)
            | TDim::Broadcast(terms)
            | TDim::Min(terms)
            | TDim::Max(terms) => terms.put(to),
            TDim::MulInt(factor, term) => {
                factor.put(to)?;
                term.put(to)
            }
            TDim::Div(term, divisor) => {
                term.put(to)?;
                divisor.put(to)
            }
            TDim::Ge(left, right) | TDim::Eq(left, right) => {
                left.put(to)?;
                right.put(to)
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let boxed = |from: &mut Reader<'_>| TDim::take(from).map(Box::new);
        Some(match u8::take(from)? {
            0 => TDim::Val(i64::take(from)?),
            1 => TDim::Sym(from.symbols.get(&String::take(from)?)?),
            2 => TDim::Add(Vec::take(from)?),
            3 => TDim::Mul(Vec::take(from)?),
            4 => TDim::MulInt(i64::take(from)?, boxed(from)?),
            5 => {
                let term = boxed(from)?;
                TDim::Div(term, u64::take(from).filter(|&divisor| divisor > 0)?)
            }
            6 => TDim::Broadcast(Vec::take(from)?),
            7 => TDim::Min(Vec::take(from)?),
            8 => TDim::Max(Vec::take(from)?),
            9 => TDim::Ge(boxed(from)?, boxed(from)?),
            10 => TDim::Eq(boxed(from)?, boxed(from)?),
            _ => return None,
        })
    }
}

impl Stored for ShapeFact {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.rank());
        self.iter().try_for_each(|dim| dim.put(to))
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        TVec::<TDim>::take(from).map(Into::into)
    }
}
