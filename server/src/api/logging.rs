//! The protocol's logging extension: which levels the server logs, changed while it runs.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::Api;
use super::body::read_small_json;
use super::errors::Failed;
use super::reply::json;
use crate::error::Error;
use crate::log_levels::LogLevels;
use crate::tensor::Parameter;

/// Settings as the protocol writes them.
#[derive(Serialize)]
pub(super) struct View {
    pub(super) log_file: &'static str,
    pub(super) log_info: bool,
    pub(super) log_warning: bool,
    pub(super) log_error: bool,
    pub(super) log_verbose_level: u32,
    pub(super) log_format: &'static str,
}

/// A value as a client wrote it.
#[derive(Debug)]
pub(super) enum Setting {
    Switch(bool),
    Number(u64),
    Text(String),
}

pub(super) fn view() -> View {
    let LogLevels { info, warning, error, verbose } = LogLevels::now();
    View {
        log_file: "",
        log_info: info,
        log_warning: warning,
        log_error: error,
        log_verbose_level: verbose,
        log_format: "default",
    }
}

/// Makes all of the changes or none.
///
/// # Errors
/// An unknown setting or value: what was expected and what came.
pub(super) fn change(changes: &BTreeMap<String, Setting>) -> Result<View, Error> {
    let mut levels = LogLevels::now();
    for (name, value) in changes {
        let odd = |expected: &str| {
            let came = match value {
                Setting::Switch(came) => came.to_string(),
                Setting::Number(came) => came.to_string(),
                Setting::Text(came) => format!("{came:?}"),
            };
            Error::InvalidInput(format!("log setting `{name}`: expected {expected}, got {came}"))
        };
        let switch = match name.as_str() {
            "log_info" => &mut levels.info,
            "log_warning" => &mut levels.warning,
            "log_error" => &mut levels.error,
            "log_verbose_level" => {
                let level = match value {
                    Setting::Number(level) => u32::try_from(*level).ok(),
                    _ => None,
                };
                levels.verbose = level.ok_or_else(|| odd("an integer of 0 or more"))?;
                continue;
            }
            // Lines look as the operator set them: both of the protocol's forms have their time.
            "log_format" => match value {
                Setting::Text(form) if form == "default" || form == "ISO8601" => continue,
                _ => return Err(odd("default or ISO8601")),
            },
            "log_file" => match value {
                Setting::Text(file) if file.is_empty() => continue,
                _ => return Err(odd("nothing, as the log goes to stderr")),
            },
            _ => {
                return Err(Error::InvalidInput(format!(
                    "there is no log setting `{name}`: expected log_info, log_warning, log_error, log_verbose_level or log_format"
                )));
            }
        };
        match value {
            Setting::Switch(is_on) => *switch = *is_on,
            _ => return Err(odd("true or false")),
        }
    }
    if levels != LogLevels::now() {
        // Before it may be silenced.
        tracing::info!("log settings changed by a client: {levels:?}");
        levels.set();
    }
    Ok(view())
}

pub(super) async fn settings() -> Response {
    json(StatusCode::OK, &view())
}

pub(super) async fn change_settings(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let settings: BTreeMap<String, Value> = read_small_json(body).await?.unwrap_or_default();
    api.check_control_from(&headers, "change log settings")?;
    let changes = settings.into_iter().map(|(name, value)| {
        let setting = match &value {
            Value::Bool(value) => Some(Setting::Switch(*value)),
            Value::Number(value) => count(value).map(Setting::Number),
            Value::String(value) => Some(Setting::Text(value.clone())),
            _ => None,
        };
        let setting = setting.ok_or_else(|| {
            let expected = "a string, true, false or an integer of 0 or more";
            Error::InvalidInput(format!("log setting `{name}`: expected {expected}, got {value}"))
        })?;
        Ok((name, setting))
    });
    Ok(json(StatusCode::OK, &change(&changes.collect::<Result<_, Error>>()?)?))
}

/// A whole number of 0 or more, however it is written: JSON's 2.0 is 2.
fn count(number: &serde_json::Number) -> Option<u64> {
    number.as_u64().or_else(|| Parameter::Number(number.as_f64()?).as_count())
}
