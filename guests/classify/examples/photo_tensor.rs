//! Writes the tensor that models/imagenet makes of a photo, as raw little-endian floats:
//! `photo_tensor PHOTO OUT`. `make reference` gives it to ONNX Runtime.

use std::error::Error;
use std::{env, fs};

use classify::Preprocess;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(photo), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: photo_tensor PHOTO OUT".into());
    };
    let preprocess = Preprocess::efficientnet_lite0();
    let tensor = preprocess.tensor(&fs::read(photo)?)?;
    let bytes: Vec<u8> = tensor.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(fs::write(out, bytes)?)
}
