//! From the bytes of an image file to upright pixels. A JPEG is decoded at the smallest
//! size that still has the pixels asked for: a phone's 12 megapixels become 0.2 inside the
//! inverse DCT, which costs a fraction of decoding them all and shrinking them after.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage,
};
use jpeg_decoder::{CodingProcess, PixelFormat};

/// Pictures of more pixels are refused before any is decoded (40 megapixels: a full-frame
/// camera's).
pub const MAX_PIXELS: u64 = 40_000_000;

/// What decoding may take, bytes. The guest's memory limit would stop it too, but as a fault of
/// the server's, which it is not.
pub const MAX_DECODED_BYTES: u64 = 64 << 20;

/// What may come beside the pixels, decompressed: a colour profile of a kilobyte may become
/// gigabytes.
const MAX_BESIDE_BYTES: u64 = 8 << 20;

/// Decoded pixels, either RGB or grey, turned the right way up.
pub struct Picture(pub DynamicImage);

/// Decodes a JPEG, PNG or WebP, telling them apart by their first bytes. The shorter
/// side keeps at least `min_side` pixels where the file has that many.
///
/// # Errors
/// A text for the client: not an image, of another format, too large, or damaged.
pub fn decode(encoded: &[u8], min_side: u32) -> Result<Picture, String> {
    let (mut image, orientation) = match image::guess_format(encoded) {
        Ok(ImageFormat::Jpeg) => jpeg(encoded, min_side)?,
        Ok(format @ (ImageFormat::Png | ImageFormat::WebP)) => other(encoded, format)?,
        Ok(format) => return Err(format!("expected a JPEG, PNG or WebP image, got {format:?}")),
        Err(_) => {
            return Err(format!("expected a JPEG, PNG or WebP image, got {}", describe(encoded)));
        }
    };
    image.apply_orientation(orientation);
    Ok(Picture(image))
}

fn jpeg(encoded: &[u8], min_side: u32) -> Result<(DynamicImage, Orientation), String> {
    let damaged = |error: jpeg_decoder::Error| format!("damaged JPEG: {error}");
    let mut decoder = jpeg_decoder::Decoder::new(encoded);
    decoder.read_info().map_err(damaged)?;
    let info = decoder.info().ok_or("damaged JPEG: no frame header")?;
    let (width, height) = (info.width.into(), info.height.into());
    check_size(width, height)?;

    // `scale` stops at "one side is large enough": asked in the picture's own proportions,
    // that is both.
    let ratio = f64::from(min_side) / f64::from(width.min(height));
    let wanted = |side: u32| (f64::from(side) * ratio).ceil().min(f64::from(u16::MAX)) as u16;
    let (width, height) = decoder.scale(wanted(width), wanted(height)).map_err(damaged)?;
    let channels = info.pixel_format.pixel_bytes() as u64;
    let decoded = u64::from(width) * u64::from(height) * channels;
    // A progressive picture comes in passes over all its coefficients, two bytes each, before
    // it can be scaled.
    let coefficients = match info.coding_process {
        CodingProcess::DctProgressive => {
            u64::from(info.width) * u64::from(info.height) * channels * 2
        }
        CodingProcess::DctSequential | CodingProcess::Lossless => 0,
    };
    check_memory(decoded + coefficients)?;
    let pixels = decoder.decode().map_err(damaged)?;
    let orientation = decoder.exif_data().and_then(Orientation::from_exif_chunk);

    let (width, height) = (u32::from(width), u32::from(height));
    let image = match info.pixel_format {
        PixelFormat::L8 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
        PixelFormat::L16 => {
            let high_bytes = pixels
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&pair| u16::from_ne_bytes(pair).to_be_bytes()[0]);
            GrayImage::from_raw(width, height, high_bytes.collect()).map(DynamicImage::from)
        }
        PixelFormat::CMYK32 => {
            let rgb = pixels.as_chunks::<4>().0.iter().flat_map(|&[cyan, magenta, yellow, key]| {
                // The decoder gives Adobe's inverted CMYK already set right: 255 is full ink.
                [cyan, magenta, yellow].map(|ink| {
                    let light = (255 - u16::from(ink)) * (255 - u16::from(key)) / 255;
                    light as u8
                })
            });
            RgbImage::from_raw(width, height, rgb.collect()).map(DynamicImage::from)
        }
    };
    let image = image.ok_or("damaged JPEG: fewer pixels than its header says")?;
    Ok((image, orientation.unwrap_or(Orientation::NoTransforms)))
}

fn other(encoded: &[u8], format: ImageFormat) -> Result<(DynamicImage, Orientation), String> {
    let damaged = |error: image::ImageError| format!("damaged {format:?}: {error}");
    // The library stops at a large PNG by itself, but says only "memory limit exceeded".
    if let (ImageFormat::Png, Some(&[b'I', b'H', b'D', b'R', w0, w1, w2, w3, h0, h1, h2, h3])) =
        (format, encoded.get(12..24).and_then(<[u8]>::as_array))
    {
        check_size(u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]))?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(encoded), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BESIDE_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    // Its own pixels, and a copy as RGB where they are not that already.
    let copy = match decoder.color_type() {
        ColorType::L8 | ColorType::Rgb8 => 0,
        _ => u64::from(width) * u64::from(height) * 3,
    };
    check_memory(decoder.total_bytes() + copy)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let image = match image {
        grey if !grey.color().has_color() => grey.into_luma8().into(),
        color => color.into_rgb8().into(),
    };
    Ok((image, orientation))
}

fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("the image is {width} × {height} pixels"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "the image is {width} × {height} pixels, expected at most {} million",
            MAX_PIXELS / 1_000_000
        ));
    }
    Ok(())
}

fn check_memory(bytes: u64) -> Result<(), String> {
    if bytes > MAX_DECODED_BYTES {
        let (needed, most) = (bytes >> 20, MAX_DECODED_BYTES >> 20);
        return Err(format!("the image takes {needed} MiB to decode, expected at most {most}"));
    }
    Ok(())
}

fn describe(encoded: &[u8]) -> String {
    let head: String = encoded.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    match encoded.len() {
        0 => "no bytes".to_owned(),
        length => format!("{length} bytes that start with {head}"),
    }
}
