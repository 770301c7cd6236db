//! Write a wisp guest in Rust: implement [`Model`], name the type in [`export!`].
//!
//! ```
//! use wisp_guest::{Contract, Datatype, Error, Model, Request, Response, Tensor, TensorSpec};
//!
//! struct Double;
//!
//! impl Model for Double {
//!     fn prepare() -> Result<(Self, Contract), String> {
//!         let spec = |name| TensorSpec::new(name, Datatype::Fp32, [-1]);
//!         Ok((Double, Contract { inputs: vec![spec("x")], outputs: vec![spec("y")] }))
//!     }
//!
//!     fn infer(&self, request: Request) -> Result<Response, Error> {
//!         let x = request.input("x")?;
//!         let y: Vec<f32> = x.to_fp32()?.iter().map(|v| v * 2.0).collect();
//!         Ok(Response::from([Tensor::fp32("y", &x.shape, &y)]))
//!     }
//! }
//!
//! wisp_guest::export!(Double);
//! ```
//!
//! What must never live here: anything about one kind of model.

mod nn;
mod tensor;

pub use bindings::wisp::model::bundle::{describe_graph, read_asset, setting};
pub use bindings::wisp::model::types::{
    Contract, Datatype, Error, Parameter, Request, Response, Tensor, TensorSpec,
};
pub use nn::{Graph, TensorType, Value};

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "wisp:model/model",
        generate_all,
        pub_export_macro: true,
        default_bindings_module: "wisp_guest::bindings",
    });
}

/// A model as a guest sees it: made once by [`prepare`](Model::prepare), then asked
/// once in each sandbox. `infer` takes `&self`, as nothing it could change would be
/// seen by another request.
pub trait Model: Sized + Sync + Send + 'static {
    /// Builds the model from the bundle's assets and settings, and says what it takes
    /// and gives. Runs once, at deployment; its memory is what every request starts with.
    ///
    /// # Errors
    /// A text for the operator: the bundle is refused with it.
    fn prepare() -> Result<(Self, Contract), String>;

    /// Answers one request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] becomes the client's 400, the others its 500 or 501.
    fn infer(&self, request: Request) -> Result<Response, Error>;
}

/// Reads a setting of the manifest, or takes `default` where it is not given.
///
/// # Errors
/// The value is there and is not a `T`; the text names the setting and what came.
pub fn setting_or<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    let Some(text) = setting(name)? else { return Ok(default) };
    text.parse().map_err(|_| {
        format!(
            "setting `{name}` is `{text}`, expected a value like {}",
            std::any::type_name::<T>()
        )
    })
}

/// Reads an asset that is UTF-8 text.
///
/// # Errors
/// The asset is not in the bundle, or not UTF-8.
pub fn read_text_asset(name: &str) -> Result<String, String> {
    String::from_utf8(read_asset(name)?).map_err(|_| format!("asset `{name}` is not UTF-8 text"))
}

/// Makes a [`Model`] the component's `handler`.
#[macro_export]
macro_rules! export {
    ($model:ty) => {
        const _: () = {
            static MODEL: std::sync::OnceLock<$model> = std::sync::OnceLock::new();

            struct Component;

            impl $crate::bindings::exports::wisp::model::handler::Guest for Component {
                fn prepare() -> Result<$crate::Contract, String> {
                    $crate::log_panics();
                    let (model, contract) = <$model as $crate::Model>::prepare()?;
                    // A second call would find the first model in place; both are the same.
                    MODEL.get_or_init(|| model);
                    Ok(contract)
                }

                fn infer(request: $crate::Request) -> Result<$crate::Response, $crate::Error> {
                    let model = MODEL.get().ok_or_else(|| {
                        $crate::Error::Internal("the guest was asked before it was prepared".into())
                    })?;
                    $crate::Model::infer(model, request)
                }
            }

            // Elsewhere the export symbols mean nothing, and a native linker rejects them.
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::export!(Component with_types_in $crate::bindings);
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = || {
                let _ =
                    <Component as $crate::bindings::exports::wisp::model::handler::Guest>::infer;
                let _ =
                    <Component as $crate::bindings::exports::wisp::model::handler::Guest>::prepare;
            };
        };
    };
}

/// Writes a line to the server's log, under the model's name.
pub fn log(message: &str) {
    use bindings::wasi::logging::logging::{Level, log};
    log(Level::Info, "", message);
}

/// Sends a panic's text to the host's log; without this the host sees only a trap.
/// The hook set in `prepare` is part of the snapshot, so every sandbox has it.
#[doc(hidden)]
pub fn log_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|info| {
        use bindings::wasi::logging::logging::{Level, log};
        log(Level::Error, "panic", &info.to_string());
    }));
}
