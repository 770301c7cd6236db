//! The protocol's trace extension: where a request's time went and what it used, as a line in the
//! log, for the server or for one model. Nothing is traced until a client asks for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::Api;
use super::body::read_small_json;
use super::errors::{Failed, cut};
use super::metadata::ModelPath;
use super::reply::json;
use crate::error::{Error, one_line};
use crate::infer::InferResponse;
use crate::tensor::Parameter;

/// Settings by name, as clients write them; `None` puts one back.
pub(super) type Changes = BTreeMap<String, Option<Vec<String>>>;

/// What is traced, and how often.
pub(super) struct Traces {
    /// Whether anything is: requests look at nothing else then.
    on: AtomicBool,
    settings: Mutex<Settings>,
}

#[derive(Default)]
struct Settings {
    server: Choice,
    models: BTreeMap<String, Choice>,
    /// Requests of each model while it was traced.
    seen: BTreeMap<String, u64>,
}

/// What was chosen; what was not is the server's, or the default.
#[derive(Default, Clone, Debug, PartialEq)]
struct Choice {
    timestamps: Option<bool>,
    /// One in so many requests.
    rate: Option<u32>,
    /// How many more; -1 without an end.
    count: Option<i64>,
    /// Has no effect: each trace is written at once.
    log_frequency: Option<u32>,
}

/// Settings as the protocol writes them: all texts.
#[derive(Serialize, Debug, PartialEq)]
pub(super) struct View {
    pub(super) trace_file: String,
    pub(super) trace_level: [&'static str; 1],
    pub(super) trace_rate: String,
    pub(super) trace_count: String,
    pub(super) log_frequency: String,
    pub(super) trace_mode: &'static str,
}

const DEFAULT_RATE: u32 = 1000;
const ENDLESS: i64 = -1;

/// Of a request's id in the log.
const MAX_ID_BYTES: usize = 256;

impl Traces {
    pub(super) fn new() -> Self {
        Self { on: AtomicBool::new(false), settings: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's settings, or those that hold for a model.
    pub(super) fn view(&self, model: Option<&str>) -> View {
        self.lock().view(model)
    }

    /// Makes all of the changes or none.
    ///
    /// # Errors
    /// An unknown setting or value: what was expected and what came.
    pub(super) fn change(&self, model: Option<&str>, changes: &Changes) -> Result<View, Error> {
        let mut settings = self.lock();
        let before = match model {
            None => Some(&settings.server),
            Some(model) => settings.models.get(model),
        };
        let mut choice = before.cloned().unwrap_or_default();
        for (name, value) in changes {
            choice.change(name, value.as_deref())?;
        }
        match model {
            None => settings.server = choice,
            Some(model) => {
                settings.models.insert(model.to_owned(), choice);
            }
        }
        let choices = settings.models.values().chain([&settings.server]);
        let on = choices.into_iter().any(|choice| choice.timestamps == Some(true));
        self.on.store(on, Ordering::Relaxed);
        Ok(settings.view(model))
    }

    /// Writes a request down, if it is one of those to be traced.
    pub(super) fn record(
        &self,
        model: &str,
        version: &str,
        id: &str,
        result: &Result<InferResponse, Error>,
    ) {
        if !self.on.load(Ordering::Relaxed) || !self.lock().take(model) {
            return;
        }
        let id = one_line(&cut(id.to_owned(), MAX_ID_BYTES));
        match result {
            Ok(InferResponse { queue, timings, used, .. }) => tracing::info!(
                target: "wisp::trace",
                model,
                version,
                id,
                queue_us = queue.as_micros() as u64,
                sandbox_us = timings.start.as_micros() as u64,
                guest_us = timings.guest.as_micros() as u64,
                compute_us = timings.compute.as_micros() as u64,
                guest_cpu_us = used.guest_cpu.as_micros() as u64,
                compute_cpu_us = used.compute_cpu.as_micros() as u64,
                peak_memory_bytes = used.peak_memory_bytes,
                bytes_in = used.bytes_in,
                bytes_out = used.bytes_out,
                "answered"
            ),
            Err(error) => {
                tracing::info!(target: "wisp::trace", model, version, id, kind = error.kind(), "failed");
            }
        }
    }
}

impl Settings {
    fn view(&self, model: Option<&str>) -> View {
        let own = model.and_then(|model| self.models.get(model)).cloned().unwrap_or_default();
        let server = &self.server;
        let timestamps = own.timestamps.or(server.timestamps).unwrap_or(false);
        View {
            trace_file: String::new(),
            trace_level: [if timestamps { "TIMESTAMPS" } else { "OFF" }],
            trace_rate: own.rate.or(server.rate).unwrap_or(DEFAULT_RATE).to_string(),
            trace_count: own.count.or(server.count).unwrap_or(ENDLESS).to_string(),
            log_frequency: own.log_frequency.or(server.log_frequency).unwrap_or(0).to_string(),
            trace_mode: "triton",
        }
    }

    /// Whether a request is to be traced; counts it.
    fn take(&mut self, model: &str) -> bool {
        let Self { server, models, seen } = self;
        let own = models.get_mut(model);
        let chosen = own.as_deref();
        let is_on = chosen.and_then(|own| own.timestamps).or(server.timestamps).unwrap_or(false);
        let rate = chosen.and_then(|own| own.rate).or(server.rate).unwrap_or(DEFAULT_RATE);
        if !is_on {
            return false;
        }
        let seen = seen.entry(model.to_owned()).or_default();
        *seen += 1;
        if !seen.is_multiple_of(u64::from(rate)) {
            return false;
        }
        let own = own.and_then(|own| own.count.as_mut());
        match own.or(server.count.as_mut()) {
            None | Some(&mut ENDLESS) => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

impl Choice {
    fn change(&mut self, name: &str, value: Option<&[String]>) -> Result<(), Error> {
        fn number<T: std::str::FromStr + PartialOrd>(
            name: &str,
            least: T,
            value: Option<&[String]>,
            expected: &str,
        ) -> Result<Option<T>, Error> {
            let Some(value) = value else { return Ok(None) };
            let number = match value {
                [text] if !text.starts_with('+') => {
                    text.parse().ok().filter(|number| *number >= least)
                }
                _ => None,
            };
            number.map(Some).ok_or_else(|| odd(name, expected, value))
        }
        match name {
            "trace_level" => self.timestamps = value.map(timestamps).transpose()?,
            "trace_rate" => self.rate = number(name, 1, value, "an integer of 1 or more")?,
            "trace_count" => self.count = number(name, ENDLESS, value, "an integer of -1 or more")?,
            "log_frequency" => {
                self.log_frequency = number(name, 0, value, "an integer of 0 or more")?;
            }
            "trace_mode" => match value {
                None => {}
                Some([mode]) if mode == "triton" => {}
                Some(other) => return Err(odd(name, "`triton`", other)),
            },
            "trace_file" => match value {
                None => {}
                Some([file]) if file.is_empty() => {}
                Some(_) => {
                    return Err(Error::InvalidInput(
                        "trace setting `trace_file` cannot be set: traces go to the server's log"
                            .to_owned(),
                    ));
                }
            },
            _ => {
                return Err(Error::InvalidInput(format!(
                    "there is no trace setting `{name}`: expected trace_level, trace_rate, trace_count or log_frequency"
                )));
            }
        }
        Ok(())
    }
}

fn timestamps(levels: &[String]) -> Result<bool, Error> {
    let mut is_on = false;
    for level in levels {
        match level.as_str() {
            "OFF" => is_on = false,
            "TIMESTAMPS" => is_on = true,
            "TENSORS" => {
                return Err(Error::Unsupported(
                    "trace level TENSORS is not offered: a log is no place for tensors".to_owned(),
                ));
            }
            _ => return Err(odd("trace_level", "OFF or TIMESTAMPS", levels)),
        }
    }
    match levels {
        [] => Err(odd("trace_level", "OFF or TIMESTAMPS", levels)),
        _ => Ok(is_on),
    }
}

fn odd(name: &str, expected: &str, came: &[String]) -> Error {
    Error::InvalidInput(format!("trace setting `{name}`: expected {expected}, got {came:?}"))
}

pub(super) async fn server_settings(State(api): State<Api>) -> Response {
    json(StatusCode::OK, &api.traces().view(None))
}

pub(super) async fn change_server(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    change(&api, None, &headers, body).await
}

pub(super) async fn model_settings(
    State(api): State<Api>,
    path: ModelPath,
) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    Ok(json(StatusCode::OK, &api.traces().view(Some(&model.name))))
}

pub(super) async fn change_model(
    State(api): State<Api>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    change(&api, Some(&model.name), &headers, body).await
}

async fn change(
    api: &Api,
    model: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let settings: BTreeMap<String, Value> = read_small_json(body).await?.unwrap_or_default();
    api.check_control_from(headers, "change trace settings")?;
    let changes = settings.into_iter().map(|(name, value)| {
        let texts = texts(&name, value)?;
        Ok((name, texts))
    });
    let changes = changes.collect::<Result<Changes, Error>>()?;
    Ok(json(StatusCode::OK, &api.traces().change(model, &changes)?))
}

/// A string, a number, a list of strings, or null.
fn texts(name: &str, value: Value) -> Result<Option<Vec<String>>, Error> {
    let odd = |came: &Value| {
        let expected = "a string, a number, a list of strings or null";
        Error::InvalidInput(format!("trace setting `{name}`: expected {expected}, got {came}"))
    };
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(vec![text])),
        Value::Number(number) => {
            let whole = number.as_f64().and_then(|number| Parameter::Number(number).as_count());
            Ok(Some(vec![whole.map_or_else(|| number.to_string(), |whole| whole.to_string())]))
        }
        Value::Array(values) => {
            let texts = values.into_iter().map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(odd(&other)),
            });
            texts.collect::<Result<_, _>>().map(Some)
        }
        other @ (Value::Bool(_) | Value::Object(_)) => Err(odd(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(list: &[(&str, &str)]) -> Changes {
        let changes = list.iter().map(|(name, value)| {
            let value = (!value.is_empty()).then(|| vec![(*value).to_owned()]);
            ((*name).to_owned(), value)
        });
        changes.collect()
    }

    fn taken(traces: &Traces, model: &str, requests: usize) -> usize {
        (0..requests).filter(|_| traces.lock().take(model)).count()
    }

    #[test]
    fn rate_and_count_hold() {
        let traces = Traces::new();
        assert_eq!(taken(&traces, "a", 10), 0);
        let all = [("trace_level", "TIMESTAMPS"), ("trace_rate", "2"), ("trace_count", "3")];
        traces.change(Some("a"), &changes(&all)).expect("good");
        assert_eq!((taken(&traces, "b", 10), taken(&traces, "a", 4)), (0, 2));
        assert_eq!(traces.view(Some("a")).trace_count, "1");
        assert_eq!(taken(&traces, "a", 10), 1);
        traces.change(Some("a"), &changes(&[("trace_level", "")])).expect("good");
        assert_eq!(taken(&traces, "a", 10), 0);
    }

    #[test]
    fn a_change_is_whole_or_not_at_all() {
        let traces = Traces::new();
        let before = traces.view(None);
        for odd in ["trace_rate", "trace_count", "trace_level", "trace_file", "trace_mode", "more"]
        {
            let asked = changes(&[("log_frequency", "7"), (odd, "-7")]);
            assert_eq!(traces.change(None, &asked).expect_err(odd).kind(), "invalid-input");
        }
        assert_eq!(traces.view(None), before);
        let tensors = traces.change(None, &changes(&[("trace_level", "TENSORS")]));
        assert_eq!(tensors.expect_err("not offered").kind(), "unsupported");
    }
}
