//! From an image file to the tensor a graph wants: decode, crop the centre, resize, normalise.

use std::str::FromStr;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::DynamicImage;
use wisp_guest::setting_or;

use crate::decode::{Picture, decode};

/// How pictures become tensors of one shape.
#[derive(Debug, Clone)]
pub struct Preprocess {
    /// 3 (RGB) or 1 (grey).
    pub channels: u32,
    /// Of the graph's input, pixels.
    pub height: u32,
    /// Of the graph's input, pixels.
    pub width: u32,
    /// The share of the largest centred rectangle of the graph's proportions that is
    /// kept; EfficientNet and its kin were tested with 0.875.
    pub crop: f64,
    /// Subtracted from each 0-255 value.
    pub mean: f32,
    /// What the difference is divided by.
    pub std: f32,
    /// Whether black becomes white first.
    pub invert: Invert,
}

/// For graphs trained on white strokes on black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invert {
    Never,
    Always,
    /// Where the picture's border is bright: black strokes on white.
    Auto,
}

impl FromStr for Invert {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "false" => Ok(Self::Never),
            "true" => Ok(Self::Always),
            "auto" => Ok(Self::Auto),
            _ => Err(()),
        }
    }
}

impl Preprocess {
    /// As models/imagenet has it, for native runs of the same code.
    pub fn efficientnet_lite0() -> Self {
        Self {
            channels: 3,
            height: 224,
            width: 224,
            crop: 0.875,
            mean: 127.0,
            std: 128.0,
            invert: Invert::Never,
        }
    }

    /// Takes channels and size from a graph input `[N, channels, height, width]`, the rest
    /// from the bundle's settings.
    pub(crate) fn new(input: &[i64]) -> Result<Self, String> {
        let (1 | -1, channels @ (1 | 3), height @ 1.., width @ 1..) = (match *input {
            [batch, channels, height, width] => (batch, channels, height, width),
            _ => (0, 0, 0, 0),
        }) else {
            return Err(format!(
                "the graph's input has shape {input:?}, expected [1, 1 or 3, height, width]"
            ));
        };
        let side = |side: i64| {
            u32::try_from(side)
                .map_err(|_| format!("the graph's input is {side} pixels wide or high"))
        };
        let crop = setting_or("crop", 1.0)?;
        let std = setting_or("std", 255.0)?;
        if !(crop > 0.0 && crop <= 1.0) || std == 0.0 {
            return Err(format!(
                "settings `crop` {crop} and `std` {std}: expected 0 < crop <= 1 and std other than 0"
            ));
        }
        Ok(Self {
            channels: side(channels)?,
            height: side(height)?,
            width: side(width)?,
            crop,
            mean: setting_or("mean", 0.0)?,
            std,
            invert: setting_or("invert", Invert::Never)?,
        })
    }

    /// The tensor's shape, NCHW.
    pub fn shape(&self) -> [u32; 4] {
        [1, self.channels, self.height, self.width]
    }

    /// Decodes an image file and returns its tensor, row-major, NCHW.
    ///
    /// # Errors
    /// A text for the client: what is wrong with the image.
    pub fn tensor(&self, encoded: &[u8]) -> Result<Vec<f32>, String> {
        // A picture just large enough keeps one pixel for each of the tensor's in the crop.
        let min_side = (f64::from(self.height.max(self.width)) / self.crop).ceil() as u32;
        let picture = decode(encoded, min_side)?;
        Ok(self.normalise(&self.resize(picture)?))
    }

    fn resize(&self, Picture(image): Picture) -> Result<Vec<u8>, String> {
        let (image, pixel) = match self.channels {
            1 => (DynamicImage::from(image.into_luma8()), PixelType::U8),
            _ => (DynamicImage::from(image.into_rgb8()), PixelType::U8x3),
        };
        let (width, height) = (f64::from(image.width()), f64::from(image.height()));
        let scale =
            (width / f64::from(self.width)).min(height / f64::from(self.height)) * self.crop;
        let (kept_width, kept_height) =
            (f64::from(self.width) * scale, f64::from(self.height) * scale);
        let options = ResizeOptions::new()
            .crop((width - kept_width) / 2.0, (height - kept_height) / 2.0, kept_width, kept_height)
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        let source = ImageRef::new(image.width(), image.height(), image.as_bytes(), pixel)
            .map_err(|error| format!("cannot be resized: {error}"))?;
        let mut resized = Image::new(self.width, self.height, pixel);
        Resizer::new()
            .resize(&source, &mut resized, &options)
            .map_err(|error| format!("cannot be resized: {error}"))?;
        Ok(resized.into_vec())
    }

    /// Interleaved 0-255 values to planes of floats, in one pass.
    fn normalise(&self, pixels: &[u8]) -> Vec<f32> {
        let invert = match self.invert {
            Invert::Never => false,
            Invert::Always => true,
            Invert::Auto => self.has_bright_border(pixels),
        };
        let table: [f32; 256] = std::array::from_fn(|value| {
            let value = if invert { 255 - value } else { value } as f32;
            (value - self.mean) / self.std
        });
        let channels = self.channels as usize;
        let plane = pixels.len() / channels;
        let mut tensor = vec![0.0; pixels.len()];
        for (channel, values) in tensor.chunks_exact_mut(plane).enumerate() {
            for (value, pixel) in values.iter_mut().zip(pixels.chunks_exact(channels)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        tensor
    }

    fn has_bright_border(&self, pixels: &[u8]) -> bool {
        let row = (self.width * self.channels) as usize;
        let edge = self.channels as usize;
        let sides =
            pixels.chunks_exact(row).flat_map(|row| [&row[..edge], &row[row.len() - edge..]]);
        let border: Vec<&[u8]> =
            sides.chain([&pixels[..row], &pixels[pixels.len() - row..]]).collect();
        let count: usize = border.iter().map(|values| values.len()).sum();
        let sum: usize =
            border.iter().flat_map(|values| *values).map(|&value| usize::from(value)).sum();
        sum > count * 128
    }
}
