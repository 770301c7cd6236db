//! What our kernels are made of, in a compiled plan. Packed weights stay where they lie in it.

use wisp_kernels::depthwise::Depthwise;
use wisp_kernels::elementwise::Function;
use wisp_kernels::pool::{Pool, Pooling};
use wisp_kernels::window::Window;
use wisp_kernels::{
    Activation, Conv2d, Geometry, Grid, Packed, ResidualOrder, Steps, Whole, WholeConv, WholeParts,
    Winograd,
};

use super::parts::{Reader, Stored, Writer, stored_struct};

stored_struct!(Window { kernel, strides, dilations, pads });
stored_struct!(Geometry { outputs, inputs, groups, kernel, strides, dilations, pads });
stored_struct!(Pool { window, pooling, ceil });
stored_struct!(Steps { scale, least, most });
stored_struct!(WholeParts { input, k, cells, sums, scales, shifts });

impl Stored for Packed {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.number(self.extent());
        to.number(self.k());
        to.large(self.as_bytes())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let (extent, k) = (usize::take(from)?, usize::take(from)?);
        Packed::shared(extent, k, from.large()?).ok()
    }
}

impl Stored for Depthwise {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.channels().into_iter().for_each(|channels| to.number(channels));
        self.window().put(to)?;
        to.large(self.as_bytes())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let [channels, multiplier] = <[usize; 2]>::take(from)?;
        let window = Window::take(from)?;
        Depthwise::shared(channels, multiplier, window, from.large()?).ok()
    }
}

impl Stored for Conv2d {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.geometry().put(to)?;
        put_all(self.weights(), to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Conv2d::packed(Geometry::take(from)?, Vec::take(from)?).ok()
    }
}

impl Stored for Grid {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        match self {
            Grid::Steps(steps) => to.variant(0, steps),
            Grid::Whole => to.variant(1, &()),
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Grid::Steps(Stored::take(from)?),
            1 => Grid::Whole,
            _ => return None,
        })
    }
}

impl Stored for Whole {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.parts().put(to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Whole::of(Stored::take(from)?).ok()
    }
}

impl Stored for WholeConv {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.geometry().put(to)?;
        put_all(self.weights(), to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        WholeConv::packed(Geometry::take(from)?, Vec::take(from)?).ok()
    }
}

impl Stored for Winograd {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.geometry().put(to)?;
        put_all(self.weights(), to)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Winograd::packed(Geometry::take(from)?, Vec::take(from)?).ok()
    }
}

fn put_all<'a, T: Stored>(weights: &'a [T], to: &mut Writer<'a>) -> Option<()> {
    to.number(weights.len());
    weights.iter().try_for_each(|weights| weights.put(to))
}

impl Stored for Pooling {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(match self {
            Pooling::Max => 0,
            Pooling::Average => 1,
            Pooling::AverageWithPads => 2,
        });
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Pooling::Max,
            1 => Pooling::Average,
            2 => Pooling::AverageWithPads,
            _ => return None,
        })
    }
}

impl Stored for ResidualOrder {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(u8::from(*self == ResidualOrder::AfterActivation));
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match bool::take(from)? {
            true => ResidualOrder::AfterActivation,
            false => ResidualOrder::BeforeActivation,
        })
    }
}

impl Stored for Activation {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        let (number, parameters) = match *self {
            Activation::None => (0, vec![]),
            Activation::Relu => (1, vec![]),
            Activation::Clip { min, max } => (2, vec![min, max]),
            Activation::HardSwish => (3, vec![]),
            Activation::HardSigmoid { alpha, beta } => (4, vec![alpha, beta]),
            Activation::LeakyRelu(alpha) => (5, vec![alpha]),
            Activation::Steps(ref steps) => return to.variant(6, steps),
        };
        to.small.push(number);
        parameters.iter().for_each(|parameter| to.small.extend(parameter.to_le_bytes()));
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Activation::None,
            1 => Activation::Relu,
            2 => Activation::Clip { min: f32::take(from)?, max: f32::take(from)? },
            3 => Activation::HardSwish,
            4 => Activation::HardSigmoid { alpha: f32::take(from)?, beta: f32::take(from)? },
            5 => Activation::LeakyRelu(f32::take(from)?),
            6 => Activation::Steps(Stored::take(from)?),
            _ => return None,
        })
    }
}

/// Those that graphs get.
impl Stored for Function {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.small.push(match self {
            Function::Gelu => 0,
            Function::Silu => 1,
            Function::GeluTanh => 2,
            Function::Activation(activation) => return to.variant(3, activation),
            _ => return None,
        });
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Function::Gelu,
            1 => Function::Silu,
            2 => Function::GeluTanh,
            3 => Function::Activation(Stored::take(from)?),
            _ => return None,
        })
    }
}
