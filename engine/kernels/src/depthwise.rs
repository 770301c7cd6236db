//! Depthwise convolution of NCHW tensors: each channel has its own kernels and sees no other channel.
//!
//! A plane is copied, band by band, into scratch rows that carry their own pads (`window.rs`), so that the loops that
//! multiply never ask where a border is (`tiles.rs`). Planes much narrower than a vector are turned instead, so that
//! lanes are channels (`across.rs`). What must never live here: convolutions that sum over channels.

mod across;
mod tiles;

use bytes::Bytes;

use crate::constant::Constant;
use crate::epilogue::Epilogue;
use crate::simd::Level;
use crate::team::{self, Shared, Team, share_of};
use crate::window::{Layout, Window, WindowError};
use across::{Across, Sizes};
use tiles::{Fixed, Free, Planes};

/// The weights of a depthwise convolution, ready to run.
#[derive(Clone, Debug)]
pub struct Depthwise {
    window: Window,
    channels: usize,
    multiplier: usize,
    weights: Constant<f32>,
}

/// Output rows of a tile: as many sums as fit the registers of every level beside a column of weights.
const TILE: usize = 8;

impl Depthwise {
    /// Takes `weights` of shape `[channels * multiplier, 1, kernel height, kernel width]`, row-major, where output
    /// channel `o` reads input channel `o / multiplier`.
    ///
    /// # Errors
    /// [`WindowError::Geometry`] where the window makes no sense; [`WindowError::Parameters`] where `channels` or
    /// `multiplier` is zero or the weights' length is not their shape's.
    pub fn new(
        channels: usize,
        multiplier: usize,
        window: Window,
        weights: Vec<f32>,
    ) -> Result<Depthwise, WindowError> {
        Self::of(channels, multiplier, window, weights.into())
    }

    /// As [`Depthwise::new`], with the weights where they lie, as [`Depthwise::as_bytes`] gave them.
    ///
    /// # Errors
    /// As [`Depthwise::new`], also where they are not aligned as floats are.
    pub fn shared(
        channels: usize,
        multiplier: usize,
        window: Window,
        weights: Bytes,
    ) -> Result<Depthwise, WindowError> {
        let weights = Constant::shared(weights).ok_or(WindowError::Parameters)?;
        Self::of(channels, multiplier, window, weights)
    }

    fn of(
        channels: usize,
        multiplier: usize,
        window: Window,
        weights: Constant<f32>,
    ) -> Result<Depthwise, WindowError> {
        let in_range = |axis: usize| window.strides[axis] > 0 && window.dilations[axis] > 0;
        if !in_range(0) || !in_range(1) || window.span(0).is_none() || window.span(1).is_none() {
            return Err(WindowError::Geometry);
        }
        let sides = [multiplier, window.kernel[0], window.kernel[1]];
        let floats = sides.into_iter().try_fold(channels, usize::checked_mul);
        if floats != Some(weights.len()) || weights.is_empty() {
            return Err(WindowError::Parameters);
        }
        Ok(Depthwise { window, channels, multiplier, weights })
    }

    /// The window given to [`Depthwise::new`].
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Channels of the input, and how many of the output each has.
    pub fn channels(&self) -> [usize; 2] {
        [self.channels, self.multiplier]
    }

    /// The weights.
    pub fn as_bytes(&self) -> &[u8] {
        self.weights.as_bytes()
    }

    /// Shape of the output for an input of `[batch, channels, h, w]`.
    ///
    /// # Errors
    /// [`WindowError::Input`] where the channels differ or the window does not fit.
    pub fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], WindowError> {
        let [batch, channels, h, w] = input;
        if channels != self.channels {
            return Err(WindowError::Input);
        }
        let [oh, ow] = self.window.output(h, w).ok_or(WindowError::Input)?;
        Ok([batch, channels * self.multiplier, oh, ow])
    }

    /// Convolves `x` of `shape` (`[batch, channels, h, w]`) into `y` of [`Depthwise::output_shape`]; the epilogue's
    /// bias has one value for each output channel.
    ///
    /// # Errors
    /// [`WindowError::Input`], [`WindowError::Output`] or [`WindowError::Parameters`] where a slice has not the
    /// length its shape asks for; [`WindowError::TooLarge`] for absurd pads or dilations. `y` is then untouched.
    pub fn run(
        &self,
        x: &[f32],
        shape: [usize; 4],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        team: &dyn Team,
    ) -> Result<(), WindowError> {
        self.run_at(Level::best(), x, shape, epilogue, y, team)
    }

    /// As [`Depthwise::run`], at a given level.
    ///
    /// # Errors
    /// As [`Depthwise::run`].
    pub fn run_at(
        &self,
        level: Level,
        x: &[f32],
        shape: [usize; 4],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        team: &dyn Team,
    ) -> Result<(), WindowError> {
        let output = self.output_shape(shape)?;
        let length = |shape: [usize; 4]| shape.into_iter().try_fold(1usize, usize::checked_mul);
        if length(shape) != Some(x.len()) {
            return Err(WindowError::Input);
        }
        if length(output) != Some(y.len()) || epilogue.residual.is_some_and(|r| r.len() != y.len())
        {
            return Err(WindowError::Output);
        }
        if epilogue.bias.is_some_and(|b| b.len() != output[1]) {
            return Err(WindowError::Parameters);
        }
        let level = if level.available() { level } else { Level::Scalar };
        let layout = Layout::new(
            self.window,
            [shape[2], shape[3]],
            [output[2], output[3]],
            level.lanes(),
            TILE,
        )?;
        let across = Sizes::of(self, &layout, level.lanes());
        let floats = across.map_or(2 * layout.floats(), |sizes| sizes.vectors() * level.lanes());
        let images = shape[0];
        // A plane for each channel and image, or a group of channels of all images. The last group may overlap the one
        // before, so those two are one part's.
        let count = match across {
            Some(_) => self.channels / level.lanes(),
            None => images * self.channels,
        };
        let taps = self.window.kernel[0] * self.window.kernel[1];
        let (parts, y) = (team::cut(team, y.len() * taps, count), Shared::new(y));
        team.share(parts, &|part, room| {
            room.pauses.pause();
            let room = &mut room.panels.room(floats)[..floats];
            room.fill(0.0);
            let start = room.as_mut_ptr();
            let rows = [start, start.wrapping_add(layout.floats())];
            let mut part = share_of(part, parts, count, 1);
            if across.is_some() && part.end == count {
                part.end = self.channels.div_ceil(level.lanes());
            }
            let layout = &layout;
            self.run_part(
                level,
                Planes { op: self, layout, x, images, part, epilogue, y, rows },
                across,
            );
        });
        Ok(())
    }

    fn run_part(&self, level: Level, job: Planes<'_>, across: Option<Sizes>) {
        let tiled = self.window.dilations[0] == 1;
        // SAFETY: every length was checked by the caller; `Level::run` checks the instruction set.
        unsafe {
            if let Some(sizes) = across {
                return level.run(Across(job, sizes));
            }
            match (self.window.kernel[0], self.window.strides[0]) {
                (3, 1) if tiled => level.run(Fixed::<3, 1>(job)),
                (3, 2) if tiled => level.run(Fixed::<3, 2>(job)),
                (5, 1) if tiled => level.run(Fixed::<5, 1>(job)),
                (5, 2) if tiled => level.run(Fixed::<5, 2>(job)),
                _ => level.run(Free(job)),
            }
        }
    }
}

#[cfg(test)]
#[path = "depthwise_tests.rs"]
mod tests;
